"""Arrays that may be large, read-only or on disk."""

import numpy as np
import torch
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

# Elements that are converted to float64 at once.
_CHUNK = 2**20


def tensor_from_numpy(array: np.ndarray) -> Tensor:
    """The array as a tensor; copied only where torch cannot share its memory (read-only memmaps, negative strides)."""
    shareable = array.flags.writeable and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    return torch.from_numpy(array if shareable else np.array(array))


def row_chunks(X: np.ndarray) -> list[slice]:
    """Slices of rows that are small enough to be converted to float64 one after the other."""
    step = max(1, _CHUNK // X.shape[1])
    return [slice(start, start + step) for start in range(0, len(X), step)]


def standardize(X: np.ndarray, center: np.ndarray | np.generic, scale: np.generic) -> np.ndarray:
    """``(X − center) / scale``, computed in float64 and returned in the dtype of ``X``."""
    if not np.any(center) and scale == 1:  # an encoder's features are used as they are
        return X
    result = np.empty_like(X)
    for rows in row_chunks(X):
        result[rows] = (X[rows] - center) / scale
    return result


def evenly_spaced(n: int, max_n: int) -> np.ndarray:
    """At most ``max_n`` of the positions 0 to ``n - 1``, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, max_n)).astype(int))


def check_samples_and_labels(names: str, X, y) -> None:
    """Raise if only one of samples and labels is given, or their numbers differ."""
    if (X is None) != (y is None):
        raise ValueError(f"{names} are samples and their labels: pass both, or neither")
    if X is not None:
        check_consistent_length(X, y)
