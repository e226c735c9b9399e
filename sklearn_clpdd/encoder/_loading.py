"""From a name or a module to a frozen network, loaded once per process."""

import difflib
import importlib
import importlib.util
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..utils._fingerprint import module_digest
from ..utils._torch_compat import has_fixed_input_size, pretrained_config
from ..utils._torch_modes import standard_torch_modes
from ._backbone import Backbone
from ._copying import copy_module
from ._folding import fold
from ._frozen_layers import save_less_for_backward
from ._names import BACKBONES, BackboneSpec
from ._preprocessing import CROP_MODES, INTERPOLATIONS, Preprocessing
from ._verification import verified, warn_of_head
from ._weights import StateDict, load_strictly, read_state_dicts

# Loaded networks by source and image size; each maps the rest of the preprocessing to a backbone that shares the network.
_Cache = OrderedDict[tuple, dict[tuple, Backbone]]
_cache_by_name: _Cache = OrderedDict()
_cache_by_module: WeakKeyDictionary[nn.Module, _Cache] = WeakKeyDictionary()  # a module's networks are freed with it
# Held while a network is loaded, so that threads load it only once, and because untrained weights use torch's global generator.
_lock = RLock()
# How many networks are kept: in total for names, and for each module.
_MAX_CACHED_BY_NAME, _MAX_CACHED_PER_MODULE = 8, 4


def load_backbone(model: str | nn.Module, weights: str | os.PathLike | None, device: torch.device, **preprocessing) -> Backbone:
    """A frozen backbone, loaded once per process for the same content and configuration, from any thread.

    Parameters
    ----------
    model : str or nn.Module
        A key of `BACKBONES`, a timm name, or a module, which is copied and never changed.
    weights : "auto", path or None
        ``"auto"``: those of an installed package if there is one, else the hub's; for a module, its own.
        ``None``: untrained weights from a fixed seed; for a module, its own.
    device : torch.device
    **preprocessing
        Fields of `Preprocessing` that replace the model's own, unless they are None.

    Raises
    ------
    ValueError
        If the name is unknown, weights do not fit or leave a parameter untrained, a module's image size is unknown, or the
        network does not accept the image size.
    FileNotFoundError
        If a weights file does not exist.
    OSError
        If weights have to be downloaded and the hub cannot be reached.

    Notes
    -----
    A module may be changed in place between two calls. Each call therefore computes a digest of its weights (about 0.2 s for a
    ViT-B).
    """
    given = {name: value for name, value in preprocessing.items() if value is not None}
    for name in {"mean", "std"} & set(given):
        given[name] = tuple(map(float, given[name]))
        low, high = (1e-6, 1e6) if name == "std" else (-1, 1)
        if len(given[name]) != 3 or not all(low <= value <= high for value in given[name]):
            raise ValueError(
                f"{name} has to be three numbers {'> 0' if name == 'std' else 'from -1 to 1'}, one for each channel of RGB in "
                f"[0, 1]; got {given[name]}. Divide by 255 what is meant for values up to 255"
            )
    modified = None
    if weights is not None and weights != "auto":
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights={os.fspath(weights)!r} is not a file; pass a checkpoint's path, 'auto' or None")
        weights = os.path.abspath(weights)
        modified = os.stat(weights).st_mtime_ns
    content = model if isinstance(model, str) else (_layout(model), module_digest(model))
    source = (content, weights, modified, device)
    # Tensors that are created in inference mode never have gradients.
    with _lock, standard_torch_modes():
        if isinstance(model, str):
            cache, max_networks = _cache_by_name, _MAX_CACHED_BY_NAME
        else:
            cache, max_networks = _cache_by_module.setdefault(model, OrderedDict()), _MAX_CACHED_PER_MODULE
            for key in [key for key in cache if key[0][0] != content]:  # networks of the module's earlier states
                del cache[key]
        return _cached(cache, max_networks, source, given, lambda: _load(model, weights, device, given.get("image_size")))


def n_features_of(model: nn.Module, image_size: int | None) -> int | None:
    """Number of features of a module that this process has loaded, if its layers have not changed; does not read the weights."""
    with _lock:
        for (source, size), backbones in _cache_by_module.get(model, {}).items():
            if size == image_size and source[0][0] == _layout(model):
                return next(iter(backbones.values())).n_features
    return None


def _layout(module: nn.Module) -> tuple:
    """Layers of a module, and the shapes of its parameters."""
    return repr(module), *(tuple(parameter.shape) for parameter in module.parameters())


def _cached(cache: _Cache, max_networks: int, source: tuple, given: dict[str, Any], load: Callable[[], Backbone]) -> Backbone:
    """The backbone from the cache, or a loaded one. Backbones that differ only in crop or normalisation share one network."""
    key = (source, given.get("image_size"))
    if key not in cache:
        cache[key] = {(): load()}
    cache.move_to_end(key)
    while len(cache) > max_networks:
        cache.popitem(last=False)
    variants = cache[key]
    rest = {name: value for name, value in given.items() if name != "image_size"}
    variant = tuple(sorted(rest.items()))
    if variant not in variants:
        own = variants[()]
        preprocessing = replace(own.preprocessing, **rest)
        variants[variant] = Backbone(own.module, preprocessing, own.n_features, own.device, own.weights_sha256, own.layout)
    return variants[variant]


def _load(model: str | nn.Module, weights: str | None, device: torch.device, image_size: int | None) -> Backbone:
    """A network for an image size, with its own crop and normalisation."""
    size = {} if image_size is None else {"image_size": image_size}
    if isinstance(model, str):
        return _load_named(model, weights, device, size)
    module = copy_module(model)
    if weights is not None and weights != "auto":
        load_strictly(module, read_state_dicts(weights), weights)
    backbone = _freeze(module, _preprocessing(module, size), device, model)
    warn_of_head(model, backbone.n_features)
    return backbone


