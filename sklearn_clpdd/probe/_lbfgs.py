"""Several penalised multinomial logistic regressions on the same rows, solved together by preconditioned L-BFGS.

The features are the coordinates in which their weighted Gram matrix is diagonal, ``diag(eigenvalues)``. The Hessian of one class
is then close to ``c · diag(eigenvalues) + alpha · I`` for the class's mean ``c`` of ``p(1 − p)``; its inverse is the
preconditioner. All regressions share each matrix product with the rows, which are read once for all of them.

``n`` is the number of rows, ``k`` that of coordinates, ``C`` that of classes, ``J`` that of regressions. Weights of one
regression are ``(k + 1, C)``, the intercepts last.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._rows import chunk_elements

# Steps that are remembered, trials of a step, and iterations, at most.
MEMORY, _TRIALS, _MAX_ITERATIONS = 10, 20, 300
# Smallest p(1 − p) of the preconditioner.
_LEAST_CURVATURE = 1e-6
# Iterations at which the preconditioner is computed anew.
_REFRESH = (2, 5, 20)


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
    """

    Z: Tensor
    codes: Tensor
    weights: Tensor
    eigenvalues: Tensor
    fit_intercept: bool
    toward: Tensor | None = None

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
        result, active = start.clone(), torch.arange(len(start), device=start.device)
        x, inverse = start, self._preconditioner(start, alpha)
        loss, gradient = self._loss(x, active, alpha)
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        stuck = torch.zeros_like(active, dtype=torch.bool)
        for iteration in range(_MAX_ITERATIONS):
            if iteration in _REFRESH:
                inverse = self._preconditioner(x, alpha, active)
            direction = _direction(gradient, steps, inverse)
            gain = _dot(direction, gradient)
            live = (gain[:, 0, 0] / 2 > tolerance * loss) & ~stuck
            if not live.all():
                result[active[~live]] = x[~live]
                if not live.any():
                    return result, True
                x, gradient, direction, inverse, loss, gain, active, stuck = (
                    value[live] for value in (x, gradient, direction, inverse, loss, gain, active, stuck)
                )
                steps = [tuple(value[live] for value in step) for step in steps]  # type: ignore[misc]
            length = torch.ones_like(gain)
            for _ in range(_TRIALS):
                moved = x - length * direction
                new_loss, new_gradient = self._loss(moved, active, alpha)
                rounding = 8 * torch.finfo(x.dtype).eps * loss.abs()
                too_far = ~(new_loss <= loss - 1e-4 * (length * gain)[:, 0, 0] + rounding)
                if not too_far.any():
                    break
                # The minimum of the parabola through what is known, within a tenth and a half of the step.
                excess = (new_loss - loss)[:, None, None] + length * gain
                best = (gain * length.square() / (2 * excess)).nan_to_num(nan=0.0)
                shorter = torch.maximum(length / 10, torch.minimum(length / 2, best))
                length = torch.where(too_far[:, None, None], shorter, length)
            stuck = too_far  # rounding leaves nothing to gain
            moved, new_gradient = (torch.where(stuck[:, None, None], *both) for both in ((x, moved), (gradient, new_gradient)))
            new_loss = torch.where(stuck, loss, new_loss)
            s, t = moved - x, new_gradient - gradient
            product = _dot(s, t)
            steps = [*steps[1 - MEMORY :], (s, t, torch.where(product > 0, 1 / product, 0))]
            x, gradient, loss = moved, new_gradient, new_loss
        result[active] = x
        return result, False

    def _chunks(self, n_outputs: int):
        step = max(1, chunk_elements(self.Z.device) // max(n_outputs, self.Z.shape[1]))
        for start in range(0, len(self.Z), step):
            yield slice(start, start + step)

    def _scores(self, rows: slice, x: Tensor) -> Tensor:
        """Scores ``(n', J, C)``."""
        J, k, C = len(x), x.shape[1] - 1, x.shape[2]
        W, b = x[:, :k].transpose(0, 1).reshape(k, J * C), x[:, k].reshape(J * C)
        return torch.addmm(b, self.Z[rows], W).view(-1, J, C)

    def _loss(self, x: Tensor, active: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Losses ``(J',)`` and gradients ``(J', k + 1, C)`` of some of the regressions."""
        J, k, C = len(x), x.shape[1] - 1, x.shape[2]
        loss = x.new_zeros(J)
        of_weights, of_intercepts = x.new_zeros(k, J * C), x.new_zeros(J * C)
        for rows in self._chunks(J * C):
            weight = self.weights[rows][:, active]
            p = self._scores(rows, x)
            p -= p.amax(2, keepdim=True)
            own = self.codes[rows, None, None].expand(-1, J, 1)
            of_own = p.gather(2, own)[..., 0]
            total = p.exp_().sum(2)
            loss += (weight * (total.log() - of_own)).sum(0)
            p *= (weight / total)[..., None]
            residuals = p.scatter_add_(2, own, -weight[..., None]).view(-1, J * C)
            of_weights.addmm_(self.Z[rows].T, residuals)
            of_intercepts += residuals.sum(0)
        if not self.fit_intercept:
            of_intercepts.zero_()
        gradient = torch.cat([of_weights.view(k, J, C), of_intercepts.view(1, J, C)]).transpose(0, 1).contiguous()
        distance = x[:, :k] if self.toward is None else x[:, :k] - self.toward
        gradient[:, :k].add_(distance, alpha=alpha)
        return loss + alpha / 2 * distance.square().sum((1, 2)), gradient

    def _preconditioner(self, x: Tensor, alpha: float, active: Tensor | slice = slice(None)) -> Tensor:
        """Inverse of the diagonal approximation of the Hessians, ``(J, k + 1, C)``."""
        total = self.weights[:, active].sum(0)
        curvature = x.new_zeros(len(x), x.shape[2])
        for rows in self._chunks(len(x) * x.shape[2]):
            p = torch.softmax(self._scores(rows, x), 2)
            curvature += torch.einsum("nj,njc->jc", self.weights[rows][:, active], p.mul_(1 - p))
        curvature = (curvature / total[:, None]).clamp_min_(_LEAST_CURVATURE)[:, None]
        share = (total / self.weights.sum(0).max())[:, None, None]
        of_weights = 1 / (curvature * share * self.eigenvalues[:, None] + alpha)
        of_intercepts = 1 / (curvature * total[:, None, None])
        return torch.cat([of_weights, of_intercepts], 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the weights of each regression, ``(J, 1, 1)``."""
    return (a * b).sum((1, 2), keepdim=True)


def _direction(gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]], inverse: Tensor) -> Tensor:
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
