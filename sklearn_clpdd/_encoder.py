"""FrozenEncoder: images → features of a frozen pre-trained network."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from joblib.hashing import NumpyHasher
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_memory
from torch import Tensor, nn
from tqdm.auto import tqdm

from ._core.backbones import Backbone, load_backbone
from ._core.devices import resolve_device
from ._core.folding import SameConv2d
from ._core.heap import kept_heap
from ._images import Images, as_images
from ._modules import HoldsModule
from ._output import Transformer
from ._store import FeatureStore, feature_store

# Images whose features are written to the cache together.
_BLOCK = 1024
# Versions of what computes the features.
VERSIONS = {package: version(package) for package in ("sklearn-clpdd", "torch", "timm")}


class FrozenEncoder(HoldsModule, Transformer, BaseEstimator):
    """Map images to the features of a frozen, pre-trained vision model.

    The encoder owns its preprocessing: resizing, centre crop and normalisation are those that the model was trained with.
    It is stateless: `transform` works without `fit`. The network is built at first use and kept once per process, so that
    estimators stay cheap to clone and to pickle; its batch norms are folded into the convolutions.

    Parameters
    ----------
    model : str or torch.nn.Module, default="tf_efficientnet_lite0"
        The name of a `timm <https://huggingface.co/docs/timm>`_ model; one of ``"clip_vitb16"``, ``"dinov2_vitb14"``,
        ``"eva02_vitb14"``, ``"mocov3_vitb16"``; or a module that maps ``(n, 3, H, W)`` to ``(n, d)``. CLIP's features are those
        before the projection (768), as its authors probe them. A module is copied, and evaluated in eval mode; a change of its
        weights or layers is noticed, one of a plain attribute is not. Clones share it, and so do copies that are loaded from one
        pickle; a worker process gets it once. (As a value in a grid give ``FrozenEncoder(module)``: scikit-learn copies bare
        modules there.)
    weights : "auto", path or None, default="auto"
        ``"auto"``: the weights of an installed package where there is one (the default model's come with this library), else
        the hub's; for a module, its own. A path: a safetensors file or a torch checkpoint, loaded strictly. ``None``:
        untrained, always the same.
    image_size : int, default=None
        Side in pixels of what enters the network. ``None``: what the model was trained with; a bare module has to be told.
    crop_pct : float in (0, 1], default=None
        An image's shorter side is resized to ``image_size / crop_pct`` and the centre is cropped. ``None``: the model's own.
    normalize : bool, default=True
        Scale each feature vector to unit ℓ2 norm.
    image_shape : tuple (H, W) or (H, W, C), default=None
        Shape of the images when ``X`` holds them as rows.
    mean, std : tuple of 3 floats, default=None
        Normalisation of RGB values in [0, 1]. ``None``: the model's own; a bare module gets the values as they are.
    batch_size : int, default=64
        Images in one forward pass.
    dtype : {"float32", "bfloat16"}, default="float32"
        Precision inside the network; features are float32 always, and so is a distiller's way back through the network,
        whose gradients bfloat16 would spoil.
    n_jobs : int, default=None
        Threads that decode image files; ``None`` is one, ``-1`` as many as there are cores, or as ``OMP_NUM_THREADS`` allows:
        one in a worker of a parallel search that has a core to itself.
    memory : str, path or joblib.Memory, default=None
        Where the features of each image are kept, by the image, the model, its weights and its preprocessing: the splits of a
        search, and its processes, share them, and an encoding that is interrupted goes on where it was, to 1,024 images. It only
        grows; ``joblib.Memory.clear`` empties it.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA where there is some, else the CPU.
    verbose : int, default=0
        Above 0: a progress bar.

    Raises
    ------
    ValueError
        In `fit` and `transform`: images that cannot be used, an unknown model, weights that do not fit, a device that is not
        there. Files are all looked at before the first is encoded.
    FileNotFoundError
        Image files or a weights file that are not there.
    OSError
        Weights that are only on the hub, when it cannot be reached.

    See Also
    --------
    ClosedFormProbe : A classifier on these features.
    CLPDistiller : Learns synthetic images through this encoder.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_clpdd import FrozenEncoder
    >>> images = np.random.default_rng(0).random((2, 32, 32, 3))
    >>> FrozenEncoder(image_size=64).transform(images).shape
    (2, 1280)
    """

    _module_parameter = "model"
    _parameter_constraints = {
        "model": [str, nn.Module],
        "weights": [str, os.PathLike, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "crop_pct": [Interval(Real, 0, 1, closed="right"), None],
        "normalize": ["boolean"],
        "image_shape": [tuple, list, None],
        "mean": ["array-like", None],
        "std": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "dtype": [StrOptions({"float32", "bfloat16"})],
        "n_jobs": [Integral, None],
        "memory": [str, os.PathLike, joblib.Memory, None],
        "device": [str, torch.device],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model="tf_efficientnet_lite0",
        *,
        weights="auto",
        image_size=None,
        crop_pct=None,
        normalize=True,
        image_shape=None,
        mean=None,
        std=None,
        batch_size=64,
        dtype="float32",
        n_jobs=None,
        memory=None,
        device="auto",
        verbose=0,
    ):
        self.model = model
        self.weights = weights
        self.image_size = image_size
        self.crop_pct = crop_pct
        self.normalize = normalize
        self.image_shape = image_shape
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.memory = memory
        self.device = device
        self.verbose = verbose

    def fit(self, X=None, y=None):
        """Check the parameters and load the model; there is nothing to learn.

        Parameters
        ----------
        X : images, default=None
            Only their form is checked.
        y : ignored

        Returns
        -------
        FrozenEncoder
            Itself.
        """
        self.load()
        if X is not None:
            as_images(X, self.image_shape)
        return self

    def transform(self, X):
        """Encode images.

        Parameters
        ----------
        X : images
            ``(n, H, W)`` or ``(n, H, W, 1 or 3)`` arrays or ``(n, 1 or 3, H, W)`` tensors, uint8 or float in [0, 1]; rows with
            `image_shape`; one-dimensional arrays, lists, or columns of paths or PIL images.

        Returns
        -------
        ndarray of shape (n_samples, n_features), float32
            Features, of unit norm when `normalize`.
        """
        self._check_output()
        return self.encode(X)

    def encode(self, X) -> np.ndarray:
        """`transform` whatever container `set_output` asks for: an array always.

        Parameters
        ----------
        X : images
            As in `transform`.

        Returns
        -------
        ndarray of shape (n_samples, n_features), float32
            Features.
        """
        return self.encode_by(self.load(), X)

    def encode_by(self, backbone: Backbone, X) -> np.ndarray:
        """`encode` by the network that `load` gave: `load` looks at all weights of a module, each time."""
        images = as_images(X, self.image_shape)
        features = np.empty((len(images), backbone.n_features), dtype=np.float32)
        for rows, Z in self.blocks(images, backbone):
            features[rows] = Z
        return features

    def blocks(self, images: Images, backbone: Backbone) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows and features of one block of images after the other; with `memory`, those of each image are kept.

        An encoding that is interrupted thereby goes on where it was. All images that are not in the cache are looked at before
        the first is encoded.
        """
        store = self._store(backbone)
        with tqdm(total=len(images), desc="encoding", unit="img", disable=not self.verbose) as bar:
            if store is not None:
                yield from self._kept_blocks(images, backbone, store, bar)
                return
            images.check(self.n_jobs)
            for rows in _in_blocks(len(images)):
                yield slice(rows.start, rows.stop), self._encode(images, rows, backbone, bar)

    def _kept_blocks(
        self, images: Images, backbone: Backbone, store: FeatureStore, bar: tqdm
    ) -> Iterator[tuple[slice, np.ndarray]]:
        keys = images.keys()
        images.check(self.n_jobs, np.flatnonzero(~store.find(keys)).tolist())
        blocks = _in_blocks(len(images))
        Random(uuid4().int).shuffle(blocks)  # processes that begin with the same images together share them out
        for rows in blocks:
            Z = np.empty((len(rows), backbone.n_features), dtype=np.float32)
            known = store.read(keys[rows.start : rows.stop], Z)
            bar.update(int(known.sum()))
            if not known.all():
                missing = rows.start + np.flatnonzero(~known)
                Z[~known] = self._encode(images, missing.tolist() if known.any() else rows, backbone, bar)
                store.write(keys[missing], Z[~known])
            yield slice(rows.start, rows.stop), Z

    def _store(self, backbone: Backbone) -> FeatureStore | None:
        """Where features are kept, if they are."""
        memory = check_memory(os.fspath(self.memory) if isinstance(self.memory, os.PathLike) else self.memory)
        if memory.location is None:
            return None
        if memory.backend != "local":
            raise ValueError(f"memory= keeps features in files; got a joblib.Memory with backend={memory.backend!r}")
        return feature_store(Path(memory.store_backend.location, "sklearn_clpdd", self._identity(backbone)).absolute())

    def _encode(self, images: Images, indices, backbone: Backbone, bar: tqdm) -> np.ndarray:
        """Features ``(len(indices), d)`` float32 of the images there."""
        features = np.empty((len(indices), backbone.n_features), dtype=np.float32)
        done = 0
        batches = images.batches(indices, self.batch_size, backbone.preprocessing, self.n_jobs)
        if backbone.device.type != "cpu":
            batches = _ahead(batches)
        # A single batch has nothing to use again.
        with kept_heap() if backbone.device.type == "cpu" and len(indices) > self.batch_size else nullcontext():
            for batch in batches:
                with torch.inference_mode():
                    Z = features_of(backbone, batch.to(backbone.device, non_blocking=True), self.normalize, self.dtype)
                    features[done : done + len(batch)] = Z.cpu().numpy()
                done += len(batch)
                bar.update(len(batch))
        return features

    def load(self) -> Backbone:
        """The network and its preprocessing, from this process's store.

        Returns
        -------
        Backbone
            A callable from image tensors ``(n, 3, image_size, image_size)`` in [0, 1] to features ``(n, d)``.
        """
        self._validate_params()
        return load_backbone(
            self.model,
            self.weights,
            resolve_device(self.device),
            image_size=self.image_size,
            crop_pct=self.crop_pct,
            mean=self.mean,
            std=self.std,
        )

    def identity(self) -> str:
        """Digest of all that the features of an image depend on, beside the image."""
        return self._identity(self.load())

    def _identity(self, backbone: Backbone) -> str:
        return joblib.hash((self.network_identity(backbone), VERSIONS))

    def network_identity(self, backbone: Backbone) -> str:
        """The same, but for the versions of the packages that compute them."""
        return joblib.hash((_digest_of(backbone), self.normalize, self.dtype))

    def provenance(self, backbone: Backbone) -> dict[str, Any]:
        """What the features are of: model, digest of its weights, and preprocessing, of values that JSON has."""
        seen = backbone.preprocessing
        return {
            "model": self.model if isinstance(self.model, str) else type(self.model).__name__,
            "weights_sha256": backbone.weights_sha256,
            "normalize": bool(self.normalize),
            "image_size": int(seen.image_size),
            "crop_pct": float(seen.crop_pct),
            "mean": [float(value) for value in seen.mean],
            "std": [float(value) for value in seen.std],
            "interpolation": seen.interpolation,
        }

    @property
    def _n_features_out(self):
        return self.load().n_features

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _in_blocks(n: int) -> list[range]:
    return [range(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]


def _ahead(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same, each made in a thread while the one before it is at work."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def as_encoder(given, **parameters) -> FrozenEncoder:
    """A `FrozenEncoder` as it is; for a name or a module, one with these parameters."""
    if isinstance(given, FrozenEncoder):
        return given
    if isinstance(given, str | nn.Module):
        return FrozenEncoder(given, **parameters)
    raise TypeError(f"an encoder is a FrozenEncoder, the name of a timm model, or a torch module; got {given!r}")


def joint_features(encoders: list[FrozenEncoder], X, backbones: list[Backbone] | None = None) -> np.ndarray:
    """Features ``(n, Σd)`` of images under several encoders, side by side, over the square root of their number."""
    backbones = [encoder.load() for encoder in encoders] if backbones is None else backbones
    parts = [encoder.encode_by(backbone, X) for encoder, backbone in zip(encoders, backbones, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1) / np.float32(math.sqrt(len(parts)))


def features_of(backbone: Backbone, views: Tensor, normalize: bool, dtype: str = "float32") -> Tensor:
    """Features of image tensors, float32 and differentiable in the images."""
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        Z = backbone(views).float()
    return F.normalize(Z, dim=1) if normalize else Z


class _ByContent(NumpyHasher):
    """joblib's hash, for which a tensor is its values: torch's own pickles tell copies of a module apart.

    Folded paddings, of CPUs only, make no difference either: what a GPU has begun a CPU goes on with.
    """

    def save(self, obj):
        """Tensors as arrays."""
        if isinstance(obj, SameConv2d):
            obj = obj.convolution
        if isinstance(obj, Tensor):
            obj = (str(obj.dtype), obj.shape, obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        super().save(obj)


def _digest_of(backbone: Backbone) -> str:
    """Digest of the network, its weights, and its preprocessing."""
    if backbone.digest is None:
        try:
            network = _ByContent("md5").hash(backbone.module)
        except Exception as error:  # whatever pickling a user's module raises
            raise ValueError(
                f"memory= and checkpoint= need a module that can be pickled, to tell it from others: {error}"
            ) from error
        backbone.digest = joblib.hash((network, backbone.preprocessing))
    return backbone.digest
