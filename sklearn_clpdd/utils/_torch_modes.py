"""torch's modes while this library computes: the same ones whatever the caller has set, and the caller's again afterwards.

Importing this module also makes torch use one thread in processes that are forked from then on, as in the workers of torch's
``DataLoader``. torch's pool of threads does not survive a fork, and waiting for it would never end (pytorch/pytorch#17199).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class _Setting:
    """A setting of the whole process, overridden from the first entry to the last exit of any thread; the latest wish counts.

    A value of None cannot be restored, and is left alone.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object]):
        self._read, self._write = read, write
        self._lock = Lock()
        self._callers: Any = None
        self._wishes: list[list] = []  # lists of one value each, which are told apart by identity

    def enter(self, value: Any) -> list:
        """Override it; the result ends this by `exit`."""
        with self._lock:
            if not self._wishes:
                self._callers = self._read()
            self._wishes.append(wish := [value])
            self._set(value)
            return wish

    def exit(self, wish: list) -> None:
        """Return to the latest wish that is left, or to the caller's value."""
        with self._lock:
            self._wishes = [one for one in self._wishes if one is not wish]
            self._set(self._wishes[-1][0] if self._wishes else self._callers)

    def _set(self, value: Any) -> None:
        if self._callers is not None and self._read() != value:
            self._write(value)


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # two of torch's settings contradict each other
        return None


_dtype = _Setting(torch.get_default_dtype, torch.set_default_dtype)
_matmul = _Setting(_matmul_precision, torch.set_float32_matmul_precision)


def _conv_tf32() -> bool | None:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # as above
        return None


def _set_conv_tf32(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value


_conv = _Setting(_conv_tf32, _set_conv_tf32)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Multiply and convolve float32 tensors on GPUs in TF32, or in full float32."""
    with ExitStack() as stack:
        for setting, value in ((_matmul, "high" if tf32 else "highest"), (_conv, tf32)):
            stack.callback(setting.exit, setting.enter(value))
        yield


def has_full_float32_matmul() -> bool:
    """Whether float32 matrices are multiplied in float32, and not in TF32 or bfloat16, which torch can be told to use."""
    return _matmul_precision() == "highest"


@contextmanager
def standard_torch_modes(device: torch.device | None = None) -> Iterator[None]:
    """Gradients on, inference mode and autocast off, float32 by default and in products, tensors on the CPU by default.

    The same results follow from the same call, whatever the caller has set. With a GPU as ``device``, the precision of float32
    products outside the network (see `float32_products`) stays the caller's; on CPUs it would be bfloat16. Also a decorator.
    """
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        if torch.get_default_device().type != "cpu":  # while it is set, every call of a torch function takes twice as long
            stack.enter_context(torch.device("cpu"))
        for name in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(name):
                stack.enter_context(torch.autocast(name, enabled=False))
        stack.callback(_dtype.exit, _dtype.enter(torch.float32))
        if device is None or device.type == "cpu":
            stack.callback(_matmul.exit, _matmul.enter("highest"))
        yield
