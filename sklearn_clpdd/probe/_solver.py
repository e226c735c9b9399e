"""Compute coefficients, ridge strength and temperature from training rows or sufficient statistics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..utils._arrays import tensor_from_numpy
from ..utils._device import available_memory
from ..utils._ridge import to_float64
from ..utils._warnings import warn
from ._calibration import LeaveOneOutSpace, best_calibration
from ._kernels import kernel_matrix, variance_gamma
from ._leave_one_out import FeatureSpace, LinearSampleSpace, SampleSpace
from ._logistic import logistic_memory, solve_logistic
from ._moments import Moments
from ._rows import Rows, as_numpy, as_tensor, merge_duplicates
from ._selection import choose_penalty
from ._stream import Stream

LINEAR_KERNELS = ("linear", "cosine")

# Candidates of `alpha="loo"`, in units of the power of ten nearest to the mean squared norm of the centred features.
_CANDIDATES = np.logspace(-3, 3, 13)
# Used where leave-one-out cannot choose, because no class has two samples.
_DEFAULT_TEMPERATURE = 0.2
# Samples a class, on average, from which on `loss="auto"` is the logistic loss.
_LOGISTIC_SAMPLES = 20
# Float64 matrices of shape (n, n) that a factorisation in sample space needs at once.
_N_MATRICES = 5
# A GPU holds all features if this many times their bytes are free.
_GPU_SHARE = 4
# Below this many bytes, skip the check of free memory.
_NO_MEMORY_CHECK = 2**28


class SingularError(ValueError):
    """A linear system is singular to working precision."""


@dataclass(frozen=True)
class ProbeSolver:
    """Solver of a probe, with the parameters of :class:`ClosedFormProbe` on which the solution depends."""

    alpha: str | float | Sequence[float]
    kernel: str | Callable
    gamma: float | None
    degree: float
    coef0: float
    fit_intercept: bool
    temperature: str | float
    scoring: str
    solver: str
    loss: str
    coef_prior: np.ndarray | None = None  # (n_classes, d)

    @property
    def is_linear(self) -> bool:
        """Whether the solution has coefficients of the features."""
        return self.kernel in LINEAR_KERNELS

    @property
    def uses_leave_one_out(self) -> bool:
        """Whether leave-one-out chooses the ridge strength or the temperature."""
        return not isinstance(self.alpha, Real) or self.temperature == "loo"

    def kernel_parameters(self, gamma: float | None = None) -> dict[str, Any]:
        """Parameters of a kernel that is given by name."""
        return {"gamma": gamma, "degree": self.degree, "coef0": self.coef0} if isinstance(self.kernel, str) else {}

    def rows(
        self,
        X: np.ndarray | Tensor,
        codes: np.ndarray,
        weight: np.ndarray,
        device: torch.device,
        *,
        keep_duplicates: bool = False,
    ) -> Rows:
        """Samples of positive weight; duplicates are merged where leave-one-out is used.

        Features are read several times, so that those that fit well into the memory of a GPU are copied there once.
        """
        index = None if weight.all() else np.flatnonzero(weight)
        if index is not None:
            codes, weight = codes[index], weight[index]
        if self.uses_leave_one_out and not keep_duplicates:
            kept, weight = merge_duplicates(X, codes, weight, index)
            if kept is not None:
                codes, index = codes[kept], kept if index is None else index[kept]
        if device.type == "cuda" and X.nbytes * _GPU_SHARE < (available_memory(device) or 0):
            X = as_tensor(X).to(device)
        w = tensor_from_numpy(weight).to(device, torch.float32 if device.type == "mps" else torch.float64)
        return Rows(X, index, tensor_from_numpy(codes).to(device), w, self.kernel == "cosine", device)

    def solve(self, rows: Rows, n_classes: int, dtype: torch.dtype) -> dict[str, Any]:
        """Fitted attributes of the probe for training rows."""
        if self._loss_for(rows, n_classes, dtype) == "squared":
            return self._solve_squared(rows, n_classes, dtype) | {"loss_": "squared"}
        solution = solve_logistic(
            rows,
            n_classes,
            dtype,
            self._penalties,
            fit_intercept=self.fit_intercept,
            temperature=None if self.temperature == "loo" else float(self.temperature),
            scoring=self.scoring,
            search=isinstance(self.alpha, str),
            toward=self._toward(rows.device),
        )
        return solution | {"loss_": "logistic"}

    def solve_labels(self, rows: Rows, labels: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """Fitted attributes for several labels, each a problem of two classes of its own, from one factorisation.

        Parameters
        ----------
        rows : Rows
        labels : Tensor of shape (n, n_labels), int64
            1 for the rows that have a label, else 0.
        dtype : torch.dtype
        """
        one_class = replace(rows, codes=torch.zeros_like(rows.codes))
        unpulled = replace(self, coef_prior=None)
        solution = unpulled._solve_squared(one_class, 2, dtype, lambda space: self._solve_each(space, labels, dtype))
        return solution | {"loss_": "squared"}

    def _solve_each(self, space: LeaveOneOutSpace, labels: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        spaces = space.of_labels(labels, self._toward(labels.device), leave_one_out=self.uses_leave_one_out)
        solutions = [self._solve(of_label, dtype) for of_label in spaces]
        constant = (labels == labels[0]).all(0).nonzero()[:, 0].tolist()
        if constant:
            warn(
                f"the labels {constant} are the same for all samples, so that nothing is learned of them; remove these columns, "
                "or add samples"
            )
        return _joined(solutions)

    def _toward(self, device: torch.device) -> Tensor | None:
        """Coefficients towards which the penalty pulls, ``(d, n_classes)``."""
        if self.coef_prior is None:
            return None
        return tensor_from_numpy(self.coef_prior.T).to(torch.float32 if device.type == "mps" else torch.float64).to(device)

    def _loss_for(self, rows: Rows, n_classes: int, dtype: torch.dtype) -> str:
        """The loss that is minimised: ``"squared"`` or ``"logistic"``."""
        if self.loss != "auto":
            return self.loss
        searched = self.is_linear and isinstance(self.alpha, str) and self.scoring != "neg_mean_squared_error"
        if not searched or self.coef_prior is not None or len(rows) < _LOGISTIC_SAMPLES * n_classes:
            return "squared"
        available = available_memory(rows.device)
        return "squared" if available is not None and logistic_memory(rows, n_classes, dtype) > available else "logistic"

    def _solve_squared(
        self,
        rows: Rows,
        n_classes: int,
        dtype: torch.dtype,
        solve: Callable[[LeaveOneOutSpace], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Fitted attributes of the ridge classifier; in the smaller space, unless `solver` names one."""
        solve = solve or partial(self._solve, dtype=dtype)
        if self.is_linear:
            smaller = "primal" if len(rows) >= rows.X.shape[1] else "dual"
            try:
                return solve(self._linear_space(rows, n_classes, dtype, smaller if self.solver == "auto" else self.solver))
            except SingularError:
                if self.solver in ("auto", smaller):
                    raise
                return solve(self._linear_space(rows, n_classes, dtype, smaller))  # which is regular with smaller penalties
        self._check_memory(len(rows), rows.device)
        Z, attributes = rows.load(rows.weight.dtype), {}
        if isinstance(self.kernel, str):
            attributes["gamma_"] = variance_gamma(Z, rows.weight) if self.gamma is None else self.gamma
        K = kernel_matrix(self.kernel, Z, Z, **self.kernel_parameters(attributes.get("gamma_")))
        kept = as_numpy(rows.stored())
        kept = kept.copy() if rows.index is None else kept
        space = SampleSpace(K, rows.codes, rows.weight, n_classes, self._penalties, self.fit_intercept)
        return solve(space) | {"X_fit_": kept} | attributes

    def _linear_space(self, rows: Rows, n_classes: int, dtype: torch.dtype, space: str) -> LeaveOneOutSpace:
        toward = self._toward(rows.device)
        if space == "primal":
            moments = Moments(n_classes, rows.X.shape[1], rows.device).add(rows)
            return FeatureSpace(moments, rows, self._penalties, self.fit_intercept, dtype, toward)
        self._check_memory(len(rows), rows.device)
        return LinearSampleSpace(rows, n_classes, self._penalties, self.fit_intercept, dtype, toward)

    def solve_stream(self, stream: Stream, device: torch.device) -> dict[str, Any]:
        """Fitted attributes of the probe for a stream, whose leave-one-out predictions are those of a sample of its rows."""
        if not stream.moments.n_rows:
            return self._solve_nothing(stream)
        rows = self.rows(*stream.reservoir.rows, device)
        toward = self._toward(device)
        if len(stream.moments.class_rows) < 2:
            raise ValueError("a classifier needs samples of at least two classes, and all so far are of one")
        space = FeatureSpace(stream.moments.to(device), rows, self._penalties, self.fit_intercept, stream.dtype, toward)
        return self._solve(space, stream.dtype) | {"loss_": "squared"}

    def _solve_nothing(self, stream: Stream) -> dict[str, Any]:
        """Fitted attributes before the first sample: the classifier of the prior."""
        assert self.coef_prior is not None
        dtype = str(stream.dtype).removeprefix("torch.")
        coefficients = (self.coef_prior[1:] if len(self.coef_prior) == 2 else self.coef_prior).astype(dtype)
        temperature = _DEFAULT_TEMPERATURE if self.temperature == "loo" else float(self.temperature)
        solution = {"coef_": coefficients, "intercept_": np.zeros(len(coefficients), dtype), "alpha_": np.nan}
        return solution | {"temperature_": temperature, "compression_": 0.0, "loss_": "squared"}

    def _penalties(self, mean_square: float) -> Sequence[float]:
        """Ridge strengths to try, for rows of this mean squared norm."""
        if not np.isfinite(mean_square):
            raise ValueError("the squares of the features overflow; scale the features, for example by StandardScaler")
        if isinstance(self.alpha, Real):
            return [float(self.alpha)]
        if isinstance(self.alpha, str):
            scale = 10.0 ** round(np.log10(mean_square)) if mean_square > 0 else 1.0
            return (scale * _CANDIDATES).tolist()
        return np.asarray(self.alpha, dtype=float).tolist()

    def _solve(self, space: FeatureSpace | SampleSpace, dtype: torch.dtype) -> dict[str, Any]:
        """Fitted attributes for the chosen ridge strength; two classes have one column, that of the second class."""
        chosen, solution = self._choose(space)
        coefficients = space.coefficients(chosen)
        intercept = space.intercept(coefficients)
        if not coefficients.isfinite().all():
            self._raise_singular()
        wanted = slice(1 if space.n_classes == 2 else 0, None)
        weights, solution["intercept_"] = (values[..., wanted].to(dtype).cpu().numpy() for values in (coefficients, intercept))
        if not (np.isfinite(weights).all() and np.isfinite(solution["intercept_"]).all()):
            raise ValueError(f"the coefficients overflow in {dtype}; scale the features, for example by StandardScaler")
        if self.is_linear:
            solution["coef_"] = np.ascontiguousarray(weights.T)
        else:
            solution["dual_coef_"] = weights
        return solution

    def _choose(self, space: FeatureSpace | SampleSpace) -> tuple[int, dict[str, Any]]:
        """Index of the chosen ridge strength, and the fitted attributes that leave-one-out determines."""
        temperature = None if self.temperature == "loo" else float(self.temperature)
        chosen, compression = 0, 0.0
        found: dict[str, Any] = {}
        if self.uses_leave_one_out:
            found["alphas_"] = np.asarray(space.penalties)
            # A refit without the only sample of a class has never seen that class.
            is_only_one = space.class_rows[space.codes] == 1
            weight = to_float64(torch.where(is_only_one, 0, space.weight))
            if is_only_one.all():
                found["loo_scores_"] = np.full(len(space.penalties), np.nan)
                # Without scores, a moderate strength: 0.1 times the scale if alpha="loo".
                chosen = len(space.penalties) // 3
                temperature = temperature or _DEFAULT_TEMPERATURE
                warn(
                    "no class has two samples, so leave-one-out can choose neither alpha nor the temperature. Using alpha="
                    f"{space.penalties[chosen]:g} and temperature={temperature:g}; pass both as numbers to choose them yourself"
                )
            else:
                scores, best = choose_penalty(space, weight, self.scoring, temperature, within_error=isinstance(self.alpha, str))
                if best is None:
                    self._raise_singular()
                chosen = best
                found["loo_scores_"] = scores.cpu().numpy()
                if temperature is None:
                    temperature, compression = best_calibration(space, weight, chosen)
            found["loo_score_"] = float(found["loo_scores_"][chosen])
        assert temperature is not None  # temperature="loo" implies leave-one-out
        found |= {"alpha_": float(space.penalties[chosen]), "temperature_": temperature, "compression_": compression}
        return chosen, found

    def _check_memory(self, n: int, device: torch.device) -> None:
        needed = 8 * _N_MATRICES * n**2
        available = available_memory(device) if needed > _NO_MEMORY_CHECK else None
        if available is not None and needed > available:
            raise MemoryError(
                f"kernel={self.kernel!r} in sample space needs {_N_MATRICES} float64 matrices of {n} × {n}, "
                f"{needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free; use fewer samples, kernel='linear' with "
                "solver='auto', or an approximate kernel: make_pipeline(Nystroem(...), ClosedFormProbe())"
            )

    def _raise_singular(self) -> NoReturn:
        raise SingularError(
            f"the system is singular to working precision with alpha={self.alpha}: features are collinear, or their scales are "
            "too different; use a larger alpha, or scale the features"
        )


def _joined(solutions: list[dict[str, Any]]) -> dict[str, Any]:
    """Fitted attributes of several labels, from those of each."""
    first = solutions[0]
    joined: dict[str, Any] = {"intercept_": np.concatenate([one["intercept_"] for one in solutions])}
    for name, axis in (("coef_", 0), ("dual_coef_", 1)):
        if name in first:
            joined[name] = np.concatenate([one[name] for one in solutions], axis=axis)
    for name in ("alpha_", "temperature_", "compression_"):
        joined[name] = np.array([one[name] for one in solutions])
    if "alphas_" in first:
        joined |= {"alphas_": first["alphas_"], "loo_scores_": np.stack([one["loo_scores_"] for one in solutions], 1)}
        joined["loo_score_"] = float(np.mean([one["loo_score_"] for one in solutions]))
    return joined
