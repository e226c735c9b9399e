"""Where tensors live."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Where Linux says what memory there is, and what a process and its control groups may take.
_MEMINFO, _GROUPS, _OWN_GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def resolve_device(device) -> torch.device:
    """The torch device that ``device`` names; ``"auto"`` is CUDA where there is some, else the CPU.

    MPS, which has no float64, has to be asked for.

    Raises
    ------
    ValueError
        If the name is no device, or the device is not on this machine.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.append("mps")
    if torch.cuda.is_available():
        present += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device == "auto":
        return torch.device("cuda" if "cuda" in present else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or str(resolved) not in present:
        raise ValueError(f"device={device!r} is not on this machine; choose 'auto' or one of {present}")
    return resolved


def graph_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that the graph of one chunk of views, and those of all chunks, may take: the same whoever else is on the machine.

    On CPUs chunks need not be large: their speed is the same from about twenty views on. On a GPU it is not.
    """
    if device.type == "cuda":
        quarter = torch.cuda.get_device_properties(device).total_memory // 4
        return quarter, quarter
    return 2**28, 5 * 2**27


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; ``None`` where nothing says so."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        (line,) = (line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        return min(1024 * int(line.split()[1]), *_left_in_groups())
    except (OSError, ValueError, TypeError):
        return None


def _left_in_groups() -> Iterator[int]:
    """Bytes that each control group of the process, a container's say, may still take, as far as it has a limit."""
    yield 2**63  # no limit
    for line in _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else ():
        _, controllers, own = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, usage, cache = _GROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = (
                _GROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = root / own.lstrip("/")
        # In a container its own group may be the root, whatever it is called outside.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            try:
                most, used = ((folder / name).read_text().strip() for name in (limit, usage))
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if most != "max":
                yield max(0, int(most) - int(used) + int(statistics.get(cache, 0)))


def multiplies_in_float32() -> bool:
    """Whether matrices in float32 are multiplied as such, and not in TF32 or bfloat16, as torch may be told to."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was told in two ways, and does not say
        return False


@contextmanager
def caller_modes_off(device: torch.device) -> Iterator[None]:
    """Gradients, and float32 where it is asked for, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield
