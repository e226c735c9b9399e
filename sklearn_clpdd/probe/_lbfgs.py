"""Several penalised multinomial logistic regressions on the same rows, solved together by preconditioned L-BFGS.

The features are the coordinates in which their weighted Gram matrix is diagonal, ``diag(eigenvalues)``. The Hessian of one class
is then close to ``c · diag(eigenvalues) + alpha · I`` for the class's mean ``c`` of ``p(1 − p)``; its inverse is the
preconditioner. All regressions share each matrix product with the rows, which are read once for all of them. Where the rows are
given in bfloat16 as well, they take part until what is left to gain is close to the rounding.

``n`` is the number of rows, ``k`` that of coordinates, ``C`` that of classes, ``J`` that of regressions. Weights of one
regression are ``(k + 1, C)``, the intercepts last.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from ._calibration import relative_to_true_class
from ._rows import chunk_elements

# Steps that are remembered, trials of a step, and iterations, at most.
MEMORY, _TRIALS, _MAX_ITERATIONS = 10, 20, 300
# Smallest p(1 − p) of the preconditioner.
_LEAST_CURVATURE = 1e-6
# Iterations after which the preconditioner is computed anew.
_REFRESH = (2, 5, 20)
# What may be left to gain, relative to the loss, with rows in bfloat16, and after how many steps the full precision takes over.
# The loss may rise by a quarter of it in a step, by rounding.
ROUGH, _MAX_ROUGH = 5e-4, 30
# The first step's length is chosen from these, on this share of the rows, but on this many at least, if there are.
_LENGTHS, _SHARE, _LEAST_ROWS = tuple(2.0 ** (-i / 2) for i in range(-2, 13)), 1 / 16, 256
# A regression whose loss no longer falls has converged if what it could gain is at most this share of its loss.
_STUCK = 1e-2

# Differences of weights and of gradients, and one over their inner products.
_Step = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Point:
    """Weights ``(J, k + 1, C)``, their losses ``(J,)`` and gradients, and the preconditioner."""

    x: Tensor
    loss: Tensor
    gradient: Tensor
    preconditioner: Tensor


@dataclass(frozen=True)
class LogisticProblems:
    """Logistic regressions that differ in the weights of the samples.

    Parameters
    ----------
    Z : Tensor of shape (n, k)
        Coordinates of the samples.
    codes : Tensor of shape (n,), int64
        Indices of the classes.
    weights : Tensor of shape (n, J)
        Sample weights, ≥ 0.
    eigenvalues : Tensor of shape (k,)
        Diagonal of the weighted Gram matrix of ``Z``.
    fit_intercept : bool
    toward : Tensor of shape (k, C), default=None
        Weights towards which the penalty pulls; ``None``: zero.
    rough : Tensor of shape (n, k), bfloat16, default=None
        ``Z`` for the first steps, and for all where the tolerance is not below `ROUGH`; ``None``: ``Z`` itself.
    """

    Z: Tensor
    codes: Tensor
    weights: Tensor
    eigenvalues: Tensor
    fit_intercept: bool
    toward: Tensor | None = None
    rough: Tensor | None = None

    def minimize(self, start: Tensor, alpha: float, tolerance: float) -> tuple[Tensor, bool]:
        """Weights ``(J, k + 1, C)`` with the least ``Σ weight · log-loss + alpha / 2 · ‖weights‖²``, intercepts not penalised.

        Parameters
        ----------
        start : Tensor of shape (J, k + 1, C)
        alpha : float
            Ridge strength, > 0.
        tolerance : float
            Each regression ends when the estimate of what it could still gain is at most this share of its loss.

        Returns
        -------
        weights : Tensor of shape (J, k + 1, C)
        converged : bool
            Whether all ended so.
        """
        steps: deque[_Step] = deque(maxlen=MEMORY)
        if self.rough is None:
            point = self._evaluate(start, alpha, self.Z)
        else:
            point = self._evaluate(start, alpha, self.rough)
            point, converged = self._descend(point, steps, alpha, max(tolerance, ROUGH), self.rough, _MAX_ROUGH)
            if converged and tolerance >= ROUGH:
                return point.x, True
            point = self._evaluate(point.x, alpha, self.Z, point.preconditioner)
        point, converged = self._descend(point, steps, alpha, tolerance, self.Z, _MAX_ITERATIONS)
        return point.x, converged

    def _descend(
        self, point: _Point, steps: deque[_Step], alpha: float, tolerance: float, Z: Tensor, max_iterations: int
    ) -> tuple[_Point, bool]:
        """Go on from a point, by one step at least; regressions that have ended stay where they are.

        Returns
        -------
        point : _Point
        converged : bool
            Whether all have ended at the tolerance, or, close to it, because of rounding.
        """
        live = torch.ones_like(point.loss, dtype=torch.bool)
        failed, left = torch.zeros_like(live), torch.zeros_like(point.loss)
        tiny = torch.finfo(point.loss.dtype).tiny
        rounding = torch.finfo(point.loss.dtype).eps * self.weights.square().sum(0).sqrt()  # of the losses of samples
        for iteration in range(1, max_iterations + 1):
            direction = _direction(point.gradient, steps, point.preconditioner)
            gain = _dot(direction, point.gradient)
            left = torch.where(live, (gain[:, 0, 0] / 2 - rounding).clamp_min(0) / point.loss.clamp_min(tiny), left)
            live &= (left > (tolerance if steps else 0)) & ~failed
            if not live.any():
                return point, bool((left <= torch.where(failed, _STUCK, tolerance)).all())
            direction, gain = (torch.where(live[:, None, None], value, 0) for value in (direction, gain))
            length = torch.ones_like(gain) if steps else self._first_length(point.x, direction, alpha)
            new, stuck = self._search(point, direction, gain, length, alpha, Z, refresh=iteration in _REFRESH)
            failed |= stuck
            s, t = new.x - point.x, new.gradient - point.gradient
            product = _dot(s, t)
            steps.append((s, t, torch.where(product > tiny, 1 / product, 0)))
            point = new
        return point, False

    def _search(
        self, point: _Point, direction: Tensor, gain: Tensor, length: Tensor, alpha: float, Z: Tensor, *, refresh: bool
    ) -> tuple[_Point, Tensor]:
        """The next point, with steps of at most some length, and for which regressions no step lowers the loss."""
        is_rough = Z.dtype != point.x.dtype
        noise = (ROUGH / 4 if is_rough else 8 * torch.finfo(point.x.dtype).eps) * point.loss.abs()
        for _ in range(_TRIALS):
            new = self._evaluate(point.x - length * direction, alpha, Z, None if refresh else point.preconditioner)
            too_far = ~(new.loss <= point.loss - 1e-4 * (length * gain)[:, 0, 0] + noise)
            if not too_far.any():
                break
            # The minimum of the parabola through what is known, within a tenth and a half of the step.
            excess = (new.loss - point.loss)[:, None, None] + length * gain
            best = (gain * length.square() / (2 * excess)).nan_to_num(nan=0.0)
            shorter = torch.maximum(length / 10, torch.minimum(length / 2, best))
            length = torch.where(too_far[:, None, None], shorter, length)
        x, gradient, preconditioner = (
            torch.where(too_far[:, None, None], getattr(point, name), getattr(new, name))
            for name in ("x", "gradient", "preconditioner")
        )
        return _Point(x, torch.where(too_far, point.loss, new.loss), gradient, preconditioner), too_far

    def _first_length(self, x: Tensor, direction: Tensor, alpha: float) -> Tensor:
        """Length of the first step, whose direction knows no curvature but the preconditioner's, ``(J, 1, 1)``."""
        n, most = len(self.Z), chunk_elements(self.Z.device) // (x.shape[0] * x.shape[2])
        size = min(n, max(_LEAST_ROWS, min(most, int(_SHARE * n))))
        rows = torch.linspace(0, n - 1, size, dtype=torch.float64).long().to(self.Z.device)
        weight = self.weights[rows]
        scale = self.weights.sum(0) / weight.sum(0)
        scores, change = (
            relative_to_true_class(_scores(self.Z[rows], *_matrix(value)).view(-1, *value[:, 0].shape), self.codes[rows])
            for value in (x, direction)
        )
        distance, moved = self._distance(x), direction[:, :-1]
        slope, square = _dot(distance, moved)[:, 0, 0], _dot(moved, moved)[:, 0, 0]
        losses = [
            scale * (weight * torch.logsumexp(scores - t * change, 2)).sum(0) + alpha * (t * t / 2 * square - t * slope)
            for t in _LENGTHS
        ]
        stacked = torch.stack(losses)
        finite = stacked.isfinite()
        best = torch.where(finite, stacked, torch.inf).argmin(0)
        return torch.where(finite.any(0), x.new_tensor(_LENGTHS)[best], 1)[:, None, None]

    def _chunks(self, n_outputs: int):
        step = max(1, chunk_elements(self.Z.device) // max(n_outputs, self.Z.shape[1]))
        for start in range(0, len(self.Z), step):
            yield slice(start, start + step)

    def _distance(self, x: Tensor) -> Tensor:
        """What is penalised, ``(J, k, C)``."""
        return x[:, :-1] if self.toward is None else x[:, :-1] - self.toward

    def _evaluate(self, x: Tensor, alpha: float, Z: Tensor, preconditioner: Tensor | None = None) -> _Point:
        """Losses and gradients with rows in one of their precisions; and the preconditioner, unless it is given."""
        J, k, C = len(x), x.shape[1] - 1, x.shape[2]
        loss, curvature = x.new_zeros(J), x.new_zeros(J, C)
        of_weights, of_intercepts = x.new_zeros(k, J * C), x.new_zeros(J * C)
        W, b = _matrix(x)
        W = W.to(Z.dtype)
        for rows in self._chunks(J * C):
            weight = self.weights[rows]
            p = _scores(Z[rows], W, b).view(-1, J, C)
            p -= p.amax(2, keepdim=True)
            own = self.codes[rows, None, None].expand(-1, J, 1)
            of_own = p.gather(2, own)[..., 0]
            total = p.exp_().sum(2)
            loss += (weight * (total.log() - of_own)).sum(0)
            if preconditioner is None:
                probability = p / total[..., None]
                curvature += torch.einsum("nj,njc->jc", weight, probability.mul_(1 - probability))
            p *= (weight / total)[..., None]
            residuals = p.scatter_add_(2, own, -weight[..., None]).view(-1, J * C)
            if Z.dtype == x.dtype:
                of_weights.addmm_(Z[rows].T, residuals)
            else:
                of_weights += Z[rows].T @ residuals.to(Z.dtype)
            of_intercepts += residuals.sum(0)
        if not self.fit_intercept:
            of_intercepts.zero_()
        gradient = torch.cat([of_weights.view(k, J, C), of_intercepts.view(1, J, C)]).transpose(0, 1).contiguous()
        distance = self._distance(x)
        gradient[:, :k].add_(distance, alpha=alpha)
        loss += alpha / 2 * distance.square().sum((1, 2))
        return _Point(x, loss, gradient, self._preconditioner(curvature, alpha) if preconditioner is None else preconditioner)

    def _preconditioner(self, curvature: Tensor, alpha: float) -> Tensor:
        """Inverse of the diagonal approximation of the Hessians, ``(J, k + 1, C)``, from sums of p(1 − p), ``(J, C)``."""
        total = self.weights.sum(0)
        curvature = (curvature / total[:, None]).clamp_min_(_LEAST_CURVATURE)[:, None]
        share = (total / total.max())[:, None, None]
        of_weights = 1 / (curvature * share * self.eigenvalues[:, None] + alpha)
        of_intercepts = 1 / (curvature * total[:, None, None])
        return torch.cat([of_weights, of_intercepts], 1)


def _matrix(x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of all regressions beside one another, ``(k, J · C)``, and their intercepts."""
    J, k, C = len(x), x.shape[1] - 1, x.shape[2]
    return x[:, :k].transpose(0, 1).reshape(k, J * C), x[:, k].reshape(J * C)


def _scores(Z: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(b, Z, W) if Z.dtype == b.dtype else (Z @ W).to(b.dtype).add_(b)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the weights of each regression, ``(J, 1, 1)``."""
    return (a * b).sum((1, 2), keepdim=True)


def _direction(gradient: Tensor, steps: deque[_Step], inverse: Tensor) -> Tensor:
    """The two-loop recursion of L-BFGS (Nocedal and Wright, *Numerical Optimization*, algorithm 7.4) with a preconditioner."""
    q = gradient.clone()
    factors = []
    for s, t, reciprocal in reversed(steps):
        factors.append(reciprocal * _dot(s, q))
        q.sub_(factors[-1] * t)
    q *= inverse
    if steps:
        s, t, _ = steps[-1]
        scale = _dot(s, t) / _dot(t, t * inverse)
        q *= torch.where(scale > 0, scale, 1)
    for (s, t, reciprocal), factor in zip(steps, reversed(factors), strict=True):
        q.add_((factor - reciprocal * _dot(t, q)) * s)
    return q
