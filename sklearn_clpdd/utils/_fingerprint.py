"""Fingerprints that identify parameters and networks across processes."""

import hashlib
import io
import re
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import PurePath
from threading import Lock, RLock
from types import CodeType, ModuleType
from typing import Any

import cloudpickle
import numpy as np
from torch import Generator, Tensor, device, dtype, nn, uint8

# Attributes that Python adds to a class, and that do not affect its behaviour.
_CLASS_INTERNALS = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "_abc_impl"}

# Objects whose repr is all of them.
_SHOWN_IN_FULL = (str, bytes, complex, slice, range, type(None), np.dtype, dtype, device, PurePath)
# Objects whose state says nothing about what a function computes.
_OPAQUE = (type(Lock()), type(RLock()), io.IOBase, Generator, np.random.Generator, np.random.RandomState)
_MODULE_NAMES = {"__package__", "__name__", "__path__", "__file__"}


def fingerprint(value: Any) -> str:
    """Return a description that is the same for equal parameters, in every process.

    An object may have a string attribute ``fingerprint``, which is then used together with its type. Estimators are described
    by their parameters. Other functions and objects are described by what cloudpickle would store of them: their content if
    they are defined in a script, a notebook or another function, or the name under which they are imported from a module.
    Different objects may share a description, because code in importable modules is not inspected.

    Raises
    ------
    ValueError
        If an object can be neither described nor pickled.
    """
    if isinstance(value, Integral):
        return repr(int(value))
    if isinstance(value, Real):
        number = float(value)
        return repr(int(value) if number.is_integer() else number)  # type: ignore[call-overload]  # every Real has __int__ here
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array {value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, Tensor):
        return f"tensor {tensor_digest([('', value)])}"
    if type(value) in (list, tuple):
        return f"{type(value).__name__} [{', '.join(map(fingerprint, value))}]"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} {sorted(map(fingerprint, value))}"
    if isinstance(value, dict):
        return repr(sorted((fingerprint(key), fingerprint(item)) for key, item in value.items()))
    if isinstance(value, type):
        name = f"{value.__module__}.{value.__qualname__}"
        return f"{name} {content_digest(value)}" if _is_defined_locally(value) else name
    given = getattr(value, "fingerprint", None)
    if isinstance(given, str):
        return f"{type(value).__module__}.{type(value).__qualname__} {given}"
    if hasattr(value, "get_params"):
        parameters = [f"{name}={fingerprint(item)}" for name, item in sorted(value.get_params(deep=False).items())]
        return f"{fingerprint(type(value)).rpartition('.')[2]}({', '.join(parameters)})"
    text = description(value)
    return text if isinstance(value, _SHOWN_IN_FULL) else f"{text} {content_digest(value)}"


def description(value: Any) -> str:
    """``repr`` of an object without its address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def content_digest(value: Any) -> str:
    """SHA-256 of the content of an object: code, attributes, and the values of its tensors."""
    file = io.BytesIO()
    try:
        _ContentPickler(file).dump(value)
    except Exception as error:  # objects can fail to be pickled in many ways
        raise ValueError(
            f"{description(value)} cannot be recognised in another process ({type(error).__name__}: {error}). Give it a string "
            "attribute `fingerprint`, and another string whenever it changes"
        ) from error
    return hashlib.sha256(file.getvalue()).hexdigest()


class _ContentPickler(cloudpickle.Pickler):
    """A cloudpickle pickler that omits what differs between processes, or changes with use.

    This concerns file names and line numbers, the order of sets, addresses, whether equal strings are identical, imported
    submodules, and the state of iterators, generators of random numbers, files and locks.
    """

    def __init__(self, file):
        super().__init__(file)
        self._classes: set[type] = set()

    def persistent_id(self, obj):
        """Value that replaces an object in the pickle; ``None`` leaves it to cloudpickle."""
        kind = type(obj)
        if kind in (str, bytes):  # as a number: pickle stores identical strings only once, and equal ones twice
            content = obj.encode("utf-8", "surrogatepass") if kind is str else obj
            return int.from_bytes(hashlib.sha256(kind.__name__.encode() + content).digest(), "big")
        if isinstance(obj, CodeType):
            return "code", obj.co_code, obj.co_names, obj.co_consts, obj.co_freevars
        if isinstance(obj, Tensor):
            return "tensor", tensor_digest([("", obj.to_dense())])
        if kind is dict and "__name__" in obj and obj.keys() <= _MODULE_NAMES:  # cloudpickle's record of a function's module
            return "module", obj["__name__"]
        if kind is list and obj and all(isinstance(item, ModuleType) for item in obj):  # submodules, as far as imported
            return "modules"
        if isinstance(obj, _OPAQUE) or hasattr(kind, "__next__"):
            return "opaque", kind.__qualname__
        if isinstance(obj, set | frozenset):
            return "set", sorted(content_digest(item) for item in obj)
        if isinstance(obj, type) and _is_defined_locally(obj):
            if obj in self._classes:  # its methods may refer to it
                return "class", obj.__qualname__
            self._classes.add(obj)
            own = {name: attribute for name, attribute in vars(obj).items() if name not in _CLASS_INTERNALS}
            return "class", obj.__qualname__, obj.__bases__, own
        return None


def _is_defined_locally(kind: type) -> bool:
    """Whether a class is defined in a script, a notebook or a function, and cannot be imported."""
    return kind.__module__ == "__main__" or "<locals>" in kind.__qualname__


def tensor_digest(named: Iterable[tuple[Any, Tensor]]) -> str:
    """SHA-256 of tensors: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in named:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, which shows whether they were changed in place."""
    tensors = [(name, tensor) for one in _all_modules(module) for name, tensor in (*one.named_parameters(), *one.named_buffers())]
    return tensor_digest(tensors)


def _all_modules(module: nn.Module) -> list[nn.Module]:
    """A module, and those that it keeps in plain lists and dicts, where torch does not look for them."""
    found, registered = [module], set(module.modules())
    for one in found:
        for layer in one.modules():
            for name, value in vars(layer).items():
                members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
                hidden = [member for member in members if isinstance(member, nn.Module)] if name != "_modules" else []
                found += [member for member in hidden if member not in registered]
                registered |= {layer for member in hidden for layer in member.modules()}
    return found
