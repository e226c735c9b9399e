"""Which penalty, and which temperature: what leave-one-out predictions are for."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .leave_one_out import Candidates
from .rows import CHUNK

# Temperatures are looked for between these.
TEMPERATURES = (1e-3, 1e3)
# Newton's method stops at steps below this share; the error that they leave is its square.
_TOLERANCE = 1e-4
# A margin in float32 below this is computed again in float64.
_FLOAT32_MARGIN = 1e-4


class Predictions(Protocol):
    """What `SampleSpace` and `FeatureSpace` have in common."""

    codes: Tensor
    penalties: Sequence[float]
    n_classes: int

    def leave_one_out(self, candidates: Candidates, positions: Tensor | None = None) -> Iterable[tuple]: ...


Chunks = Iterable[tuple[Tensor, Tensor, Tensor]]


def score_candidates(space: Predictions, weight: Tensor, scoring: str, temperature: float | None) -> Tensor:
    """Weighted mean of a leave-one-out score for every penalty, ``(P,)``; higher is better.

    Parameters
    ----------
    space : SampleSpace or FeatureSpace
    weight : Tensor of shape (n,), float64
        Of each sample in the mean.
    scoring : {"accuracy", "neg_log_loss", "neg_mean_squared_error"}
    temperature : float or None
        Of the log-loss; ``None`` is the best one of each penalty.
    """
    everything = range(len(space.penalties))
    if scoring == "neg_log_loss":
        losses = []
        for candidate in everything:
            tau = best_temperature(space, weight, candidate) if temperature is None else temperature
            losses.append(_log_loss(_chunks(space, weight, candidate), 1 / tau)[0])
        return -torch.tensor(losses, dtype=weight.dtype) / weight.sum().cpu()
    evaluate = _margins if scoring == "accuracy" else _squared_errors
    values = weight.new_empty(len(space.codes), len(everything))
    in_float32 = False
    for positions, candidates, scores in space.leave_one_out(everything):
        in_float32 |= scores.dtype == torch.float32
        values[positions, candidates[0] : candidates[-1] + 1] = evaluate(scores, space.codes[positions]).to(values.dtype)
    if scoring == "neg_mean_squared_error":
        return -(weight @ values) / weight.sum()
    unsure = (values.abs() < _FLOAT32_MARGIN).any(1)
    if in_float32 and unsure.any():
        chosen = unsure.nonzero()[:, 0]
        for positions, candidates, scores in space.leave_one_out(everything, chosen):
            some = chosen[positions]
            values[some, candidates[0] : candidates[-1] + 1] = evaluate(scores, space.codes[some])
    failed = torch.where(values.isnan().any(0), torch.nan, 0)
    return weight @ (values > 0).to(weight.dtype) / weight.sum() + failed


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


def best_temperature(space: Predictions, weight: Tensor, candidate: int) -> float:
    """The temperature of a softmax over leave-one-out predictions with the least log-loss.

    Large problems start from a part of the samples, so that hardly more than one pass over all of them is needed.
    """
    n, some = len(space.codes), max(1, CHUNK // space.n_classes)
    if n <= some:
        cached = [(scores.clone(), codes, own) for scores, codes, own in _chunks(space, weight, candidate)]
        return minimal_temperature(lambda: cached)
    positions = torch.linspace(0, n - 1, some, dtype=torch.float64).long().unique().to(space.codes.device)
    cached = [(scores.clone(), codes, own) for scores, codes, own in _chunks(space, weight, candidate, positions)]
    return minimal_temperature(lambda: _chunks(space, weight, candidate), minimal_temperature(lambda: cached))


def _chunks(space: Predictions, weight: Tensor, candidate: int, positions: Tensor | None = None) -> Chunks:
    chosen = torch.arange(len(weight), device=weight.device) if positions is None else positions
    for part, _, scores in space.leave_one_out([candidate], positions):
        yield scores[:, 0], space.codes[chosen[part]], weight[chosen[part]]


def minimal_temperature(chunks: Callable[[], Chunks], start: float = 0.2) -> float:
    """The temperature that minimises the weighted log-loss of scores, by Newton's method on its inverse, in which it is convex.

    Parameters
    ----------
    chunks : callable
        Gives scores ``(n', C)``, class indices ``(n',)`` and weights ``(n',)``, chunk by chunk, as often as it is called.
    start : float
        First guess.

    Returns
    -------
    float
        Within `TEMPERATURES`.
    """
    lowest, highest = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    beta = 1 / start
    for _ in range(50):
        _, slope, curvature = _log_loss(chunks(), beta)
        step = beta - slope / curvature if curvature > 0 else (lowest if slope > 0 else highest)
        step = min(max(step, beta / 4, lowest), 4 * beta, highest)
        done = abs(step - beta) <= _TOLERANCE * beta
        beta = step
        if done:
            break
    return 1 / beta


def _log_loss(chunks: Chunks, beta: float) -> list[float]:
    """Weighted log-loss of the softmax of ``beta`` times the scores, and its two derivatives."""
    sums = []
    for scores, codes, weight in chunks:
        scores = scores - scores.amax(1, keepdim=True)
        probabilities = torch.exp(scores * beta)
        total = probabilities.sum(1)
        first = (probabilities * scores).sum(1) / total
        second = (probabilities * scores.square()).sum(1) / total
        own = scores.gather(1, codes[:, None])[:, 0]
        values = torch.stack([total.log() - beta * own, first - own, second - first.square()], 1)
        sums.append(weight @ values.to(weight.dtype))
    return torch.stack(sums).sum(0).tolist()
