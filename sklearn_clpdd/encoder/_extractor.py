"""A loaded network with the settings of a `FrozenEncoder`: images → features, in batches and cached blocks."""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils.validation import check_memory
from torch import Tensor

from .._version import __version__
from ..utils._heap import reuse_freed_memory
from ..utils._progress import progress_bar
from ..utils._ranks import ALONE, Ranks
from ..utils._torch_modes import standard_torch_modes
from ._backbone import Backbone
from ._feature_cache import FeatureCache, feature_cache
from ._precision import products_of
from ._preprocessing import Preprocessing
from .images._base import Findings, Images
from .sources import without_path

# Images whose features are written to the cache together.
_BLOCK = 1024
# Versions of the packages that compute the features.
VERSIONS = {"sklearn-clpdd": __version__, "torch": version("torch"), "timm": version("timm")}


@dataclass(frozen=True)
class FeatureExtractor:
    """A backbone with the settings for encoding images; returned by `FrozenEncoder.load`.

    Parameters
    ----------
    backbone : Backbone
    model : str
        Name of the model.
    pool : str
        How tokens become features.
    layers : int
        Blocks whose tokens they are.
    l2_normalize : bool
        Whether features are scaled to unit norm.
    dtype : {"auto", "float32", "tf32", "bfloat16", "float16"}
        Precision inside the network.
    batch_size : int
        Images in one forward pass.
    n_jobs : int or None
        Threads that decode image files.
    memory : str, path, joblib.Memory or None
        Location of the feature cache.
    verbose : int
        Above 0: show a progress bar.
    replicas : tuple of Backbone
        The network on further devices, which encode images, too.
    chosen : tuple of 2 str, optional
        Precisions of features and gradients that another process has measured.
    """

    backbone: Backbone
    model: str = ""
    pool: str = "auto"
    layers: int = 1
    l2_normalize: bool = True
    dtype: str = "auto"
    batch_size: int = 64
    n_jobs: int | None = None
    memory: Any = None
    verbose: int = 0
    replicas: tuple[Backbone, ...] = ()
    chosen: tuple[str, str] | None = None

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.backbone.n_features

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.backbone.device

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are resized, cropped and normalised."""
        return self.backbone.preprocessing

    @property
    def dtype_(self) -> str:
        """Precision of the features; with ``dtype="auto"`` the fastest one that agrees with float32, measured once."""
        return self._precision(gradient=False)

    @property
    def gradient_dtype_(self) -> str:
        """Precision in which features are differentiated."""
        return self._precision(gradient=True)

    def _precision(self, *, gradient: bool) -> str:
        if self.dtype != "auto":
            return self.dtype
        return self.chosen[gradient] if self.chosen else self.backbone.fastest_precision(gradient=gradient)

    def __call__(self, views: Tensor, precision: str | None = None) -> Tensor:
        """Features ``(n, d)`` float32 of preprocessed images ``(n, 3, s, s)`` in [0, 1], differentiable in the images.

        The precision is `dtype_` by default. For gradients in TF32, the caller has to be in `products_of`.
        """
        precision = precision or self.dtype_
        with products_of(precision, self.device):
            Z = self.backbone(views.float(), precision).float()
        return F.normalize(Z, dim=1) if self.l2_normalize else Z

    def encode(self, images: Images) -> np.ndarray:
        """Features ``(n, d)`` float32 of images."""
        features = np.empty((len(images), self.n_features), dtype=np.float32)
        for rows, Z in self.blocks(images):
            features[rows] = Z
        return features

    def blocks(self, images: Images, ranks: Ranks = ALONE) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and features of one block of images after another.

        Each image file is decoded once. Files that cannot be decoded are reported in one error at the end; after the first one,
        files are only decoded, not encoded. Several processes encode a block each, and exchange the features.
        """
        cache, findings = self._cache(), Findings()
        if cache is None:
            images.check()
        else:
            images.check(np.flatnonzero(~cache.contains(images.keys())).tolist())
        # In complete batches, so that they are the same for each number of processes, and so is the rounding.
        n_batches = min(_BLOCK // self.batch_size, math.ceil(len(images) / ranks.size / self.batch_size))
        blocks = _in_blocks(len(images), max(1, n_batches) * self.batch_size)
        if cache is not None and ranks.size == 1:
            Random().shuffle(blocks)  # so that processes encoding the same images concurrently share the work
        hidden = not self.verbose or ranks.rank > 0
        with progress_bar(total=len(images), desc="encoding", unit="img", hidden=hidden) as bar:
            for start in range(0, len(blocks), ranks.size):
                several = blocks[start : start + ranks.size]
                Z = self._block(images, several[ranks.rank], cache, bar, findings) if ranks.rank < len(several) else None
                for rows, features in zip(several, self._exchanged(several, Z, findings, ranks), strict=True):
                    if features is not None:
                        yield slice(rows.start, rows.stop), features
        faults: dict[int, str] = {}
        for found in ranks.of_all(findings.faults):
            faults |= found
        images.report(faults)

    def _exchanged(
        self, blocks: list[range], Z: np.ndarray | None, findings: Findings, ranks: Ranks
    ) -> Sequence[np.ndarray | None]:
        """Features of these blocks, one of each process; none if one of the processes has found a fault."""
        if ranks.size == 1:
            return [Z]
        findings.elsewhere |= any(ranks.of_all(bool(findings.faults)))
        if not findings.clean:
            return [None] * len(blocks)
        longest = max(map(len, blocks))
        own = torch.zeros(longest, self.n_features)
        if Z is not None:
            own[: len(Z)] = torch.from_numpy(Z)
        parts = ranks.gather(own, ranks.size, longest).split(longest)
        return [part[: len(rows)].numpy() for part, rows in zip(parts[: len(blocks)], blocks, strict=True)]

    def _block(self, images: Images, rows: range, cache: FeatureCache | None, bar: Any, findings: Findings) -> np.ndarray | None:
        """Features of a block of images, from the cache as far as it has them; ``None`` if an image could not be decoded."""
        if cache is None:
            Z = self._encode(images, rows, bar, findings)
            return Z if findings.clean else None
        keys = images.keys()[rows.start : rows.stop]
        Z = np.empty((len(rows), self.n_features), dtype=np.float32)
        known = cache.read(keys, Z)
        bar.update(int(known.sum()))
        if not known.all():
            missing = rows.start + np.flatnonzero(~known)
            encoded = self._encode(images, missing.tolist() if known.any() else rows, bar, findings)
            if findings.clean:
                Z[~known] = encoded
                cache.write(keys[~known], encoded)
        return Z if findings.clean else None

    def _encode(self, images: Images, indices: Sequence[int], bar: Any, findings: Findings) -> np.ndarray:
        """Features ``(len(indices), d)`` float32 of the images at these positions; incomplete if there are faults."""
        features = np.empty((len(indices), self.n_features), dtype=np.float32)
        done = 0
        batches = _in_standard_modes(images.batches(indices, self.batch_size, self.preprocessing, self.n_jobs, findings))
        if self.device.type != "cpu":
            batches = _prefetched(batches)
        # A single batch has no memory to reuse.
        with reuse_freed_memory() if self.device.type == "cpu" and len(indices) > self.batch_size else nullcontext():
            for Z in self._features_of_batches(batches):
                features[done : done + len(Z)] = Z
                done += len(Z)
                bar.update(len(Z))
        if findings.missing:
            features[[i in findings.missing for i in indices]] = 0
        return features

    def _features_of_batches(self, batches: Iterator[Tensor]) -> Iterator[np.ndarray]:
        """Features of one batch after another; several replicas of the network take a batch each."""
        if not self.replicas:
            yield from map(self._features, batches)
            return
        free: SimpleQueue[FeatureExtractor] = SimpleQueue()
        for backbone in (self.backbone, *self.replicas):
            free.put(replace(self, backbone=backbone, replicas=(), dtype=self.dtype_))

        def encode(batch: Tensor) -> np.ndarray:
            replica = free.get()
            try:
                return replica._features(batch)
            finally:
                free.put(replica)

        n = 1 + len(self.replicas)
        with ThreadPoolExecutor(n) as pool:
            waiting: deque = deque()
            for batch in batches:
                waiting.append(pool.submit(encode, batch))
                if len(waiting) > n:  # one more than there are replicas, so that none waits for the next batch
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _features(self, batch: Tensor) -> np.ndarray:
        with standard_torch_modes(self.device), torch.inference_mode():
            batch = batch.to(self.device, non_blocking=True)
            Z = self(batch).cpu().numpy()
            if self.dtype_ == "float16" and not np.isfinite(Z).all():  # its range is small
                return self(batch, "float32").cpu().numpy()
            return Z

    def _cache(self) -> FeatureCache | None:
        try:
            memory = check_memory(os.fspath(self.memory) if isinstance(self.memory, os.PathLike) else self.memory)
        except OSError as error:
            raise type(error)(
                f"memory={os.fspath(self.memory)!r} cannot be used as a folder for features ({error.strerror or error}); "
                "pass a folder that can be created or written"
            ) from error
        if memory.location is None:
            return None
        if memory.backend != "local":
            raise ValueError(f"memory= stores features in files; got a joblib.Memory with backend={memory.backend!r}")
        return feature_cache(Path(memory.store_backend.location, "sklearn_clpdd", self.identity()).absolute())

    def identity(self) -> str:
        """Digest of everything that the features of an image depend on, besides the image."""
        return joblib.hash((self.backbone.digest, self.l2_normalize, self.dtype_, VERSIONS, self.backbone.library_versions))

    def network_identity(self) -> str:
        """`identity` without what differs between machines: versions of packages, and the precision that is the fastest."""
        return joblib.hash((self.backbone.digest, self.l2_normalize, self.dtype))

    def uncached(self) -> "FeatureExtractor":
        """A copy without cache and progress bar, for images that are encoded only once."""
        return replace(self, memory=None, verbose=0)

    def provenance(self) -> dict[str, Any]:
        """Model, digest of its weights, and preprocessing, as JSON-serialisable values."""
        own = self.preprocessing
        return {
            "model": without_path(self.model),
            "weights_sha256": self.backbone.weights_sha256,
            "pool": self.pool,
            "layers": self.layers,
            "dtype": self.dtype_,
            "l2_normalize": bool(self.l2_normalize),
            "image_size": int(own.image_size),
            "crop_pct": float(own.crop_pct),
            "mean": [float(value) for value in own.mean],
            "std": [float(value) for value in own.std],
            "interpolation": own.interpolation,
            "crop_mode": own.crop_mode,
        }


def joint_features(extractors: list[FeatureExtractor], images: Images) -> np.ndarray:
    """Features ``(n, Σd)`` of images under several encoders, side by side, divided by √(number of encoders)."""
    parts = [extractor.encode(images) for extractor in extractors]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1) / np.float32(math.sqrt(len(parts)))


def _in_blocks(n: int, size: int) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def _in_standard_modes(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, each prepared in torch's standard modes, which the consumer does not see."""
    while True:
        with standard_torch_modes():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _prefetched(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches; a thread prepares each while the one before it is being encoded."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch
