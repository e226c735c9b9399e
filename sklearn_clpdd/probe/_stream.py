"""State of `partial_fit`, which `merge` combines."""

import copy

import numpy as np
import torch

from ._moments import Moments
from ._reservoir import Reservoir
from ._rows import Rows, as_numpy


class Stream:
    """Sufficient statistics of all samples, and a uniform sample of them.

    Parameters
    ----------
    n_classes, n_features : int
    sample_size : int
        Rows of the uniform sample, at most.
    kernel : str
        Kernel for which the samples are added; the moments do not fit another one.
    device : torch.device
    are_all_classes : bool
        Whether all classes are known; otherwise later samples may have others.
    """

    def __init__(
        self, n_classes: int, n_features: int, sample_size: int, kernel: str, device: torch.device, *, are_all_classes: bool
    ):
        self.are_all_classes = are_all_classes
        self.moments = Moments(n_classes, n_features, device)
        self.reservoir = Reservoir(sample_size)
        self.kernel = kernel
        self.dtype = torch.float32

    def __getstate__(self):
        return {**vars(self), "dtype": str(self.dtype).removeprefix("torch.")}

    def __setstate__(self, state):
        self.__dict__ = {**state, "dtype": getattr(torch, state["dtype"])}

    def add(self, rows: Rows, dtype: torch.dtype) -> None:
        """Add samples."""
        self.moments.to(rows.device).add(rows)
        self.reservoir.add(as_numpy(rows.stored()), rows.codes.cpu().numpy(), rows.weight.cpu().numpy().astype(np.float64))
        self.dtype = torch.promote_types(self.dtype, dtype)

    def copy(self) -> "Stream":
        """A copy, to which samples are added without changing this stream."""
        other = copy.copy(self)
        other.moments, other.reservoir = self.moments.copy(), copy.copy(self.reservoir)
        return other

    def with_classes(self, known: np.ndarray, classes: np.ndarray) -> "Stream":
        """A copy for more classes; both arrays are sorted."""
        other, positions = self.copy(), np.searchsorted(classes, known)
        if len(known) < len(classes):
            other.moments = other.moments.with_classes(torch.from_numpy(positions), len(classes))
            other.reservoir.recode(positions)
        return other

    def merge(self, other: "Stream") -> None:
        """Add the samples of another stream."""
        self.moments.merge(other.moments)
        self.reservoir.merge(other.reservoir)
        self.dtype = torch.promote_types(self.dtype, other.dtype)
