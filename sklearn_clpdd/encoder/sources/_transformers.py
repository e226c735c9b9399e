"""Networks of transformers: ``transformers:NAME``, of the hub or of a local folder, and objects."""

import inspect
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._weights import load_strictly, read_state_dicts
from ._hub import from_hub, imported
from ._network import Network, Source, TokenNetwork

PREFIX, EXTRA = "transformers:", "transformers"


class _Family(NamedTuple):
    """A kind of vision transformer: its final norm, whether its output is normed, and what its authors probe."""

    norm: str
    is_normed: bool = True
    probed: str = "token"


# By model_type. Others give their pooled output, and the tokens of the last block as they are.
_FAMILIES = {
    "beit": _Family("layernorm", probed="own"),
    "clip_vision_model": _Family("post_layernorm", is_normed=False),
    "data2vec-vision": _Family("layernorm", probed="own"),
    "deit": _Family("layernorm"),
    "dinov2": _Family("layernorm"),
    "dinov2_with_registers": _Family("layernorm"),
    "dinov3_vit": _Family("norm"),
    "ijepa": _Family("layernorm", probed="avg"),
    "siglip_vision_model": _Family("post_layernorm", probed="own"),
    "vit": _Family("layernorm"),
    "vit_mae": _Family("layernorm"),
    "vit_msn": _Family("layernorm"),
}