def _load_named(name: str, weights: str | None, device: torch.device, size: dict[str, int]) -> Backbone:
    import timm

    spec = BACKBONES.get(name, BackboneSpec(name))
    if not _is_known(spec.architecture):
        near = difflib.get_close_matches(name, sorted({*BACKBONES, *timm.list_models()}), n=5)
        raise ValueError(
            f"unknown encoder {name!r}; {f'did you mean one of {near}? ' if near else ''}"
            f"Known are {sorted(BACKBONES)} and all names of timm.list_models()"
        )
    wanted = {**spec.preprocessing, **size}
    state = torch.default_generator.get_state()
    try:  # untrained weights come from a fixed seed, and the caller's random state is restored
        torch.default_generator.manual_seed(0)
        module = _create(spec, weights, wanted.get("image_size"))
    finally:
        torch.default_generator.set_state(state)
    return _freeze(module, _preprocessing(module, wanted), device)


def _is_known(architecture: str) -> bool:
    import timm

    try:
        timm.get_pretrained_cfg(architecture)
    except RuntimeError:  # an unknown tag
        return False
    return timm.is_model(architecture) or architecture.startswith("hf-hub:")


def _create(spec: BackboneSpec, weights: str | None, image_size: int | None) -> nn.Module:
    """timm's module without its classifier, with the requested weights."""
    import timm

    sized: dict[str, Any] = {"img_size": image_size} if image_size and has_fixed_input_size(spec.architecture) else {}
    packaged = _packaged_weights(spec) if weights == "auto" else None
    if weights == "auto" and packaged is None and spec.hub_id is None:
        # timm loads a checkpoint strictly if the model has the checkpoint's classifier.
        module = _from_hub(spec, lambda: timm.create_model(spec.architecture, pretrained=True, **sized))
        module.reset_classifier(0)
        return module
    module = timm.create_model(spec.architecture, num_classes=0, **sized)
    if packaged is not None:
        load_strictly(module, [StateDict("", _packaged_state(spec.architecture, packaged))], packaged)
    elif weights == "auto" and spec.hub_id is not None:
        hub_id = spec.hub_id
        state = _from_hub(spec, lambda: timm.models.load_state_dict_from_hf(hub_id, weights_only=True))
        load_strictly(module, [StateDict("", state)], hub_id)
    elif weights is not None:
        load_strictly(module, read_state_dicts(weights), weights)
    return module


def _preprocessing(module: nn.Module, wanted: dict) -> Preprocessing:
    """timm's configuration if the module has one; other modules get values in [0, 1] without a crop."""
    own = pretrained_config(module)
    names = ("mean", "std", "crop_pct", "interpolation", "crop_mode")
    config: dict[str, Any] = {key: own[key] for key in names if own.get(key)}
    if own:
        channels, *sides = own["input_size"]
        if channels != 3 or (len(set(sides)) > 1 and "image_size" not in wanted):
            raise ValueError(
                f"the input of {type(module).__name__} has size {tuple(own['input_size'])}, but images here are RGB and square"
                + ("; pass image_size= if it accepts another size" if channels == 3 else "")
            )
        config["image_size"] = sides[0]
    config.update(wanted)
    if "image_size" not in config:
        raise ValueError(f"the image size of a {type(module).__name__} is unknown: pass image_size=")
    for name, accepted in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if config.get(name, accepted[0]) not in accepted:
            raise ValueError(
                f"the configuration of {type(module).__name__} asks for {name}={config[name]!r}; available are {accepted}. "
                f"Choose one of them by module.pretrained_cfg[{name!r}]"
            )
    return Preprocessing(**config)


def _freeze(module: nn.Module, preprocessing: Preprocessing, device: torch.device, original: nn.Module | None = None) -> Backbone:
    """Freeze, fold, verify and move a module, which may be a copy of an ``original``."""
    for parameter in module.eval().parameters():  # scripted modules have no requires_grad_
        parameter.requires_grad_(False)
    module = module.float()
    weights_sha256 = module_digest(module)
    fold_all = partial(fold, paddings=device.type == "cpu")
    module, layout, n_features = verified(module, preprocessing, original, fold_all)
    save_less_for_backward(module)
    return Backbone(module.to(device), preprocessing, n_features, device, weights_sha256, layout)


def _packaged_weights(spec: BackboneSpec) -> str | None:
    """Path of the weights in an installed package, if there is one."""
    if spec.package is None:
        return None
    package, name = spec.package.split(":")
    if importlib.util.find_spec(package) is None:
        return None
    return getattr(importlib.import_module(package), name).get_model_file_path()


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


def _from_hub(spec: BackboneSpec, load):
    try:
        return load()
    except RuntimeError as error:  # timm's error for weights that do not fit or do not exist
        raise ValueError(
            f"{spec.architecture!r} cannot be loaded with pretrained weights: {error}. Pass weights= a local checkpoint, or "
            "weights=None for an untrained network"
        ) from error
    except Exception as error:  # the hub's client, its transport and its cache raise errors of many types
        installed = sorted(name for name, spec in BACKBONES.items() if _packaged_weights(spec))
        raise OSError(
            f"the pretrained weights of {spec.architecture!r} could not be downloaded ({type(error).__name__}: {error}). "
            "Without a network, pass weights= a local checkpoint, or choose an encoder whose weights are installed, "
            f"one of {installed}; weights=None builds it untrained"
        ) from error
