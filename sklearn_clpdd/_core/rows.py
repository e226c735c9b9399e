"""Feature matrices read chunk by chunk, so that one on disk or in half precision is never copied whole."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha1

import numpy as np
import torch
from torch import Tensor

# Numbers of a chunk: 4 MB in float32. Larger chunks cost memory and gain little in the matrix products.
CHUNK = 2**20

# Most rows differ from all others in a few of their numbers; the bytes of those that do not are compared in full.
_KEY_COLUMNS = 16
_ODD = 2 * np.random.default_rng(0).integers(2**62, size=_KEY_COLUMNS + 1, dtype=np.uint64) + 1


@dataclass(frozen=True)
class Rows:
    """Weighted, labelled rows of a feature matrix, read in chunks on a device.

    Parameters
    ----------
    X : ndarray of shape (n_total, d), float16, float32 or float64
        A memmap, or an array that torch cannot share, will do.
    index : ndarray of shape (n,), int, or None
        Which rows of ``X``; ``None`` is all of them.
    codes : Tensor of shape (n,), int64
        Indices of the classes.
    weight : Tensor of shape (n,), float64
        Sample weights, > 0.
    unit : bool
        Whether every row is divided by its norm (the cosine kernel).
    device : torch.device
        Where the chunks, ``codes`` and ``weight`` are.
    """

    X: np.ndarray
    index: np.ndarray | None
    codes: Tensor
    weight: Tensor
    unit: bool
    device: torch.device

    @classmethod
    def plain(cls, X: np.ndarray, device: torch.device, *, unit: bool = False) -> "Rows":
        """Rows without labels or weights."""
        return cls(
            X, None, torch.zeros(len(X), dtype=torch.int64, device=device), torch.ones(len(X), device=device), unit, device
        )

    def __len__(self):
        return len(self.codes)

    def take(self, positions: Tensor) -> "Rows":
        """The rows at some positions."""
        chosen = positions.cpu().numpy()
        index = chosen if self.index is None else self.index[chosen]
        return replace(self, index=index, codes=self.codes[positions], weight=self.weight[positions])

    def chunks(self, dtype: torch.dtype, width: int = 0, numbers: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of positions, and the rows there in a buffer that the next chunk overwrites.

        ``width`` numbers a row is what the caller makes of it; chunks are as long as both sides of that fit into ``numbers``,
        by default `CHUNK`.
        """
        d = self.X.shape[1]
        length = max(1, min(len(self), (numbers or CHUNK) // max(d, width, 1)))
        buffer = torch.empty(length, d, dtype=dtype, device=self.device)
        for start in range(0, len(self), length):
            positions = slice(start, min(start + length, len(self)))
            part = self.X[positions] if self.index is None else self.X[self.index[positions]]
            chunk = buffer[: len(part)].copy_(shared(part))
            if self.unit:
                to_unit_norm_(chunk)
            yield positions, chunk

    def whole(self, dtype: torch.dtype) -> Tensor:
        """All rows at once, in memory that is nobody else's."""
        X = self.X if self.index is None else self.X[self.index]
        rows = shared(X).to(self.device, dtype, copy=True)
        return to_unit_norm_(rows) if self.unit else rows


def shared(array: np.ndarray) -> Tensor:
    """The array as a tensor, copied where torch could not share it (read-only memmaps, negative strides)."""
    shareable = array.flags.writeable and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    return torch.from_numpy(array if shareable else np.array(array))


def to_unit_norm_(rows: Tensor) -> Tensor:
    """Divide rows by their norms, in place; rows of zeros stay."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(torch.where(norms == 0, 1, norms))


def without_copies(
    X: np.ndarray, codes: np.ndarray, weight: np.ndarray, index: np.ndarray | None = None
) -> tuple[np.ndarray | None, np.ndarray]:
    """One row for all bit-identical rows of one class, with the sum of their weights.

    Then leave-one-out leaves all copies of a sample out together: a sample of weight 2 is one that is there twice.

    Parameters
    ----------
    X : ndarray of shape (n_total, d)
    codes, weight : ndarray of shape (n,)
    index : ndarray of shape (n,), int, or None
        The rows of ``X`` that they belong to; ``None`` is all.

    Returns
    -------
    kept : ndarray of int, or None
        Positions that stay; ``None`` where no row is a copy.
    weight : ndarray
        Their weights.
    """
    columns = np.linspace(0, X.shape[1] - 1, min(_KEY_COLUMNS, X.shape[1])).astype(int)
    keys = codes.astype(np.uint64) * _ODD[-1]
    for start in range(0, len(codes), CHUNK // _KEY_COLUMNS):
        part = slice(start, start + CHUNK // _KEY_COLUMNS)
        some = X[part][:, columns] if index is None else X[np.ix_(index[part], columns)]
        keys[part] += np.ascontiguousarray(some).view(f"u{X.dtype.itemsize}").astype(np.uint64) @ _ODD[: len(columns)]
    order = np.argsort(keys, kind="stable")
    same = np.diff(keys[order]) == 0
    if not same.any():
        return None, weight
    first: dict[tuple[int, bytes], int] = {}
    original = np.arange(len(codes))
    for i in np.sort(order[np.r_[same, False] | np.r_[False, same]]):
        row = X[i if index is None else index[i]]
        # A digest, for the rows of a large set would not fit twice.
        original[i] = first.setdefault((int(codes[i]), sha1(row.tobytes(), usedforsecurity=False).digest()), i)
    kept = np.flatnonzero(original == np.arange(len(codes)))
    if len(kept) == len(codes):
        return None, weight
    return kept, np.bincount(original, weights=weight, minlength=len(codes))[kept]
