"""Networks of transformers: ``transformers:NAME``, of the hub or of a local folder, and objects."""

import inspect
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from .._preprocessing import Preprocessing
from .._weights import load_file
from ._hub import check_folder, from_hub, imported
from ._network import Network, Source, TokenNetwork, Wrapped, tap, tapped_outputs, unwrapped
from ._timm import adopt as adopt_timm

PREFIX, EXTRA = "transformers:", "transformers"
# Differences of pixels in [0, 1] to those of an image processor, which rounds to 8 bits: on average, and at most.
_MEAN_ERROR, _LARGEST_ERROR = 0.01, 0.1


class _Family(NamedTuple):
    """A kind of vision transformer: its final norm, whether its output is normed, what its authors probe, a norm of averages."""

    norm: str
    is_normed: bool = True
    probed: str = "token"
    norm_of_average: str | None = None


_CLIP = _Family("post_layernorm", is_normed=False)
_BEIT = _Family("layernorm", probed="avg", norm_of_average="pooler.layernorm")
# By model_type. Other networks give their pooled output only.
_FAMILIES = {
    "beit": _BEIT,
    "chinese_clip_vision_model": _CLIP,
    "clip_vision_model": _CLIP,
    "data2vec-vision": _BEIT,
    "deit": _Family("layernorm"),
    "dinov2": _Family("layernorm"),
    "dinov2_with_registers": _Family("layernorm"),
    "dinov3_vit": _Family("norm"),
    "ijepa": _Family("layernorm", probed="avg"),
    "metaclip_2_vision_model": _CLIP,
    "siglip_vision_model": _Family("post_layernorm", probed="own"),
    "vit": _Family("layernorm"),
    "vit_mae": _Family("layernorm"),
    "vit_msn": _Family("layernorm"),
}


def create(name: str, weights: str | None, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none."""
    path = name.removeprefix(PREFIX)
    library = imported("transformers", EXTRA, name)
    check_folder(name, path, "one that save_pretrained has written, or a repository of the hub")
    if weights == "auto":
        model, info = from_hub(name, lambda: library.AutoModel.from_pretrained(path, output_loading_info=True, **options))
        names = {part: key for key, part in model.named_modules()}
        network = adopt(model, image_size, None)
        used = unwrapped(network.module)
        own = {f"{names[used]}.{key}".lstrip(".") for key in used.state_dict()}
        lost = sorted(own.intersection(info["missing_keys"]))
        if lost:
            raise ValueError(
                f"the weights of {name!r} lack {len(lost)} parameters ({', '.join(lost[:5])}{', …' * (len(lost) > 5)})"
            )
        return network
    config = from_hub(name, lambda: library.AutoConfig.from_pretrained(path, **options), what="configuration")
    model = library.AutoModel.from_config(config)
    model.name_or_path = path
    return adopt(model, image_size, weights)


def owns(module: nn.Module) -> bool:
    """Whether a module is one of transformers'."""
    return type(module).__module__.startswith("transformers.models.")


def adopt(module: Any, image_size: int | None, weights: object) -> Network:
    """A network from a model object, without its text tower and its head."""
    preprocessing, problem = _preprocessing(str(getattr(module, "name_or_path", "")))
    model = getattr(module, module.base_model_prefix, module) if "For" in type(module).__name__ else module
    model = getattr(model, "vision_model", model).float()
    if hasattr(model, "timm_model"):
        return adopt_timm(model.timm_model, image_size, weights)
    for part in (model.config, *model.modules()):
        if hasattr(part, "name_or_path"):
            part.name_or_path = ""  # the same network in another folder is the same
    family = _FAMILIES.get(model.config.model_type)
    own = _PooledOutput(model)
    if family is None:
        load_file(model, weights)
        return Network(own, preprocessing, problem)
    side = image_size or preprocessing.get("image_size") or _side(model, "image_size")
    after_average = _submodule(model, family.norm_of_average)
    if family.probed != "own" and hasattr(model, "pooler"):
        model.pooler = None  # it serves another feature, and its weights are often missing
    load_file(model, weights)
    if getattr(model.config, "mask_ratio", 0):
        model.config.mask_ratio = 0.0
    _resample_positions(model, side)

    def tokens(pool: str, layers: int) -> TransformersTokens:
        return TransformersTokens(model, family, pool, layers, side, after_average)

    return Network(own, preprocessing, problem, probed=family.probed, tokens=tokens)


def _side(model: Any, name: str) -> int:
    """A side of images or patches in the configuration of a model."""
    size = getattr(model.config, name)
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"{type(model).__name__} has {name}={size}, and images and patches have to be square here")
    return sides.pop()


def _submodule(model: Any, name: str | None) -> nn.Module:
    """A layer by its name, if it is there."""
    owner, _, child = (name or "").rpartition(".")
    found = getattr(getattr(model, owner, None), child, None) if name else None
    return found if isinstance(found, nn.Module) else nn.Identity()


