"""Features of the real images in the outer loss: a batch of them in each step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .rows import shared

# More held-out samples would say nothing that these do not.
_HELD_OUT = 10_000


def held_out_counts(counts: np.ndarray, fraction: float | None) -> np.ndarray:
    """How many samples of classes of so many are held out: a share of each, rounded down."""
    return (min(fraction or 0.0, _HELD_OUT / counts.sum()) * counts).astype(int)


def shuffled(codes: np.ndarray, fraction: float | None, rng: np.random.RandomState) -> tuple[np.ndarray, int]:
    """A random order of the samples in which the held-out ones come last, and how many of these there are.

    A class of few samples gives none.
    """
    order = rng.permutation(len(codes))
    by_class = order[np.argsort(codes[order], kind="stable")]
    counts = np.bincount(codes)
    rank = np.arange(len(codes)) - np.repeat(counts.cumsum() - counts, counts)
    held_out = np.zeros(len(codes), dtype=bool)
    held_out[by_class] = rank < np.repeat(held_out_counts(counts, fraction), counts)
    last = held_out[order]
    return np.concatenate([order[~last], order[last]]), int(last.sum())


@dataclass(frozen=True)
class RealSet:
    """All real samples behind the encoder.

    Parameters
    ----------
    R : ndarray of shape (n, d), float64, float32, or a float16 memmap
        Features in random order, the held-out ones last.
    codes : ndarray of shape (n,), int64
        Class indices.
    order : ndarray of shape (n,), int64
        Where the user has them.
    n_held_out : int
    strata : ndarray of shape (n,), int64, or None
        Indices of what is to be equally likely in a batch, within a class.
    """

    R: np.ndarray
    codes: np.ndarray
    order: np.ndarray
    n_held_out: int
    strata: np.ndarray | None = None

    @property
    def training(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Features, class indices and strata that are learned from."""
        return self._part(slice(0, len(self.R) - self.n_held_out))

    @property
    def held_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Those that are not."""
        return self._part(slice(len(self.R) - self.n_held_out, None))

    def _part(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        return self.R[rows], self.codes[rows], None if self.strata is None else self.strata[rows]


class RealFeatures:
    """Features of real samples, and how a step samples them.

    Parameters
    ----------
    R : ndarray of shape (n, d)
        In random order: a run of rows is a random sample. A float16 memmap stays on disk.
    r : ndarray of shape (n,), int64
        Class indices.
    batch_size : int
        Rows of a step.
    strata : ndarray of shape (n,), int64, or None
        Indices of what is to be equally likely within a class, as the classes are; ``None``: rows are.
    device : torch.device
        Where batches are wanted.
    dtype : torch.dtype
        Theirs.
    """

    def __init__(
        self,
        R: np.ndarray,
        r: np.ndarray,
        batch_size: int,
        strata: np.ndarray | None,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.device, self.dtype = device, dtype
        on_disk = isinstance(R, np.memmap)
        self._R = torch.from_numpy(R) if on_disk else shared(R).to(device, dtype)
        self._r = torch.from_numpy(r) if on_disk else torch.from_numpy(r).to(device)
        self._batch_size = batch_size
        self._members: Tensor | None = None  # rows stratum by stratum, for balanced batches
        if strata is not None:
            order = np.lexsort((strata, r))  # class by class, and in these stratum by stratum
            _, first, counts = np.unique(np.stack([r, strata])[:, order], axis=1, return_index=True, return_counts=True)
            self._starts, self._counts = torch.from_numpy(first), torch.from_numpy(counts)
            _, first, counts = np.unique(r[order][first], return_index=True, return_counts=True)
            self._first_stratum, self._n_strata = torch.from_numpy(first), torch.from_numpy(counts)
            self._members = torch.from_numpy(order)

    def __len__(self):
        return len(self._r)

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features ``(B, d)`` and class indices ``(B,)`` of a step.

        Uniform batches are views of the features where these are in memory: a run of rows from a random first one, all of them
        where there are no more. Balanced ones draw a class, a stratum in it, and a row of that, for each of ``batch_size``.
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
