"""The outer loop: one pass over the equations per step.

θ → images ``S`` → views → features ``Z`` → probe → loss → gradient back to θ. The encoder enters only through ``Z``, so the
gradient can be had in two passes: features without a graph, the gradient of the (tiny) objective in ``Z``, and then its
vector–Jacobian product from there to θ, a chunk of views at a time. Images are decoded chunk by chunk as well: memory is that of
the graphs of one chunk, of θ, its gradient and Adam's two moments, whatever the number of views is. Chunks whose graphs there is
memory for pass once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .augmentations import Augmentation
from .parametrizations import Parametrization
from .real_features import RealFeatures

# Adam's rate of learned targets, as a share of that of θ.
_TARGET_RATE = 0.1

OuterLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Passes(NamedTuple):
    """How the views of a step pass the encoder.

    Parameters
    ----------
    chunk_size : int
        Views that pass together.
    kept : int
        Views, the last ones, whose graphs may be in memory until their gradient is had; those of one chunk are, always. The
        others pass twice.
    """

    chunk_size: int
    kept: int = 0

    def chunks(self, m: int, k: int) -> tuple[list[slice], int]:
        """Rows of ``k`` views of each of ``m`` samples in chunks, and how many of these, the last ones, keep their graphs."""
        chunks = chunks_of(m, k, self.chunk_size)
        return chunks, max(1, sum(m * k - rows.start <= self.kept for rows in chunks))


class State:
    """What a run changes: θ, the targets where they are learned, Adam's moments, the random numbers, how far it is.

    Parameters
    ----------
    parametrization : Parametrization
        Holds θ, which is updated in place.
    targets : Tensor of shape (m, C)
        What the probe of the synthetic samples is to give for them; one-hot, to begin with. Learned if it requires a gradient.
    random : dict of str to torch.Generator
        Random numbers, on the CPU: of the ``"views"``, of the real ``"batches"``, and of whatever else draws some in a step.
    """

    def __init__(self, parametrization: Parametrization, targets: Tensor, random: dict[str, torch.Generator]):
        self.parametrization = parametrization
        self.targets = targets
        self.learned_targets = [targets] if targets.requires_grad else []
        self.parameters = [*parametrization.parameters, *self.learned_targets]
        self.random = random
        self.step, self.progress = 0, 0.0
        self.between_updates = True  # else an interrupt has come in the middle of one
        self.begin_step(0.0)
        # The fused update is the one that is made in place; elsewhere torch chooses.
        fused = parametrization.parameters[0].device.type in ("cpu", "cuda")
        rates = [(parametrization.parameters, 1.0), (self.learned_targets, _TARGET_RATE)]
        groups = [{"params": parameters, "share": share} for parameters, share in rates if parameters]
        self.optimizer = torch.optim.Adam(groups, fused=fused or None)

    def set_rate(self, rate: float) -> None:
        """Adam's rate, for θ."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]

    def begin_step(self, progress: float) -> None:
        """Say how far the run is; `tensors` gives what it takes to make this step again."""
        self.between_updates = False
        self.progress = progress
        self.parametrization.grow(progress)
        self._remember()
        self.between_updates = True

    def _remember(self) -> None:
        self._drawn = {name: generator.get_state() for name, generator in self.random.items()}

    def update(self) -> None:
        """Move θ along its gradient."""
        self.between_updates = False
        self.optimizer.step()
        self.step += 1
        self._remember()
        self.between_updates = True

    def tensors(self) -> dict[str, Tensor]:
        """θ, moments and random numbers at the beginning of the present step."""
        tensors = {f"random.{name}": state for name, state in self._drawn.items()}
        for i, theta in enumerate(self.parameters):
            tensors[f"theta.{i}"] = theta.detach()
            tensors |= {f"adam.{i}.{name}": value for name, value in self.optimizer.state.get(theta, {}).items()}
        return tensors

    def load(self, tensors: dict[str, Tensor], step: int, progress: float) -> None:
        """Go back to the beginning of a step."""
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


