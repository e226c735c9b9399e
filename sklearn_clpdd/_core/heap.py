"""How the C library's allocator treats the memory of tensors on a CPU."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_INSIDE = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
# glibc's own, and what it comes to by itself once a program has freed something large.
_OUTSIDE = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}

_lock = threading.Lock()
_inside = 0


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within, freed memory stays with the process and is used again; on leaving, it goes back to the system.

    By default glibc maps each large tensor anew, and Linux clears its pages one by one at first touch: a good part of the time of
    an encoder's gradients (``benchmarks/step.py encoder``). Holds for the whole process, for as long as anybody is within. Does
    nothing without glibc, and nothing where the environment tunes the allocator already.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _enter(libc, +1)
    try:
        yield
    finally:
        _enter(libc, -1)


def _enter(libc: ctypes.CDLL, change: int) -> None:
    global _inside
    with _lock:
        was, _inside = _inside, _inside + change
        if bool(was) == bool(_inside):
            return
        for option, value in (_INSIDE if _inside else _OUTSIDE).items():
            libc.mallopt(option, value)
        if not _inside:
            libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    tuned = any(
        name.startswith("MALLOC_") or (name == "GLIBC_TUNABLES" and "malloc" in value) for name, value in os.environ.items()
    )
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim  # noqa: B018
        return None if tuned else libc
    return None
