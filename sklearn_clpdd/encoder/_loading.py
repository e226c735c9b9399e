"""From a name or a module to a frozen network, loaded once per process."""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..utils._fingerprint import fingerprint, module_digest
from ..utils._torch_modes import standard_torch_modes
from ._backbone import Backbone
from ._copying import copy_module
from ._folding import fold
from ._frozen_layers import save_less_for_backward
from ._preprocessing import CROP_MODES, INTERPOLATIONS, Preprocessing
from ._verification import verified, warn_of_head
from ._weights import load_file
from .sources import TORCHVISION, Network, create, local_files, name_of, pooled, source_of

# Loaded networks by source and image size; each maps the rest of the preprocessing to a backbone that shares the network.
_Cache = OrderedDict[tuple["_Key", int | None], dict[tuple, Backbone]]
_cache_by_name: _Cache = OrderedDict()
_cache_by_module: WeakKeyDictionary[nn.Module, _Cache] = WeakKeyDictionary()  # a module's networks are freed with it
# Held while a network is loaded, so that threads load it only once, and because untrained weights use torch's global generator.
_lock = RLock()
# Options of the libraries that are set here.
_OWN_OPTIONS = {"pretrained", "weights", "load_weights", "num_classes", "checkpoint_path", "output_loading_info", "return_dict"}
# Options that would run code of a repository. They may come from a file of skops, which has to be safe to load.
_CODE_OPTIONS = {"trust_remote_code", "code_revision", "weights_only", "use_kernels", "kernel_config"}
# How many networks are kept, in total for names, and for each module: at least one for each GPU of a machine.
_MAX_CACHED_BY_NAME, _MAX_CACHED_PER_MODULE = 16, 16


class _Key(NamedTuple):
    """What a loaded network depends on, except the image size."""

    content: Any  # a name; layers and weights of a module
    weights: str | Enum | None
    modified: int | None  # time of the last change of the weights file
    device: torch.device
    pool: str
    layers: int
    options: str  # fingerprint of the options of the function that builds the network
    files: tuple  # sizes and times of the local files that a name stands for
    is_complete: bool  # whether image size, mean and standard deviation are given


