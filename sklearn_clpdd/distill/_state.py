"""What a run changes, and a checkpoint contains."""

import torch
from torch import Tensor

from ..utils._ranks import ALONE, Ranks
from ._parametrizations import Parametrization

# Entries whose number Adam's fused update likes to be divisible: it computes the rest by other instructions, whose rounding
# differs, so that an entry's value would depend on the number of entries.
_UNIT = 16
# Learning rate of learned targets, relative to that of θ.
_TARGET_RATE = 0.1


class State:
    """What a run changes: θ, the targets if they are learned, Adam's moments, the random numbers, and the step.

    Parameters
    ----------
    parametrization : Parametrization
        Contains θ, which is updated in place.
    targets : Tensor of shape (m, C)
        Targets of the probe for the synthetic samples, initially one-hot. Learned if they require a gradient.
    random : dict of str to torch.Generator
        Generators on the CPU: for the ``"views"``, for the real ``"batches"``, and for whatever else draws in a step. All
        processes draw the same numbers.
    ranks : Ranks
        The processes of the run. Each keeps θ of its own samples only.
    """

    def __init__(
        self, parametrization: Parametrization, targets: Tensor, random: dict[str, torch.Generator], ranks: Ranks = ALONE
    ):
        self.parametrization = parametrization
        self.targets = targets
        self.ranks, self.own = ranks, ranks.own(len(targets))
        if ranks.size > 1:
            parametrization.keep(self.own)
        self.learned_targets = [targets] if targets.requires_grad else []
        self.parameters = [*parametrization.parameters, *self.learned_targets]
        self.random = random
        self.step, self.progress = 0, 0.0
        self.between_updates = True  # False while an interrupt would leave the state inconsistent
        self.begin_step(0.0)
        self._move_to_padded_memory()
        # The fused update works in place; it does not exist on all devices.
        fused = self.parameters[0].device.type in ("cpu", "cuda")
        factors = [1.0] * len(parametrization.parameters) + [_TARGET_RATE] * len(self.learned_targets)
        self._memory = [_whole_memory(theta.detach()) for theta in self.parameters]
        groups = [{"params": [memory], "factor": factor} for memory, factor in zip(self._memory, factors, strict=True)]
        self.optimizer = torch.optim.Adam(groups, fused=fused or None)

    def _move_to_padded_memory(self) -> None:
        for theta in self.parameters:
            theta.data = padded_like(theta).copy_(theta.detach())

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
        for memory, theta in zip(self._memory, self.parameters, strict=True):
            if theta.data_ptr() != memory.data_ptr():  # a parametrization has moved it
                theta.data = memory[: theta.numel()].view(theta.shape).copy_(theta.detach())
            memory.grad = None if theta.grad is None else _whole_memory(theta.grad)
        self.optimizer.step()
        self.step += 1
        self._remember_random_state()
        self.between_updates = True

    @torch.no_grad()
    def samples(self) -> Tensor:
        """All synthetic samples, ``(m, ...)``."""
        return self.ranks.gather(self.parametrization().detach(), len(self.targets))

    def tensors(self) -> dict[str, Tensor]:
        """θ, moments and random states of all samples at the beginning of the present step."""
        tensors = {f"random.{name}": state for name, state in self._random_state.items()}
        for i, theta in enumerate(self.parameters):
            tensors[f"theta.{i}"] = theta.detach()
            moments = self.optimizer.state.get(self._memory[i], {})
            tensors |= {f"adam.{i}.{name}": _like(value, theta) for name, value in moments.items()}
        return self.of_all_samples(tensors)

    def of_all_samples(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a checkpoint with the rows of all processes, in the first one; the others do not keep them."""
        m = len(self.targets)
        whole = {}
        for name, own in tensors.items():
            whole[name] = own
            if self._has_samples(name):
                values = self.ranks.gather(own, m)
                whole[name] = values if self.ranks.rank == 0 else values[:0]
        return whole

    def _has_samples(self, name: str) -> bool:
        """Whether the first axis of a tensor of a checkpoint is that of the samples that processes own."""
        kind, i, *rest = name.split(".")
        return kind != "random" and rest != ["step"] and int(i) < len(self.parametrization.parameters)

    def _check(self, tensors: dict[str, Tensor]) -> list[tuple[str, torch.Size, torch.dtype]]:
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
            if same is not None:
                shape = (len(self.targets), *same.shape[1:]) if self._has_samples(name) else same.shape
            if same is None or (tensor.shape, tensor.dtype) != (shape, same.dtype) or not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"the checkpoint has {name} of {tensor.dtype} and shape {tuple(tensor.shape)}, not that of this run"
                )
        return [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]

    def _own_part(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process needs of a checkpoint, which the first one has read."""
        contents = self.ranks.on_first(lambda: self._check(tensors))
        if self.ranks.size == 1:
            return tensors
        own = {}
        for name, shape, dtype in contents:
            whole = tensors[name] if name in tensors else torch.empty(shape, dtype=dtype, device="cpu")
            whole = self.ranks.tensor_of_first(whole)
            own[name] = whole[self.own].clone() if self._has_samples(name) else whole
        return own

    def load(self, tensors: dict[str, Tensor], step: int, progress: float) -> dict[str, Tensor]:
        """Return to the beginning of a step; of several processes, only the first one needs the tensors.

        Returns
        -------
        dict of str to Tensor
            The tensors with the rows of the own samples only.

        Raises
        ------
        ValueError
            If the tensors are not those of this run: torch's fused optimizers do not check shapes.
        """
        tensors = self._own_part(tensors)
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
                self.optimizer.state[self._memory[i]] = {
                    name: _whole_memory(padded_like(theta).copy_(value)) if value.ndim else value.to(theta.device, copy=True)
                    for name, value in moments.items()
                }
        return tensors


def padded_like(tensor: Tensor) -> Tensor:
    """Zeros of the shape of a tensor, at the beginning of memory whose size is a multiple of `_UNIT`."""
    memory = torch.zeros(-(-tensor.numel() // _UNIT) * _UNIT, dtype=tensor.dtype, device=tensor.device)
    return memory[: tensor.numel()].view(tensor.shape)


def _whole_memory(tensor: Tensor) -> Tensor:
    """All of the memory that `padded_like` has reserved."""
    return tensor.as_strided((-(-tensor.numel() // _UNIT) * _UNIT,), (1,))


def _like(moment: Tensor, theta: Tensor) -> Tensor:
    """A moment in the shape of its parameter; the number of steps as it is."""
    return moment[: theta.numel()].view(theta.shape) if moment.ndim else moment
