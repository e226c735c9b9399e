"""Fingerprints, by which parameters and networks are recognised in another process."""

import hashlib
import io
import re
from collections.abc import Iterable
from numbers import Real
from types import CodeType
from typing import Any

import cloudpickle
from torch import Tensor, nn, uint8

# Attributes that Python adds to a class, which say nothing about its behaviour.
_CLASS_INTERNALS = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"}

_MODULE_NAMES = {"__package__", "__name__", "__path__", "__file__"}


def fingerprint(value: Any) -> str:
    """Describe a parameter such that equal ones have equal descriptions, in other processes too.

    An object may have a string attribute ``fingerprint``, which is then used together with its type, and estimators are described
    by their parameters. Other functions and objects are described by what cloudpickle would store of them: their content if they
    are defined in a script, a notebook or another function, or the name under which they are imported from a module.
    """
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, dict):
        return repr(sorted((fingerprint(key), fingerprint(own)) for key, own in value.items()))
    if isinstance(value, type):
        name = f"{value.__module__}.{value.__qualname__}"
        return f"{name} {content_digest(value)}" if _is_defined_locally(value) else name
    given = getattr(value, "fingerprint", None)
    if isinstance(given, str):
        return f"{fingerprint(type(value))} {given}"
    if hasattr(value, "get_params"):
        parameters = [f"{name}={fingerprint(own)}" for name, own in sorted(value.get_params(deep=False).items())]
        return f"{fingerprint(type(value)).rpartition('.')[2]}({', '.join(parameters)})"
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    if text == repr(value):
        return text
    try:
        return f"{text} {content_digest(value)}"
    except Exception:  # objects can fail to be pickled in many ways
        return text


def content_digest(value: Any) -> str:
    """SHA-256 of the content of an object: code, attributes, and the values of its tensors."""
    file = io.BytesIO()
    _ContentPickler(file).dump(value)
    return hashlib.sha256(file.getvalue()).hexdigest()


class _ContentPickler(cloudpickle.Pickler):
    """cloudpickle, without what differs between processes: file names, line numbers, the order of sets, storage addresses."""

    def __init__(self, file):
        super().__init__(file)
        self._classes: set[type] = set()

    def persistent_id(self, obj):
        """What stands for an object in the pickle; ``None`` where cloudpickle's own form does not depend on the process."""
        if isinstance(obj, CodeType):
            return "code", obj.co_code, obj.co_names, obj.co_consts, obj.co_freevars
        if isinstance(obj, Tensor):
            return "tensor", tensor_digest([("", obj.to_dense())])
        if type(obj) is dict and "__name__" in obj and obj.keys() <= _MODULE_NAMES:  # cloudpickle's record of where a function is
            return "module", obj["__name__"]
        if hasattr(type(obj), "__next__"):  # iterators, such as counters, change while they are used
            return "iterator", type(obj).__qualname__
        if isinstance(obj, set | frozenset):
            return "set", sorted(content_digest(one) for one in obj)
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
    return tensor_digest([*module.named_parameters(), *module.named_buffers()])