def load_backbone(
    model: str | nn.Module,
    weights: str | os.PathLike | Enum | None,
    device: torch.device,
    *,
    pool: str = "auto",
    layers: int = 1,
    model_kwargs: dict[str, Any] | None = None,
    **preprocessing,
) -> Backbone:
    """A frozen backbone, loaded once per process for the same content and configuration, from any thread.

    Parameters
    ----------
    model : str or nn.Module
        A name of one of the `sources`, or a module, which is copied and never changed.
    weights : "auto", path, weights of torchvision, or None
        ``"auto"``: those of an installed package if there is one, else the hub's; for a module, its own.
        ``None``: untrained weights from a fixed seed; for a module, its own.
    device : torch.device
    pool : {"auto", "token", "avg", "token+avg"}
    layers : int
    model_kwargs : dict or None
        Options of the function that builds a network by name.
    **preprocessing
        Fields of `Preprocessing` that replace the model's own, unless they are None.

    Raises
    ------
    ValueError
        If the name is unknown, weights do not fit or leave a parameter untrained, a module's image size is unknown, or the
        network does not accept the image size.
    FileNotFoundError
        If a weights file does not exist.
    ImportError
        If the library of a name is not installed.
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
    if isinstance(weights, Enum) and not _is_of_torchvision(model):
        raise ValueError(f"weights={weights} are torchvision's; pass model='torchvision:NAME', or one of torchvision's modules")
    modified = None
    if weights is not None and weights != "auto" and not isinstance(weights, Enum):
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights={os.fspath(weights)!r} is not a file; pass a checkpoint's path, 'auto' or None")
        weights = os.path.abspath(weights)
        modified = os.stat(weights).st_mtime_ns
    content = model if isinstance(model, str) else (_layout(model), module_digest(model))
    options = dict(model_kwargs or {})
    _check_options(model, options)
    files = local_files(model) if isinstance(model, str) else ()
    is_complete = {"image_size", "mean", "std"} <= given.keys()
    key = _Key(content, weights, modified, device, pool, layers, fingerprint(options), files, is_complete)
    # Tensors that are created in inference mode never have gradients.
    with _lock, standard_torch_modes():
        if isinstance(model, str):
            cache, max_networks = _cache_by_name, _MAX_CACHED_BY_NAME
        else:
            cache, max_networks = _cache_by_module.setdefault(model, OrderedDict()), _MAX_CACHED_PER_MODULE
            for old in [old for old in cache if old[0].content != content]:  # networks of the module's earlier states
                del cache[old]
        return _cached(cache, max_networks, key, given, lambda: _load(model, key, given.get("image_size"), options))


def _check_options(model: str | nn.Module, options: dict[str, Any]) -> None:
    if options and not isinstance(model, str):
        raise ValueError(f"model_kwargs= are for the library that builds a network by name; {type(model).__name__} is built")
    _refuse_code(options)
    if _OWN_OPTIONS & options.keys():
        raise ValueError(
            f"model_kwargs have {sorted(_OWN_OPTIONS & options.keys())}, which FrozenEncoder sets itself: there is weights=, and "
            "classifiers are not used"
        )


def _refuse_code(options: dict[str, Any]) -> None:
    found = sorted(_CODE_OPTIONS & options.keys())
    if "/" in str(options.get("attn_implementation", "")):  # a kernel of the hub
        found.append("attn_implementation")
    if found:
        raise ValueError(
            f"model_kwargs have {found}, which may run code that comes with the weights. If you trust it, load the network with "
            "its own library, and pass the module"
        )


def _is_of_torchvision(model: str | nn.Module) -> bool:
    return model.startswith(TORCHVISION.prefix) if isinstance(model, str) else source_of(model) is TORCHVISION


def n_features_of(model: nn.Module, image_size: int | None, pool: str, layers: int) -> int | None:
    """Number of features of a module that this process has loaded, if its layers have not changed; does not read the weights."""
    with _lock:
        for (key, size), backbones in _cache_by_module.get(model, {}).items():
            if (size, key.pool, key.layers) == (image_size, pool, layers) and key.content[0] == _layout(model):
                return next(iter(backbones.values())).n_features
    return None


def _layout(module: nn.Module) -> tuple:
    """Layers of a module, and the shapes of its parameters."""
    return repr(module), *(tuple(parameter.shape) for parameter in module.parameters())


def _cached(cache: _Cache, max_networks: int, source: _Key, given: dict[str, Any], load: Callable[[], Backbone]) -> Backbone:
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
        variants[variant] = own.with_preprocessing(replace(own.preprocessing, **rest))
    return variants[variant]


def _load(model: str | nn.Module, key: _Key, image_size: int | None, options: dict[str, Any]) -> Backbone:
    """A network for an image size, with its own crop and normalisation."""
    state = torch.default_generator.get_state()
    try:  # untrained weights come from a fixed seed, and the caller's random state is restored
        torch.default_generator.manual_seed(0)
        if isinstance(model, str):
            network, original = create(model, key.weights, image_size, options), None
        else:
            network, original = _of_module(model, key.weights, image_size), model
        module = pooled(network, key.pool, key.layers)
    finally:
        torch.default_generator.set_state(state)
    backbone = _freeze(module, _preprocessing(network, image_size, key.is_complete), key.device, original)
    if original is not None and source_of(original) is None:
        warn_of_head(original, backbone.n_features)
    return backbone


def _of_module(model: nn.Module, weights: str | Enum | None, image_size: int | None) -> Network:
    """A network from a copy of a module."""
    source, module = source_of(model), copy_module(model)
    if source is not None:
        return source.adopt(module, image_size, weights)
    load_file(module, weights)
    return Network(module)


def _preprocessing(network: Network, image_size: int | None, is_complete: bool) -> Preprocessing:
    """That of the network's library; other modules get values in [0, 1] without a crop."""
    config, name = dict(network.preprocessing), name_of(network.module)
    if network.problem and not is_complete:
        raise ValueError(f"how {name} wants its images is not known: {network.problem}. Pass image_size=, mean= and std=")
    channels, *sides = config.pop("input_size", (3, None))
    if image_size is not None:
        config["image_size"] = image_size
    if channels != 3 or (len(set(sides)) > 1 and "image_size" not in config):
        raise ValueError(
            f"the input of {name} has size {(channels, *sides)}, but images here are RGB and square"
            + ("; pass image_size= if it accepts another size" if channels == 3 else "")
        )
    if config.setdefault("image_size", sides[0]) is None:
        raise ValueError(f"the image size of a {name} is unknown: pass image_size=")
    for field, accepted in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if config.get(field, accepted[0]) not in accepted:
            raise ValueError(
                f"the configuration of {name} asks for {field}={config[field]!r}; available are {accepted}. "
                f"Choose one of them by module.pretrained_cfg[{field!r}]"
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
