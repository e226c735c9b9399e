"""The processes of `torch.distributed` that work on one fit together; and one process that works alone.

Every process makes the same calls in the same order. Each is a collective operation: it returns when all processes have made it.
"""

import atexit
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._torch_compat import end_group, group_timeout


class LostProcessError(RuntimeError):
    """The processes of a fit cannot reach each other any more: one of them was killed, has failed, or the network has.

    Raised by `fit` of a distiller that several processes of ``torch.distributed`` share.
    """


class Ranks:
    """The processes of a fit, of which this is number ``rank``; by default it is alone, and nothing is exchanged."""

    rank, size = 0, 1
    #: How many of the processes are on this machine.
    local_size = 1

    def counts(self, n: int) -> list[int]:
        """How many of ``n`` things each process owns; they are divided in order, in halves and halves of halves."""
        return _divided(n, self.size)

    def own(self, n: int) -> slice:
        """Which of ``n`` things this process owns."""
        counts = self.counts(n)
        start = sum(counts[: self.rank])
        return slice(start, start + counts[self.rank])

    def gather(self, own: Tensor, n: int, k: int = 1) -> Tensor:
        """The rows of all processes, ``k`` for each of ``n`` things: in every process, the same."""
        return own

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

    #: Whether Ctrl-C was pressed in `deferred_interrupts`.
    was_interrupted = False

    @contextmanager
    def deferred_interrupts(self) -> Iterator[None]:
        """Context in which Ctrl-C only sets `was_interrupted`, so that all processes end after the same step.

        A second Ctrl-C interrupts as usual. Alone, nothing is deferred.
        """
        yield

    def leave(self) -> None:
        """End the exchange; processes that wait for this one raise `LostProcessError`."""


def _divided(n: int, size: int) -> list[int]:
    if size == 1:
        return [n]
    left = -(-size // 2)
    first = -(-n * left // size)
    return _divided(first, left) + _divided(n - first, size - left)


ALONE = Ranks()


class ProcessRanks(Ranks):
    """The processes of torch's default process group.

    They exchange numbers in groups of their own, so that a process that fails can leave without ending the user's group.

    Parameters
    ----------
    device : torch.device
        Device of the features.
    """

    def __init__(self, device: torch.device):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        timeout = group_timeout()
        with _told(self):
            self._cpu: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._gpu: Any = None
        places = self.of_all((socket.gethostname(), str(device), device.type == "cuda" and dist.is_nccl_available()))
        self.local_size = [host for host, *_ in places].count(places[self.rank][0])
        # NCCL needs a GPU for each process; without it, features are exchanged in main memory.
        if all(has_nccl for *_, has_nccl in places) and len(set(places)) == self.size:
            with _told(self):
                self._gpu = dist.new_group(backend="nccl", timeout=timeout)

    def _collective(self, tensor: Tensor, work: Callable[[Tensor, Any], Tensor]) -> Tensor:
        """What a collective operation makes of a tensor, on its device."""
        with _told(self):
            if tensor.device.type == "cuda" and self._gpu is not None:
                return work(tensor, self._gpu)
            return work(tensor.cpu(), self._cpu).to(tensor.device)

    def gather(self, own, n, k=1):
        return self._collective(own, lambda own, group: self._gathered(own, [k * count for count in self.counts(n)], group))

    def _gathered(self, own: Tensor, counts: list[int], group: Any) -> Tensor:
        block = own.new_zeros(max(counts), *own.shape[1:])
        block[: len(own)] = own
        blocks = [torch.empty_like(block) for _ in counts]
        dist.all_gather(blocks, block, group=group)
        return torch.cat([part[:count] for part, count in zip(blocks, counts, strict=True)])

    def of_first(self, value):
        values = [value]
        with _told(self):
            dist.broadcast_object_list(values, src=0, group=self._cpu)
        return values[0]

    def of_all(self, value):
        values = [None] * self.size
        with _told(self):
            dist.all_gather_object(values, value, group=self._cpu)
        return values

    def tensor_of_first(self, tensor):
        def broadcast(tensor: Tensor, group: Any) -> Tensor:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            dist.broadcast(tensor, src=0, group=group)
            return tensor

        return self._collective(tensor, broadcast)

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

    @contextmanager
    def deferred_interrupts(self):
        self.was_interrupted = False
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or before is None:  # no handler can be set or restored
            yield
            return

        def note(number, frame):
            self.was_interrupted = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def leave(self):
        # First the group whose end the other processes notice at once. NCCL would wait for operations that never end.
        cpu, gpu, self._cpu, self._gpu = self._cpu, self._gpu, None, None
        dist.destroy_process_group(cpu)
        del cpu  # its connections are closed when nothing refers to it
        if gpu is not None:
            end_group(gpu, abort=sys.exc_info()[0] is not None)


@contextmanager
def _told(ranks: Ranks) -> Iterator[None]:
    """Context in which torch's errors say what has happened to the fit."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).strip().split("\n")[0])  # without the place in torch's source
        raise LostProcessError(
            f"process {ranks.rank} of {ranks.size} has lost the others: one of them was killed, failed, or cannot be reached "
            f"({reason}). Look at their output, and start all of them again; a distiller with checkpoint= goes on from its file"
        ) from error


def check_same(ranks: Ranks, description: dict[str, Any]) -> None:
    """Raise unless all processes describe the same fit.

    Raises
    ------
    ValueError
        In all processes, with the names of what differs.
    """
    all_of_them = ranks.of_all(description)
    names = {name: None for one in all_of_them for name in one}  # in order
    differ = [name for name in names if any(one.get(name) != all_of_them[0].get(name) for one in all_of_them)]
    if differ:
        name = differ[0]
        seen = "; ".join(f"process {rank} has {str(one.get(name))[:100]}" for rank, one in enumerate(all_of_them[:4]))
        raise ValueError(
            f"the {ranks.size} processes of torch.distributed do not fit the same: they differ in {', '.join(differ)} ({name}: "
            f"{seen}). Pass the same data and parameters in all of them, or distributed=False for a fit of each on its own"
        )


def is_launched() -> bool:
    """Whether torchrun has started this process as one of several; not in a worker that such a process has started."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return several and dist.is_available() and dist.is_torchelastic_launched() and multiprocessing.parent_process() is None


@contextmanager
def joined(together: bool, device: torch.device) -> Iterator[Ranks]:
    """Context in which the processes of the default process group work together.

    The group is made if torchrun has started this process and there is none yet.

    Parameters
    ----------
    together : bool
        Whether to work with other processes at all.
    device : torch.device
        Device of the tensors that are exchanged.
    """
    # Threads would make their groups in another order in each process.
    together = together and dist.is_available() and threading.current_thread() is threading.main_thread()
    if together and not dist.is_initialized() and is_launched():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo")
        atexit.register(_end_default_group)
    if not (together and dist.is_initialized()) or dist.get_world_size() == 1:
        yield ALONE
        return
    ranks = ProcessRanks(device)
    try:
        yield ranks
    finally:
        ranks.leave()


def _end_default_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
