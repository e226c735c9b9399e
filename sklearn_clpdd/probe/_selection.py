"""Choice of the ridge penalty by leave-one-out predictions."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..utils._ridge import to_float64
from ._calibration import LeaveOneOutSpace, best_temperatures, relative_scores
from ._inverse import Candidates

# Margins below this are recomputed in float64.
_FLOAT32_MARGIN = 2e-5


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
        candidates = within_one_error(correct, weight)
        if len(candidates) > 1:
            chosen = candidates[int(_log_losses(space, weight, temperature, candidates).argmin())]
    return scores, chosen


def within_one_error(correct: Tensor, weight: Tensor) -> list[int]:
    """Columns of ``correct`` ``(n, P)`` whose weighted mean is within a standard error, of the paired difference, of the best."""
    total = weight.sum()
    scores = weight @ correct / total
    best = scores.nan_to_num(nan=-torch.inf).argmax()
    gap = scores[best] - scores
    error = (weight.square() @ (correct[:, best, None] - correct - gap).square()).sqrt() / total
    return (gap <= error).nonzero()[:, 0].tolist()


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
    for relative, weights, columns in relative_scores(space, weight, candidates):
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
