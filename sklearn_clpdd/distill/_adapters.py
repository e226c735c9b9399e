"""The data of a fit behind one interface: images that pass through frozen encoders, or feature vectors."""

import math
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Protocol

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder._encoder import FrozenEncoder
from ..encoder._extractor import FeatureExtractor, joint_features
from ..encoder._precision import products_of
from ..encoder.images._base import Images
from ..encoder.images._forms import as_images
from ..utils._arrays import row_chunks, standardize
from ..utils._device import graph_memory_limits, most_views
from ..utils._ranks import ALONE, Ranks
from ._loop import ChunkPlan
from ._parametrizations import Parametrization, Points

# Bytes of float32 features above which they are stored on disk.
_IN_MEMORY = 2**30


class DataAdapter(Protocol):
    """The real samples ``X``, and the form of the synthetic samples that replace them."""

    device: torch.device
    sample_shape: tuple[int, ...]  # of a synthetic sample in `X_synthetic_`

    @property
    def encoders(self) -> list[FrozenEncoder]:
        """The encoders; empty if ``X`` contains features."""

    @property
    def widths(self) -> list[int]:
        """Number of features of each encoder, whose features are concatenated."""

    @property
    def center(self) -> np.ndarray | np.generic:
        """What is subtracted from the user's features."""

    @property
    def scale(self) -> np.generic:
        """What the centred features are divided by."""

    def real_features(self, order: np.ndarray, ranks: Ranks = ALONE) -> np.ndarray:
        """Standardised features ``(n, d)`` of the real samples in this order; several processes share the work."""

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Standardised features ``(m, d)`` of synthetic samples in the form of `X_synthetic_`."""

    def identity(self) -> dict[str, str]:
        """Digests of the real samples and of the encoders."""

    def agree_on_precision(self, ranks: Ranks) -> None:
        """Take the precisions that the first process has measured to be the fastest."""

    def network(self) -> list:
        """What the same features and gradients need: digests of the encoders, their precisions and batches."""

    def provenance(self) -> list[dict[str, Any]]:
        """Description of each encoder, as JSON-serialisable values."""

    def data_digest(self) -> str:
        """Digest of the real samples, the same on every machine with a copy of them."""

    def chunk_plan(self, n_views: int, chunk_size: int | None, n_processes: int = 1) -> ChunkPlan:
        """How the views of a step pass through the encoders; ``chunk_size`` of None is chosen by memory.

        ``n_processes`` share the memory of the machine.
        """

    def read(self, indices: np.ndarray) -> Tensor:
        """Real samples in the form of synthetic ones."""

    def initialize(self, parametrization: type[Parametrization], m: int, generator: torch.Generator) -> Parametrization:
        """Parametrise ``m`` synthetic samples of noise."""

    def preprocess(self, samples: Tensor) -> Tensor:
        """Prepare unaugmented samples for `encode`."""

    def encode(self, views: Tensor) -> Tensor:
        """Features ``(n, d)`` of preprocessed samples, differentiable."""

    def differentiating(self) -> AbstractContextManager:
        """Context in which gradients of `encode` are computed."""

    def to_user(self, samples: Tensor) -> np.ndarray:
        """Synthetic samples in the form of `X_synthetic_`."""

    def from_user(self, samples: np.ndarray) -> Tensor:
        """The inverse of `to_user`."""


class ImageAdapter:
    """Synthetic images ``(m, 3, side, side)`` in [0, 1], which pass through one or several frozen encoders.

    The features of several encoders are concatenated and divided by the square root of the number of encoders, so that they have
    unit norm if those of each encoder do. Views have the input size of the largest encoder and are resized for the others.
    Unaugmented images are cropped as for the largest encoder.
    """

    center = np.float32(0)
    scale = np.float32(1)

    def __init__(self, images: Images, encoders: list[FrozenEncoder], side: int | None):
        self._images = images
        self.encoders = encoders
        self._extractors: list[FeatureExtractor] = [encoder.load() for encoder in encoders]
        self.widths = [extractor.n_features for extractor in self._extractors]
        self.device, *others = dict.fromkeys(extractor.device for extractor in self._extractors)
        if others:
            raise ValueError(
                f"encoders have to be on one device; got {[str(device) for device in (self.device, *others)]}; "
                "pass FrozenEncoder(device=) with the same device for all"
            )
        if len({encoder.l2_normalize for encoder in encoders}) > 1:
            raise ValueError(
                "encoders have to agree on l2_normalize, because their features would differ in scale; "
                f"got {[encoder.l2_normalize for encoder in encoders]}"
            )
        self.preprocess = max((own.preprocessing for own in self._extractors), key=lambda own: own.image_size)
        self._side = side or self.preprocess.resize_size
        self.sample_shape: tuple[int, ...] = (self._side, self._side, 3)
        if self._side < self.preprocess.image_size:
            raise ValueError(
                f"image_size={side} is smaller than the input of the encoder, {self.preprocess.image_size} px; "
                "use at least that, or FrozenEncoder(image_size=) with a smaller one"
            )

    def real_features(self, order, ranks=ALONE):
        n, d, normalized = len(order), sum(self.widths), self.encoders[0].l2_normalize
        position = np.empty(n, dtype=np.int64)
        position[order] = np.arange(n)
        R = _on_disk(n, d, half=normalized) if 4 * n * d > _IN_MEMORY else np.empty((n, d), dtype=np.float32)
        for extractor, columns in zip(self._extractors, _columns(self.widths), strict=True):
            bad: list[int] = []
            for rows, Z in extractor.blocks(self._images, ranks):
                bad += (rows.start + np.flatnonzero(~np.isfinite(Z).all(axis=1))).tolist()
                R[position[rows], columns] = Z / np.float32(math.sqrt(len(self.widths)))
            if bad:
                raise ValueError(
                    f"the encoder {extractor.model} returns non-finite features for {len(bad)} of {n} samples, first for "
                    f"X[{bad[0]}]; remove them, or use another encoder"
                )
        return R

    def features(self, samples):
        return joint_features([own.uncached() for own in self._extractors], as_images(samples))

    def identity(self):
        return {
            "images": joblib.hash(self._images.keys()),
            "encoder": " ".join(extractor.network_identity() for extractor in self._extractors),
        }

    def agree_on_precision(self, ranks):
        if ranks.size > 1:
            chosen = ranks.of_first([(own.dtype_, own.gradient_dtype_) for own in self._extractors])
            self._extractors = [replace(own, chosen=pair) for own, pair in zip(self._extractors, chosen, strict=True)]

    def network(self):
        return [(own.network_identity(), own.dtype_, own.gradient_dtype_, own.batch_size) for own in self._extractors]

    def provenance(self):
        return [extractor.provenance() for extractor in self._extractors]

    def data_digest(self):
        return joblib.hash(self._images.portable_keys())

    def chunk_plan(self, n_views, chunk_size, n_processes=1):
        # Also raises if the encoders have no gradient.
        graph_bytes = sum(extractor.backbone.graph_bytes(extractor.gradient_dtype_) for extractor in self._extractors)
        if chunk_size is not None:
            return ChunkPlan(chunk_size)
        chunk_bytes, total_bytes = graph_memory_limits(self.device)
        if self.device.type == "cpu":
            total_bytes //= n_processes
        n_views = min(n_views, most_views(self.device) or n_views)
        return ChunkPlan(max(1, min(n_views, chunk_bytes // graph_bytes)), total_bytes // graph_bytes)

    def read(self, indices):
        return self._images.read(indices, self.preprocess.uncropped(self._side), self.encoders[0].n_jobs).to(self.device)

    def initialize(self, parametrization, m, generator):
        return parametrization((m, 3, self._side, self._side), generator, device=self.device)

    def encode(self, views):
        parts = [own(_resized(views, own.preprocessing.image_size), own.gradient_dtype_) for own in self._extractors]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) / math.sqrt(len(parts))

    def differentiating(self):
        # TF32 is a setting of the process, which has to be the same in the backward pass.
        tf32 = any(own.gradient_dtype_ == "tf32" for own in self._extractors)
        return products_of("tf32" if tf32 else "float32", self.device)

    def to_user(self, samples):
        return samples.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def from_user(self, samples):
        return torch.from_numpy(samples).permute(0, 3, 1, 2).to(self.device)


def _resized(views: Tensor, size: int) -> Tensor:
    if size == views.shape[-1]:
        return views
    return F.interpolate(views, (size, size), mode="bilinear", antialias=True, align_corners=False)


def _columns(widths: list[int]) -> list[slice]:
    """Columns of each block of features."""
    return [slice(start, stop) for start, stop in pairwise([0, *accumulate(widths)])]


class FeatureAdapter:
    """Synthetic points ``(m, d)`` in the space of the user's features.

    Internally, features are centred and scaled to a mean squared norm of 1, so that λ and τ mean the same as for the normalised
    features of an encoder.
    """

    def __init__(self, X: np.ndarray, device: torch.device):
        self._X = X
        self.encoders: list[FrozenEncoder] = []
        self.widths = [X.shape[1]]
        self.device = device
        self.sample_shape = X.shape[1:]
        # In float64 for float32 features too: a float32 mean of a million rows is inaccurate.
        self.center = X.mean(axis=0, dtype=np.float64)
        squares = np.empty(len(X))
        for rows in row_chunks(X):
            squares[rows] = np.square(X[rows] - self.center).sum(axis=1)
        norm = np.sqrt(squares.mean())
        self.scale = np.float64(norm if norm > 0 else 1)

    def real_features(self, order, ranks=ALONE):
        return self.features(self._X[order])

    def features(self, samples):
        return standardize(samples, self.center, self.scale)

    def identity(self):
        return {"X": self.data_digest()}

    def agree_on_precision(self, ranks):
        pass

    def network(self):
        return []

    def provenance(self):
        return []

    def data_digest(self):
        return joblib.hash(np.ascontiguousarray(self._X))

    def chunk_plan(self, n_views, chunk_size, n_processes=1):
        return ChunkPlan(n_views)

    def read(self, indices):
        return self.from_user(self._X[indices])

    def initialize(self, parametrization, m, generator):
        dtype = torch.float64 if self._X.dtype == np.float64 else torch.float32
        return Points((m, self._X.shape[1]), generator, device=self.device, dtype=dtype)

    def preprocess(self, samples):
        return samples

    def encode(self, views):
        return views

    def differentiating(self):
        return nullcontext()

    def to_user(self, samples):
        return (samples.cpu().numpy() * self.scale + self.center).astype(self._X.dtype, copy=False)

    def from_user(self, samples):
        return torch.from_numpy(self.features(samples)).to(self.device)


def _on_disk(n: int, d: int, *, half: bool) -> np.memmap:
    """An array in a temporary file, which is deleted with the array; float16 for features of unit norm."""
    itemsize = 2 if half else 4
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a full disk then raises an error now, instead of ending the process later
            os.posix_fallocate(file.fileno(), 0, itemsize * n * d)
        return np.memmap(file, dtype=np.float16 if half else np.float32, mode="w+", shape=(n, d))
