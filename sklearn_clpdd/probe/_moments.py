"""Sufficient statistics of a linear ridge classifier: O(d² + dC) numbers, whatever the number of samples is."""

import torch
from torch import Tensor

from ..utils._ridge import to_float64
from ._gram import add_gram_, symmetric
from ._rows import Rows, chunk_elements

# Elements of a chunk (32 MB), so large that the work per class and chunk is small beside the Gram matrix.
_CHUNK = 2**22


class Moments:
    """Weighted Gram matrix about the mean, and weights and means of the classes, in float64.

    Chunks are accumulated about their own means (Chan, Golub and LeVeque, 1983), so that an offset of the features costs no
    precision.
    All tensors are on one device; pickles contain them as numpy's arrays.
    """

    def __init__(self, n_classes: int, n_features: int, device: torch.device):
        zeros = to_float64(torch.zeros(1, device=device)).new_zeros
        self.class_rows = torch.zeros(n_classes, dtype=torch.int64, device=device)
        self.class_weights = zeros(n_classes)
        self.class_means = zeros(n_classes, n_features)
        self._gram = zeros(n_features, n_features)  # only valid on and above the diagonal

    def add(self, rows: Rows) -> "Moments":
        """Add rows."""
        weighted = bool((rows.weight != 1).any())
        for positions, chunk in rows.chunks(self._gram.dtype, max_elements=max(_CHUNK, chunk_elements(rows.device))):
            self._add(chunk, rows.codes[positions], rows.weight[positions].to(chunk.dtype), weighted)
        self.class_rows += torch.bincount(rows.codes, minlength=len(self.class_rows))
        return self

    def _add(self, X: Tensor, codes: Tensor, weight: Tensor, weighted: bool) -> None:
        total, mean, weights = self.weight, self.mean, weight.sum()
        chunk_mean = weight @ X / weights
        X -= chunk_mean
        present, inverse = codes.unique(return_inverse=True)
        class_weights = X.new_zeros(len(present)).index_add_(0, inverse, weight)
        sums = X.new_zeros(len(present), X.shape[1])
        sums.index_add_(0, inverse, X * weight[:, None] if weighted else X)
        if weighted:
            X *= weight.sqrt()[:, None]
        means = chunk_mean + sums / class_weights[:, None]
        self._add_means(present, class_weights, means)
        add_gram_(self._gram, X)
        self._add_offset(mean, total, chunk_mean, weights)

    def _add_means(self, classes: Tensor, weights: Tensor, means: Tensor) -> None:
        self.class_weights[classes] += weights
        share = weights / self.class_weights[classes].clamp_min(torch.finfo(weights.dtype).tiny)
        self.class_means[classes] += share[:, None] * (means - self.class_means[classes])

    def _add_offset(self, mean: Tensor, weight: Tensor, other_mean: Tensor, other_weight: Tensor) -> None:
        offset = other_mean - mean
        self._gram.addr_(offset * (weight * other_weight / (weight + other_weight)), offset)

    def with_classes(self, positions: Tensor, n_classes: int) -> "Moments":
        """A copy with more classes, among which the present ones are at ``positions``; nothing else depends on their number."""
        other = self.copy()
        for name in ("class_rows", "class_weights", "class_means"):
            value = getattr(self, name)
            setattr(other, name, value.new_zeros(n_classes, *value.shape[1:]).index_copy_(0, positions.to(value.device), value))
        return other

    def merge(self, other: "Moments") -> "Moments":
        """Add the rows of other moments."""
        if other.n_rows:
            other_weights, other_means = (
                statistic.to(self._gram.device) for statistic in (other.class_weights, other.class_means)
            )
            other_mean, mean, weight = other.mean.to(self._gram.device), self.mean, self.weight
            self._gram += other._gram.to(self._gram.device)
            self._add_offset(mean, weight, other_mean, other_weights.sum())
            self._add_means(torch.arange(len(other_weights), device=self._gram.device), other_weights, other_means)
            self.class_rows += other.class_rows.to(self.class_rows.device)
        return self

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.class_rows.sum())

    @property
    def weight(self) -> Tensor:
        """Sum of the sample weights."""
        return self.class_weights.sum()

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, ``(d,)``."""
        return self.class_weights @ self.class_means / self.weight.clamp_min(torch.finfo(self.class_weights.dtype).tiny)

    def gram(self, *, centered: bool) -> Tensor:
        """``XᵀX`` of the weighted rows, about their mean or about zero, ``(d, d)``."""
        gram = symmetric(self._gram)
        return gram if centered else gram.addr_(self.mean * self.weight, self.mean)

    def cross(self, *, centered: bool) -> Tensor:
        """``XᵀY`` of the weighted rows and their ±1 class indicators, about their means or about zero, ``(d, C)``."""
        if centered:
            return (2 * self.class_weights[:, None] * (self.class_means - self.mean)).T
        return (2 * self.class_weights[:, None] * self.class_means - self.weight * self.mean).T

    def copy(self) -> "Moments":
        """A copy on the same device."""
        other = object.__new__(type(self))
        other.__dict__.update({name: value.clone() for name, value in vars(self).items()})
        return other

    def __getstate__(self):
        return {name: value.cpu().numpy() for name, value in self.__dict__.items()}

    def __setstate__(self, state):
        self.__dict__ = {name: torch.from_numpy(value) for name, value in state.items()}

    def to(self, device: torch.device) -> "Moments":
        """Move to a device, in place."""
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self
