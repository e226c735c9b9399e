"""The optimisation of the synthetic samples.

A step computes θ → images ``S`` → views → features ``Z`` → probe → loss, and the gradient of the loss in θ. The images affect
the loss only through ``Z``. The gradient is therefore computed in two passes: the features without a graph and the gradient of
the (small) objective in ``Z`` first, then the vector–Jacobian product from there to θ, one chunk of views at a time. Images are
decoded chunk by chunk as well. Memory is that of the graph of one chunk, of θ, its gradient and Adam's two moments, whatever
the number of views is. Chunks whose graphs fit into memory pass only once.

Given the gradient in ``Z``, the images are independent of each other. Several processes therefore own some of the images each,
with their θ and moments, and exchange only features, never a parameter: each computes the features of its images, all gather
``Z``, and each passes the gradient of its rows on to its images. The loss and its gradient in ``Z`` are computed in every
process, which is little work beside the encoder. The images are then the same to the last bit for each number of processes, as
long as chunks consist of the same views; a sum of shares of the loss would be rounded in another way for each number, and a
network with rectifiers makes much of such differences.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils._ranks import ALONE, Ranks
from ._augmentations import Augmentation
from ._objectives import OuterLoss
from ._parametrizations import Parametrization
from ._real_features import BatchSampler
from ._state import State, padded_like


class ChunkPlan(NamedTuple):
    """How the views of a step pass through the encoder.

    Parameters
    ----------
    chunk_size : int
        Views in one forward pass.
    n_kept_views : int
        Number of final views whose graphs may stay in memory until their gradient is computed. The graph of the last
        chunk always does. The other views pass twice.
    """

    chunk_size: int
    n_kept_views: int = 0

    def chunks(self, m: int, k: int) -> tuple[list[slice], int]:
        """Divide ``k`` views of each of ``m`` samples into chunks of rows.

        Also return how many of the last chunks keep their graphs.
        """
        chunks = split_views(m, k, self.chunk_size)
        return chunks, max(1, sum(m * k - rows.start <= self.n_kept_views for rows in chunks))


class ViewPlan(NamedTuple):
    """The views of each sample in a step.

    Parameters
    ----------
    augmentation : Augmentation
    n_random : int
        Random views of each sample; 1 if there is only the unaugmented one.
    unaugmented_weight : float
        Share of the unaugmented samples in the loss, in [0, 1). Above 0, each sample has one more view, the unaugmented one.
    """

    augmentation: Augmentation
    n_random: int
    unaugmented_weight: float

    @property
    def per_sample(self) -> int:
        """All views ``k`` of a sample."""
        return self.n_random + (self.unaugmented_weight > 0)


def optimize(
    state: State,
    batches: BatchSampler,
    *,
    encode: Callable[[Tensor], Tensor],
    preprocess: Callable[[Tensor], Tensor],
    views: ViewPlan,
    objective: OuterLoss,
    unaugmented_objective: OuterLoss,
    learning_rate: Callable[[int, float], float],
    progress: Callable[[], float],
    chunk_plan: ChunkPlan,
    differentiating: Callable[[], AbstractContextManager] = nullcontext,
    agree: Callable[[], object] = lambda: None,
) -> Iterator[Tensor]:
    """Improve the synthetic samples step by step; yield the loss of each step, still on its device, before θ moves.

    Parameters
    ----------
    state : State
        Updated in place; the run continues from its step.
    batches : BatchSampler
        Real features.
    encode : callable
        Views to features, differentiable.
    preprocess : callable
        Prepares unaugmented images for the encoder; its ``image_size`` is the side of the views.
    views : ViewPlan
    objective, unaugmented_objective : callable
        ``(Z, Y, R, r) → scalar``, for random views and, if their weight is above 0, for unaugmented samples.
    learning_rate : callable
        ``(step, progress) → rate``.
    progress : callable
        Fraction of the run that is done; the run ends at 1.
    chunk_plan : ChunkPlan
    differentiating : callable
        Returns the context in which gradients of ``encode`` are computed.
    agree : callable
        Called in each step when all processes have exchanged their features: the moment for what else they exchange.
    """
    m, k = len(state.targets), views.per_sample
    ranks, own = state.ranks, state.own
    chunks, n_kept_chunks = chunk_plan.chunks(own.stop - own.start, k)
    while (done := progress()) < 1:
        state.begin_step(done)
        state.set_learning_rate(learning_rate(state.step, done))
        step_views = StepViews(views, preprocess, m, state.random["views"])
        features = partial(step_views.features, encode=encode, first_sample=own.start)
        R, r = batches.sample(state.random["batches"])
        loss_of = partial(_loss_of_views, views, objective, unaugmented_objective, Y=state.targets, R=R, r=r)

        def gathered(Z: Tensor) -> Tensor:
            Z = ranks.gather(Z, m, k)
            agree()
            return Z

        yield backpropagate(
            state.parametrization,
            features,
            loss_of,
            chunks,
            k,
            n_kept_chunks,
            others=state.learned_targets,
            differentiating=differentiating,
            ranks=ranks,
            gathered=gathered,
        )
        state.update()


def _loss_of_views(
    views: ViewPlan, objective: OuterLoss, unaugmented_objective: OuterLoss, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor
) -> Tensor:
    """The loss of a step: of the random views, and of the unaugmented samples if they have a weight."""
    m, n, weight = len(Y), views.n_random, views.unaugmented_weight
    if not weight:
        return objective(Z, Y.repeat_interleave(n, dim=0), R, r)
    Z = Z.view(m, views.per_sample, -1)
    random = objective(Z[:, :n].reshape(m * n, -1), Y.repeat_interleave(n, dim=0), R, r)
    return (1 - weight) * random + weight * unaugmented_objective(Z[:, n], Y, R, r)


class StepViews:
    """The views of one step: the random ones of each sample, followed by the unaugmented sample if the plan includes it.

    Parameters
    ----------
    plan : ViewPlan
    preprocess : callable
        Prepares unaugmented images for the encoder.
    m : int
        Number of samples.
    generator : torch.Generator
        For the random views.
    """

    def __init__(self, plan: ViewPlan, preprocess: Callable, m: int, generator: torch.Generator):
        self._augmentation, self._preprocess = plan.augmentation, preprocess
        self._n, self._k = plan.n_random, plan.per_sample
        self._draws = plan.augmentation.draw(m * plan.n_random, generator)

    def features(self, samples: Tensor, rows: slice, encode: Callable[[Tensor], Tensor], first_sample: int = 0) -> Tensor:
        """Features of the views in these rows, which cover complete samples, or a part of one sample.

        Rows are counted from those of ``first_sample``.
        """
        n, k, s = self._n, self._k, len(samples)
        rows = slice(rows.start + first_sample * k, rows.stop + first_sample * k)
        first, local = rows.start // k, slice(rows.start % k, rows.stop - rows.start + rows.start % k if s == 1 else k)
        drawn = slice(first * n + min(local.start, n), (first + s - 1) * n + min(local.stop, n))
        parts = []
        if drawn.stop > drawn.start:
            draws = {name: values[drawn] for name, values in self._draws.items()}
            parts.append(self._augmentation(samples, draws, self._preprocess))
        if local.stop > n:
            parts.append(self._preprocess(samples))
        Z = encode(torch.cat(parts) if len(parts) > 1 else parts[0])
        if s == 1 or len(parts) == 1:
            return Z
        return torch.cat([Z[: s * n].view(s, n, -1), Z[s * n :, None]], dim=1).flatten(0, 1)


def split_views(m: int, k: int, size: int) -> list[slice]:
    """Rows of ``m·k`` views in chunks of at most ``size``: of whole samples, or of parts of one sample.

    Samples are divided in halves and halves of halves, as they are among processes, so that the chunks of two, four or eight
    processes are those of one, unless these are larger than a process's share.
    """
    if k > size:
        parts = -(-k // size)
        ends = [round(k * (part + 1) / parts) for part in range(parts)]
        return [slice(i * k + start, i * k + stop) for i in range(m) for start, stop in pairwise([0, *ends])]

    def halves(start: int, n: int) -> list[slice]:
        if n * k <= size:
            return [slice(start * k, (start + n) * k)]
        first = -(-n // 2)
        return halves(start, first) + halves(start + first, n - first)

    return halves(0, m)


def backpropagate(
    parametrization: Parametrization,
    features: Callable[[Tensor, slice], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    chunks: list[slice],
    k: int,
    n_kept_chunks: int = 1,
    others: Sequence[Tensor] = (),
    differentiating: Callable[[], AbstractContextManager] = nullcontext,
    ranks: Ranks = ALONE,
    gathered: Callable[[Tensor], Tensor] = lambda Z: Z,
) -> Tensor:
    """Compute the loss, and write its gradient to θ and to the other tensors that it depends on.

    Parameters
    ----------
    parametrization : Parametrization
    features : callable
        ``(samples, rows) → Z`` for some views of some samples; a second call has to return the same.
    loss_of : callable
        ``Z → scalar``, for the features of all views.
    chunks : list of slice
        Rows of the features of the own samples, in order.
    k : int
        Views of each sample.
    n_kept_chunks : int
        Number of chunks, the last ones, whose graphs stay in memory until their gradient is computed; the others pass twice.
    others : sequence of Tensor
        Leaves of the loss other than ``Z``.
    differentiating : callable
        Returns the context of the backward pass of ``features``.
    ranks : Ranks
        The processes of the run.
    gathered : callable
        Features of all processes, from the own ones.
    """

    def forward(rows: slice) -> tuple[list[Tensor], Tensor]:
        samples = slice(rows.start // k, -(-rows.stop // k))
        theta = [parameter.detach()[samples].requires_grad_() for parameter in parametrization.parameters]
        return theta, features(parametrization.decode(theta), rows)

    first = len(chunks) - n_kept_chunks
    with torch.no_grad():
        Zs = [forward(rows)[1] for rows in chunks[:first]]
    with torch.enable_grad():
        graphs = [forward(rows) for rows in chunks[first:]]
        Z_own = torch.cat([*Zs, *(chunk_Z.detach() for _, chunk_Z in graphs)])
        Z = gathered(Z_own).requires_grad_()
        loss = loss_of(Z)
        dZ, *gradients_of_others = torch.autograd.grad(loss, [Z, *others], allow_unused=bool(others))
        dZ = dZ[ranks.own(len(Z) // k).start * k :]
        loss = ranks.tensor_of_first(loss.detach())
        for other, gradient in zip(others, gradients_of_others, strict=True):
            other.grad = None if gradient is None else padded_like(other).copy_(ranks.tensor_of_first(gradient))
        for rows in reversed(chunks):
            theta, chunk_Z = graphs.pop() if graphs else forward(rows)
            with differentiating():
                gradients = torch.autograd.grad(chunk_Z, theta, dZ[rows], allow_unused=True)
            _write_gradients(parametrization.parameters, gradients, rows, k)
            del theta, chunk_Z
    return loss.detach()


def _write_gradients(parameters: list[Tensor], gradients: tuple[Tensor | None, ...], rows: slice, k: int) -> None:
    """Write the gradients of a chunk's samples; for a sample in several chunks, of which the last comes first, add them up."""
    samples = slice(rows.start // k, -(-rows.stop // k))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue  # a level of the pyramid that is not used yet
        if parameter.grad is None:
            parameter.grad = padded_like(parameter)
        if rows.stop % k == 0:
            parameter.grad[samples] = gradient
        else:
            parameter.grad[samples] += gradient


@torch.no_grad()
def unaugmented_features(
    state: State, encode: Callable[[Tensor], Tensor], preprocess: Callable[[Tensor], Tensor], chunk_size: int
) -> Tensor:
    """Features ``(m, d)`` of the unaugmented samples, from which a probe will be trained."""
    parametrization, parts = state.parametrization, []
    for rows in split_views(state.own.stop - state.own.start, 1, chunk_size):
        samples = parametrization.decode([theta.detach()[rows] for theta in parametrization.parameters])
        parts.append(encode(preprocess(samples)))
    return state.ranks.gather(torch.cat(parts), len(state.targets))
