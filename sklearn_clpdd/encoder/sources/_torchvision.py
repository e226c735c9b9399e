"""Networks of torchvision: ``torchvision:NAME`` or ``torchvision:NAME/WEIGHTS``, and modules."""

from enum import Enum
from typing import Any

from torch import Tensor, nn

from .._weights import load_strictly, read_state_dicts
from ._hub import from_hub, imported, unknown
from ._network import Network, Source, TokenNetwork

PREFIX, EXTRA = "torchvision:", "torchvision"
# Those of torchvision's first weights of each network, for a module of unknown weights.
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
_IMAGENET |= {"image_size": 224, "crop_pct": 224 / 256}


def create(name: str, weights: str | Enum | None, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none."""
    models = imported("torchvision.models", EXTRA, name)
    architecture, _, version = name.removeprefix(PREFIX).partition("/")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown(name, architecture, known, f"{known[:3]} … of torchvision.models.list_models(module=torchvision.models)")
    versions = models.get_model_weights(architecture)
    if version and version not in versions.__members__:
        raise ValueError(f"{name!r} names unknown weights; torchvision has {[one.name for one in versions]} of {architecture}")
    chosen = weights if isinstance(weights, Enum) else versions[version] if version else versions.DEFAULT
    if chosen not in versions:
        raise ValueError(f"weights={chosen} are not those of {name!r}; torchvision has {[one.name for one in versions]}")
    sized = dict(options)
    if image_size is not None and architecture.startswith("vit_"):
        sized["image_size"] = image_size
    wanted = chosen if weights == "auto" or isinstance(weights, Enum) else None
    module = from_hub(name, lambda: models.get_model(architecture, weights=wanted, **sized))
    if isinstance(weights, str) and weights != "auto":
        load_strictly(module, read_state_dicts(weights), weights)
    return adopt(module, image_size, chosen)


def owns(module: nn.Module) -> bool:
    """Whether a module is one of torchvision's classifiers."""
    return type(module).__module__.startswith("torchvision.models.")


def adopt(module: Any, image_size: int | None = None, weights: object = None) -> Network:
    """A network from a module, whose classifier is removed in place."""
    _remove_classifier(module)
    preprocessing = from_weights(weights) if isinstance(weights, Enum) else dict(_IMAGENET)
    is_transformer = hasattr(module, "class_token") and hasattr(module, "encoder")
    if is_transformer:
        preprocessing["image_size"] = module.image_size
    tokens = (lambda pool, layers: TorchvisionTokens(module, pool, layers)) if is_transformer else None
    has_average = any(isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)) for layer in module.modules())
    return Network(module, preprocessing, "token" if is_transformer else "avg" if has_average else "other", "own", tokens)


def from_weights(weights: Any) -> dict[str, Any]:
    """Fields of `Preprocessing` that the transforms of torchvision's weights stand for."""
    transforms = weights.transforms()
    side, resized = transforms.crop_size[0], transforms.resize_size[0]
    return {
        "image_size": side,
        "crop_pct": side / resized,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "interpolation": transforms.interpolation.value,
    }


class TorchvisionTokens(TokenNetwork):
    """Tokens of torchvision's vision transformers, after the final norm."""

    def __init__(self, network: Any, pool: str, layers: int):
        from torchvision.models.feature_extraction import create_feature_extractor

        n_blocks = len(network.encoder.layers)
        super().__init__(network, pool, layers, n_prefix=1, has_class_token=True, n_blocks=n_blocks)
        blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(n_blocks - layers, n_blocks)]
        self.norm = network.encoder.ln
        self.network = create_feature_extractor(network, {block: block for block in blocks})

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens of the last blocks."""
        return [self.norm(block) for block in self.network(images).values()]


def _remove_classifier(module: nn.Module) -> None:
    """Replace the last layer with weights of the head by the identity, in place."""
    for head in ("fc", "classifier", "heads", "head"):
        if not hasattr(module, head):
            continue
        owner: nn.Module = module
        name = head
        while not isinstance(getattr(owner, name), nn.Linear | nn.Conv2d):
            owner = getattr(owner, name)
            layers = [key for key, layer in owner.named_children() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Sequential)]
            if not layers:
                return
            name = layers[-1]
        setattr(owner, name, nn.Identity())
        return


TORCHVISION = Source(PREFIX, create, owns, adopt)
