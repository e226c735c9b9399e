"""Where synthetic samples live: images behind a frozen encoder, or points among the features themselves.

A space is what the loop needs to know of the user's data, in one form for both.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from typing import Protocol

import joblib
import numpy as np
import torch
from torch import Tensor

from ._core.devices import graph_memory
from ._core.loop import Passes
from ._core.parametrizations import Parametrization, Points
from ._encoder import FrozenEncoder, features_of
from ._images import Images

# Bytes of real features in float32 above which they live on disk.
_IN_MEMORY = 2**30
# Images of so much detail at most pass the encoder at half the size.
_COARSE = 1 / 4


class Space(Protocol):
    """The user's data ``X`` and the synthetic samples that are to stand for it."""

    device: torch.device
    is_image: bool
    sample_shape: tuple[int, ...]  # of a synthetic sample as the user sees it

    @property
    def encoder(self) -> FrozenEncoder | None:
        """What gives the features, if it is not the user."""

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
    """Synthetic images ``(m, 3, side, side)`` in [0, 1], seen through an encoder."""

    is_image = True

    center = np.float32(0)
    scale = np.float32(1)

    def __init__(self, images: Images, encoder: FrozenEncoder, side: int | None):
        self._images = images
        self.encoder = encoder
        self._backbone = encoder.load()
        self.device = self._backbone.device
        self.preprocessing = self._backbone.preprocessing
        self._side = side or self.preprocessing.resized
        self.sample_shape: tuple[int, ...] = (self._side, self._side, 3)
        if self._side < self.preprocessing.image_size:
            raise ValueError(
                f"image_size={side} is smaller than what enters the encoder, {self.preprocessing.image_size} px; "
                "give at least that, or FrozenEncoder(image_size=) a smaller one"
            )

    def real_features(self, order):
        n, d = len(order), self._backbone.n_features
        position = np.empty(n, dtype=np.int64)
        position[order] = np.arange(n)
        R = _on_disk(n, d, half=self.encoder.normalize) if 4 * n * d > _IN_MEMORY else np.empty((n, d), dtype=np.float32)
        bad: list[int] = []
        for rows, Z in self.encoder.blocks(self._images):
            bad += (rows.start + np.flatnonzero(~np.isfinite(Z).all(axis=1))).tolist()
            R[position[rows]] = Z
        if bad:
            raise ValueError(f"the encoder gives non-finite features for {len(bad)} of {n} samples, first for X[{bad[0]}]")
        return R

    def features(self, samples):
        # Not to be cached: no other run has these.
        quiet = {**self.encoder.get_params(deep=False), "memory": None, "verbose": 0}
        return type(self.encoder)(**quiet).encode(samples)

    def identity(self):
        return {
            "images": self._images.fingerprints([range(len(self._images))])[0],
            "encoder": self.encoder.identity(),
        }

    def passes(self, n_views, chunk_size):
        graph_bytes = self._backbone.graph_bytes  # measured, or an error that says that there is no gradient
        if chunk_size is not None:
            return Passes(chunk_size)
        one, every = graph_memory(self.device)
        return Passes(max(1, min(n_views, one // graph_bytes)), every // graph_bytes)

    def read(self, indices):
        whole = dataclasses.replace(self.preprocessing, image_size=self._side, crop_pct=1.0)
        return self._images.read(indices, whole, self.encoder.n_jobs).to(self.device)

    def start(self, parametrization, m, generator):
        return parametrization((m, 3, self._side, self._side), generator, device=self.device)

    def preprocessing_for(self, detail):
        return self.preprocessing.half() if detail <= _COARSE and self._backbone.takes_half else self.preprocessing

    def encode(self, views):
        return features_of(self._backbone, views, self.encoder.normalize)

    def to_user(self, samples):
        return samples.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def from_user(self, samples):
        return torch.from_numpy(samples).permute(0, 3, 1, 2).to(self.device)


class PointSpace:
    """Synthetic points ``(m, d)`` in the space of the user's own features.

    Inside, features are centred and scaled to a mean squared norm of 1, which gives λ and τ the meaning that they have for an
    encoder's normalised features.
    """

    is_image = False
    encoder = None

    def __init__(self, X: np.ndarray, device: torch.device):
        self._X = X
        self.device = device
        self.sample_shape = X.shape[1:]
        self.center = X.mean(axis=0)
        norm = np.sqrt(np.square(X - self.center).sum(axis=1).mean())
        self.scale = X.dtype.type(norm if norm > 0 else 1)

    def real_features(self, order):
        return self.features(self._X[order])

    def features(self, samples):
        return (samples - self.center) / self.scale

    def identity(self):
        return {"X": joblib.hash(np.ascontiguousarray(self._X))}

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
        return samples.cpu().numpy() * self.scale + self.center

    def from_user(self, samples):
        return torch.from_numpy(self.features(samples)).to(self.device)


def _on_disk(n: int, d: int, *, half: bool) -> np.memmap:
    """An array in a file that is gone when nobody has the array any more; float16 where the features are of unit norm."""
    itemsize = 2 if half else 4
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and none that ends the process later
            os.posix_fallocate(file.fileno(), 0, itemsize * n * d)
        return np.memmap(file, dtype=np.float16 if half else np.float32, mode="w+", shape=(n, d))