def distill(
    state: State,
    real: RealFeatures,
    *,
    encode: Callable[[Tensor], Tensor],
    preprocessing: Callable[[float], Callable[[Tensor], Tensor]],
    augmentation: Augmentation,
    n_views: int,
    whole_weight: float,
    objective: OuterLoss,
    whole_objective: OuterLoss,
    learning_rate: float,
    warm_up: int,
    decay: float,
    progress: Callable[[], float],
    passes: Passes,
) -> Iterator[Tensor]:
    """Improve the synthetic samples step by step; yield each step's loss, still on its device, before θ moves.

    Parameters
    ----------
    state : State
        Updated in place; the run goes on from the step where it is.
    real : RealFeatures
    encode : callable
        Views to features, differentiable.
    preprocessing : callable
        What happens to a whole image before the encoder, with the view's side as ``image_size``, for the detail that it has.
    augmentation : Augmentation
    n_views : int
        Random views ``k`` of each sample per step.
    whole_weight : float
        Weight of the loss of the whole samples, as a probe sees them, beside that of their random views. Above 0, they are one
        more view of each.
    objective, whole_objective : callable
        ``(Z, Y, R, r) → scalar``, of views and, where their weight is above 0, of whole samples.
    learning_rate : float
        Adam's.
    warm_up : int
        Steps of this run over which it rises linearly.
    decay : float
        Share of the run, its last, over which it falls linearly to zero.
    progress : callable
        What share of the run is done; the run ends at 1.
    passes : Passes
    """
    m, k = len(state.targets), n_views + (whole_weight > 0)
    chunks, kept = passes.chunks(m, k)
    while (done := progress()) < 1:
        state.begin_step(done)
        rise = (state.step + 1) / (warm_up + 1)
        fall = (1 - done) / decay if decay else 1.0
        state.set_rate(learning_rate * min(1.0, rise) * min(1.0, fall))
        views = Views(augmentation, preprocessing(state.parametrization.detail), n_views, k, m, state.random["views"])
        R, r = real.sample(state.random["batches"])

        def features(samples: Tensor, rows: slice, views=views) -> Tensor:
            return views.features(samples, rows, encode)

        def loss_of(Z: Tensor, R=R, r=r) -> Tensor:
            Y, n = state.targets, n_views
            if not whole_weight:
                return objective(Z, Y.repeat_interleave(n, dim=0), R, r)
            Z = Z.view(m, k, -1)
            random = objective(Z[:, :n].reshape(m * n, -1), Y.repeat_interleave(n, dim=0), R, r)
            return (1 - whole_weight) * random + whole_weight * whole_objective(Z[:, n], Y, R, r)

        yield backpropagate(state.parametrization, features, loss_of, chunks, k, kept, state.learned_targets)
        state.update()


