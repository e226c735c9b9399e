"""Where synthetic samples live: images behind a frozen encoder, or points among the features themselves.

A space is what the loop needs to know of the user's data, in one form for both.
"""

import math
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Protocol

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import clone
from torch import Tensor

from ._core.devices import graph_memory
from ._core.loop import Passes
from ._core.parametrizations import Parametrization, Points
from ._encoder import VERSIONS, FrozenEncoder, features_of, joint_features
from ._images import Images

# Bytes of real features in float32 above which they live on disk.
_IN_MEMORY = 2**30
# Numbers of a matrix that are converted to float64 together.
_CHUNK = 2**20
# Images of so much detail at most pass the encoder at half the size.
_COARSE = 1 / 4


class Space(Protocol):
    """The user's data ``X`` and the synthetic samples that are to stand for it."""

    device: torch.device
    is_image: bool
    sample_shape: tuple[int, ...]  # of a synthetic sample as the user sees it

    @property
    def encoders(self) -> list[FrozenEncoder]:
        """What gives the features, if it is not the user."""

    @property
    def widths(self) -> list[int]:
        """Number of features of each encoder; these stand side by side."""

    @property
    def center(self) -> np.ndarray | np.generic:
        """What is subtracted from the user's features."""

    @property
    def scale(self) -> np.generic:
        """What they are divided by after that."""

    def real_features(self, order: np.ndarray) -> np.ndarray:
        """Features ``(n, d)``, centred and scaled, of the real samples in some order."""

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Features ``(m, d)``, centred and scaled, of synthetic samples as the user sees them."""

    def identity(self) -> dict[str, str]:
        """Digests of the real samples and of what gives their features."""

    def versions(self) -> dict[str, str]:
        """Versions of the packages that compute the features."""

    def provenance(self) -> list[dict[str, Any]]:
        """What gives the features, one entry for each encoder, of values that JSON has."""

    def fingerprint(self) -> str:
        """Digest of the real samples, the same wherever a copy of them is."""

    def passes(self, n_views: int, chunk_size: int | None) -> Passes:
        """How the views of a step pass the encoder; how many of them together, if that is not given."""

    def read(self, indices: np.ndarray) -> Tensor:
        """Real samples in the form of synthetic ones."""

    def start(self, parametrization: type[Parametrization], m: int, generator: torch.Generator) -> Parametrization:
        """``m`` synthetic samples of noise."""

    def preprocessing(self, samples: Tensor) -> Tensor:
        """What happens to a whole sample before `encode`."""

    def preprocessing_for(self, detail: float) -> Callable[[Tensor], Tensor]:
        """The same for samples that have so much detail only: at a smaller size, where the encoder takes it."""

    def encode(self, views: Tensor) -> Tensor:
        """Preprocessed samples to features, differentiably."""

    def to_user(self, samples: Tensor) -> np.ndarray:
        """Synthetic samples as the user sees them."""

    def from_user(self, samples: np.ndarray) -> Tensor:
        """The same back."""


class ImageSpace:
    """Synthetic images ``(m, 3, side, side)`` in [0, 1], seen through one frozen encoder, or several at once.

    The features of several stand side by side, over the square root of their number: of unit norm where those of each are. Views
    have the side of the largest of them, and are resized for the others; whole images likewise, with the crop of the largest.
    """

    is_image = True

    center = np.float32(0)
    scale = np.float32(1)

    def __init__(self, images: Images, encoders: list[FrozenEncoder], side: int | None):
        self._images = images
        self.encoders = encoders
        self._backbones = [encoder.load() for encoder in encoders]  # once: each looks at all weights
        self.widths = [backbone.n_features for backbone in self._backbones]
        self.device, *others = dict.fromkeys(backbone.device for backbone in self._backbones)
        if others:
            raise ValueError(f"encoders have to be on one device; got {[str(device) for device in (self.device, *others)]}")
        if len({encoder.normalize for encoder in encoders}) > 1:
            raise ValueError("some encoders have normalize=True and some have not: their features are not of one scale")
        self.preprocessing = max((backbone.preprocessing for backbone in self._backbones), key=lambda own: own.image_size)
        self._side = side or self.preprocessing.resized
        self.sample_shape: tuple[int, ...] = (self._side, self._side, 3)
        if self._side < self.preprocessing.image_size:
            raise ValueError(
                f"image_size={side} is smaller than what enters the encoder, {self.preprocessing.image_size} px; "
                "give at least that, or FrozenEncoder(image_size=) a smaller one"
            )

    def real_features(self, order):
        n, d, normalized = len(order), sum(self.widths), self.encoders[0].normalize
        position = np.empty(n, dtype=np.int64)
        position[order] = np.arange(n)
        R = _on_disk(n, d, half=normalized) if 4 * n * d > _IN_MEMORY else np.empty((n, d), dtype=np.float32)
        for encoder, backbone, columns in zip(self.encoders, self._backbones, _blocks(self.widths), strict=True):
            bad: list[int] = []
            for rows, Z in encoder.blocks(self._images, backbone):
                bad += (rows.start + np.flatnonzero(~np.isfinite(Z).all(axis=1))).tolist()
                R[position[rows], columns] = Z / np.float32(math.sqrt(len(self.widths)))
            if bad:
                raise ValueError(f"the encoder gives non-finite features for {len(bad)} of {n} samples, first for X[{bad[0]}]")
        return R

    def features(self, samples):
        # Not to be cached: no other run has these.
        encoders = [clone(encoder).set_params(memory=None, verbose=0) for encoder in self.encoders]
        return joint_features(encoders, samples, self._backbones)

    def identity(self):
        return {
            "images": joblib.hash(self._images.keys()),
            "encoder": " ".join(map(FrozenEncoder.network_identity, self.encoders, self._backbones)),
        }

    def versions(self):
        return VERSIONS

    def provenance(self):
        return list(map(FrozenEncoder.provenance, self.encoders, self._backbones))

    def fingerprint(self):
        return joblib.hash(self._images.portable_keys())

    def passes(self, n_views, chunk_size):
        # Measured, or an error that says that there is no gradient.
        graph_bytes = sum(backbone.graph_bytes for backbone in self._backbones)
        if chunk_size is not None:
            return Passes(chunk_size)
        one, every = graph_memory(self.device)
        return Passes(max(1, min(n_views, one // graph_bytes)), every // graph_bytes)

    def read(self, indices):
        return self._images.read(indices, self.preprocessing.whole(self._side), self.encoders[0].n_jobs).to(self.device)

    def start(self, parametrization, m, generator):
        return parametrization((m, 3, self._side, self._side), generator, device=self.device)

    def preprocessing_for(self, detail):
        half = detail <= _COARSE and all(backbone.takes_half for backbone in self._backbones)
        return self.preprocessing.half() if half else self.preprocessing

    def encode(self, views):
        parts = [
            features_of(backbone, self._resized(views, backbone.preprocessing.image_size), encoder.normalize)
            for encoder, backbone in zip(self.encoders, self._backbones, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) / math.sqrt(len(parts))

    def _resized(self, views: Tensor, size: int) -> Tensor:
        """Views of the largest encoder's size, or of half of it, for an encoder of some size."""
        size = views.shape[-1] * size // self.preprocessing.image_size
        if size == views.shape[-1]:
            return views
        return F.interpolate(views, (size, size), mode="bilinear", antialias=True, align_corners=False)

    def to_user(self, samples):
        return samples.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def from_user(self, samples):
        return torch.from_numpy(samples).permute(0, 3, 1, 2).to(self.device)


