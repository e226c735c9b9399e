"""Leave-one-out predictions of ridge regression for many penalties, from one factorisation.

The prediction for a sample is linear in the targets; its leverage ``h`` is the weight of its own target. Refitting without the
sample gives

    ``(prediction − h·y) / (1 − h)``

exactly, with the intercept and the sample weights in ``h``. In sample space the same number is ``y − a/(w·g)``, for the
coefficients ``a`` of the samples, their weights ``w`` and the diagonal ``g`` of the inverse. This form avoids cancellation when
``h`` is close to one, as is usual with fewer samples than features.

Targets are ±1 class indicators with one column per class, for two classes too. ``n`` is the number of samples, ``d`` that of
features, ``C`` that of classes, ``P`` that of penalties; ``A`` is the matrix that is factorised.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ..utils._ridge import to_float64
from ._gram import add_gram_, symmetric
from ._inverse import Candidates, RidgedInverse
from ._moments import Moments
from ._rows import Rows, chunk_elements

# float32 is used if the squared norms of the rows are at most this many times the smallest eigenvalue, penalty included: their
# mean in feature space, and in sample space their sum, which bounds the condition number.
_FLOAT32_RANGE = 1e4
# A sample for which ``1 − h`` is below this is computed in float64.
_FLOAT32_SHARE = 0.05
# Largest rounding error that centring leaves of a constant, in multiples of the precision.
_ROUNDING = 64
# Columns of one matrix product of predictions, in multiples of the number of features; bytes of weights that are held at once.
_COLUMNS = 2
_WEIGHT_BYTES = 2**24

# Maps the mean squared norm of the rows to the penalties to try.
Penalties = Callable[[float], Sequence[float]]


class SampleSpace:
    """Ridge regression on an ``(n, n)`` kernel matrix.

    Parameters
    ----------
    K : Tensor of shape (n, n)
        Kernel matrix of the samples; overwritten. All results have its dtype.
    codes : Tensor of shape (n,), int64
        Indices of the classes.
    weight : Tensor of shape (n,)
        Sample weights, > 0.
    n_classes : int
    penalties : callable
        Maps the mean of the rows' weighted squared norms to the penalties to try.
    fit_intercept : bool
    """

    _toward: Tensor | None = None  # of linear kernels only

    def __init__(self, K: Tensor, codes: Tensor, weight: Tensor, n_classes: int, penalties: Penalties, fit_intercept: bool):
        self._exact_weight, self.weight, self.dtype = weight, weight.to(K.dtype), K.dtype
        self._root = self.weight.sqrt()
        K.mul_(self._root).mul_(self._root[:, None])
        self._direction = None
        self._center = torch.zeros_like(self._root)
        if fit_intercept:
            # The direction of the intercept is projected out of the kernel and the targets.
            norm = torch.linalg.vector_norm(self._root)
            u = self._direction = self._root / norm
            Ku = K @ u
            self._center = Ku / (self._root * norm)  # mean kernel with every sample
            before = K.diagonal().mean()
            K.addr_(u, Ku, alpha=-1).addr_(Ku, u, alpha=-1)
            K.addr_(u * (u @ Ku), u)
            # Otherwise the kernel is constant, and what is left is rounding.
            K *= K.diagonal().mean().abs() > _ROUNDING * torch.finfo(K.dtype).eps * before.abs()
        scale = K.diagonal().mean().item()
        self.penalties = penalties(scale)
        if fit_intercept:  # give that direction an eigenvalue, so that the matrix is regular without a penalty
            K.addr_(scale * u, u)
        self._inverse = RidgedInverse(K, self.penalties)
        self._set_targets(codes, n_classes)

    def of_labels(self, labels: Tensor, toward: Tensor | None, *, leave_one_out: bool) -> Iterator["SampleSpace"]:
        """Yield the same rows and factorisation for each of several labels, as two classes.

        Parameters
        ----------
        labels : Tensor of shape (n, L), int64
            1 for the rows that have a label, else 0.
        toward : Tensor of shape (d, L) or None
            Coefficients of each label towards which the penalty pulls.
        leave_one_out : bool
            Whether predictions of refits are needed; what they need and all labels share is then computed once.
        """
        if leave_one_out:
            self._diagonal  # noqa: B018
        for j, codes in enumerate(labels.T):
            other = copy.copy(self)
            other._toward = _of_two_classes(toward, j)
            other._set_targets(codes, 2)
            yield other

    def _set_targets(self, codes: Tensor, n_classes: int) -> None:
        weight = self._exact_weight
        self.codes, self.n_classes = codes, n_classes
        self.class_rows = torch.bincount(codes, minlength=n_classes)
        self._Y = self._root.new_full((len(codes), n_classes), -1).scatter_(1, codes[:, None], 1)
        # Means of the targets, exact for balanced classes, in the precision of the weights: small features have smaller scores.
        self._prior = weight.new_zeros(n_classes)
        if self._direction is not None:
            self._prior = 2 * weight.new_zeros(n_classes).index_add_(0, codes, weight) / weight.sum() - 1
        self._targets = self._root[:, None] * (self._Y.to(weight) - self._prior).to(self.dtype)

    def coefficients(self, candidate: int) -> Tensor:
        """Coefficients of the samples, ``(n, C)``."""
        return self._root[:, None] * self._inverse.solve(self._targets, [candidate])[:, 0]

    def intercept(self, coefficients: Tensor) -> Tensor:
        """Intercepts for these coefficients, ``(C,)``."""
        return self._prior - (self._center @ coefficients).to(self._prior)

    @cached_property
    def _diagonal(self) -> Tensor:
        """Diagonal of the inverse without the direction of the intercept, times the square root of the weight, ``(n, P)``."""
        basis = self._inverse.basis
        if self._direction is not None:
            basis = basis - torch.outer(self._direction, self._direction @ basis)
        return self._root[:, None] * (basis.square() @ self._inverse.gains)

    def leave_one_out(
        self, candidates: Candidates, positions: Tensor | None = None, *, exact: bool = False
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield slices of the samples and of ``candidates``, and the predictions ``(n', P', C)`` of refits without each sample.

        ``positions`` selects samples; ``exact`` matters in `FeatureSpace` only.
        """
        chosen = slice(None) if positions is None else positions
        together = max(1, chunk_elements(self._Y.device) // self._Y.numel())
        for start in range(0, len(candidates), together):
            group = candidates[start : start + together]
            residuals = self._inverse.solve(self._targets, group)[chosen] / self._diagonal[chosen][:, group, None]
            yield slice(0, len(residuals)), slice(start, start + len(group)), self._Y[chosen][:, None] - residuals


class LinearSampleSpace(SampleSpace):
    """Linear ridge regression where there are fewer samples than features: a `SampleSpace` with coefficients of the features.

    Parameters
    ----------
    rows : Rows
        Training rows.
    n_classes : int
    penalties : callable
        Maps the mean of the rows' weighted squared norms to the penalties to try.
    fit_intercept : bool
    dtype : torch.dtype
        dtype in which rows are read. Computations are in float32 only if there is a single penalty, and it is large
        enough.
    toward : Tensor of shape (d, C), default=None
        Coefficients towards which the penalty pulls; ``None``: zero.
    """

    def __init__(
        self,
        rows: Rows,
        n_classes: int,
        penalties: Penalties,
        fit_intercept: bool,
        dtype: torch.dtype,
        toward: Tensor | None = None,
    ):
        Z, weight = rows.load(dtype), rows.weight
        self._mean = torch.zeros_like(Z[0])
        if fit_intercept:
            self._mean = _weighted_mean(Z, weight).to(Z)
            Z -= self._mean
            # The mean of a constant is exact in the precision of the weights, and so is what centring leaves of it.
            rounding = _ROUNDING * torch.finfo(weight.dtype).eps * torch.linalg.vector_norm(self._mean, torch.inf)
            Z *= torch.linalg.vector_norm(Z, torch.inf) > rounding  # otherwise the features are constant
        trace = (weight @ Z.square().sum(1).to(weight)).item()
        given = penalties(trace / len(Z))
        if len(given) > 1 or trace > _FLOAT32_RANGE * given[0]:
            Z = to_float64(Z)
        self._Z = Z
        K = Z.new_zeros(len(Z), len(Z))
        add_gram_(K, Z.T)
        self._toward = toward
        super().__init__(symmetric(K), rows.codes, weight, n_classes, penalties, fit_intercept)

    def _set_targets(self, codes: Tensor, n_classes: int) -> None:
        super()._set_targets(codes, n_classes)
        if self._toward is not None:
            self._targets = self._targets - self._root[:, None] * (self._Z @ self._toward.to(self._Z))

    def coefficients(self, candidate: int) -> Tensor:
        """Coefficients of the features, ``(d, C)``."""
        coefficients = self._Z.T @ super().coefficients(candidate)
        return coefficients if self._toward is None else coefficients + self._toward.to(coefficients)

    def intercept(self, coefficients: Tensor) -> Tensor:
        """Intercepts for these coefficients, ``(C,)``."""
        return self._prior - self._mean.to(self._prior) @ coefficients.to(self._prior)


def _weighted_mean(Z: Tensor, weight: Tensor) -> Tensor:
    """Mean of rows in the dtype of their weights (float64 if the device has it), chunk by chunk."""
    total = weight.new_zeros(Z.shape[1])
    step = max(1, chunk_elements(Z.device) // Z.shape[1])
    for start in range(0, len(Z), step):
        total += weight[start : start + step] @ Z[start : start + step].to(weight)
    return total / weight.sum()


def _of_two_classes(toward: Tensor | None, label: int) -> Tensor | None:
    """Coefficients of one label, opposite for those that do not have it, ``(d, 2)``."""
    return None if toward is None else torch.stack([-toward[:, label], toward[:, label]], 1)


class FeatureSpace:
    """Ridge regression on the ``(d, d)`` moments of rows, which are read again for their leave-one-out predictions.

    Parameters
    ----------
    moments : Moments
        Moments of all training rows.
    rows : Rows
        All training rows, or some of them.
    penalties : callable
        Maps the mean of the rows' weighted squared norms to the penalties to try.
    fit_intercept : bool
    dtype : torch.dtype
        dtype in which rows are read; float32 is used only where it is accurate enough.
    toward : Tensor of shape (d, C), default=None
        Coefficients towards which the penalty pulls; ``None``: zero.
    """

    def __init__(
        self,
        moments: Moments,
        rows: Rows,
        penalties: Penalties,
        fit_intercept: bool,
        dtype: torch.dtype,
        toward: Tensor | None = None,
    ):
        self.codes, self.weight, self.n_classes = rows.codes, rows.weight, len(moments.class_weights)
        self.class_rows = moments.class_rows
        self._rows = rows
        gram, cross = moments.gram(centered=fit_intercept), moments.cross(centered=fit_intercept)
        # Constant features are zero after centring, except for rounding errors.
        rounding = (_ROUNDING * torch.finfo(gram.dtype).eps) ** 2 * moments.mean.square().sum()
        varies = gram.diagonal().sum() > moments.weight * rounding
        gram, cross = gram * varies, cross * varies
        trace = gram.diagonal().sum()
        self.penalties = penalties((trace / moments.n_rows).item())
        self._inverse = RidgedInverse(gram, self.penalties)
        self._cross, self._toward = cross, None if toward is None else toward.to(cross)
        self._fit_intercept, self._row_mean, self._varies = fit_intercept, moments.mean, varies
        self._mean = moments.mean if fit_intercept else torch.zeros_like(moments.mean)
        shares = moments.class_weights / moments.weight
        self._prior = 2 * shares - 1 if fit_intercept else torch.zeros_like(shares)
        self._intercept_leverage = 1 / moments.weight if fit_intercept else torch.zeros_like(moments.weight)
        mean_square = (trace / moments.weight + moments.mean.square().sum()).item()
        safe = mean_square <= _FLOAT32_RANGE * self._inverse.smallest
        self.dtype = dtype if safe else gram.dtype

    def of_labels(self, labels: Tensor, toward: Tensor | None, *, leave_one_out: bool) -> Iterator["FeatureSpace"]:
        """Yield the same rows and factorisation for each of several labels, as `SampleSpace` does."""
        if leave_one_out:
            self._leverages  # noqa: B018
        weight = self.weight.to(self._mean.dtype)
        sums, total = self._mean.new_zeros(labels.shape[1], len(self._mean)), weight.sum()
        for positions, chunk in self._rows.chunks(self._mean.dtype, n_outputs=labels.shape[1]):
            sums.addmm_((labels[positions] * weight[positions, None]).T, chunk.sub_(self._mean))
        columns = (2 * sums - (0 if self._fit_intercept else total * self._row_mean)) * self._varies
        for j, codes in enumerate(labels.T):
            other = copy.copy(self)
            other.codes, other._rows = codes, replace(self._rows, codes=codes)
            other.class_rows = torch.bincount(codes, minlength=2)
            other._cross = torch.stack([-columns[j], columns[j]], 1)
            pulled = _of_two_classes(toward, j)
            other._toward = None if pulled is None else pulled.to(self._cross)
            share = (2 * (weight @ codes.to(weight)) / total - 1) * self._fit_intercept
            other._prior = torch.stack([-share, share])
            yield other

    def _weights(self, candidates: Candidates) -> Tensor:
        """Coefficients for some penalties, ``(d, P', C)``."""
        weights = self._inverse.solve(self._cross, candidates)
        if self._toward is None:
            return weights
        chosen = torch.tensor([self.penalties[i] for i in candidates]).to(weights)
        return weights + chosen[:, None] * self._inverse.solve(self._toward, candidates)

    def coefficients(self, candidate: int) -> Tensor:
        """Coefficients of the features, ``(d, C)``."""
        return self._weights([candidate])[:, 0]

    def intercept(self, coefficients: Tensor) -> Tensor:
        """Intercepts for these coefficients of the features, ``(C,)``."""
        return self._prior - self._mean @ coefficients

    @cached_property
    def _leverages(self) -> Tensor:
        """Leverage of each row for each penalty, ``(n, P)``."""
        leverages = self._leverages_of(self._rows, self.dtype)
        if self.dtype == torch.float32:
            high = ((1 - leverages).amin(1) < _FLOAT32_SHARE).nonzero()[:, 0]
            if len(high):
                leverages[high] = self._leverages_of(self._rows.take(high), self._mean.dtype).float()
        return leverages

    def _leverages_of(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        basis, gains, mean = (value.to(dtype) for value in (self._inverse.basis, self._inverse.gains, self._mean))
        leverages = torch.empty(len(rows), len(self.penalties), dtype=dtype, device=basis.device)
        projected = None
        for positions, chunk in rows.chunks(dtype):
            if projected is None:
                projected = torch.empty_like(chunk)
            out = torch.mm(chunk.sub_(mean), basis, out=projected[: len(chunk)])
            torch.mm(out.square_(), gains, out=leverages[positions])
        leverages += self._intercept_leverage.to(dtype)
        return leverages.mul_(rows.weight[:, None].to(dtype))

    def leave_one_out(
        self, candidates: Candidates, positions: Tensor | None = None, *, exact: bool = False
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield slices of the samples and of ``candidates``, and the predictions ``(n', P', C)`` of refits without each sample.

        ``positions`` selects rows; ``exact`` forces float64. Each yielded tensor overwrites the previous one.
        """
        rows = self._rows if positions is None else self._rows.take(positions)
        if exact:
            dtype, leverages = self._mean.dtype, self._leverages_of(rows, self._mean.dtype)
        else:
            dtype, leverages = self.dtype, self._leverages if positions is None else self._leverages[positions]
        leverages = leverages[:, candidates]
        mean, prior = self._mean.to(dtype), self._prior.to(dtype)
        d, C = len(mean), len(prior)
        # Candidates whose predictions are computed in one matrix product, and those whose weights are held at once.
        together = max(1, _COLUMNS * d // C)
        block = together * max(1, _WEIGHT_BYTES // (dtype.itemsize * d * C * together))
        for first in range(0, len(candidates), block):
            last = min(first + block, len(candidates))
            groups = [slice(start, min(start + together, last)) for start in range(first, last, together)]
            weights = [self._weights(candidates[group]).flatten(1).to(dtype) for group in groups]
            scores: dict[int, Tensor] = {}
            for part, chunk in rows.chunks(dtype, n_outputs=weights[0].shape[1]):
                chunk -= mean
                for group, W in zip(groups, weights, strict=True):
                    width = W.shape[1]
                    if width not in scores:
                        scores[width] = torch.empty(len(chunk), width, dtype=dtype, device=chunk.device)
                    shift = prior.repeat(width // C)
                    predictions = torch.addmm(shift, chunk, W, out=scores[width][: len(chunk)]).view(len(chunk), -1, C)
                    _remove_own_target_(predictions, rows.codes[part], leverages[part][:, group])
                    yield part, group, predictions


def _remove_own_target_(predictions: Tensor, codes: Tensor, h: Tensor) -> None:
    """Remove the contribution of the samples' own ±1 targets from predictions ``(n, P, C)``, in place; ``h`` is ``(n, P)``."""
    rest = 1 / (1 - h).clamp_min(torch.finfo(h.dtype).eps)
    torch.addcmul((h * rest)[..., None], predictions, rest[..., None], out=predictions)
    own = codes[:, None, None].expand(-1, predictions.shape[1], 1)
    predictions.scatter_add_(2, own, (-2 * h * rest)[..., None])