def create(name: str, weights: str | None, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none."""
    path = name.removeprefix(PREFIX)
    library = imported("transformers", EXTRA, name)
    if weights == "auto":
        model, info = from_hub(name, lambda: library.AutoModel.from_pretrained(path, output_loading_info=True, **options))
        network = adopt(model, image_size)
        lost = [key for key in info["missing_keys"] if _is_used(key, network.module)]
        if lost:
            raise ValueError(f"the weights of {name!r} lack {len(lost)} parameters ({', '.join(sorted(lost)[:5])}, …)")
        return network
    config = from_hub(name, lambda: library.AutoConfig.from_pretrained(path, **options))
    model = library.AutoModel.from_config(config)
    network = adopt(model, image_size, path=path)
    if weights is not None:
        load_strictly(model, read_state_dicts(weights), weights)
    return network


def owns(module: nn.Module) -> bool:
    """Whether a module is one of transformers'."""
    return type(module).__module__.startswith("transformers.models.")


def adopt(module: Any, image_size: int | None = None, weights: object = None, *, path: str | None = None) -> Network:
    """A network from a model object, without its text tower and its head."""
    preprocessing = _preprocessing(path or str(getattr(module, "name_or_path", "")))
    model = module if hasattr(module, "embeddings") else getattr(module, "base_model", module)  # without a head
    model = getattr(model, "vision_model", model)
    config = model.config
    for part in (config, *model.modules()):
        if hasattr(part, "name_or_path"):
            part.name_or_path = ""  # the same network in another folder is the same
    family = _FAMILIES.get(config.model_type)
    if family is not None and family.probed != "own" and hasattr(model, "pooler"):
        model.pooler = None  # it serves another feature, and its weights are often missing
    if getattr(config, "mask_ratio", 0):
        config.mask_ratio = 0.0
    side = image_size or preprocessing.get("image_size") or _side(getattr(config, "image_size", 224))
    _resample_positions(model, side)
    own = _PooledOutput(model)
    tokens = None
    if family is not None or getattr(config, "patch_size", None) is not None:
        tokens = lambda pool, layers: TransformersTokens(model, pool, layers, side)  # noqa: E731
    return Network(own, preprocessing, "other", "own" if family is None else family.probed, tokens)


def _side(size: Any) -> int:
    """The first side of a size, which may be a number."""
    return size if isinstance(size, int) else size[0]


class _Model(nn.Module):
    """Calls a model of transformers with images."""

    network: Any

    def call(self, images: Tensor, **options):
        """Output of the model."""
        accepted = inspect.signature(self.network.forward).parameters
        if "interpolate_pos_encoding" in accepted:
            options["interpolate_pos_encoding"] = True
        if "noise" in accepted:  # MAE shuffles the patches, and masks most of them
            patches = (images.shape[-1] // _side(self.network.config.patch_size)) ** 2
            options["noise"] = torch.arange(patches, dtype=images.dtype, device=images.device).expand(len(images), -1)
        return self.network(pixel_values=images, return_dict=True, **options)


class _PooledOutput(_Model):
    """The pooled output of a model, or the average over height and width."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output = self.call(images)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        last = output.last_hidden_state
        if last.ndim == 4:
            return last.mean(dim=(2, 3))
        raise ValueError(f"{type(self.network).__name__} does not pool its tokens; pass pool='token' or 'avg'")


class TransformersTokens(TokenNetwork, _Model):
    """Tokens of a vision transformer of transformers, after the final norm."""

    def __init__(self, network: Any, pool: str, layers: int, side: int):
        name = type(network).__name__
        self._family = _FAMILIES.get(network.config.model_type)
        if layers > 1 and self._family is None:
            raise ValueError(
                f"layers={layers} needs the tokens and the final norm of {name}; known are those of {sorted(_FAMILIES)}"
            )
        n_prefix = _n_prefix(network, side)
        if n_prefix < 0:
            raise ValueError(f"pool={pool!r} needs the tokens of a vision transformer, and {name} merges them; pass pool='auto'")
        n_blocks = getattr(network.config, "num_hidden_layers", 1)
        super().__init__(network, pool, layers, n_prefix=n_prefix, has_class_token=n_prefix > 0, n_blocks=n_blocks)
        if layers > 1:
            lists = (one for one in network.modules() if isinstance(one, nn.ModuleList) and len(one) == n_blocks)
            blocks = next(lists)
            for i in range(n_blocks - layers, n_blocks):
                blocks[i] = _Tapped(blocks[i])

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens of the last blocks."""
        family = self._family
        if self.layers == 1:
            last = self.call(images).last_hidden_state
            return [last if family is None or family.is_normed else getattr(self.network, family.norm)(last)]
        assert family is not None
        states: list[Tensor] = []
        _tapped.outputs = states
        try:
            self.call(images)
        finally:
            del _tapped.outputs
        norm = getattr(self.network, family.norm)
        return [norm(state) for state in states]


# Outputs of the tapped blocks in the present forward pass of a thread.
_tapped = threading.local()


class _Tapped(nn.Module):
    """A block that notes its output; hooks, by which transformers returns hidden states, could not be pickled."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *arguments, **options):
        """Output of the block."""
        output = self.block(*arguments, **options)
        if hasattr(_tapped, "outputs"):
            _tapped.outputs.append(output[0] if isinstance(output, tuple) else output)
        return output

    def __getattr__(self, name: str) -> Any:
        """An attribute of the block."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def _n_prefix(network: Any, side: int) -> int:
    """Tokens before those of the patches, found by a look at the output for an image of this side."""
    with torch.no_grad():
        n_tokens = _PooledOutput(network).call(torch.zeros(1, 3, side, side)).last_hidden_state.shape[1]
    return n_tokens - (side // _side(network.config.patch_size)) ** 2


def _resample_positions(model: Any, side: int) -> None:
    """Resample position embeddings to the image size once, and not in each pass."""
    embeddings: Any = getattr(model, "embeddings", None)
    positions, resample = (getattr(embeddings, name, None) for name in ("position_embeddings", "interpolate_pos_encoding"))
    if not isinstance(positions, nn.Parameter) or resample is None:
        return
    before, now = ((one // _side(model.config.patch_size)) ** 2 for one in (_side(model.config.image_size), side))
    with torch.no_grad():
        resampled = resample(positions.new_zeros(1, positions.shape[1] - before + now, positions.shape[2]), side, side)
    embeddings.position_embeddings = nn.Parameter(resampled.clone(), requires_grad=False)


def _is_used(key: str, module: nn.Module) -> bool:
    return any(name.endswith(key) or key.endswith(name) for name in module.state_dict())


def _preprocessing(path: str) -> dict[str, Any]:
    """What a model's image processor does, if it is at hand."""
    if not path:
        return {}
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(path)
    except Exception:  # no processor beside the weights, or no connection; the missing settings are asked for
        return {}
    return from_processor(processor, path)


def from_processor(processor, path: str) -> dict[str, Any]:
    """Fields of `Preprocessing` that an image processor stands for."""
    found: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_mode": "center"}
    if getattr(processor, "do_normalize", True):
        found |= {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    interpolations = {2: "bilinear", 3: "bicubic"}
    found["interpolation"] = interpolations.get(int(processor.resample), f"resample={processor.resample!r}")
    size, crop = (dict(getattr(processor, name, None) or {}) for name in ("size", "crop_size"))
    resized = size.get("shortest_edge") or size.get("height")
    if size.get("height") != size.get("width") or not resized or (crop and crop.get("height") != crop.get("width")):
        raise ValueError(f"the image processor of {path!r} has size={size} and crop_size={crop}, and images here are square")
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
