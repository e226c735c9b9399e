"""Networks of timm: its names, ``hf-hub:`` and ``local-dir:`` folders in its format, the names of this library, and modules."""

import importlib
import importlib.util
import inspect
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...utils._torch_compat import has_fixed_input_size, pretrained_config
from .._weights import StateDict, load_file, load_strictly, read_state_dicts
from ._hub import from_hub, unknown
from ._names import BACKBONES, BackboneSpec
from ._network import Network, Source, TokenNetwork, name_of

_SCHEMES = ("hf-hub:", "hf_hub:", "local-dir:")
# What the authors of these families probe, where timm pools in another way. Parts of timm's names.
_PROBED = {"_dinov3": "token"}


def create(name: str, weights: str | None, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none."""
    spec = BACKBONES.get(name, BackboneSpec(name))
    _check_name(name, spec.architecture)
    wanted = {**spec.preprocessing, **({} if image_size is None else {"image_size": image_size})}
    network = adopt(create_module(spec, weights, wanted.get("image_size"), options), image_size, None)
    probed = "own" if "global_pool" in options else network.probed
    return replace(network, preprocessing={**network.preprocessing, **wanted}, probed=probed)


def owns(module: nn.Module) -> bool:
    """Whether a module is one of timm's, or has a configuration as timm's have."""
    return type(module).__module__.startswith("timm.models.") or bool(pretrained_config(module))


def adopt(module: Any, image_size: int | None, weights: object) -> Network:
    """A network from a module, whose classifier is removed in place."""
    _without_classifier(module)
    load_file(module, weights)
    own = pretrained_config(module)
    preprocessing = {key: own[key] for key in ("mean", "std", "crop_pct", "interpolation", "crop_mode") if own.get(key)}
    if own:
        preprocessing["input_size"] = tuple(own["input_size"])
    kinds = {"token": "token", "avg": "avg"} if not hasattr(module, "head_dist") else {}  # which averages two tokens
    own_pool = kinds.get(_pool_type(module), "other")
    has_tokens = hasattr(module, "num_prefix_tokens") and hasattr(module, "blocks")
    probed = next((pool for part, pool in _PROBED.items() if part in str(own.get("architecture", ""))), "own")
    tokens = (lambda pool, layers: TimmTokens(module, pool, layers)) if has_tokens else None
    return Network(module, preprocessing, own_pool=own_pool, probed=probed if has_tokens else "own", tokens=tokens)


def _without_classifier(module: Any) -> Any:
    if hasattr(module, "reset_classifier"):
        kind = _pool_type(module)
        # Up to timm 1.0.20 another pool than the average would be lost.
        module.reset_classifier(0, *([kind] if kind in ("max", "avgmax", "catavgmax") else []))
    return module


def _pool_type(module: Any) -> str:
    """How a network of timm pools: for transformers a word, else a layer of the network or of its head."""
    layers = [getattr(owner, "global_pool", None) for owner in (module, getattr(module, "head", None))]
    kinds = [getattr(layer, "pool_type", layer) for layer in layers]
    return next((kind for kind in kinds if isinstance(kind, str) and kind), "other")


class TimmTokens(TokenNetwork):
    """Tokens of timm's vision transformers, after the final norm."""

    def __init__(self, network: Any, pool: str, layers: int):
        class_tokens = [getattr(owner, "cls_token", None) for owner in (network, getattr(network, "embeds", None))]
        sizes = {"n_prefix": network.num_prefix_tokens, "n_blocks": len(network.blocks)}
        super().__init__(network, pool, layers, has_class_token=any(one is not None for one in class_tokens), **sizes)
        self.after_pooling = getattr(network, "fc_norm", None) or nn.Identity()
        needed = {"norm", "output_fmt", "return_prefix_tokens"}
        if layers > 1 and not needed <= set(inspect.signature(network.forward_intermediates).parameters):
            raise ValueError(
                f"layers={layers} needs the tokens of earlier blocks, which timm does not return for {name_of(self)}"
            )

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens of the last blocks."""
        if self.layers == 1:
            return [self.network.forward_features(images)]
        options = {"norm": True, "output_fmt": "NLC", "intermediates_only": True, "return_prefix_tokens": self.n_prefix > 0}
        blocks = self.network.forward_intermediates(images, indices=self.layers, **options)
        return [torch.cat([block[1], block[0]], dim=1) if isinstance(block, tuple) else block for block in blocks]

    def normalized(self, pooled: Tensor) -> Tensor:
        """The norm that timm's networks have after an average."""
        return self.after_pooling(pooled)


def _check_name(name: str, architecture: str) -> None:
    import timm

    if architecture.startswith("local-dir:") and not (_folder(architecture) / "config.json").is_file():
        raise FileNotFoundError(f"{name!r} needs a folder with config.json and weights, as timm and the hub save models")
    if architecture.startswith(_SCHEMES):
        return
    try:
        timm.get_pretrained_cfg(architecture)
        if timm.is_model(architecture):
            return
    except RuntimeError:  # an unknown tag
        pass
    hint = f"; a repository of the hub is 'transformers:{name}' or 'hf-hub:{name}'" if "/" in name else ""
    accepted = (
        f"{sorted(BACKBONES)}, all names of timm.list_models(), and 'hf-hub:', 'local-dir:', 'transformers:', 'open_clip:' and "
        "'torchvision:' followed by a name" + hint
    )
    raise unknown(name, name, {*BACKBONES, *timm.list_models()}, accepted)


def create_module(spec: BackboneSpec, weights: str | None, image_size: int | None, options: dict[str, Any]) -> nn.Module:
    """timm's module without its classifier, with the requested weights."""
    name = spec.architecture
    sized = dict(options)
    if image_size and "img_size" not in options and _has_fixed_size(name, options):
        sized["img_size"] = image_size
    packaged = _packaged_weights(spec) if weights == "auto" else None
    if weights == "auto" and packaged is None and spec.hub_id is None:
        # timm loads a checkpoint strictly if the model has the checkpoint's classifier.
        return _without_classifier(from_hub(name, lambda: _timm_model(name, pretrained=True, **sized), _installed()))
    if name.startswith(_SCHEMES):
        module = _without_classifier(from_hub(name, lambda: _timm_model(name, pretrained=False, **sized), what="configuration"))
    else:
        module = _timm_model(name, num_classes=0, **sized)
    if packaged is not None:
        load_strictly(module, [StateDict("", _packaged_state(name, packaged))], packaged)
    elif weights == "auto" and spec.hub_id is not None:
        import timm

        hub_id = spec.hub_id
        state = from_hub(name, lambda: timm.models.load_state_dict_from_hf(hub_id, weights_only=True), _installed())
        load_strictly(module, [StateDict("", state)], hub_id)
    load_file(module, weights)
    return module


def _timm_model(name: str, **options) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        raise ValueError(f"timm cannot build {name!r} with model_kwargs={options}: {error}") from error


def _has_fixed_size(architecture: str, options: dict[str, Any]) -> bool:
    """Whether timm has to be told the image size when it builds a model."""
    if options.get("dynamic_img_size"):
        return False
    if architecture.startswith("local-dir:"):
        content = json.loads((_folder(architecture) / "config.json").read_text())
        config, architecture = content.get("pretrained_cfg", content), content["architecture"]
    elif architecture.startswith(_SCHEMES):
        import timm

        load = partial(timm.models.load_model_config_from_hf, architecture.partition(":")[2])
        config, architecture, _ = from_hub(architecture, load, what="configuration")
    else:
        config = {}
    return bool(config.get("fixed_input_size", has_fixed_input_size(architecture)))


def _folder(architecture: str) -> Path:
    return Path(architecture.removeprefix("local-dir:")).expanduser()


def _packaged_weights(spec: BackboneSpec) -> str | None:
    """Path of the weights in an installed package, if there is one."""
    if spec.package is None:
        return None
    package, name = spec.package.split(":")
    if importlib.util.find_spec(package) is None:
        return None
    return getattr(importlib.import_module(package), name).get_model_file_path()


def _installed() -> str:
    installed = sorted(name for name, spec in BACKBONES.items() if _packaged_weights(spec))
    return f", or choose an encoder whose weights are installed, one of {installed}"


def _packaged_state(architecture: str, path: str) -> dict[str, Tensor]:
    """State dict of a package, which keeps its authors' parameter names in timm's order, with timm's names."""
    import timm

    full, state = timm.create_model(architecture).state_dict(), read_state_dicts(path)[0].tensors
    kinds = [[(key.rpartition(".")[2], value.shape) for key, value in each.items()] for each in (full, state)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"the weights in {path} do not fit {architecture}: their number, kinds or shapes differ. "
            "Install another version of the package, or pass weights= a checkpoint"
        )
    return dict(zip(full, state.values(), strict=True))


TIMM = Source("", create, owns, adopt)
