"""Leave-one-out predictions of ridge regression for many penalties, from one factorisation.

The prediction for a sample is linear in the targets; ``h``, its leverage, is the weight of its own. Refitting without it gives

    ``(prediction − h·y) / (1 − h)``

exactly, with the intercept and the sample weights in ``h``. In sample space the same number is ``y − a/(w·g)``, for the
coefficients ``a`` of the samples, their weights ``w`` and the diagonal ``g`` of the inverse; it does not cancel where ``h`` is
close to one, which is the rule when there are fewer samples than features.

Targets are ±1 class indicators, one column a class, also for two classes. Notation beyond that of the package: ``A`` is the
matrix that is factorised, ``P`` counts the penalties.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .moments import Moments
from .rows import CHUNK, Rows

# Leverages and predictions are computed in float32 where the mean squared norm is at most so many times the smallest
# eigenvalue, penalty included.
_FLOAT32_RANGE = 1e4
# Below this share of other samples in its prediction, a sample is computed in float64.
_FLOAT32_SHARE = 0.05
# What centring leaves of a constant, in multiples of the precision.
ROUNDING = 64
# Columns of one matrix product of predictions, in multiples of the number of features; bytes of weights at once.
_COLUMNS = 2
_WEIGHT_BYTES = 2**24

Candidates = Sequence[int]
# Penalties for a mean squared norm of the rows.
Penalties = Callable[[float], Sequence[float]]


@dataclass(frozen=True)
class RidgedInverse:
    """``(A + penalty·I)⁻¹ = basis · diag(gains[:, j]) · basisᵀ`` for the penalty number ``j``.

    ``gains`` are NaN for penalties that leave the matrix singular to working precision.
    """

    basis: Tensor  # (k, k)
    gains: Tensor  # (k, P)
    smallest: float  # at most the smallest eigenvalue of A + penalty·I, over the penalties


def ridged_inverse(A: Tensor, penalties: Sequence[float]) -> RidgedInverse:
    """Cholesky for one penalty, eigenvalues for several."""
    # Errors of the eigenvalues are of the order of k·eps times the largest: a hundredth of the smallest one at most.
    error = 100 * len(A) * torch.finfo(A.dtype).eps
    p = torch.tensor(penalties, dtype=A.dtype, device=A.device)
    if len(penalties) == 1:
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        ridged = A + p * eye
        L, info = torch.linalg.cholesky_ex(ridged)
        basis = torch.linalg.solve_triangular(L, eye, upper=False).T
        # Each pivot beside its own column: Cholesky does not mind columns of different scales.
        regular = (info == 0) & (L.diagonal().square() > error * ridged.diagonal()).all()
        gains, smallest = torch.ones_like(A[:, :1]), p
    else:
        eigenvalues, basis = torch.linalg.eigh(A)
        if eigenvalues[0] < -error * eigenvalues.abs().max():
            raise ValueError(
                f"the kernel is not positive semi-definite: its matrix has eigenvalues from {eigenvalues[0]:.3g} to "
                f"{eigenvalues[-1]:.3g}; take a kernel that is an inner product"
            )
        smallest = eigenvalues.clamp_min_(0)[0] + p
        regular = smallest > error * eigenvalues[-1]
        gains = 1 / (eigenvalues[:, None] + p)
    gains = torch.where(regular, gains, torch.nan)
    return RidgedInverse(basis, gains, smallest.min().item())


class SampleSpace:
    """Ridge regression on an ``(n, n)`` kernel matrix.

    Parameters
    ----------
    K : Tensor of shape (n, n)
        Kernel of the samples with one another; overwritten. Its precision is that of every result.
    codes : Tensor of shape (n,), int64
        Indices of the classes.
    weight : Tensor of shape (n,)
        Sample weights, > 0.
    n_classes : int
    penalties : callable
        Gives the penalties to consider for the mean of the rows' weighted squared norms.
    fit_intercept : bool
    """

    def __init__(self, K: Tensor, codes: Tensor, weight: Tensor, n_classes: int, penalties: Penalties, fit_intercept: bool):
        self.codes, self.weight, self.n_classes, self.dtype = codes, weight.to(K.dtype), n_classes, K.dtype
        self.class_rows = torch.bincount(codes, minlength=n_classes)
        self.Y = torch.full((len(K), n_classes), -1, dtype=K.dtype, device=K.device)
        self.Y.scatter_(1, codes[:, None], 1)
        root = self.weight.sqrt()
        K.mul_(root).mul_(root[:, None])
        if fit_intercept:
            # The direction that an intercept takes leaves the kernel; put back with a plain eigenvalue, it leaves the inverse.
            u = root / torch.linalg.vector_norm(root)
            Ku = K @ u
            before = K.diagonal().mean()
            K.addr_(u, Ku, alpha=-1).addr_(Ku, u, alpha=-1)
            K.addr_(u * (u @ Ku), u)
            K *= K.diagonal().mean() > ROUNDING * torch.finfo(K.dtype).eps * before  # else a constant kernel, and rounding
        scale = K.diagonal().mean().item()
        self.penalties = penalties(scale)
        if fit_intercept:
            K.addr_(scale * u, u)
        inverse = ridged_inverse(K, self.penalties)
        self._gains, basis = inverse.gains, inverse.basis
        if fit_intercept:
            basis.addr_(u, u @ basis, alpha=-1)
        self._weighted_basis = basis.mul_(root[:, None])
        self._targets = self._weighted_basis.T @ self.Y
        self._diagonal = self._weighted_basis.square() @ self._gains

    def coefficients(self, candidate: int) -> Tensor:
        """Coefficients of the samples, ``(n, C)``; those of the features are ``Zᵀ`` times them."""
        return self._weighted_basis @ (self._gains[:, candidate, None] * self._targets)

    def leave_one_out(
        self, candidates: Candidates, positions: Tensor | None = None, *, exact: bool = False
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns of ``candidates``, and their predictions ``(n', P', C)``, each without the sample itself.

        ``positions`` are of the samples that are asked for; ``exact`` is for `FeatureSpace`.
        """
        chosen = slice(None) if positions is None else positions
        basis, Y, diagonal = self._weighted_basis[chosen], self.Y[chosen], self._diagonal[chosen]
        together = max(1, CHUNK // max(Y.numel(), 1))
        for start in range(0, len(candidates), together):
            group = candidates[start : start + together]
            targets = self._gains[:, group, None] * self._targets[:, None]
            residuals = (basis @ targets.flatten(1)).view(len(Y), len(group), -1).div_(diagonal[:, group, None])
            yield slice(0, len(Y)), slice(start, start + len(group)), residuals.neg_().add_(Y[:, None])


class FeatureSpace:
    """Ridge regression on the ``(d, d)`` moments of rows that are read again for their leave-one-out predictions.

    Parameters
    ----------
    moments : Moments
        Of all training rows.
    rows : Rows
        Training rows, all or some.
    penalties : callable
        Gives the penalties to consider for the mean of the rows' weighted squared norms.
    fit_intercept : bool
    dtype : torch.dtype
        In which rows are read; float32 is used where it is safe.
    """

    def __init__(self, moments: Moments, rows: Rows, penalties: Penalties, fit_intercept: bool, dtype: torch.dtype):
        self.codes, self.weight, self.n_classes = rows.codes, rows.weight, len(moments.class_weights)
        self.class_rows = moments.class_rows
        self._rows = rows
        gram, cross = moments.gram(centered=fit_intercept), moments.cross(centered=fit_intercept)
        # Constant features are zero after centring, but for rounding.
        rounding = (ROUNDING * torch.finfo(gram.dtype).eps) ** 2 * moments.mean.square().sum()
        varies = gram.diagonal().sum() > moments.weight * rounding
        gram, cross = gram * varies, cross * varies
        trace = gram.diagonal().sum()
        self.penalties = penalties((trace / moments.n_rows).item())
        self._inverse = ridged_inverse(gram, self.penalties)
        self._targets = self._inverse.basis.T @ cross
        self._mean = moments.mean if fit_intercept else torch.zeros_like(moments.mean)
        shares = moments.class_weights / moments.weight
        self._prior = 2 * shares - 1 if fit_intercept else torch.zeros_like(shares)
        self._intercept_leverage = 1 / moments.weight if fit_intercept else torch.zeros_like(moments.weight)
        mean_square = (trace / moments.weight + moments.mean.square().sum()).item()
        safe = mean_square <= _FLOAT32_RANGE * self._inverse.smallest
        self.dtype = dtype if safe else gram.dtype
        self._leverages: Tensor | None = None

    def coefficients(self, candidate: int) -> Tensor:
        """Coefficients of the features, ``(d, C)``."""
        return self._coefficients([candidate])[:, 0]

    def _coefficients(self, candidates: Candidates) -> Tensor:
        """Coefficients of the features for some candidates, ``(d, P', C)``."""
        targets = self._inverse.gains[:, candidates, None] * self._targets[:, None]
        return (self._inverse.basis @ targets.flatten(1)).view(len(targets), len(candidates), -1)

    def intercept(self, coefficients: Tensor) -> Tensor:
        """Intercepts that belong to coefficients of the features, ``(C,)``."""
        return self._prior - self._mean @ coefficients

    @property
    def leverages(self) -> Tensor:
        """Leverage of every row under every penalty, ``(n, P)``."""
        if self._leverages is None:
            self._leverages = self._leverages_of(self._rows, self.dtype)
            if self.dtype == torch.float32:
                high = (1 - self._leverages).amin(1) < _FLOAT32_SHARE
                if high.any():
                    positions = high.nonzero()[:, 0]
                    self._leverages[positions] = self._leverages_of(self._rows.take(positions), self._mean.dtype).float()
        return self._leverages

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
        """Rows, columns of ``candidates``, and their predictions ``(n', P', C)``, each without the sample itself.

        ``positions`` are of the rows that are asked for, ``exact`` computes in float64 whatever `dtype` is. Results are
        overwritten by the next ones.
        """
        rows = self._rows if positions is None else self._rows.take(positions)
        if exact:
            dtype, leverages = self._mean.dtype, self._leverages_of(rows, self._mean.dtype)
        else:
            dtype, leverages = self.dtype, self.leverages if positions is None else self.leverages[positions]
        leverages = leverages[:, candidates]
        mean, prior = self._mean.to(dtype), self._prior.to(dtype)
        d, C = len(mean), len(prior)
        together = max(1, _COLUMNS * d // C)  # candidates whose predictions are one matrix product
        block = together * max(1, _WEIGHT_BYTES // (dtype.itemsize * d * C * together))  # those whose weights are there at once
        for first in range(0, len(candidates), block):
            last = min(first + block, len(candidates))
            groups = [slice(start, min(start + together, last)) for start in range(first, last, together)]
            weights = [self._coefficients(candidates[group]).flatten(1).to(dtype) for group in groups]
            scores: dict[int, Tensor] = {}
            for part, chunk in rows.chunks(dtype, width=weights[0].shape[1]):
                chunk -= mean
                for group, W in zip(groups, weights, strict=True):
                    width = W.shape[1]
                    if width not in scores:
                        scores[width] = torch.empty(len(chunk), width, dtype=dtype, device=chunk.device)
                    shift = prior.repeat(width // C)
                    predictions = torch.addmm(shift, chunk, W, out=scores[width][: len(chunk)]).view(len(chunk), -1, C)
                    withdraw_(predictions, rows.codes[part], leverages[part][:, group])
                    yield part, group, predictions


def withdraw_(predictions: Tensor, codes: Tensor, h: Tensor) -> None:
    """Take from predictions ``(n, P, C)`` what the samples' own ±1 targets gave to them, in place; ``h`` is ``(n, P)``."""
    rest = 1 / (1 - h).clamp_min(torch.finfo(h.dtype).eps)
    torch.addcmul((h * rest)[..., None], predictions, rest[..., None], out=predictions)
    own = codes[:, None, None].expand(-1, predictions.shape[1], 1)
    predictions.scatter_add_(2, own, (-2 * h * rest)[..., None])
