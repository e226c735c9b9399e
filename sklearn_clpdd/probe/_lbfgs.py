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
# What may be left to gain, relative to the loss, with rows in bfloat16; a quarter of it is noise.
_ROUGH = 1e-3
# The first step's length is chosen from these, on a part of the rows, and not less than so many.
_LENGTHS, _PART, _LEAST_ROWS = tuple(2.0 ** (-i / 2) for i in range(-2, 13)), 1 / 16, 256

# Differences of weights and of gradients, and one over their inner products.
_Step = tuple[Tensor, Tensor, Tensor]


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
        ``Z`` for the first steps; ``None``: ``Z`` itself.
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
            point, converged = self._descend(point, steps, alpha, max(tolerance, _ROUGH), self.rough)
            if tolerance >= _ROUGH:
                return point.x, converged
            point = self._evaluate(point.x, alpha, self.Z, point.inverse)
        point, converged = self._descend(point, steps, alpha, tolerance, self.Z)
        return point.x, converged

    def _descend(
        self, point: "_Point", steps: "deque[_Step]", alpha: float, tolerance: float, Z: Tensor
    ) -> "tuple[_Point, bool]":
        """Go down from a point; those regressions that are at their end stay where they are."""
        live = torch.ones_like(point.loss, dtype=torch.bool)
        for iteration in range(1, _MAX_ITERATIONS + 1):
            direction = _direction(point.gradient, steps, point.inverse)
            gain = _dot(direction, point.gradient)
            live &= gain[:, 0, 0] / 2 > tolerance * point.loss
            if not live.any():
                return point, True
            length = torch.ones_like(gain) if steps else self._first_length(point.x, direction, alpha)
            length = length * live[:, None, None]
            new, stuck = self._search(point, direction, gain, length, alpha, Z, refresh=iteration in _REFRESH)
            live &= ~stuck
            s, t = new.x - point.x, new.gradient - point.gradient
            product = _dot(s, t)
            steps.append((s, t, torch.where(product > 0, 1 / product, 0)))
            point = new
        return point, False

    def _search(
        self, point: "_Point", direction: Tensor, gain: Tensor, length: Tensor, alpha: float, Z: Tensor, *, refresh: bool
    ) -> "tuple[_Point, Tensor]":
        """The next point, with steps of at most some length, and which regressions cannot go on, because of rounding."""
        noise = (_ROUGH / 4 if Z is self.rough else 8 * torch.finfo(point.x.dtype).eps) * point.loss.abs()
        for _ in range(_TRIALS):
            new = self._evaluate(point.x - length * direction, alpha, Z, None if refresh else point.inverse)
            too_far = ~(new.loss <= point.loss - 1e-4 * (length * gain)[:, 0, 0] + noise)
            if not too_far.any():
                break
            # The minimum of the parabola through what is known, within a tenth and a half of the step.
            excess = (new.loss - point.loss)[:, None, None] + length * gain
            best = (gain * length.square() / (2 * excess)).nan_to_num(nan=0.0)
            shorter = torch.maximum(length / 10, torch.minimum(length / 2, best))
            length = torch.where(too_far[:, None, None], shorter, length)
        x, gradient = (torch.where(too_far[:, None, None], *both) for both in ((point.x, new.x), (point.gradient, new.gradient)))
        loss = torch.where(too_far, point.loss, new.loss)
        return _Point(x, loss, gradient, new.inverse), too_far

    def _first_length(self, x: Tensor, direction: Tensor, alpha: float) -> Tensor:
        """Length of the first step, whose direction knows no curvature but the preconditioner's, ``(J, 1, 1)``."""
        n = len(self.Z)
        size = min(n, max(_LEAST_ROWS, int(_PART * n)))
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
        best = torch.stack(losses).nan_to_num(nan=torch.inf).argmin(0)
        return x.new_tensor(_LENGTHS)[best][:, None, None]

    def _chunks(self, n_outputs: int):
        step = max(1, chunk_elements(self.Z.device) // max(n_outputs, self.Z.shape[1]))
        for start in range(0, len(self.Z), step):
            yield slice(start, start + step)

    def _distance(self, x: Tensor) -> Tensor:
        """What is penalised, ``(J, k, C)``."""
        return x[:, :-1] if self.toward is None else x[:, :-1] - self.toward

    def _evaluate(self, x: Tensor, alpha: float, Z: Tensor, inverse: Tensor | None = None) -> "_Point":
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
            if inverse is None:
                probability = p / total[..., None]
                curvature += torch.einsum("nj,njc->jc", weight, probability.mul_(1 - probability))
            p *= (weight / total)[..., None]
            residuals = p.scatter_add_(2, own, -weight[..., None]).view(-1, J * C)
            of_weights += Z[rows].T @ residuals.to(Z.dtype)
            of_intercepts += residuals.sum(0)
        if not self.fit_intercept:
            of_intercepts.zero_()
        gradient = torch.cat([of_weights.view(k, J, C), of_intercepts.view(1, J, C)]).transpose(0, 1).contiguous()
        distance = self._distance(x)
        gradient[:, :k].add_(distance, alpha=alpha)
        loss += alpha / 2 * distance.square().sum((1, 2))
        return _Point(x, loss, gradient, self._inverse(curvature, alpha) if inverse is None else inverse)

    def _inverse(self, curvature: Tensor, alpha: float) -> Tensor:
        """Inverse of the diagonal approximation of the Hessians, ``(J, k + 1, C)``, from sums of p(1 − p), ``(J, C)``."""
        total = self.weights.sum(0)
        curvature = (curvature / total[:, None]).clamp_min_(_LEAST_CURVATURE)[:, None]
        share = (total / total.max())[:, None, None]
        of_weights = 1 / (curvature * share * self.eigenvalues[:, None] + alpha)
        of_intercepts = 1 / (curvature * total[:, None, None])
        return torch.cat([of_weights, of_intercepts], 1)


@dataclass(frozen=True)
class _Point:
    """Weights ``(J, k + 1, C)``, their losses ``(J,)`` and gradients, and the preconditioner."""

    x: Tensor
    loss: Tensor
    gradient: Tensor
    inverse: Tensor


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
