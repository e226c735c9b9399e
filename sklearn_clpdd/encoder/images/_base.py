"""What all forms of images have in common."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import joblib
import numpy as np
from torch import Tensor

from .._feature_cache import KEY_BYTES
from .._preprocessing import Preprocessing


@dataclass
class Findings:
    """What is found out about images while they are decoded, by their positions."""

    faults: dict[int, str] = field(default_factory=dict)  # why an image cannot be decoded
    missing: set[int] = field(default_factory=set)  # images that are not there, and may be
    elsewhere: bool = False  # whether another process has found a fault

    @property
    def clean(self) -> bool:
        """Whether all images could be decoded so far."""
        return not (self.faults or self.elsewhere)


class Images(ABC):
    """``n`` images in any form, read in batches and never converted to floats all at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def check(self, indices: Sequence[int] | None = None) -> None:
        """Raise if files are missing or values are out of range; files are not decoded. ``indices`` selects images."""

    @abstractmethod
    def keys(self) -> np.ndarray:
        """A digest of each image that changes with the image: uint8 ``(n, KEY_BYTES)``."""

    @abstractmethod
    def portable_keys(self) -> np.ndarray:
        """Digests that are the same on every machine with a copy of the images."""

    @abstractmethod
    def read(self, indices, preprocessing: Preprocessing, n_jobs: int | None = None) -> Tensor:
        """The images at ``indices``, float32 RGB in [0, 1], resized and cropped: ``(len(indices), 3, s, s)``."""

    def batches(
        self, indices: Sequence[int], batch_size: int, preprocessing: Preprocessing, n_jobs: int | None, findings: Findings
    ) -> Iterator[Tensor]:
        """Yield batches of the images at ``indices`` until one cannot be decoded; from then on, only collect faults.

        A missing image that may be missing is black, and recorded.
        """
        for start in range(0, len(indices), batch_size):
            yield self.read(indices[start : start + batch_size], preprocessing, n_jobs)

    def report(self, faults: dict[int, str]) -> None:  # noqa: B027 (arrays have no faults)
        """Raise one error for all images that could not be decoded, if there are any."""


def digest(form: bytes, content) -> bytes:
    """A digest of KEY_BYTES."""
    value = blake2b(content, digest_size=KEY_BYTES)
    value.update(b"\0" + form)
    return value.digest()


def stack_keys(digests: Iterable[bytes]) -> np.ndarray:
    """Digests as an array ``(n, KEY_BYTES)``."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, KEY_BYTES)


def parallel(n_jobs: int | None) -> joblib.Parallel:
    """Threads that decode pictures."""
    return joblib.Parallel(n_threads(n_jobs), prefer="threads")


def n_threads(n_jobs: int | None) -> int | None:
    """The number of threads; a negative ``n_jobs`` is limited by ``OMP_NUM_THREADS``, which joblib and Dask set in workers."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if n_jobs is None or n_jobs >= 0 or not limit.isdecimal():
        return n_jobs
    return max(1, min(joblib.effective_n_jobs(n_jobs), int(limit)))
