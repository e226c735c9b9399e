"""The optimisation of the synthetic samples.

A step computes θ → images ``S`` → views → features ``Z`` → probe → loss, and the gradient of the loss in θ. The images affect
the loss only through ``Z``. The gradient is therefore computed in two passes: the features without a graph and the gradient of
the (small) objective in ``Z`` first, then the vector–Jacobian product from there to θ, one chunk of views at a time. Images are
decoded chunk by chunk as well. Memory is that of the graph of one chunk, of θ, its gradient and Adam's two moments, whatever
the number of views is. Chunks whose graphs fit into memory pass only once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ._augmentations import Augmentation
from ._objectives import OuterLoss
from ._parametrizations import Parametrization
from ._real_features import BatchSampler

# Learning rate of learned targets, relative to that of θ.
_TARGET_RATE = 0.1


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


class State:
    """What a run changes: θ, the targets if they are learned, Adam's moments, the random numbers, and the step.

    Parameters
    ----------
    parametrization : Parametrization
        Contains θ, which is updated in place.
    targets : Tensor of shape (m, C)
        Targets of the probe for the synthetic samples, initially one-hot. Learned if they require a gradient.
    random : dict of str to torch.Generator
        Generators on the CPU: for the ``"views"``, for the real ``"batches"``, and for whatever else draws in a step.
    """

    def __init__(self, parametrization: Parametrization, targets: Tensor, random: dict[str, torch.Generator]):
        self.parametrization = parametrization
        self.targets = targets
        self.learned_targets = [targets] if targets.requires_grad else []
        self.parameters = [*parametrization.parameters, *self.learned_targets]
        self.random = random
        self.step, self.progress = 0, 0.0
        self.between_updates = True  # False while an interrupt would leave the state inconsistent
        self.begin_step(0.0)
        # The fused update works in place; it does not exist on all devices.
        fused = parametrization.parameters[0].device.type in ("cpu", "cuda")
        rates = [(parametrization.parameters, 1.0), (self.learned_targets, _TARGET_RATE)]
        groups = [{"params": parameters, "factor": factor} for parameters, factor in rates if parameters]
        self.optimizer = torch.optim.Adam(groups, fused=fused or None)

    def set_learning_rate(self, rate: float) -> None:
        """Set Adam's learning rate for θ; that of learned targets is a fraction of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]

    def begin_step(self, progress: float) -> None:
        """Begin a step at this progress of the run; from then on, `tensors` returns what is needed to repeat the step."""
        self.between_updates = False
        self.progress = progress
        self.parametrization.grow(progress)
        self._remember_random_state()
        self.between_updates = True

    def _remember_random_state(self) -> None:
        self._random_state = {name: generator.get_state() for name, generator in self.random.items()}

    def update(self) -> None:
        """Move θ along its gradient."""
        self.between_updates = False
        self.optimizer.step()
        self.step += 1
        self._remember_random_state()
        self.between_updates = True

    def tensors(self) -> dict[str, Tensor]:
        """θ, moments and random states at the beginning of the present step."""
        tensors = {f"random.{name}": state for name, state in self._random_state.items()}
        for i, theta in enumerate(self.parameters):
            tensors[f"theta.{i}"] = theta.detach()
            tensors |= {f"adam.{i}.{name}": value for name, value in self.optimizer.state.get(theta, {}).items()}
        return tensors

    def _check(self, tensors: dict[str, Tensor]) -> None:
        needed = {f"random.{name}": generator.get_state() for name, generator in self.random.items()}
        needed |= {f"theta.{i}": theta for i, theta in enumerate(self.parameters)}
        like = dict(needed)
        for i, theta in enumerate(self.parameters):
            like |= dict.fromkeys((f"best.{i}", f"adam.{i}.exp_avg", f"adam.{i}.exp_avg_sq"), theta)
            like[f"adam.{i}.step"] = torch.zeros((), dtype=torch.float32, device="cpu")
        missing = sorted(needed.keys() - tensors.keys())
        if missing:
            raise ValueError(f"the checkpoint lacks {', '.join(missing)}")
        for name, tensor in tensors.items():
            same = like.get(name)
            if same is None or (tensor.shape, tensor.dtype) != (same.shape, same.dtype) or not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"the checkpoint has {name} of {tensor.dtype} and shape {tuple(tensor.shape)}, not that of this run"
                )

    def load(self, tensors: dict[str, Tensor], step: int, progress: float) -> None:
        """Return to the beginning of a step.

        Raises
        ------
        ValueError
            If the tensors are not those of this run: torch's fused optimizers do not check shapes.
        """
        self._check(tensors)
        self.step = step
        for name, generator in self.random.items():
            generator.set_state(tensors[f"random.{name}"])
        self.begin_step(progress)
        for i, theta in enumerate(self.parameters):
            with torch.no_grad():
                theta.copy_(tensors[f"theta.{i}"])
            prefix = f"adam.{i}."
            moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if moments:
                self.optimizer.state[theta] = {name: value.to(theta.device, copy=True) for name, value in moments.items()}


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
    """
    m, n, k, weight = len(state.targets), views.n_random, views.per_sample, views.unaugmented_weight
    chunks, n_kept_chunks = chunk_plan.chunks(m, k)
    while (done := progress()) < 1:
        state.begin_step(done)
        state.set_learning_rate(learning_rate(state.step, done))
        step_views = StepViews(views, preprocess, m, state.random["views"])
        features = partial(step_views.features, encode=encode)
        R, r = batches.sample(state.random["batches"])

        def loss_of(Z: Tensor, R=R, r=r) -> Tensor:
            Y = state.targets
            if not weight:
                return objective(Z, Y.repeat_interleave(n, dim=0), R, r)
            Z = Z.view(m, k, -1)
            random = objective(Z[:, :n].reshape(m * n, -1), Y.repeat_interleave(n, dim=0), R, r)
            return (1 - weight) * random + weight * unaugmented_objective(Z[:, n], Y, R, r)

        others = state.learned_targets
        yield backpropagate(state.parametrization, features, loss_of, chunks, k, n_kept_chunks, others, differentiating)
        state.update()


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

    def features(self, samples: Tensor, rows: slice, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of the views in these rows, which cover complete samples, or a part of one sample."""
        n, k, s = self._n, self._k, len(samples)
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
    """Rows of ``m·k`` views in chunks of about equal size, at most ``size``: of whole samples, or of parts of one sample."""
    if k > size:
        parts = -(-k // size)
        ends = [round(k * (part + 1) / parts) for part in range(parts)]
        return [slice(i * k + start, i * k + stop) for i in range(m) for start, stop in pairwise([0, *ends])]
    parts = -(-m // (size // k))
    ends = [k * round(m * (part + 1) / parts) for part in range(parts)]
    return [slice(start, stop) for start, stop in pairwise([0, *ends])]


def backpropagate(
    parametrization: Parametrization,
    features: Callable[[Tensor, slice], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    chunks: list[slice],
    k: int,
    n_kept_chunks: int = 1,
    others: Sequence[Tensor] = (),
    differentiating: Callable[[], AbstractContextManager] = nullcontext,
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
        Rows of ``Z``, in order.
    k : int
        Views of each sample.
    n_kept_chunks : int
        Number of chunks, the last ones, whose graphs stay in memory until their gradient is computed; the others pass twice.
    others : sequence of Tensor
        Leaves of the loss other than ``Z``.
    differentiating : callable
        Returns the context of the backward pass of ``features``.
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
        Z = torch.cat([*Zs, *(chunk_Z.detach() for _, chunk_Z in graphs)]).requires_grad_()
        loss = loss_of(Z)
        dZ, *gradients_of_others = torch.autograd.grad(loss, [Z, *others], allow_unused=bool(others))
        for other, gradient in zip(others, gradients_of_others, strict=True):
            # Fused Adam assumes the parameter's memory layout for its gradient; otherwise it updates the wrong entries on CPUs,
            # and raises on CUDA.
            other.grad = None if gradient is None else torch.empty_like(other).copy_(gradient)
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
            parameter.grad = torch.zeros_like(parameter)
        if rows.stop % k == 0:
            parameter.grad[samples] = gradient
        else:
            parameter.grad[samples] += gradient


@torch.no_grad()
def unaugmented_features(
    parametrization: Parametrization,
    m: int,
    encode: Callable[[Tensor], Tensor],
    preprocess: Callable[[Tensor], Tensor],
    chunk_size: int,
) -> Tensor:
    """Features ``(m, d)`` of the unaugmented samples, from which a probe will be trained."""
    parts = []
    for rows in split_views(m, 1, chunk_size):
        samples = parametrization.decode([theta.detach()[rows] for theta in parametrization.parameters])
        parts.append(encode(preprocess(samples)))
    return torch.cat(parts)
