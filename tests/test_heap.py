"""The allocator's settings during a fit and after it."""

import os
import platform
import subprocess
import sys

import pytest

from sklearn_clpdd.utils._heap import _glibc

SCRIPT = """
import os
import torch
from sklearn_clpdd.utils._heap import reuse_freed_memory

def faults():
    fields = open("/proc/self/stat").read().rpartition(")")[2].split()
    return int(fields[7])

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

def work():
    before = faults()
    for _ in range(20):
        torch.ones(2**23)  # 32 MB
    return faults() - before

work()
print(work())
with reuse_freed_memory():
    work()
    with reuse_freed_memory():
        print(work())
    print(work(), end=" ")
    before = resident()
given_back = before - resident()
print(work(), given_back)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there are other allocators")
def test_memory_is_kept_during_a_fit_and_released_afterwards():
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    lines = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, env=plain).stdout.split()
    before, nested, within, after, given_back = map(int, lines)
    assert min(before, after) > 100  # if each tensor is allocated anew: pages of 4 kB or 2 MB
    assert max(nested, within) < before / 10
    assert given_back > 2**24


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there are other allocators")
@pytest.mark.parametrize("tuned", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}])
def test_a_tuned_allocator_is_not_changed(tuned, monkeypatch):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    monkeypatch.setattr(os, "environ", plain)
    assert _glibc.__wrapped__() is not None
    monkeypatch.setattr(os, "environ", plain | tuned)
    assert _glibc.__wrapped__() is None
