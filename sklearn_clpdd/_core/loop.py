"""The outer loop: one pass over the equations per step.

θ → images ``S`` → views → features ``Z`` → probe → loss → gradient back to θ. The encoder enters only through ``Z``, so the
gradient can be had in two passes: features without a graph, the gradient of the (tiny) objective in ``Z``, and then its
vector–Jacobian product from there to θ, a chunk of views at a time. Images are decoded chunk by chunk as well: memory is that of
the graphs of one chunk, of θ, its gradient and Adam's two moments, whatever the number of views is. Chunks whose graphs there is
memory for pass once.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .augmentations import Augmentation
from .parametrizations import Parametrization
from .real_features import RealFeatures

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


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
    """What a run changes: θ, Adam's moments, the random numbers, how far it is.

    Parameters
    ----------
    parametrization : Parametrization
        Holds θ, which is updated in place.
    random : dict of str to torch.Generator
        Random numbers, on the CPU: of the ``"views"``, of the real ``"batches"``, and of whatever else draws some in a step.
    """

    def __init__(self, parametrization: Parametrization, random: dict[str, torch.Generator]):
        self.parametrization = parametrization
        self.random = random
        self.step, self.progress = 0, 0.0
        self.between_updates = True  # else an interrupt has come in the middle of one
        self.begin_step(0.0)
        # The fused update is the one that is made in place; elsewhere torch chooses.
        fused = parametrization.parameters[0].device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(parametrization.parameters, fused=fused or None)

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
        for i, theta in enumerate(self.parametrization.parameters):
            tensors[f"theta.{i}"] = theta.detach()
            tensors |= {f"adam.{i}.{name}": value for name, value in self.optimizer.state.get(theta, {}).items()}
        return tensors

    def load(self, tensors: dict[str, Tensor], step: int, progress: float) -> None:
        """Go back to the beginning of a step."""
        self.step = step
        for name, generator in self.random.items():
            generator.set_state(tensors[f"random.{name}"])
        self.begin_step(progress)
        for i, theta in enumerate(self.parametrization.parameters):
            with torch.no_grad():
                theta.copy_(tensors[f"theta.{i}"])
            prefix = f"adam.{i}."
            moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if moments:
                self.optimizer.state[theta] = {name: value.to(theta.device, copy=True) for name, value in moments.items()}


def distill(
    state: State,
    y: Tensor,
    real: RealFeatures,
    *,
    n_classes: int,
    encode: Callable[[Tensor], Tensor],
    preprocessing: Callable[[float], Callable[[Tensor], Tensor]],
    augmentation: Augmentation,
    n_views: int,
    objective: Objective,
    learning_rate: float,
    decay: float,
    progress: Callable[[], float],
    passes: Passes,
) -> Iterator[Tensor]:
    """Improve the synthetic samples step by step; yield each step's loss, still on its device, before θ moves.

    Parameters
    ----------
    state : State
        Updated in place; the run goes on from the step where it is.
    y : Tensor of shape (m,), int64
        Class indices of the synthetic samples.
    real : RealFeatures
    n_classes : int
    encode : callable
        Views to features, differentiable.
    preprocessing : callable
        What happens to a whole image before the encoder, with the view's side as ``image_size``, for the detail that it has.
    augmentation : Augmentation
    n_views : int
        Views ``k`` of each sample per step.
    objective : callable
        ``(Z, Y, R, r) → scalar``.
    learning_rate : float
        Adam's.
    decay : float
        Share of the run, its last, over which it falls linearly to zero.
    progress : callable
        What share of the run is done; the run ends at 1.
    passes : Passes
    """
    k = n_views
    Y = F.one_hot(y.repeat_interleave(k), n_classes).to(real.dtype)
    chunks, kept = passes.chunks(len(y), k)
    while (done := progress()) < 1:
        state.begin_step(done)
        state.optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (1 - done) / decay if decay else 1.0)
        prepare = preprocessing(state.parametrization.detail)
        draws = augmentation.draw(len(Y), state.random["views"])
        R, r = real.sample(state.random["batches"])

        def features(samples: Tensor, rows: slice, draws=draws, prepare=prepare) -> Tensor:
            return encode(augmentation(samples, {name: drawn[rows] for name, drawn in draws.items()}, prepare))

        def loss_of(Z: Tensor, R=R, r=r) -> Tensor:
            return objective(Z, Y, R, r)

        yield backpropagate(state.parametrization, features, loss_of, chunks, k, kept)
        state.update()


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
) -> Tensor:
    """The loss; its gradient is written to that of θ.

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
        (dZ,) = torch.autograd.grad(loss, Z)
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