class _Model(Wrapped):
    """Calls a model of transformers with images."""

    def call(self, images: Tensor) -> Any:
        """Output of the model."""
        accepted = inspect.signature(self.network.forward).parameters
        options: dict[str, Any] = {}
        if "interpolate_pos_encoding" in accepted:
            options["interpolate_pos_encoding"] = True
        if "noise" in accepted:  # MAE shuffles the patches, and masks most of them
            patches = (images.shape[-1] // _side(self.network, "patch_size")) ** 2
            options["noise"] = torch.arange(patches, dtype=images.dtype, device=images.device).expand(len(images), -1)
        output = self.network(pixel_values=images, return_dict=True, **options)
        if getattr(output, "last_hidden_state", None) is None:
            raise ValueError(f"{type(self.network).__name__} returns no last_hidden_state; pass a model that AutoModel loads")
        return output


class _PooledOutput(_Model):
    """The pooled output of a model, or the average over height and width."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output = self.call(images)
        found = getattr(output, "pooler_output", None)
        if found is None:
            found = output.last_hidden_state
            if found.ndim != 4:
                raise ValueError(f"{type(self.network).__name__} does not pool its tokens; wrap it in a module that does")
        return found.mean(dim=(2, 3)) if found.ndim == 4 else found.flatten(1)


class TransformersTokens(TokenNetwork, _Model):
    """Tokens of a vision transformer of transformers, after the final norm."""

    def __init__(self, network: Any, family: _Family, pool: str, layers: int, side: int, after_average: nn.Module):
        n_blocks = network.config.num_hidden_layers
        n_prefix = _n_prefix(network, side)
        super().__init__(network, pool, layers, n_prefix=n_prefix, has_class_token=n_prefix > 0, n_blocks=n_blocks)
        self._family, self.after_average = family, after_average
        if layers > 1:
            lists = [one for one in network.modules() if isinstance(one, nn.ModuleList) and len(one) == n_blocks]
            tap(lists[0], layers)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens of the last blocks."""
        norm = getattr(self.network, self._family.norm)
        if self.layers > 1:
            return [norm(state) for state in tapped_outputs(lambda: self.call(images))]
        last = self.call(images).last_hidden_state
        return [last if self._family.is_normed else norm(last)]

    def normalized(self, pooled: Tensor) -> Tensor:
        """BEiT's norm after an average, where there is one."""
        return self.after_average(pooled)


def _n_prefix(network: Any, side: int) -> int:
    """Tokens before those of the patches, found by a look at the output for an image of this side."""
    with torch.no_grad():
        n_tokens = _PooledOutput(network).call(torch.zeros(1, 3, side, side)).last_hidden_state.shape[1]
    return n_tokens - (side // _side(network, "patch_size")) ** 2


def _resample_positions(model: Any, side: int) -> None:
    """Resample position embeddings to the image size once, and not in each pass."""
    embeddings: Any = getattr(model, "embeddings", None)
    positions, resample = (getattr(embeddings, name, None) for name in ("position_embeddings", "interpolate_pos_encoding"))
    if not isinstance(positions, nn.Parameter) or resample is None:
        return
    patch = _side(model, "patch_size")
    if side < patch:
        raise ValueError(f"image_size={side} is smaller than a patch of {type(model).__name__}, {patch} px")
    before, now = ((one // patch) ** 2 for one in (_side(model, "image_size"), side))
    with torch.no_grad():
        resampled = resample(positions.new_zeros(1, positions.shape[1] - before + now, positions.shape[2]), side, side)
    embeddings.position_embeddings = nn.Parameter(resampled.clone(), requires_grad=False)


def _preprocessing(path: str) -> tuple[dict[str, Any], str]:
    """What a model's image processor does, and why it is not known or not what is done here."""
    if not path:
        return {}, "it was not loaded from a folder or a repository, so that it has no image processor"
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(path)
    except Exception as error:  # there is none beside the weights, it cannot be read, or there is no connection
        return {}, f"its image processor cannot be loaded ({type(error).__name__}: {error})"
    return from_processor(processor)


def from_processor(processor: Any) -> tuple[dict[str, Any], str]:
    """Fields of `Preprocessing` that an image processor stands for, and a problem if its pixels are others."""
    name = type(processor).__name__
    try:
        found = _fields(processor)
        photo = load_sample_image("china.jpg")[:, 100:500]
        expected = torch.as_tensor(processor(photo, return_tensors="pt")["pixel_values"][0])
        own = Preprocessing(**found)
        mean, std = (torch.tensor(values)[:, None, None] for values in (own.mean, own.std))
        pixels = own(torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255)[0]
        difference = (pixels - (expected * std + mean)).abs()
    except Exception as error:  # processors of many kinds
        return {}, f"its {name} does what is not available here ({type(error).__name__}: {error})"
    if difference.mean() > _MEAN_ERROR or difference.max() > _LARGEST_ERROR:
        return {}, f"its {name} does what is not available here (pixels differ by up to {difference.max():.2f})"
    return found, ""


def _fields(processor: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_mode": "center"}
    if getattr(processor, "do_normalize", True):
        found |= {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    found["interpolation"] = {2: "bilinear", 3: "bicubic"}[int(processor.resample)]
    size, crop = (dict(getattr(processor, name, None) or {}) for name in ("size", "crop_size"))
    resized = size.get("shortest_edge") or size["height"]
    crop_pct = getattr(processor, "crop_pct", None)  # ConvNeXt's, which is not used from 384 px
    if crop and getattr(processor, "do_center_crop", False):
        found |= {"image_size": crop["height"], "crop_pct": crop["height"] / resized}
    else:
        found["image_size"] = resized
    if "shortest_edge" not in size:
        found["crop_mode"] = "squash"
    elif crop_pct:
        found |= {"crop_pct": crop_pct} if resized < 384 else {"crop_mode": "squash"}
    return found


TRANSFORMERS = Source(PREFIX, create, owns, adopt)
