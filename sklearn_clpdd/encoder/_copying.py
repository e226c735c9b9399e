"""Copies of a user's network, and its layers and code apart from its tensors."""

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType

import cloudpickle
from torch import Tensor, jit, nn
from torch.jit import ScriptModule


def copy_module(module: nn.Module) -> nn.Module:
    """A copy whose hooks, closures and replaced methods refer to the copy.

    ``copy.deepcopy`` does not copy functions, so that those which refer to the module would go on to use the original. Where a
    module holds functions, cloudpickle copies those that cannot be imported, with what they refer to.

    Raises
    ------
    ValueError
        If the module cannot be copied.
    """
    ways = (_by_pickle, copy.deepcopy) if any(map(_holds_functions, module.modules())) else (copy.deepcopy, _by_pickle)
    errors = []
    for way in ways:
        try:
            return way(module)
        except Exception as error:  # noqa: PERF203 (copying a user's module can fail in many ways)
            errors.append(error)
    raise ValueError(
        f"a {type(module).__name__} cannot be copied, and the encoder freezes a copy ({type(errors[0]).__name__}: {errors[0]}). "
        "Remove from the module what cannot be copied"
    ) from errors[0]


def _holds_functions(module: nn.Module) -> bool:
    """Whether functions are among its attributes, or in containers such as those of its hooks; or whether it is scripted."""
    if isinstance(module, ScriptModule):
        return True  # deepcopy returns parameters that cannot be frozen
    for value in vars(module).values():
        members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else [value]
        if any(isinstance(member, FunctionType | partial) for member in members):
            return True
    return False


def _by_pickle(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    pickler = _CopyPickler(file)
    pickler.dump(module)
    memo: dict = {}
    shared = [_copied(one, memo) for one in pickler.apart]
    file.seek(0)
    return _CopyUnpickler(file, shared).load()


def _copied(one: Tensor | type, memo: dict):
    if isinstance(one, type):
        return one
    return copy.deepcopy(one, memo) if one.is_leaf else one.detach().clone()


def pickled(module: nn.Module) -> bytes:
    """cloudpickle's pickle of a module, which may contain scripted or traced ones."""
    file = io.BytesIO()
    _ModulePickler(file).dump(module)
    return file.getvalue()


class _ModulePickler(cloudpickle.Pickler):
    """Pickles scripted and traced modules as torch saves them."""

    def reducer_override(self, obj):
        """How to rebuild an object."""
        if isinstance(obj, ScriptModule):
            file = io.BytesIO()
            with _without_deprecations():
                jit.save(obj, file)
            return _load_script, (file.getvalue(),)
        return super().reducer_override(obj)


def _load_script(content: bytes) -> ScriptModule:
    with _without_deprecations():
        return jit.load(io.BytesIO(content))


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """TorchScript is deprecated, which its user has been told when scripting the module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
        yield


class _CopyUnpickler(pickle.Unpickler):
    """Inserts the objects that were kept apart."""

    def __init__(self, file, apart: list):
        super().__init__(file)
        self._apart = apart

    def persistent_load(self, position):
        """The object at a position."""
        return self._apart[position]


class ApartFromTensors(_ModulePickler):
    """Pickles layers and code, and collects the tensors."""

    def __init__(self, file):
        super().__init__(file)
        self.apart: list = []
        self._positions: dict[int, int] = {}

    def persistent_id(self, obj):
        """Position of an object that is kept apart."""
        if not self._is_apart(obj):
            return None
        if id(obj) not in self._positions:
            self._positions[id(obj)] = len(self.apart)
            self.apart.append(obj)
        return self._positions[id(obj)]

    def _is_apart(self, obj) -> bool:
        return isinstance(obj, Tensor)


class _CopyPickler(ApartFromTensors):
    """Keeps classes apart, too: unpickling a class of a script or a function would change the user's own one."""

    def _is_apart(self, obj) -> bool:
        return isinstance(obj, Tensor | type)
