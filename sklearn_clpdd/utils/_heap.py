"""Settings of glibc's allocator for tensors on CPUs."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

# Options of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_INSIDE = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
# glibc's defaults, and the thresholds that it arrives at by itself once a program has freed something large.
_OUTSIDE = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26}

_lock = threading.Lock()
_n_inside = 0


@contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process for reuse, and return it to the system at the end.

    By default glibc maps every large tensor anew, and Linux clears its pages one by one when they are first touched, which
    takes a good part of the time of an encoder's gradients: ``benchmarks/step.py encoder``. ``GLIBC_TUNABLES`` has the same
    effect for the life of a process (``benchmarks/step.py heap``). The setting affects the whole process while any thread is
    inside the context. Does nothing without glibc, or if the environment already tunes the allocator.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _change(libc, +1)
    try:
        yield
    finally:
        _change(libc, -1)


def _change(libc: ctypes.CDLL, change: int) -> None:
    global _n_inside
    with _lock:
        was, _n_inside = _n_inside, _n_inside + change
        if bool(was) == bool(_n_inside):
            return
        for option, value in (_INSIDE if _n_inside else _OUTSIDE).items():
            libc.mallopt(option, value)
        if not _n_inside:
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