def _blocks(widths: list[int]) -> list[slice]:
    """Columns of blocks of so many that stand side by side."""
    ends = list(accumulate(widths))
    return [slice(stop - width, stop) for width, stop in zip(widths, ends, strict=True)]


class PointSpace:
    """Synthetic points ``(m, d)`` in the space of the user's own features.

    Inside, features are centred and scaled to a mean squared norm of 1, which gives λ and τ the meaning that they have for an
    encoder's normalised features.
    """

    is_image = False

    def __init__(self, X: np.ndarray, device: torch.device):
        self._X = X
        self.encoders: list[FrozenEncoder] = []
        self.widths = [X.shape[1]]
        self.device = device
        self.sample_shape = X.shape[1:]
        # In float64, also of float32: the mean of a million rows is of no use in less.
        self.center = X.mean(axis=0, dtype=np.float64)
        squares = np.empty(len(X))
        for rows in _row_chunks(X):
            squares[rows] = np.square(X[rows] - self.center).sum(axis=1)
        norm = np.sqrt(squares.mean())
        self.scale = np.float64(norm if norm > 0 else 1)

    def real_features(self, order):
        return self.features(self._X[order])

    def features(self, samples):
        return standardized(samples, self.center, self.scale)

    def identity(self):
        return {"X": self.fingerprint()}

    def versions(self):
        return {}

    def provenance(self):
        return []

    def fingerprint(self):
        return joblib.hash(np.ascontiguousarray(self._X))

    def passes(self, n_views, chunk_size):
        return Passes(n_views)

    def read(self, indices):
        return self.from_user(self._X[indices])

    def start(self, parametrization, m, generator):
        dtype = torch.float64 if self._X.dtype == np.float64 else torch.float32
        return Points((m, self._X.shape[1]), generator, device=self.device, dtype=dtype)

    def preprocessing(self, samples):
        return samples

    def preprocessing_for(self, detail):
        return self.preprocessing

    def encode(self, views):
        return views

    def to_user(self, samples):
        return (samples.cpu().numpy() * self.scale + self.center).astype(self._X.dtype, copy=False)

    def from_user(self, samples):
        return torch.from_numpy(self.features(samples)).to(self.device)


def standardized(samples: np.ndarray, center: np.ndarray | np.generic, scale: np.generic) -> np.ndarray:
    """Features about a centre and over a scale: computed in float64, given in the features' own type."""
    if not np.any(center) and scale == 1:  # an encoder's
        return samples
    result = np.empty_like(samples)
    for rows in _row_chunks(samples):
        result[rows] = (samples[rows] - center) / scale
    return result


def _row_chunks(X: np.ndarray) -> list[slice]:
    """Rows in chunks, so that what is computed of them in float64 does not take the memory of all."""
    step = max(1, _CHUNK // X.shape[1])
    return [slice(start, start + step) for start in range(0, len(X), step)]


def _on_disk(n: int, d: int, *, half: bool) -> np.memmap:
    """An array in a file that is gone when nobody has the array any more; float16 where the features are of unit norm."""
    itemsize = 2 if half else 4
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and none that ends the process later
            os.posix_fallocate(file.fileno(), 0, itemsize * n * d)
        return np.memmap(file, dtype=np.float16 if half else np.float32, mode="w+", shape=(n, d))
