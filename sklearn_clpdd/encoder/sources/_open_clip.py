"""Image towers of open_clip: ``open_clip:NAME/PRETRAINED``, and objects.

Features are those before the projection; of ResNets, the output of the attention pool, which projects.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._preprocessing import INTERPOLATIONS
from .._weights import load_file
from ._hub import from_hub, imported, unknown
from ._network import Network, Source, TokenNetwork
from ._timm import adopt as adopt_timm

PREFIX, EXTRA = "open_clip:", "open-clip"
_SCHEMES = ("hf-hub:", "local-dir:")
_MODES = {"shortest": "center", "squash": "squash"}


def create(name: str, weights: str | None, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none."""
    library = imported("open_clip", EXTRA, name)
    rest = name.removeprefix(PREFIX)
    is_folder = rest.startswith(_SCHEMES)
    architecture, _, pretrained = (rest, "", "") if is_folder else rest.partition("/")
    if not is_folder and architecture not in library.list_models():
        raise unknown(name, architecture, library.list_models(), "the names of open_clip.list_models()")
    tags = [] if is_folder else library.list_pretrained_tags_by_model(architecture)
    if weights == "auto" and not is_folder and pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(
            f"{name!r} names no weights; pass {PREFIX}{architecture}/PRETRAINED with a file or one of {tags}, "
            "weights= a checkpoint, or weights=None"
        )
    own: dict[str, Any] = dict(options) if image_size is None else {"force_image_size": image_size, **options}
    own |= {"pretrained": pretrained or None} if weights == "auto" else {"load_weights": False}
    what = "pretrained weights" if weights == "auto" else "network"
    return adopt(from_hub(name, lambda: library.create_model(architecture, **own), what=what), image_size, weights)


def owns(module: nn.Module) -> bool:
    """Whether a module is one of open_clip's."""
    return type(module).__module__.startswith("open_clip.")


def adopt(module: Any, image_size: int | None, weights: object) -> Network:
    """A network from a CLIP model or its image tower, which loses its projection in place."""
    visual = getattr(module, "visual", module)
    load_file(visual, weights)
    preprocessing, problem = _preprocessing(visual)
    trunk = getattr(visual, "trunk", None)
    pools_after_trunk = trunk is not None and hasattr(visual.head, "pool")
    if trunk is not None and not pools_after_trunk:
        return replace(adopt_timm(trunk, image_size, None), preprocessing=preprocessing, problem=problem)
    if getattr(visual, "proj", None) is not None:
        visual.proj = None
    visual.output_tokens = False
    is_transformer = hasattr(visual, "forward_intermediates") and hasattr(visual, "transformer")
    by_token = is_transformer and getattr(visual, "pool_type", "") == "tok" and getattr(visual, "attn_pool", None) is None
    tokens = (lambda pool, layers: OpenClipTokens(visual, pool, layers)) if by_token else None
    return Network(visual, preprocessing, problem, own_pool="token" if by_token else "other", tokens=tokens)


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


def _preprocessing(visual: Any) -> tuple[dict[str, Any], str]:
    """Fields of `Preprocessing`, and why they are not what open_clip does."""
    own = dict(getattr(visual, "preprocess_cfg", None) or {})
    found = {key: tuple(own[key]) for key in ("mean", "std") if own.get(key)}
    side = own.get("size", getattr(visual, "image_size", None))
    if side is not None:
        found["input_size"] = (3, *((side, side) if isinstance(side, int) else side))
    mode, interpolation = own.get("resize_mode", "shortest"), own.get("interpolation", "bicubic")
    if mode not in _MODES or interpolation not in INTERPOLATIONS:
        return (
            found,
            f"its preprocess_cfg has resize_mode={mode!r} and interpolation={interpolation!r}, which are not available here",
        )
    return {**found, "interpolation": interpolation, "crop_mode": _MODES[mode]}, ""


OPEN_CLIP = Source(PREFIX, create, owns, adopt)
