"""The processes of `torch.distributed` that work on one fit together; and one process that works alone.

Every process makes the same calls in the same order. Each is a collective operation: it returns when all processes have made it.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LostProcessError(RuntimeError):
    """The processes of a fit cannot reach each other any more."""


class Ranks:
    """The processes of a fit, of which this is number ``rank``; by default it is alone, and nothing is exchanged."""

    rank, size = 0, 1

    def counts(self, n: int) -> list[int]:
        """How many of ``n`` things each process owns; they are divided in order."""
        return [n // self.size + (rank < n % self.size) for rank in range(self.size)]

    def own(self, n: int) -> slice:
        """Which of ``n`` things this process owns."""
        counts = self.counts(n)
        start = sum(counts[: self.rank])
        return slice(start, start + counts[self.rank])

    def gather(self, own: Tensor, n: int, k: int = 1) -> Tensor:
        """The rows of all processes, ``k`` for each of ``n`` things: in every process, the same."""
        return own

    def sum_own(self, values: Tensor, n: int, k: int = 1) -> Tensor:
        """The own rows of the sum of all processes' values, of which each has ``n·k`` rows."""
        return values

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' values."""
        return values

    def of_first(self, value: Any) -> Any:
        """The first process's value."""
        return value

    def of_all(self, value: Any) -> list:
        """All processes' values."""
        return [value]

    def tensor_of_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, which has the same shape and dtype in all of them."""
        return tensor

    def on_first(self, work: Callable[[], Any]) -> Any:
        """What a function returns in the first process, or the error that it raises there."""
        return work()

    def leave(self) -> None:
        """End the exchange; processes that wait for this one raise `LostProcessError`."""


ALONE = Ranks()


class ProcessRanks(Ranks):
    """The processes of torch's default process group.

    They exchange numbers in groups of their own, so that a process that fails can leave without ending the user's group.

    Parameters
    ----------
    device : torch.device
        Device of the tensors of `gather`, `sum_own` and `sum`.
    """

    def __init__(self, device: torch.device):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        with _told(self):
            self._cpu: Any = dist.new_group(backend="gloo")
            self._gpu: Any = dist.new_group(backend="nccl") if device.type == "cuda" and dist.is_nccl_available() else None

    def _group(self, tensor: Tensor) -> Any:
        return self._cpu if tensor.device.type == "cpu" or self._gpu is None else self._gpu

    def gather(self, own, n, k=1):
        counts = [k * count for count in self.counts(n)]
        block = own.new_zeros(max(counts), *own.shape[1:])
        block[: len(own)] = own
        blocks = block.new_empty(self.size * len(block), *block.shape[1:])
        with _told(self):
            dist.all_gather_into_tensor(blocks, block, group=self._group(block))
        return torch.cat([part[:count] for part, count in zip(blocks.split(len(block)), counts, strict=True)])

    def sum_own(self, values, n, k=1):
        counts = [k * count for count in self.counts(n)]
        parts = values.new_empty(self.size * counts[self.rank], *values.shape[1:])
        with _told(self):
            dist.all_to_all_single(parts, values.contiguous(), [counts[self.rank]] * self.size, counts, group=self._group(values))
        return parts.view(self.size, counts[self.rank], *values.shape[1:]).sum(dim=0)

    def sum(self, values):
        values = values.clone()
        with _told(self):
            dist.all_reduce(values, group=self._group(values))
        return values

    def of_first(self, value):
        values = [value]
        with _told(self):
            dist.broadcast_object_list(values, group=self._cpu, group_src=0)
        return values[0]

    def of_all(self, value):
        values = [None] * self.size
        with _told(self):
            dist.all_gather_object(values, value, group=self._cpu)
        return values

    def tensor_of_first(self, tensor):
        tensor = tensor.contiguous()
        with _told(self):
            dist.broadcast(tensor, group=self._cpu, group_src=0)
        return tensor

    def on_first(self, work):
        value, failure = None, None
        if self.rank == 0:
            try:
                value = work()
            except Exception as error:
                failure = error
        value, failure = self.of_first((value, failure))
        if failure is not None:
            raise failure
        return value

    def leave(self):
        for group in (self._gpu, self._cpu):
            if group is not None:
                dist.destroy_process_group(group)
        self._gpu = self._cpu = None


@contextmanager
def _told(ranks: Ranks) -> Iterator[None]:
    """Context in which torch's errors say what has happened to the fit."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise LostProcessError(
            f"process {ranks.rank} of {ranks.size} has lost the others: one of them was killed, failed, or cannot be reached "
            f"({reason}). Look at their output, and start all of them again; a distiller with checkpoint= goes on from its file"
        ) from error


def is_launched() -> bool:
    """Whether torchrun has started this process as one of several; not in a worker that such a process has started."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return several and dist.is_available() and dist.is_torchelastic_launched() and multiprocessing.parent_process() is None


def join(together: bool, device: torch.device) -> Ranks:
    """The processes of the default process group, which is made if torchrun has started this process.

    Parameters
    ----------
    together : bool
        Whether to work with other processes at all.
    device : torch.device
        Device of the tensors that are exchanged.
    """
    if not (together and dist.is_available()):
        return ALONE
    if not dist.is_initialized():
        if not is_launched():
            return ALONE
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo")
    return ALONE if dist.get_world_size() == 1 else ProcessRanks(device)
