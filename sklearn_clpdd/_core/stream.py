"""What is known of a stream of samples, and of several that become one."""

import numpy as np
import torch

from .moments import Moments
from .reservoir import Reservoir
from .rows import Rows


class Stream:
    """Sufficient statistics of all samples, and a uniform sample of them.

    Parameters
    ----------
    n_classes, n_features, size : int
        `size` is that of the sample.
    kernel : str
        For which the samples are taken in: ``"cosine"`` takes unit rows.
    device : torch.device
    """

    def __init__(self, n_classes: int, n_features: int, size: int, kernel: str, device: torch.device):
        self.moments = Moments(n_classes, n_features, device)
        self.reservoir = Reservoir(size)
        self.kernel = kernel
        self.dtype = torch.float32

    def add(self, rows: Rows, batch: tuple[np.ndarray, np.ndarray, np.ndarray], dtype: torch.dtype) -> None:
        """Take samples in: as rows, and as the features, class indices and weights that they are of."""
        self.moments.to(rows.device).add(rows)
        kept = slice(None) if batch[2].all() else np.flatnonzero(batch[2])
        self.reservoir.add(*(part[kept] for part in batch))
        self.dtype = torch.promote_types(self.dtype, dtype)

    def merge(self, other: "Stream") -> None:
        """Take in what another has seen."""
        self.moments.merge(other.moments)
        self.reservoir.merge(other.reservoir)
        self.dtype = torch.promote_types(self.dtype, other.dtype)
