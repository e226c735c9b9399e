"""Choice of the ridge penalty and of the temperature by leave-one-out predictions."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..utils._ridge import to_float64
from ._leave_one_out import Candidates, FeatureSpace, SampleSpace
from ._rows import CHUNK

# Bounds of the temperature.
_TEMPERATURES = (1e-4, 1e2)
_FIRST_GUESS = 0.2
# Newton's method stops when the relative step is below this; the remaining error is its square.
_TOLERANCE = 1e-3
# Margins below this are recomputed in float64.
_FLOAT32_MARGIN = 2e-5


LeaveOneOutSpace = SampleSpace | FeatureSpace


def choose_penalty(
    space: LeaveOneOutSpace, weight: Tensor, scoring: str, temperature: float | None, *, within_error: bool
) -> tuple[Tensor, int | None]:
    """Leave-one-out scores of the penalties, and the index of the best one.

    Parameters
    ----------
    space : SampleSpace or FeatureSpace
    weight : Tensor of shape (n,), float64
        Weight of each sample in the scores, ≥ 0.
    scoring : {"accuracy", "neg_log_loss", "neg_mean_squared_error"}
    temperature : float or None
        Temperature of the log-loss; ``None``: the best one for each penalty.
    within_error : bool
        If True, choose the penalty with the least log-loss among those whose accuracy is within one standard error (of the
        paired difference) of the best. If False, choose the first with the best score.

    Returns
    -------
    scores : Tensor of shape (P,), float64
        Weighted means, higher is better; NaN for penalties with which the system is singular.
    chosen : int or None
        ``None`` if all are singular.
    """
    total = weight.sum()
    if scoring == "neg_log_loss":
        scores = -_log_losses(space, weight, temperature, range(len(space.penalties))) / total
    elif scoring == "neg_mean_squared_error":
        scores = weight @ _evaluate(space, _squared_errors) / -total
    else:
        correct = _correct(space)
        scores = weight @ correct / total
    if scores.isnan().all():
        return scores, None
    chosen = int(np.nanargmax(scores.cpu().numpy()))
    if scoring == "accuracy" and within_error:
        deficit = correct[:, chosen, None] - correct
        gap = scores[chosen] - scores
        error = (weight.square() @ (deficit - gap).square()).sqrt() / total
        candidates = (gap <= error).nonzero()[:, 0].tolist()
        if len(candidates) > 1:
            chosen = candidates[int(_log_losses(space, weight, temperature, candidates).argmin())]
    return scores, chosen


def _evaluate(space: LeaveOneOutSpace, evaluate: Callable[[Tensor, Tensor], Tensor], positions: Tensor | None = None) -> Tensor:
    """``evaluate`` of the leave-one-out predictions, ``(n', P)``; those at ``positions``, if given, are computed in float64."""
    codes = space.codes if positions is None else space.codes[positions]
    values = to_float64(space.weight).new_empty(len(codes), len(space.penalties))
    for part, columns, scores in space.leave_one_out(range(len(space.penalties)), positions, exact=positions is not None):
        values[part, columns] = evaluate(scores, codes[part]).to(values.dtype)
    return values


def _correct(space: LeaveOneOutSpace) -> Tensor:
    """1 where the true class has the highest score, else 0, ``(n, P)``; NaN where there are no scores."""
    margins = _evaluate(space, _margins)
    unsure = (margins.abs() < _FLOAT32_MARGIN).any(1).nonzero()[:, 0]
    if space.dtype == torch.float32 and len(unsure):
        margins[unsure] = _evaluate(space, _margins, unsure)
    return torch.where(margins.isnan(), torch.nan, (margins > 0).to(margins.dtype))


def _log_losses(space: LeaveOneOutSpace, weight: Tensor, temperature: float | None, candidates: Candidates) -> Tensor:
    """Summed log-losses of some candidates, each at its best temperature unless one is given."""
    temperatures = [temperature] * len(candidates) if temperature else best_temperatures(space, weight, candidates)
    losses = weight.new_zeros(len(candidates))
    for relative, weights, columns in _relative_scores(space, weight, candidates):
        tau = torch.tensor(temperatures[columns], dtype=relative.dtype, device=relative.device)
        losses[columns] += weights @ torch.logsumexp(relative / tau[:, None], 2).to(weights.dtype)
    return losses


def _margins(scores: Tensor, codes: Tensor) -> Tensor:
    """Score of the true class minus the best of the others, ``(n, P)``; ``scores`` ``(n, P, C)`` is overwritten."""
    index = codes[:, None, None].expand(-1, scores.shape[1], 1)
    own = scores.gather(2, index)[..., 0]
    return own - scores.scatter_(2, index, -torch.inf).amax(2)


def _squared_errors(scores: Tensor, codes: Tensor) -> Tensor:
    """Mean squared distance to the ±1 indicators, ``(n, P)``; ``scores`` ``(n, P, C)`` is overwritten."""
    index = codes[:, None, None].expand(-1, scores.shape[1], 1)
    errors = scores.add_(1).scatter_add_(2, index, torch.full_like(scores[..., :1], -2))
    return torch.linalg.vector_norm(errors, dim=2).square() / scores.shape[2]


def best_temperatures(space: LeaveOneOutSpace, weight: Tensor, candidates: Candidates) -> list[float]:
    """Temperature of the softmax of the leave-one-out predictions with the least log-loss, for each candidate.

    Large problems are first solved on a part of the samples, so that about two passes over all of them are enough.
    """
    n, some = len(space.codes), max(1, CHUNK // space.n_classes)
    together = max(1, some // n)
    temperatures: list[float] = []
    for start in range(0, len(candidates), together):
        group = candidates[start : start + together]
        positions = None
        if n > some:
            positions = torch.linspace(0, n - 1, some, dtype=torch.float64).long().unique().to(space.codes.device)
        cached = list(_relative_scores(space, weight, group, positions))
        best = _minimize_log_loss(partial(iter, cached), [_FIRST_GUESS] * len(group))
        if n > some:
            best = _minimize_log_loss(partial(_relative_scores, space, weight, group), best)
        temperatures += best
    return temperatures


def _relative_scores(
    space: LeaveOneOutSpace, weight: Tensor, candidates: Candidates, positions: Tensor | None = None
) -> Iterable[tuple]:
    """Yield relative scores of leave-one-out predictions, weights, and columns of ``candidates``."""
    codes, weights = (space.codes, weight) if positions is None else (space.codes[positions], weight[positions])
    for part, columns, scores in space.leave_one_out(candidates, positions):
        yield _relative_to_true_class(scores, codes[part]), weights[part], columns


def _relative_to_true_class(scores: Tensor, codes: Tensor) -> Tensor:
    """Scores ``(n, P, C)`` minus that of the true class of each sample."""
    return scores - scores.gather(2, codes[:, None, None].expand(-1, scores.shape[1], 1))


def best_temperature(scores: Tensor, codes: Tensor) -> float:
    """Temperature of the softmax of scores ``(n, C)`` with the least log-loss for class indices ``(n,)``."""
    ones = torch.ones(len(codes), dtype=torch.float64, device=codes.device)
    return _minimize_log_loss(lambda: [(_relative_to_true_class(scores[:, None], codes), ones, slice(0, 1))], [_FIRST_GUESS])[0]


def _minimize_log_loss(chunks: Callable[[], Iterable[tuple]], start: Sequence[float]) -> list[float]:
    """Temperatures that minimise the weighted log-loss, by Newton's method in their inverse, in which the loss is convex.

    Parameters
    ----------
    chunks : callable
        Returns, each time it is called, an iterator over chunks: relative scores ``(n', P', C)``, weights ``(n',)``, and the
        slice of the ``P`` temperatures that they belong to.
    start : sequence of P floats
        First guesses.

    Returns
    -------
    list of P floats
        Within `_TEMPERATURES`.
    """
    lowest, highest = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    beta = 1 / np.asarray(start, dtype=float)
    for _ in range(50):
        derivatives = np.zeros((2, len(beta)))
        for relative, weight, columns in chunks():
            derivatives[:, columns] += _derivatives(relative, weight, beta[columns]).cpu().numpy()
        slope, curvature = derivatives
        newton = beta - slope / np.maximum(curvature, np.finfo(float).tiny)
        before, beta = beta, np.clip(newton, np.maximum(beta / 16, lowest), np.minimum(16 * beta, highest))
        if not (np.abs(beta - before) > _TOLERANCE * before).any():  # also true for NaN, from a singular system
            break
    return (1 / beta).tolist()


def _derivatives(relative: Tensor, weight: Tensor, beta: np.ndarray) -> Tensor:
    """First and second derivatives of the summed log-loss with respect to the inverse temperatures, ``(2, P)``."""
    probabilities = torch.softmax(relative * torch.as_tensor(beta, dtype=relative.dtype, device=relative.device)[:, None], 2)
    first = probabilities.mul_(relative).sum(2)
    second = probabilities.mul_(relative).sum(2) - first.square()
    return torch.stack([weight @ first.to(weight.dtype), weight @ second.to(weight.dtype)])
