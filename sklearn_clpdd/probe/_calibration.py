"""Calibration: from scores to logits, with the least log-loss of held-out predictions.

Probabilities are the softmax of ``asinh(compression · (1 + score)) / (compression · temperature)``, which is
``(1 + score) / temperature`` for a compression of zero. A score of a ridge classifier estimates ``2p − 1`` for the probability
``p`` of the class, and a softmax needs ``log p``: the logit is linear in scores near −1, and logarithmic far above. It grows with
the score, so that the order of the classes stays the same.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ._inverse import Candidates
from ._leave_one_out import FeatureSpace, SampleSpace
from ._rows import CHUNK

# Bounds of the temperature and of the compression.
_TEMPERATURES, _COMPRESSIONS = (1e-4, 1e2), (0.05, 50.0)
_FIRST_GUESS = 0.2, 1.0
# Newton's method stops when the relative step is below this; the remaining error is its square.
_TOLERANCE = 1e-3
# With fewer rows, there is no compression; otherwise the summed log-loss has to fall by more than this (Akaike's criterion).
_MIN_ROWS, _MIN_GAIN = 200, 1.0
# The compression is found when a step lowers the log-loss by less than this share, which is close to float32's rounding.
_LEAST_FALL = 1e-6

LeaveOneOutSpace = SampleSpace | FeatureSpace


def logits(scores: Tensor, temperature: float, compression: float) -> Tensor:
    """Logits of scores, both of shape ``(..., n_classes)``."""
    return _compressed(scores, compression) / temperature


def _compressed(scores: Tensor, compression: float) -> Tensor:
    return torch.asinh(compression * (1 + scores)) / compression if compression else scores


def best_calibration(space: LeaveOneOutSpace, weight: Tensor, candidate: int) -> tuple[float, float]:
    """Temperature and compression with the least log-loss of the leave-one-out predictions for one penalty."""
    return calibrate(lambda positions: space.leave_one_out([candidate], positions), space.codes, weight, space.n_classes)


def calibrate(
    predict: Callable[[Tensor | None], Iterable[tuple]],
    codes: Tensor,
    weight: Tensor,
    n_classes: int,
    *,
    compress: bool = True,
) -> tuple[float, float]:
    """Temperature and compression with the least log-loss of held-out predictions.

    Large problems are first solved on a part of the samples, so that about two passes over all of them are enough.

    Parameters
    ----------
    predict : callable
        Maps positions (``None``: all) to an iterable of slices of them, slices of one candidate, and scores ``(n', 1, C)``.
    codes : Tensor of shape (n,), int64
        Indices of the classes.
    weight : Tensor of shape (n,)
        Weights, ≥ 0.
    n_classes : int
    compress : bool
        Whether to fit a compression; without, it is 0.
    """
    positions = _some(codes, n_classes)
    own, weights = (codes, weight) if positions is None else (codes[positions], weight[positions])
    scores = torch.cat([part[:, 0].clone() for *_, part in predict(positions)])
    compression = 0.0
    if compress and (weights > 0).sum() >= _MIN_ROWS and scores.isfinite().all():
        compression = _best_compression(scores, own, weights)

    def relative(positions: Tensor | None) -> Iterable[tuple]:
        own, weights = (codes, weight) if positions is None else (codes[positions], weight[positions])
        for part, columns, scores in predict(positions):
            yield relative_to_true_class(_compressed(scores, compression), own[part]), weights[part], columns

    smoothing = smoothing_of(weight)
    cached = [(relative_to_true_class(_compressed(scores[:, None], compression), own), weights, slice(0, 1))]
    best = _minimize_log_loss(partial(iter, cached), [_FIRST_GUESS[0]], smoothing)
    if positions is not None:
        best = _minimize_log_loss(partial(relative, None), best, smoothing)
    return best[0], compression


def _best_compression(scores: Tensor, codes: Tensor, weight: Tensor) -> float:
    """Compression with the least log-loss of scores ``(n, C)``, each at its best temperature; 0 where it gains nothing."""
    weight = (weight / weight.mean()).to(scores.dtype)
    smoothing = smoothing_of(weight)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        temperature, compression = np.exp(parameters)
        v = compression * (1 + scores)
        root = (1 + v.square()).sqrt()
        z = (v.abs() + root).log().copysign(v)  # torch's asinh takes four times as long
        slope = relative_to_true_class((v / root - z)[:, None], codes)[:, 0] / compression
        r = relative_to_true_class(z[:, None], codes)[:, 0] / compression
        p = torch.softmax(r / temperature, 1)
        p -= smoothing / scores.shape[1]
        value = weight @ (torch.logsumexp(r / temperature, 1) - smoothing * r.mean(1) / temperature)
        gradient = [-(weight @ (p * r).sum(1)) / temperature, (weight @ (p * slope).sum(1)) / temperature]
        return value.item(), torch.stack(gradient).double().cpu().numpy()

    bounds = [np.log(_TEMPERATURES), np.log(_COMPRESSIONS)]
    found = minimize(
        loss, np.log(_FIRST_GUESS), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50, "ftol": _LEAST_FALL}
    )
    linear = [(relative_to_true_class(scores[:, None], codes), weight, slice(0, 1))]
    (temperature,) = _minimize_log_loss(partial(iter, linear), [_FIRST_GUESS[0]], smoothing)
    r = linear[0][0][:, 0] / temperature
    without = (weight @ (torch.logsumexp(r, 1) - smoothing * r.mean(1))).item()
    return float(np.exp(found.x[1])) if found.fun < without - _MIN_GAIN else 0.0


def smoothing_of(weight: Tensor) -> float:
    """Share of the uniform distribution in the targets of the log-loss: that of one more sample, whose class is unknown.

    Without it, predictions that are all right would be certain.
    """
    return 1 / (1 + int((weight > 0).sum()))


def best_temperatures(space: LeaveOneOutSpace, weight: Tensor, candidates: Candidates) -> list[float]:
    """Temperature of the softmax of the leave-one-out predictions with the least log-loss, for each candidate.

    Large problems are first solved on a part of the samples, so that about two passes over all of them are enough.
    """
    positions = _some(space.codes, space.n_classes)
    together = max(1, CHUNK // (space.n_classes * (len(space.codes) if positions is None else len(positions))))
    smoothing = smoothing_of(weight)
    temperatures: list[float] = []
    for start in range(0, len(candidates), together):
        group = candidates[start : start + together]
        cached = list(relative_scores(space, weight, group, positions))
        best = _minimize_log_loss(partial(iter, cached), [_FIRST_GUESS[0]] * len(group), smoothing)
        if positions is not None:
            best = _minimize_log_loss(partial(relative_scores, space, weight, group), best, smoothing)
        temperatures += best
    return temperatures


def _some(codes: Tensor, n_classes: int) -> Tensor | None:
    """Evenly spaced positions of a large problem, or ``None``."""
    n, some = len(codes), max(_MIN_ROWS, CHUNK // n_classes)
    return torch.linspace(0, n - 1, some, dtype=torch.float64).long().unique().to(codes.device) if n > some else None


def relative_scores(
    space: LeaveOneOutSpace, weight: Tensor, candidates: Candidates, positions: Tensor | None = None
) -> Iterable[tuple]:
    """Yield relative scores of leave-one-out predictions, weights, and columns of ``candidates``."""
    codes, weights = (space.codes, weight) if positions is None else (space.codes[positions], weight[positions])
    for part, columns, scores in space.leave_one_out(candidates, positions):
        yield relative_to_true_class(scores, codes[part]), weights[part], columns


def relative_to_true_class(scores: Tensor, codes: Tensor) -> Tensor:
    """Scores ``(n, P, C)`` minus that of the true class of each sample."""
    return scores - scores.gather(2, codes[:, None, None].expand(-1, scores.shape[1], 1))


def best_temperature(scores: Tensor, codes: Tensor) -> float:
    """Temperature of the softmax of scores ``(n, C)`` with the least log-loss for class indices ``(n,)``."""
    ones = torch.ones(len(codes), dtype=torch.float64, device=codes.device)
    chunks = [(relative_to_true_class(scores[:, None], codes), ones, slice(0, 1))]
    return _minimize_log_loss(lambda: chunks, [_FIRST_GUESS[0]])[0]


def _minimize_log_loss(chunks: Callable[[], Iterable[tuple]], start: Sequence[float], smoothing: float = 0.0) -> list[float]:
    """Temperatures that minimise the weighted log-loss, by Newton's method in their inverse, in which the loss is convex.

    Parameters
    ----------
    chunks : callable
        Returns, each time it is called, an iterator over chunks: relative scores ``(n', P', C)``, weights ``(n',)``, and the
        slice of the ``P`` temperatures that they belong to.
    start : sequence of P floats
        First guesses.
    smoothing : float
        Share of the uniform distribution in the targets.

    Returns
    -------
    list of P floats
        Within `_TEMPERATURES`.
    """
    lowest, highest = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    beta = 1 / np.asarray(start, dtype=float)
    low, high = np.full_like(beta, lowest), np.full_like(beta, highest)  # between which the minimum is
    for _ in range(50):
        derivatives = np.zeros((2, len(beta)))
        for relative, weight, columns in chunks():
            derivatives[:, columns] += _derivatives(relative, weight, beta[columns], smoothing).cpu().numpy()
        slope, curvature = derivatives
        low, high = np.where(slope < 0, beta, low), np.where(slope > 0, beta, high)
        newton = beta - slope / np.maximum(curvature, np.finfo(float).tiny)
        newton = np.clip(newton, np.maximum(beta / 16, lowest), np.minimum(16 * beta, highest))
        # A step of Newton's method may go too far; half of what is left in the logarithm does not.
        before, beta = beta, np.where((newton <= low) | (newton >= high), np.sqrt(low * high), newton)
        if not (np.abs(beta - before) > _TOLERANCE * before).any():  # also true for NaN, from a singular system
            break
    return (1 / beta).tolist()


def _derivatives(relative: Tensor, weight: Tensor, beta: np.ndarray, smoothing: float) -> Tensor:
    """First and second derivatives of the summed log-loss with respect to the inverse temperatures, ``(2, P)``."""
    probabilities = torch.softmax(relative * torch.as_tensor(beta, dtype=relative.dtype, device=relative.device)[:, None], 2)
    first = probabilities.mul_(relative).sum(2)
    second = probabilities.mul_(relative).sum(2) - first.square()
    if smoothing:
        first -= smoothing * relative.mean(2)
    return torch.stack([weight @ first.to(weight.dtype), weight @ second.to(weight.dtype)])
