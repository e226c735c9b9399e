"""Which penalty, and which temperature: what leave-one-out predictions are for."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .leave_one_out import Candidates
from .ridge import in_double
from .rows import CHUNK

# Temperatures are looked for between these.
TEMPERATURES = (1e-4, 1e2)
_FIRST_GUESS = 0.2
# Newton's method stops at steps below this share; the error that they leave is its square.
_TOLERANCE = 1e-3
# A margin in float32 below this is computed again in float64.
_FLOAT32_MARGIN = 2e-5


class Predictions(Protocol):
    """What `SampleSpace` and `FeatureSpace` have in common."""

    codes: Tensor
    weight: Tensor
    dtype: torch.dtype
    penalties: Sequence[float]
    n_classes: int
    class_rows: Tensor

    def leave_one_out(
        self, candidates: Candidates, positions: Tensor | None = None, *, exact: bool = False
    ) -> Iterable[tuple]: ...


def choose_penalty(
    space: Predictions, weight: Tensor, scoring: str, temperature: float | None, *, within_error: bool
) -> tuple[Tensor, int | None]:
    """Leave-one-out scores of the penalties, and which one is best.

    Parameters
    ----------
    space : SampleSpace or FeatureSpace
    weight : Tensor of shape (n,), float64
        Of each sample in the scores, ≥ 0.
    scoring : {"accuracy", "neg_log_loss", "neg_mean_squared_error"}
    temperature : float or None
        Of the log-loss; ``None`` is the best one of each penalty.
    within_error : bool
        Whether, of penalties whose accuracy is within one standard error of the best, the one with the least log-loss is taken.
        The error is that of the difference, sample by sample. Otherwise the first with the best score is.

    Returns
    -------
    scores : Tensor of shape (P,), float64
        Weighted means, higher is better; NaN where the system is singular.
    chosen : int or None
        ``None`` where all are singular.
    """
    total = weight.sum()
    if scoring == "neg_log_loss":
        scores = -_log_losses(space, weight, temperature, range(len(space.penalties))) / total
    elif scoring == "neg_mean_squared_error":
        scores = weight @ _values(space, _squared_errors) / -total
    else:
        hits = _hits(space)
        scores = weight @ hits / total
    if scores.isnan().all():
        return scores, None
    chosen = int(np.nanargmax(scores.cpu().numpy()))
    if scoring == "accuracy" and within_error:
        behind = hits[:, chosen, None] - hits
        gap = scores[chosen] - scores
        error = (weight.square() @ (behind - gap).square()).sqrt() / total
        rivals = (gap <= error).nonzero()[:, 0].tolist()
        if len(rivals) > 1:
            chosen = rivals[int(_log_losses(space, weight, temperature, rivals).argmin())]
    return scores, chosen


def _values(space: Predictions, evaluate: Callable[[Tensor, Tensor], Tensor], positions: Tensor | None = None) -> Tensor:
    """What ``evaluate`` makes of the leave-one-out predictions, ``(n', P)``; with positions, of those computed in float64."""
    codes = space.codes if positions is None else space.codes[positions]
    values = in_double(space.weight).new_empty(len(codes), len(space.penalties))
    for part, columns, scores in space.leave_one_out(range(len(space.penalties)), positions, exact=positions is not None):
        values[part, columns] = evaluate(scores, codes[part]).to(values.dtype)
    return values


def _hits(space: Predictions) -> Tensor:
    """Whether the samples' own classes have the highest scores, ``(n, P)``; NaN where there are none."""
    margins = _values(space, _margins)
    unsure = (margins.abs() < _FLOAT32_MARGIN).any(1).nonzero()[:, 0]
    if space.dtype == torch.float32 and len(unsure):
        margins[unsure] = _values(space, _margins, unsure)
    return torch.where(margins.isnan(), torch.nan, (margins > 0).to(margins.dtype))


def _log_losses(space: Predictions, weight: Tensor, temperature: float | None, candidates: Candidates) -> Tensor:
    """Summed log-loss for some candidates, each at its best temperature where none is given."""
    temperatures = [temperature] * len(candidates) if temperature else best_temperatures(space, weight, candidates)
    losses = weight.new_zeros(len(candidates))
    for ahead, own, columns in _leads(space, weight, candidates):
        tau = torch.tensor(temperatures[columns], dtype=ahead.dtype, device=ahead.device)
        losses[columns] += own @ torch.logsumexp(ahead / tau[:, None], 2).to(own.dtype)
    return losses


def _margins(scores: Tensor, codes: Tensor) -> Tensor:
    """Score of the own class less the best of the others, ``(n, P)``; ``scores`` ``(n, P, C)`` are overwritten."""
    index = codes[:, None, None].expand(-1, scores.shape[1], 1)
    own = scores.gather(2, index)[..., 0]
    return own - scores.scatter_(2, index, -torch.inf).amax(2)


def _squared_errors(scores: Tensor, codes: Tensor) -> Tensor:
    """Mean squared distance to the ±1 indicators, ``(n, P)``; ``scores`` ``(n, P, C)`` are overwritten."""
    index = codes[:, None, None].expand(-1, scores.shape[1], 1)
    errors = scores.add_(1).scatter_add_(2, index, torch.full_like(scores[..., :1], -2))
    return torch.linalg.vector_norm(errors, dim=2).square() / scores.shape[2]


def best_temperatures(space: Predictions, weight: Tensor, candidates: Candidates) -> list[float]:
    """The temperatures of a softmax over leave-one-out predictions with the least log-loss, one for each candidate.

    Large problems start from a part of the samples, so that about two passes over all of them are enough.
    """
    n, some = len(space.codes), max(1, CHUNK // space.n_classes)
    together = max(1, some // n)
    temperatures: list[float] = []
    for start in range(0, len(candidates), together):
        group = candidates[start : start + together]
        positions = None
        if n > some:
            positions = torch.linspace(0, n - 1, some, dtype=torch.float64).long().unique().to(space.codes.device)
        cached = list(_leads(space, weight, group, positions))
        best = minimal_temperatures(partial(iter, cached), [_FIRST_GUESS] * len(group))
        if n > some:
            best = minimal_temperatures(partial(_leads, space, weight, group), best)
        temperatures += best
    return temperatures


def _leads(space: Predictions, weight: Tensor, candidates: Candidates, positions: Tensor | None = None) -> Iterable[tuple]:
    """`leads` of leave-one-out predictions, weights, and columns of ``candidates``."""
    codes, own = (space.codes, weight) if positions is None else (space.codes[positions], weight[positions])
    for part, columns, scores in space.leave_one_out(candidates, positions):
        yield leads(scores, codes[part]), own[part], columns


def leads(scores: Tensor, codes: Tensor) -> Tensor:
    """By how much the score of each class is above that of the sample's own class, of the shape of ``scores``, ``(n, P, C)``."""
    return scores - scores.gather(2, codes[:, None, None].expand(-1, scores.shape[1], 1))


def temperature_of(scores: Tensor, codes: Tensor) -> float:
    """The temperature of a softmax over scores ``(n, C)`` with the least log-loss for class indices ``(n,)``."""
    ones = torch.ones(len(codes), dtype=torch.float64, device=codes.device)
    return minimal_temperatures(lambda: [(leads(scores[:, None], codes), ones, slice(0, 1))], [_FIRST_GUESS])[0]


def minimal_temperatures(chunks: Callable[[], Iterable[tuple]], start: Sequence[float]) -> list[float]:
    """The temperatures that minimise the weighted log-loss of scores: Newton's method on the inverse, in which it is convex.

    Parameters
    ----------
    chunks : callable
        Gives `leads` ``(n', P', C)``, weights ``(n',)`` and the slice of the ``P`` temperatures that they are for, chunk by
        chunk, as often as it is called.
    start : sequence of P floats
        First guesses.

    Returns
    -------
    list of P floats
        Within `TEMPERATURES`.
    """
    lowest, highest = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    beta = 1 / np.asarray(start, dtype=float)
    for _ in range(50):
        derivatives = np.zeros((2, len(beta)))
        for ahead, weight, columns in chunks():
            derivatives[:, columns] += _derivatives(ahead, weight, beta[columns]).cpu().numpy()
        slope, curvature = derivatives
        newton = beta - slope / np.maximum(curvature, np.finfo(float).tiny)
        before, beta = beta, np.clip(newton, np.maximum(beta / 16, lowest), np.minimum(16 * beta, highest))
        if not (np.abs(beta - before) > _TOLERANCE * before).any():  # NaN, of a singular system, has no better temperature
            break
    return (1 / beta).tolist()


def _derivatives(ahead: Tensor, weight: Tensor, beta: np.ndarray) -> Tensor:
    """First and second derivative of the summed log-loss by the inverse temperatures, ``(2, P)``."""
    probabilities = torch.softmax(ahead * torch.as_tensor(beta, dtype=ahead.dtype, device=ahead.device)[:, None], 2)
    first = probabilities.mul_(ahead).sum(2)
    second = probabilities.mul_(ahead).sum(2) - first.square()
    return torch.stack([weight @ first.to(weight.dtype), weight @ second.to(weight.dtype)])
