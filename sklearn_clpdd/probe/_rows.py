"""Feature matrices that are read in chunks, so that one on disk or in half precision is never copied as a whole.

They are numpy arrays, or tensors, which stay on their device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha1

import numpy as np
import torch
from torch import Tensor

from ..utils._arrays import evenly_spaced, tensor_from_numpy

# Elements of a chunk: 4 MB in float32. Larger chunks cost memory and hardly speed up the matrix products.
CHUNK = 2**20


def chunk_elements(device: torch.device) -> int:
    """Elements of a chunk on a device: a GPU needs more of them at once."""
    return 2**26 if device.type == "cuda" else CHUNK


# Rows that agree in these columns are compared in full; most differ in a few of their numbers.
_KEY_COLUMNS = 16
_HASH_MULTIPLIERS = 2 * np.random.default_rng(0).integers(2**62, size=_KEY_COLUMNS + 1, dtype=np.uint64) + 1


@dataclass(frozen=True)
class Rows:
    """Weighted, labelled rows of a feature matrix, read in chunks on a device.

    Parameters
    ----------
    X : ndarray or Tensor of shape (n_total, d), float16, float32 or float64
        May be a memmap, or an array whose memory torch cannot share.
    index : ndarray of shape (n,), int, or None
        Selected rows of ``X``; ``None``: all.
    codes : Tensor of shape (n,), int64
        Indices of the classes.
    weight : Tensor of shape (n,), float64
        Sample weights, > 0.
    unit : bool
        Whether each row is divided by its norm (cosine kernel).
    device : torch.device
        Device of the chunks, of ``codes`` and of ``weight``.
    """

    X: np.ndarray | Tensor
    index: np.ndarray | None
    codes: Tensor
    weight: Tensor
    unit: bool
    device: torch.device

    @classmethod
    def unlabelled(cls, X: np.ndarray | Tensor, device: torch.device, *, unit: bool = False) -> "Rows":
        """Rows without labels or weights."""
        return cls(
            X, None, torch.zeros(len(X), dtype=torch.int64, device=device), torch.ones(len(X), device=device), unit, device
        )

    def __len__(self):
        return len(self.codes)

    def take(self, positions: Tensor) -> "Rows":
        """The rows at these positions."""
        chosen = positions.cpu().numpy()
        index = chosen if self.index is None else self.index[chosen]
        return replace(self, index=index, codes=self.codes[positions], weight=self.weight[positions])

    def chunks(self, dtype: torch.dtype, n_outputs: int = 0, max_elements: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of positions, and the rows there in a buffer that the next chunk overwrites.

        ``n_outputs`` is the number of elements that the caller computes per row. Chunks are sized so that neither rows nor
        outputs exceed ``max_elements``, by default `chunk_elements`.
        """
        d = self.X.shape[1]
        length = max(1, min(len(self), (max_elements or chunk_elements(self.device)) // max(d, n_outputs, 1)))
        buffer = torch.empty(length, d, dtype=dtype, device=self.device)
        for start in range(0, len(self), length):
            positions = slice(start, min(start + length, len(self)))
            part = _taken(self.X, positions if self.index is None else self.index[positions])
            chunk = buffer[: len(part)].copy_(as_tensor(part))
            if self.unit:
                _to_unit_norm_(chunk)
            yield positions, chunk

    def stored(self) -> np.ndarray | Tensor:
        """The rows as they are in ``X``: ``X`` itself, or a copy of the selected ones."""
        return self.X if self.index is None else _taken(self.X, self.index)

    def load(self, dtype: torch.dtype) -> Tensor:
        """All rows at once, as a copy."""
        rows = as_tensor(self.stored()).to(self.device, dtype, copy=True)
        return _to_unit_norm_(rows) if self.unit else rows


def as_tensor(array: np.ndarray | Tensor) -> Tensor:
    """A tensor as it is, or an array as one."""
    return array if isinstance(array, Tensor) else tensor_from_numpy(array)


def as_numpy(array: np.ndarray | Tensor) -> np.ndarray:
    """An array as it is, or a tensor as one."""
    return array.cpu().numpy() if isinstance(array, Tensor) else array


def _taken(X: np.ndarray | Tensor, rows: slice | np.ndarray) -> np.ndarray | Tensor:
    """Some rows; an array of positions selects them from a tensor on its device."""
    return X[torch.from_numpy(rows).to(X.device) if isinstance(X, Tensor) and isinstance(rows, np.ndarray) else rows]


def _to_unit_norm_(rows: Tensor) -> Tensor:
    """Divide rows by their norms, in place; rows of zeros stay zero."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(torch.where(norms == 0, 1, norms))


def merge_duplicates(
    X: np.ndarray | Tensor, codes: np.ndarray, weight: np.ndarray, index: np.ndarray | None = None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Merge bit-identical rows of one class into one row with the sum of their weights.

    Leave-one-out then leaves all copies of a sample out together, so that a weight of 2 means the same as two copies.

    Parameters
    ----------
    X : ndarray or Tensor of shape (n_total, d)
    codes, weight : ndarray of shape (n,)
    index : ndarray of shape (n,), int, or None
        Rows of ``X`` that they belong to; ``None``: all.

    Returns
    -------
    kept : ndarray of int, or None
        Positions that are kept; ``None`` if there are no duplicates.
    weight : ndarray
        Their weights.
    """
    columns = evenly_spaced(X.shape[1], _KEY_COLUMNS)
    few = as_numpy(X[:, torch.from_numpy(columns).to(X.device)]) if isinstance(X, Tensor) else None
    keys = codes.astype(np.uint64) * _HASH_MULTIPLIERS[-1]
    for start in range(0, len(codes), CHUNK // _KEY_COLUMNS):
        part = slice(start, start + CHUNK // _KEY_COLUMNS)
        if few is not None:
            some = few[part if index is None else index[part]]
        else:
            some = as_numpy(X[part][:, columns] if index is None else X[np.ix_(index[part], columns)])
        values = np.ascontiguousarray(some).view(f"u{some.dtype.itemsize}").astype(np.uint64)
        keys[part] += values @ _HASH_MULTIPLIERS[: len(columns)]
    order = np.argsort(keys, kind="stable")
    same = np.diff(keys[order]) == 0
    if not same.any():
        return None, weight
    first: dict[tuple[int, bytes], int] = {}
    original = np.arange(len(codes))
    for i in np.sort(order[np.r_[same, False] | np.r_[False, same]]):
        row = as_numpy(X[i if index is None else index[i]])
        # Compare digests: a second copy of all rows may not fit in memory.
        original[i] = first.setdefault((int(codes[i]), sha1(row.tobytes(), usedforsecurity=False).digest()), i)
    kept = np.flatnonzero(original == np.arange(len(codes)))
    if len(kept) == len(codes):
        return None, weight
    return kept, np.bincount(original, weights=weight, minlength=len(codes))[kept]