class Views:
    """Views of a step: random ones of each sample and, where ``k`` is one more than their number, the whole sample after them.

    Parameters
    ----------
    augmentation : Augmentation
    preprocessing : callable
        What happens to a whole sample before the encoder.
    n_random, k, m : int
        Random views and all views of a sample; samples.
    generator : torch.Generator
        Of the random views.
    """

    def __init__(self, augmentation: Augmentation, preprocessing: Callable, n_random: int, k: int, m: int, generator):
        self._augmentation, self._preprocessing = augmentation, preprocessing
        self._n, self._k = n_random, k
        self._draws = augmentation.draw(m * n_random, generator)

    def features(self, samples: Tensor, rows: slice, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of the views in some rows, which are all those of the samples, or some of those of one."""
        n, k, s = self._n, self._k, len(samples)
        first, local = rows.start // k, slice(rows.start % k, rows.stop - rows.start + rows.start % k if s == 1 else k)
        drawn = slice(first * n + min(local.start, n), (first + s - 1) * n + min(local.stop, n))
        parts = []
        if drawn.stop > drawn.start:
            draws = {name: values[drawn] for name, values in self._draws.items()}
            parts.append(self._augmentation(samples, draws, self._preprocessing))
        if local.stop > n:
            parts.append(self._preprocessing(samples))
        Z = encode(torch.cat(parts) if len(parts) > 1 else parts[0])
        if s == 1 or len(parts) == 1:
            return Z
        return torch.cat([Z[: s * n].view(s, n, -1), Z[s * n :, None]], dim=1).flatten(0, 1)


def chunks_of(m: int, k: int, size: int) -> list[slice]:
    """Rows of the ``m·k`` views in chunks of about equal size, at most ``size``: those of whole samples, or some of one."""
    if k > size:
        parts = -(-k // size)
        ends = [round(k * (part + 1) / parts) for part in range(parts)]
        return [slice(i * k + start, i * k + stop) for i in range(m) for start, stop in zip([0, *ends], ends, strict=False)]
    parts = -(-m // (size // k))
    ends = [k * round(m * (part + 1) / parts) for part in range(parts)]
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def backpropagate(
    parametrization: Parametrization,
    features: Callable[[Tensor, slice], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    chunks: list[slice],
    k: int,
    kept: int = 1,
    others: Sequence[Tensor] = (),
) -> Tensor:
    """The loss; its gradient is written to that of θ, and of what else it depends on.

    Parameters
    ----------
    parametrization : Parametrization
    features : callable
        ``(samples, rows) → Z`` of some views of some samples; called twice for the same it has to give the same.
    loss_of : callable
        ``Z → scalar``, for the features of all views.
    chunks : list of slice
        Rows of ``Z``, in order.
    k : int
        Views of each sample.
    kept : int
        Chunks, the last ones, whose graphs are in memory until their gradient is had; the others pass twice.
    others : sequence of Tensor
        Leaves of the loss beside ``Z``.
    """

    def forward(rows: slice) -> tuple[list[Tensor], Tensor]:
        samples = slice(rows.start // k, -(-rows.stop // k))
        theta = [parameter.detach()[samples].requires_grad_() for parameter in parametrization.parameters]
        return theta, features(parametrization.decode(theta), rows)

    first = len(chunks) - kept
    with torch.no_grad():
        Zs = [forward(rows)[1] for rows in chunks[:first]]
    with torch.enable_grad():
        graphs = [forward(rows) for rows in chunks[first:]]
        Z = torch.cat([*Zs, *(own.detach() for _, own in graphs)]).requires_grad_()
        loss = loss_of(Z)
        dZ, *gradients_of_others = torch.autograd.grad(loss, [Z, *others], allow_unused=bool(others))
        for other, gradient in zip(others, gradients_of_others, strict=True):
            other.grad = gradient
        for rows in reversed(chunks):
            theta, own = graphs.pop() if graphs else forward(rows)
            gradients = torch.autograd.grad(own, theta, dZ[rows], allow_unused=True)
            _write_gradients(parametrization.parameters, gradients, rows, k)
            del theta, own
    return loss.detach()


def _write_gradients(parameters: list[Tensor], gradients: tuple[Tensor | None, ...], rows: slice, k: int) -> None:
    """To the gradients of the samples that the rows are views of: added, unless they are the last views, which come first."""
    samples = slice(rows.start // k, -(-rows.stop // k))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue  # θ that takes no part yet
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if rows.stop % k == 0:
            parameter.grad[samples] = gradient
        else:
            parameter.grad[samples] += gradient


@torch.no_grad()
def whole_features(
    parametrization: Parametrization,
    m: int,
    encode: Callable[[Tensor], Tensor],
    preprocessing: Callable[[Tensor], Tensor],
    chunk_size: int,
) -> Tensor:
    """Features ``(m, d)`` of the samples themselves, as a probe is going to see them."""
    parts = []
    for rows in chunks_of(m, 1, chunk_size):
        samples = parametrization.decode([theta.detach()[rows] for theta in parametrization.parameters])
        parts.append(encode(preprocessing(samples)))
    return torch.cat(parts)
