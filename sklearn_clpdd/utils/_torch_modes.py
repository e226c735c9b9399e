"""torch's modes while this library computes: the same ones whatever the caller has set, and the caller's again afterwards.

Importing this module also makes torch use one thread in processes that are forked from then on, as in the workers of torch's
``DataLoader``. torch's pool of threads does not survive a fork, and waiting for it would never end (pytorch/pytorch#17199).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock
from typing import Any

import torch

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class _Setting:
    """A setting of the whole process, overridden from the first entry to the last exit of any thread.

    A value of None cannot be restored, and is left alone.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object], value: Any):
        self._read, self._write, self._value = read, write, value
        self._lock, self._n_inside, self._callers = Lock(), 0, value

    def enter(self) -> None:
        """Override it."""
        with self._lock:
            self._n_inside += 1
            if self._n_inside == 1:
                self._callers = self._read()
                if self._callers not in (self._value, None):
                    self._write(self._value)

    def exit(self) -> None:
        """Restore the caller's value."""
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0 and self._callers not in (self._value, None):
                self._write(self._callers)


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # two of torch's settings contradict each other
        return None


_dtype = _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32)
_precision = _Setting(_matmul_precision, torch.set_float32_matmul_precision, "highest")


def _conv_tf32() -> bool | None:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # as above
        return None


def _set_conv_tf32(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value


_matmul = partial(_Setting, _matmul_precision, torch.set_float32_matmul_precision)
_conv = partial(_Setting, _conv_tf32, _set_conv_tf32)
_float32, _tf32 = (_matmul("highest"), _conv(False)), (_matmul("high"), _conv(True))


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Multiply and convolve float32 tensors on GPUs in TF32, or in full float32."""
    with ExitStack() as stack:
        for setting in _tf32 if tf32 else _float32:
            setting.enter()
            stack.callback(setting.exit)
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
        for setting in (_dtype, _precision) if device is None or device.type == "cpu" else (_dtype,):
            setting.enter()
            stack.callback(setting.exit)
        yield
