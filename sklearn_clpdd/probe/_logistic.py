"""The logistic loss: a multinomial logistic regression that starts from the closed form, its strength chosen by five folds.

The factorisation of the ridge regression gives the start and the coordinates for `LogisticProblems`. The regressions on all
samples and on all but one fold are solved together, from strong to weak regularisation, each from the solution before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ..utils._device import available_memory, has_fast_bfloat16
from ..utils._ridge import to_float64
from ..utils._warnings import warn
from ._calibration import calibrate, logits, relative_to_true_class
from ._lbfgs import MEMORY as _N_STEPS
from ._lbfgs import ROUGH, LogisticProblems
from ._moments import Moments
from ._rows import Rows, chunk_elements
from ._selection import within_one_error

N_FOLDS = 5
# Ridge strength of the start, relative to the mean squared norm of the rows.
_START = 0.3
# Temperatures of the start that are tried, on this many rows.
_START_TEMPERATURES, _START_ROWS = tuple(np.logspace(-2, 1, 13).tolist()), 1024
# What may be left to gain, relative to the loss: while strengths are compared, and in the end, in float32 and in float64.
_COARSE, _FINE = ROUGH, {torch.float32: 3e-5, torch.float64: 1e-8}
# Products of rows and the weights of one regression from which on bfloat16 is worth a copy of the rows.
_LARGE = 2**25
# Used where folds cannot choose, because no class has two samples.
_DEFAULT_TEMPERATURE = 1.0


def logistic_memory(rows: Rows, n_classes: int, dtype: torch.dtype) -> int:
    """Bytes that the logistic loss needs, above the features, about: coordinates, matrices of features, and weights."""
    n, d = len(rows), rows.X.shape[1]
    k = min(n, d)
    of_coordinate = dtype.itemsize + (2 if dtype == torch.float32 and rows.device.type == "cpu" else 0)  # and in bfloat16
    # The steps of L-BFGS, and two points with their gradients, their preconditioners, a direction and a temporary copy.
    of_weights = dtype.itemsize * (2 * _N_STEPS + 8) * (1 + N_FOLDS) * (k + 1) * n_classes
    return of_coordinate * n * k + of_weights + 16 * k * d


@dataclass
class Coordinates:
    """Rows in the coordinates in which their weighted Gram matrix is diagonal, with mean 0 and a mean squared norm of 1.

    Rows are ``mean + scale · Z @ basisᵀ``, up to directions in which they do not vary.
    """

    Z: Tensor  # (n, k)
    basis: Tensor  # (d, k)
    eigenvalues: Tensor  # (k,)
    mean: Tensor  # (d,)
    scale: float

    @classmethod
    def of(cls, rows: Rows, n_classes: int, dtype: torch.dtype, *, fit_intercept: bool) -> "Coordinates":
        """Coordinates of rows, in a given dtype; their directions are computed in float64."""
        n, d = len(rows), rows.X.shape[1]
        needed, available = logistic_memory(rows, n_classes, dtype), available_memory(rows.device)
        if available is not None and needed > available:
            raise MemoryError(
                f"loss='logistic' needs {needed / 2**30:.1f} GiB for {n} samples of {d} features and {n_classes} classes, and "
                f"{available / 2**30:.1f} GiB are free; use loss='squared', or fewer samples"
            )
        if n >= d:
            moments = Moments(n_classes, d, rows.device).add(rows)
            mean = moments.mean if fit_intercept else torch.zeros_like(moments.mean)
            gram = moments.gram(centered=fit_intercept)
        else:
            X, root = rows.load(rows.weight.dtype), rows.weight.sqrt()[:, None]
            mean = rows.weight @ X / rows.weight.sum() if fit_intercept else torch.zeros_like(X[0])
            X.sub_(mean).mul_(root)
            gram = X @ X.T
        if not gram.isfinite().all():
            raise ValueError("the squares of the features overflow; scale the features, for example by StandardScaler")
        eigenvalues, basis = torch.linalg.eigh(gram)
        if n < d:
            basis = X.T @ (basis / eigenvalues.clamp_min(torch.finfo(X.dtype).tiny).sqrt())
        varies = eigenvalues > eigenvalues[-1].clamp_min(0) * d * torch.finfo(eigenvalues.dtype).eps
        basis, eigenvalues = basis[:, varies], eigenvalues[varies]
        scale = (float(eigenvalues.sum()) / n) ** 0.5 if varies.any() else 1.0
        Z = torch.empty(n, basis.shape[1], dtype=dtype, device=rows.device)
        for positions, chunk in rows.chunks(mean.dtype, n_outputs=basis.shape[1]):  # an offset costs no precision
            torch.mm(chunk.sub_(mean).div_(scale).to(dtype), basis.to(dtype), out=Z[positions])
        return cls(Z, basis, eigenvalues / scale**2, mean, scale)


@dataclass
class FoldedFit:
    """Regressions on all samples and on all but each fold, for one ridge strength after the other.

    Parameters
    ----------
    coordinates : Coordinates
        Of the samples, sorted by fold.
    codes, weight : Tensor of shape (n,)
    n_classes : int
    fold_ends : sequence of int
        Ends of the folds; empty if there are none.
    fit_intercept : bool
    toward : Tensor of shape (k, n_classes), default=None
        Weights towards which the penalty pulls; ``None``: zero.
    """

    coordinates: Coordinates
    codes: Tensor
    weight: Tensor
    n_classes: int
    fold_ends: Sequence[int]
    fit_intercept: bool
    toward: Tensor | None = None

    @property
    def _folds(self) -> list[slice]:
        return [slice(start, end) for start, end in zip([0, *self.fold_ends], self.fold_ends, strict=False)]

    @cached_property
    def problems(self) -> LogisticProblems:
        """The regression on all samples, and those without each fold."""
        weights = self.weight.to(self.coordinates.Z.dtype)[:, None].repeat(1, 1 + len(self.fold_ends))
        for j, fold in enumerate(self._folds):
            weights[fold, 1 + j] = 0
        return self._problems(weights)

    def _problems(self, weights: Tensor) -> LogisticProblems:
        Z = self.coordinates.Z
        toward = None if self.toward is None else self.toward.to(Z.dtype)
        eigenvalues = self.coordinates.eigenvalues.to(Z.dtype)
        return LogisticProblems(Z, self.codes, weights, eigenvalues, self.fit_intercept, toward, self._rough)

    @cached_property
    def _rough(self) -> Tensor | None:
        """The rows in bfloat16, where their products are much faster than those of float32."""
        Z = self.coordinates.Z
        if Z.dtype != torch.float32 or Z.device.type != "cpu" or Z.numel() * self.n_classes < _LARGE:
            return None
        return Z.bfloat16() if has_fast_bfloat16(torch.get_num_threads()) else None

    def start(self, alpha: float) -> Tensor:
        """The ridge solution on all samples over the temperature with the least loss for a strength, ``(k + 1, C)``."""
        Z, weight, eigenvalues = self.coordinates.Z, self.weight, self.coordinates.eigenvalues
        weight = weight.to(Z.dtype)
        sums = Z.new_zeros(self.n_classes, Z.shape[1])
        for rows in torch.arange(len(Z), device=Z.device).split(max(1, chunk_elements(Z.device) // max(1, Z.shape[1]))):
            sums.index_add_(0, self.codes[rows], weight[rows, None] * Z[rows])
        shares = Z.new_zeros(self.n_classes).index_add_(0, self.codes, weight) / weight.sum()
        prior = (2 * shares - 1) * self.fit_intercept
        cross = 2 * sums.T - (weight @ Z)[:, None] * (1 + prior)
        penalty = _START * eigenvalues.sum() / len(Z)
        W = cross / (eigenvalues + penalty).to(Z.dtype)[:, None]
        rows = torch.linspace(0, len(Z) - 1, min(len(Z), _START_ROWS), dtype=torch.float64).long().to(Z.device)
        relative = relative_to_true_class(torch.addmm(prior, Z[rows], W)[:, None], self.codes[rows])[:, 0]
        size = alpha / 2 * W.square().sum()
        losses = [
            weight.sum() * torch.logsumexp(relative / temperature, 1).mean() + size / temperature**2
            for temperature in _START_TEMPERATURES
        ]
        return torch.cat([W, prior[None]]) / _START_TEMPERATURES[int(torch.stack(losses).argmin())]

    def finish(self, start: Tensor, alpha: float) -> Tensor:
        """The regression on all samples, to full precision, ``(k + 1, C)``."""
        problem = self._problems(self.weight.to(self.coordinates.Z.dtype)[:, None])
        solution, converged = problem.minimize(start[None], alpha, _FINE[start.dtype])
        if not converged:
            warn(
                f"the logistic regression did not converge with alpha={alpha:g}; use a larger alpha, or scale the features",
                ConvergenceWarning,
            )
        return solution[0]

    def predict(self, solutions: Tensor, positions: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield slices of ``positions`` (sorted; ``None``: all), a slice of one candidate, and held-out scores ``(n', 1, C)``."""
        Z = self.coordinates.Z
        step = max(1, chunk_elements(Z.device) // max(self.n_classes, Z.shape[1]))
        for fold, x in zip(self._folds, solutions[1:], strict=True):
            first, last = fold.start, fold.stop
            if positions is not None:
                bounds = torch.tensor([first, last], device=positions.device)
                first, last = torch.searchsorted(positions, bounds).tolist()
            for begin in range(first, last, step):
                part = slice(begin, min(begin + step, last))
                own = Z[part] if positions is None else Z[positions[part]]
                yield part, slice(0, 1), torch.addmm(x[-1], own, x[:-1])[:, None]


def solve_logistic(
    rows: Rows,
    n_classes: int,
    dtype: torch.dtype,
    penalties: Callable[[float], Sequence[float]],
    *,
    fit_intercept: bool,
    temperature: float | None,
    scoring: str,
    search: bool,
    toward: Tensor | None = None,
) -> dict[str, Any]:
    """Fitted attributes of a logistic probe.

    Parameters
    ----------
    rows : Rows
        Training rows.
    n_classes : int
    dtype : torch.dtype
        dtype of the computations and of the solution.
    penalties : callable
        Maps the mean of the rows' weighted squared norms to the penalties to try.
    fit_intercept : bool
    temperature : float or None
        ``None``: the one with the least log-loss of held-out samples.
    scoring : {"accuracy", "neg_log_loss"}
    search : bool
        Whether to stop where weaker, or stronger, penalties have a larger log-loss, and to choose the one with the least log-loss
        among those whose accuracy is within one standard error of the best. If False, all are compared by `scoring`.
    toward : Tensor of shape (d, C), default=None
        Coefficients towards which the penalty pulls; ``None``: zero.
    """
    order, ends = sorted_by_fold(rows.codes, n_classes)
    rows = rows.take(order)
    coordinates = Coordinates.of(rows, n_classes, dtype, fit_intercept=fit_intercept)
    alphas = [float(alpha) for alpha in penalties(coordinates.scale**2)]
    attributes: dict[str, Any] = {}
    # The regularisation of two columns that differ in their sign is half that of one column of log-odds.
    strengths = [(2 if n_classes == 2 else 1) * alpha / coordinates.scale**2 for alpha in alphas]
    chosen, is_lone = 0, torch.bincount(rows.codes, minlength=n_classes)[rows.codes] == 1
    held_out = len(alphas) > 1 or temperature is None
    if held_out and is_lone.all():
        chosen, temperature, held_out = len(alphas) // 3, temperature or _DEFAULT_TEMPERATURE, False
        warn(
            "no class has two samples, so folds can choose neither alpha nor the temperature. Using alpha="
            f"{alphas[chosen]:g} and temperature={temperature:g}; pass both as numbers to choose them yourself"
        )
        nothing = np.full(len(alphas), np.nan)
        attributes = {"alphas_": np.asarray(alphas), "loo_scores_": nothing, "loo_score_": np.nan}
    pull = None if toward is None else coordinates.scale * coordinates.basis.T @ toward
    fit = FoldedFit(coordinates, rows.codes, rows.weight, n_classes, ends if held_out else [], fit_intercept, pull)
    solution = fit.start(strengths[len(strengths) // 2])
    if held_out:
        weight = to_float64(torch.where(is_lone, 0, rows.weight))
        path = _Path(fit, strengths, weight, temperature)
        path.follow(solution, search=search)
        scores, chosen = path.choose(scoring, within_error=search)
        temperature, solution = path.temperatures[chosen], path.solutions[chosen]
        attributes = {"alphas_": np.asarray(alphas), "loo_scores_": scores, "loo_score_": float(scores[chosen])}
    solution = to_float64(fit.finish(solution, strengths[chosen]))
    attributes |= _in_features(solution, fit, toward, dtype)
    return attributes | {"alpha_": alphas[chosen], "temperature_": temperature, "compression_": 0.0}


def _in_features(solution: Tensor, fit: FoldedFit, toward: Tensor | None, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Coefficients of the features and intercepts; two classes have one column, that of their log-odds."""
    coordinates, shift = fit.coordinates, solution[:-1] if fit.toward is None else solution[:-1] - fit.toward
    coefficients = coordinates.basis @ shift / coordinates.scale
    # The same number for all classes changes nothing.
    coefficients = coefficients - coefficients.mean(1, keepdim=True) if toward is None else coefficients + toward
    intercept = solution[-1] - solution[-1].mean() - coordinates.mean @ coefficients
    if solution.shape[1] == 2:
        coefficients, intercept = coefficients[:, 1:] - coefficients[:, :1], intercept[1:] - intercept[:1]
    solved = {"coef_": coefficients.T, "intercept_": intercept}
    arrays = {name: np.ascontiguousarray(value.to(dtype).cpu().numpy()) for name, value in solved.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"the coefficients overflow in {dtype}; scale the features, for example by StandardScaler")
    return arrays


class _Path:
    """Held-out results for one ridge strength after the other."""

    def __init__(self, fit: FoldedFit, strengths: list[float], weight: Tensor, temperature: float | None):
        self.fit, self.strengths, self.weight, self.temperature = fit, strengths, weight, temperature
        self.temperatures: dict[int, float] = {}
        self.solutions: dict[int, Tensor] = {}
        self.losses: dict[int, float] = {}
        self.correct: dict[int, Tensor] = {}

    def follow(self, start: Tensor, *, search: bool) -> None:
        """Solve for the strengths from strong to weak; in a search, from the middle on in both directions while it helps."""
        order = sorted(range(len(self.strengths)), key=lambda i: -self.strengths[i])
        first = len(order) // 2 if search else 0
        x = middle = self._solve(order[first], start.repeat(1 + len(self.fit.fold_ends), 1, 1))
        for i in order[first + 1 :]:
            x = self._solve(i, x)
            if search and self._best() != i:
                break
        x = middle
        stronger = order[:first][::-1] if self._best() == order[first] else []
        for i in stronger:
            x = self._solve(i, x)
            if self._best() != i:
                break

    def _best(self) -> int:
        return min(self.losses, key=self.losses.__getitem__)

    def _solve(self, i: int, x: Tensor) -> Tensor:
        fit = self.fit
        x, _ = fit.problems.minimize(x, self.strengths[i], _COARSE)
        self.solutions[i] = x[0].clone()
        temperature = self.temperature
        if temperature is None:
            temperature, _ = calibrate(
                lambda positions: fit.predict(x, positions), fit.codes, self.weight, fit.n_classes, compress=False
            )
        self.temperatures[i] = temperature
        losses, correct = self.weight.new_empty(len(fit.codes)), self.weight.new_empty(len(fit.codes))
        for part, _, scores in fit.predict(x):
            own = fit.codes[part]
            relative = relative_to_true_class(logits(scores, temperature, 0.0), own)[:, 0]
            losses[part] = torch.logsumexp(relative, 1).to(losses.dtype)
            relative.scatter_(1, own[:, None], -torch.inf)
            correct[part] = (relative.amax(1) < 0).to(correct.dtype)
        self.losses[i] = (self.weight @ losses / self.weight.sum()).item()
        self.correct[i] = correct
        return x

    def choose(self, scoring: str, *, within_error: bool) -> tuple[np.ndarray, int]:
        """Scores of all strengths, NaN for those that were not tried, and the index of the best one."""
        scores = np.full(len(self.strengths), np.nan)
        tried = sorted(self.losses)
        if scoring == "neg_log_loss":
            scores[tried] = [-self.losses[i] for i in tried]
            return scores, int(np.nanargmax(scores))
        correct = torch.stack([self.correct[i] for i in tried], 1)
        accuracies = self.weight @ correct / self.weight.sum()
        scores[tried] = accuracies.cpu().numpy()
        candidates = within_one_error(correct, self.weight) if within_error else [int(accuracies.argmax())]
        return scores, min((tried[j] for j in candidates), key=self.losses.__getitem__)


def sorted_by_fold(codes: Tensor, n_classes: int) -> tuple[Tensor, list[int]]:
    """Positions of samples sorted by fold, and the ends of the folds; samples of a class are dealt out in their order."""
    order = torch.argsort(codes, stable=True)
    folds = torch.empty_like(codes)
    # Going on from class to class, so that folds have the same size.
    folds[order] = torch.arange(len(codes), device=codes.device) % N_FOLDS
    sizes = torch.bincount(folds, minlength=N_FOLDS)
    return torch.argsort(folds, stable=True), sizes.cumsum(0).tolist()
