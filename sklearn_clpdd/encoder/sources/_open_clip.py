"""Image towers of open_clip: ``open_clip:NAME/PRETRAINED``, and objects. Features are those before the projection."""

from typing import Any

import torch
from torch import Tensor, nn

from .._weights import load_strictly, read_state_dicts
from ._hub import from_hub, imported, unknown
from ._network import Network, Source, TokenNetwork
from ._timm import adopt as adopt_timm

PREFIX, EXTRA = "open_clip:", "open-clip"
_SCHEMES = ("hf-hub:", "local-dir:")


def create(name: str, weights: str | None, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none."""
    library = imported("open_clip", EXTRA, name)
    rest = name.removeprefix(PREFIX)
    architecture, _, pretrained = (rest, "", "") if rest.startswith(_SCHEMES) else rest.partition("/")
    if not rest.startswith(_SCHEMES) and architecture not in library.list_models():
        raise unknown(name, architecture, library.list_models(), "the names of open_clip.list_models()")
    if weights == "auto" and not pretrained and not rest.startswith(_SCHEMES):
        tags = library.list_pretrained_tags_by_model(architecture)
        raise ValueError(f"{name!r} names no weights; pass {name}/PRETRAINED with one of {tags}, weights= a checkpoint, or None")
    sized = dict(options) if image_size is None else {"force_image_size": image_size, **options}
    own = {"pretrained": pretrained or None} if weights == "auto" else {"load_weights": False}
    model = from_hub(name, lambda: library.create_model(architecture, **own, **sized))
    if weights not in (None, "auto"):
        load_strictly(model.visual, read_state_dicts(weights), weights)
    return adopt(model)


def owns(module: nn.Module) -> bool:
    """Whether a module is one of open_clip's."""
    return type(module).__module__.startswith("open_clip.")


def adopt(module: Any, image_size: int | None = None, weights: object = None) -> Network:
    """A network from a CLIP model or its image tower, whose projection is removed in place."""
    visual = getattr(module, "visual", module)
    preprocessing = _preprocessing(visual)
    trunk = getattr(visual, "trunk", None)
    if trunk is not None and "pool" not in dict(visual.head.named_children()):
        network = adopt_timm(trunk)
        return Network(network.module, preprocessing, network.own_pool, network.probed, network.tokens)
    if getattr(visual, "proj", None) is not None:
        visual.proj = None
    visual.output_tokens = False
    is_transformer = hasattr(visual, "forward_intermediates") and hasattr(visual, "transformer")
    by_token = is_transformer and getattr(visual, "pool_type", "") == "tok" and getattr(visual, "attn_pool", None) is None
    tokens = (lambda pool, layers: OpenClipTokens(visual, pool, layers)) if by_token else None
    return Network(visual, preprocessing, "token" if by_token else "other", "own", tokens)


class OpenClipTokens(TokenNetwork):
    """Tokens of open_clip's vision transformers, after the final norm."""

    def __init__(self, network: Any, pool: str, layers: int):
        n_blocks = len(network.transformer.resblocks)
        super().__init__(network, pool, layers, n_prefix=1, has_class_token=True, n_blocks=n_blocks)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens of the last blocks."""
        options = {"normalize_intermediates": True, "intermediates_only": True, "output_fmt": "NLC", "output_extra_tokens": True}
        found = self.network.forward_intermediates(images, indices=self.layers, **options)
        parts = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
        return [torch.cat([prefix, patches], dim=1) for prefix, patches in parts]


def _preprocessing(visual: Any) -> dict[str, Any]:
    own = dict(getattr(visual, "preprocess_cfg", None) or {})
    found = {key: tuple(own[key]) for key in ("mean", "std") if own.get(key)}
    side = own.get("size", getattr(visual, "image_size", None))
    if side is not None:
        found["input_size"] = (3, *((side, side) if isinstance(side, int) else side))
    modes = {"shortest": "center", "squash": "squash"}
    mode = own.get("resize_mode", "shortest")
    return {**found, "interpolation": own.get("interpolation", "bicubic"), "crop_mode": modes.get(mode, f"resize_mode={mode!r}")}


OPEN_CLIP = Source(PREFIX, create, owns, adopt)
