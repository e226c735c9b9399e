"""Features of the real samples: their held-out part, and the batches of the outer loss."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..utils._arrays import tensor_from_numpy

# Held-out samples, at most; more would not make the score noticeably more precise.
_MAX_HELD_OUT = 10_000


@dataclass(frozen=True)
class RealFeatures:
    """Features of real samples, with their classes.

    Parameters
    ----------
    values : ndarray of shape (n, d), float64, float32, or a float16 memmap
        Features in random order, the held-out ones last.
    codes : ndarray of shape (n,), int64
        Class indices.
    order : ndarray of shape (n,), int64
        Positions in the user's ``X``.
    n_held_out : int
        Number of held-out samples.
    strata : ndarray of shape (n,), int64, or None
        Strata within the classes: in a batch, all classes are equally likely, and so are all strata of a class. ``None``: all
        samples are equally likely.
    """

    values: np.ndarray
    codes: np.ndarray
    order: np.ndarray
    n_held_out: int = 0
    strata: np.ndarray | None = None

    def __len__(self):
        return len(self.codes)

    @property
    def training(self) -> "RealFeatures":
        """The samples that images are learned from."""
        return self._part(slice(0, len(self) - self.n_held_out))

    @property
    def held_out(self) -> "RealFeatures":
        """The samples that images are scored on."""
        return self._part(slice(len(self) - self.n_held_out, None))

    def _part(self, rows: slice) -> "RealFeatures":
        strata = None if self.strata is None else self.strata[rows]
        return RealFeatures(self.values[rows], self.codes[rows], self.order[rows], strata=strata)


def held_out_counts(counts: np.ndarray, fraction: float | None) -> np.ndarray:
    """Number of held-out samples for classes of these sizes: a fraction of each, rounded down."""
    return (min(fraction or 0.0, _MAX_HELD_OUT / counts.sum()) * counts).astype(int)


def split_order(codes: np.ndarray, fraction: float | None, rng: np.random.RandomState) -> tuple[np.ndarray, int]:
    """A random order of the samples with the held-out ones last, and the number of these."""
    order = rng.permutation(len(codes))
    by_class = order[np.argsort(codes[order], kind="stable")]
    counts = np.bincount(codes)
    rank = np.arange(len(codes)) - np.repeat(counts.cumsum() - counts, counts)
    held_out = np.zeros(len(codes), dtype=bool)
    held_out[by_class] = rank < np.repeat(held_out_counts(counts, fraction), counts)
    last = held_out[order]
    return np.concatenate([order[~last], order[last]]), int(last.sum())


class BatchSampler:
    """Draw batches of real features.

    Parameters
    ----------
    real : RealFeatures
        In random order, so that consecutive rows are a random sample. A memmap stays on disk.
    batch_size : int
        Rows of a batch.
    device : torch.device
        Device of the batches.
    dtype : torch.dtype
        Dtype of the batches.
    """

    def __init__(self, real: RealFeatures, batch_size: int, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        on_disk = isinstance(real.values, np.memmap)
        self._R = torch.from_numpy(real.values) if on_disk else tensor_from_numpy(real.values).to(device, dtype)
        self._r = torch.from_numpy(real.codes) if on_disk else torch.from_numpy(real.codes).to(device)
        self._batch_size = batch_size
        self._members: Tensor | None = None  # rows ordered by class and stratum, for balanced batches
        if real.strata is not None:
            order = np.lexsort((real.strata, real.codes))
            pairs = np.stack([real.codes, real.strata])[:, order]
            _, first, counts = np.unique(pairs, axis=1, return_index=True, return_counts=True)
            self._starts, self._counts = torch.from_numpy(first), torch.from_numpy(counts)
            _, first, counts = np.unique(real.codes[order][first], return_index=True, return_counts=True)
            self._first_stratum, self._n_strata = torch.from_numpy(first), torch.from_numpy(counts)
            self._members = torch.from_numpy(order)

    def __len__(self):
        return len(self._r)

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features ``(B, d)`` and class indices ``(B,)`` of a batch.

        A uniform batch consists of consecutive rows from a random position, wrapping around; of all rows if there are at most
        ``batch_size``. Where it does not wrap around and the rows are in memory, it is a view. A balanced batch draws a class,
        a stratum of the class and a row of the stratum, ``batch_size`` times.
        """
        n, size = len(self), self._batch_size
        if self._members is not None:
            codes = torch.randint(len(self._n_strata), (size,), generator=generator, device="cpu")
            which, within = torch.rand(2, size, generator=generator, dtype=torch.float64, device="cpu")
            drawn = self._first_stratum[codes] + (which * self._n_strata[codes]).long()
            return self._take(self._members[self._starts[drawn] + (within * self._counts[drawn]).long()])
        if size >= n:
            return self._on_device(self._R), self._on_device(self._r)
        start = int(torch.randint(n, (), generator=generator, device="cpu"))
        if start + size <= n:
            return self._take(slice(start, start + size))
        (R, r), (more_R, more_r) = self._take(slice(start, n)), self._take(slice(0, start + size - n))
        return torch.cat([R, more_R]), torch.cat([r, more_r])

    def _take(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(rows, Tensor):
            rows = rows.to(self._r.device, non_blocking=True)
        return self._on_device(self._R[rows]), self._on_device(self._r[rows])

    def _on_device(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype if values.is_floating_point() else values.dtype, non_blocking=True)
