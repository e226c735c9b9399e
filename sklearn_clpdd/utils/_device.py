"""Device names, available memory, and the precision that a CPU is fast in."""

import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ._ranks import is_launched

# Where Linux says how much memory there is, and how much a process and its control groups may use.
_MEMINFO, _CGROUPS, _OWN_CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Share of the time of float32 below which bfloat16 counts as faster.
_FASTER = 0.9


def resolve_device(device) -> torch.device:
    """The torch device that ``device`` names; ``"auto"`` is CUDA if it is available, else the CPU.

    Each process that torchrun has started gets a GPU of its own. MPS is never chosen automatically, because it has no float64.

    Raises
    ------
    ValueError
        If the name is not that of a device, or this machine does not have it.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.append("mps")
    if torch.cuda.is_available():
        present += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device == "auto" and "cuda" in present and is_launched():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if device == "auto":
        return torch.device("cuda" if "cuda" in present else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or str(resolved) not in present:
        raise ValueError(f"device={device!r} is not available on this machine; choose 'auto' or one of {present}")
    return resolved


def resolve_devices(given) -> list[torch.device]:
    """The devices of a name, or of a list of names.

    Raises
    ------
    ValueError
        If the list is empty, or if one of them is not available or of another kind than the first.
    """
    if not isinstance(given, list | tuple):
        return [resolve_device(given)]
    devices = [resolve_device(one) for one in given]
    if len({device.type for device in devices}) != 1:
        raise ValueError(f"device={list(given)!r}: several devices have to be of one kind, such as ['cuda:0', 'cuda:1']")
    return devices


def most_views(device: torch.device) -> int | None:
    """How many views one chunk may have; ``None`` if only memory limits them.

    On a CPU throughput stops growing at about twenty views for each thread. That chunks are no larger makes results independent
    of the number of processes with so many threads.
    """
    return 20 * torch.get_num_threads() if device.type == "cpu" else None


def graph_memory_limits(device: torch.device) -> tuple[int, int]:
    """Memory limits in bytes: for the autograd graph of one chunk of views, and for all graphs that are kept.

    The limits do not depend on what else is running.
    """
    if device.type == "cuda":
        quarter = torch.cuda.get_device_properties(device).total_memory // 4
        return quarter, quarter
    return 2**28, 5 * 2**27


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; ``None`` if that is unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        (line,) = (line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        return min([1024 * int(line.split()[1]), *_available_in_cgroups()])
    except (OSError, ValueError):
        return None


def _available_in_cgroups() -> Iterator[int]:
    """Bytes that each control group of the process (a container, for example) can still allocate, where it has a limit."""
    for line in _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else ():
        _, controllers, own = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):  # version 1
            root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        limit, usage, cache = names
        group = root / own.lstrip("/")
        # Inside a container, its own group may be mounted as the root, whatever it is called outside.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            try:
                most, used = ((folder / name).read_text().strip() for name in (limit, usage))
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if most != "max":
                yield max(0, int(most) - int(used) + int(statistics.get(cache, 0)))


@cache
def has_fast_bfloat16(n_threads: int) -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones; without such instructions it takes far longer."""
    about: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    if about.get("architecture") == "x86_64" and not (about.get("avx512_bf16") or about.get("amx_bf16")):
        return False
    one = torch.ones(192, 192, dtype=torch.float32, device="cpu")
    seconds: dict[torch.dtype, list[float]] = {}
    for matrix in [one] * 10 + [one, one.bfloat16()] * 5:  # the first ones may wait for threads
        begin = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.setdefault(matrix.dtype, []).append(time.perf_counter() - begin)
    return min(seconds[torch.bfloat16]) < _FASTER * min(seconds[torch.float32])
