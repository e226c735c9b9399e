"""Networks of torchvision: ``torchvision:NAME`` or ``torchvision:NAME/WEIGHTS``, and modules."""

from enum import Enum
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._weights import load_file
from ._hub import from_hub, imported, unknown
from ._network import Network, Source, TokenNetwork, tap, tapped_outputs

PREFIX, EXTRA = "torchvision:", "torchvision"
# Those of torchvision's first weights of each network, for a module of unknown weights.
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
_IMAGENET |= {"image_size": 224, "crop_pct": 224 / 256}
# Layers with weights in the classifiers of torchvision, where there is more than one.
_N_LAYERS = {"AlexNet": 3, "VGG": 3, "MobileNetV3": 2, "MaxVit": 2}
# These do not average.
_WITHOUT_AVERAGE = ("AlexNet", "VGG", "MaxVit")
# Their pretrained weights are for pixels that they normalise in another way by themselves.
_NORMALISE = ("inception_v3", "googlenet")


def create(name: str, weights: str | Enum | None, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none."""
    models = imported("torchvision.models", EXTRA, name)
    architecture, _, version = name.removeprefix(PREFIX).partition("/")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown(name, architecture, known, f"{known[:3]} … of torchvision.models.list_models(module=torchvision.models)")
    versions = models.get_model_weights(architecture)
    names = [one.name for one in versions]
    if version and version not in versions.__members__:
        raise ValueError(f"{name!r} names unknown weights; torchvision has {names} of {architecture}")
    if isinstance(weights, Enum) and weights not in versions:
        raise ValueError(f"weights={weights} are not those of {name!r}; torchvision has {names}")
    chosen = weights if isinstance(weights, Enum) else versions[version] if version else versions.DEFAULT
    own = dict(options)
    is_pretrained = weights == "auto" or isinstance(weights, Enum)
    if architecture.startswith("vit_") and (image_size is not None or not is_pretrained):
        own["image_size"] = image_size or from_weights(chosen)["image_size"]
    if architecture in _NORMALISE and isinstance(weights, str):
        own.setdefault("transform_input", True)
    build = partial(models.get_model, architecture, weights=chosen if is_pretrained else None, **own)
    module = from_hub(name, build, what="pretrained weights" if is_pretrained else "network")
    network = adopt(module, image_size, chosen)
    load_file(module, weights)
    return network


def owns(module: nn.Module) -> bool:
    """Whether a module is one of torchvision's classifiers."""
    return type(module).__module__.startswith("torchvision.models.")


def adopt(module: Any, image_size: int | None, weights: object) -> Network:
    """A network from a module, whose classifier is removed in place; its preprocessing is that of torchvision's weights."""
    _remove_classifier(module)
    load_file(module, weights)
    preprocessing = from_weights(weights) if isinstance(weights, Enum) else dict(_IMAGENET)
    is_transformer = hasattr(module, "class_token") and hasattr(module, "encoder")
    if is_transformer:
        preprocessing["image_size"] = module.image_size
    tokens = (lambda pool, layers: TorchvisionTokens(module, pool, layers)) if is_transformer else None
    own_pool = "token" if is_transformer else "other" if type(module).__name__ in _WITHOUT_AVERAGE else "avg"
    return Network(module, preprocessing, own_pool=own_pool, tokens=tokens)


def from_weights(weights: Any) -> dict[str, Any]:
    """Fields of `Preprocessing` that the transforms of torchvision's weights stand for."""
    transforms: Any = getattr(weights, "transforms", lambda: None)()
    if not hasattr(transforms, "crop_size"):
        raise ValueError(
            f"weights={weights} are not those of a classifier of torchvision.models, such as ResNet18_Weights.DEFAULT"
        )
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
        n_blocks = len(network.encoder.layers)
        super().__init__(network, pool, layers, n_prefix=1, has_class_token=True, n_blocks=n_blocks)
        tap(network.encoder.layers, layers)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens of the last blocks."""
        return [self.network.encoder.ln(block) for block in tapped_outputs(lambda: self.network(images))]


def _remove_classifier(module: nn.Module) -> None:
    """Replace the last layer of a classifier by the identity, in place; a head that is not torchvision's own stays."""
    head = next((name for name in ("fc", "classifier", "heads", "head") if hasattr(module, name)), None)
    if head is None:
        return
    layers = [f"{head}.{name}".rstrip(".") for name, layer in module.get_submodule(head).named_modules() if _has_weights(layer)]
    if len(layers) == _N_LAYERS.get(type(module).__name__, 1):
        owner, _, name = layers[-1].rpartition(".")
        setattr(module.get_submodule(owner), name, nn.Identity())


def _has_weights(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv2d)


TORCHVISION = Source(PREFIX, create, owns, adopt)
