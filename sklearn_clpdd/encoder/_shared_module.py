"""Networks as parameters of estimators: shared by clones, and sent to another process once."""

import copy
import io
from collections import OrderedDict
from pickle import PicklingError
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
import joblib
import numpy as np
from torch import nn

from ..utils._fingerprint import module_digest, tensor_digest
from ._copying import ApartFromTensors, pickled

# Unpickled networks that a process keeps.
_MAX_UNPICKLED = 4
_pickle_cache: WeakKeyDictionary[nn.Module, tuple[str, np.ndarray]] = WeakKeyDictionary()
_unpickle_cache: OrderedDict[str, tuple[nn.Module, tuple]] = OrderedDict()


class SharedModuleMixin:
    """Mixin for an estimator with a parameter that may be a network, or a list that contains networks.

    By default, ``clone`` would copy the weights, and each task of a search would carry its own copy. This library never changes
    a network that a user passes, so clones share it. The network is pickled as a single array, which joblib writes to a file
    for all tasks of its workers, and each process unpickles it once.
    """

    _module_parameter: str

    def __sklearn_clone__(self):
        cloned = super(SharedModuleMixin, self._with(_wrap)).__sklearn_clone__()  # type: ignore[misc]
        return cloned._with(_unwrap)

    def __repr__(self, N_CHAR_MAX=700):
        """scikit-learn's repr, with only the types of networks instead of their layers."""
        return super(SharedModuleMixin, self._with(_abbreviate)).__repr__(N_CHAR_MAX)  # type: ignore[call-arg]

    def _with(self, change):
        """The same estimator, with ``change`` applied to its network parameter."""
        name, other = self._module_parameter, object.__new__(type(self))
        other.__dict__.update(vars(self))
        if name in vars(self):
            other.__dict__[name] = _map_nested(change, vars(self)[name])
        return other

    def __getstate__(self):
        state: Any = super().__getstate__()
        name = self._module_parameter
        return state | {name: _map_nested(_wrap, state[name])} if name in state else state

    def __setstate__(self, state):
        name = self._module_parameter
        super().__setstate__(state | {name: _map_nested(_unwrap, state[name])} if name in state else state)  # type: ignore[misc]


class SharedModule:
    """A network in the state of an estimator, which `clone` does not copy."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __sklearn_clone__(self):
        return self

    def __repr__(self):
        return f"<{type(self.module).__name__}>"

    def __deepcopy__(self, memo):
        return SharedModule(copy.deepcopy(self.module, memo))

    def __reduce_ex__(self, protocol):
        return _unpickle, pickle_once(self.module)

    def __reduce__(self):  # pickle does not ask for it, but skops does
        raise TypeError(
            f"a {type(self.module).__name__} is a network, which cannot be saved without its code. Pass the name of a network to "
            "FrozenEncoder, or save the estimator with pickle or joblib; save_probe saves a probe behind a module"
        )


def _map_nested(function, value: Any) -> Any:
    """Apply a function to a parameter, or to the members of a list."""
    return type(value)(_map_nested(function, one) for one in value) if isinstance(value, list | tuple) else function(value)


def _wrap(value: Any) -> Any:
    return SharedModule(value) if isinstance(value, nn.Module) else value


def _unwrap(value: Any) -> Any:
    return value.module if isinstance(value, SharedModule) else value


def _abbreviate(value: Any) -> Any:
    return value._with(_abbreviate) if isinstance(value, SharedModuleMixin) else _wrap(value)


def pickle_once(module: nn.Module) -> tuple[str, np.ndarray]:
    """Digest and pickle of a network: the identical array as long as nothing changes, so that joblib recognises it."""
    try:
        digest = _digest(module)
        if module not in _pickle_cache or _pickle_cache[module][0] != digest:
            on_cpu = all(tensor.device.type == "cpu" for tensor in (*module.parameters(), *module.buffers()))
            content = pickled(module if on_cpu else copy.deepcopy(module).cpu())
            _pickle_cache[module] = digest, np.frombuffer(content, dtype=np.uint8)
    except Exception as error:  # pickling a user's module can fail in many ways
        raise PicklingError(
            f"a {type(module).__name__} cannot be saved or sent to another process ({type(error).__name__}: {error}). "
            "Remove from the module what cannot be pickled; or pass the name of a network; or use one process, with n_jobs=1 "
            "or joblib.parallel_config(backend='threading')"
        ) from error
    return _pickle_cache[module]


def _digest(module: nn.Module) -> str:
    """Digest of layers, code and tensor values; torch's own pickles contain addresses."""
    file = io.BytesIO()
    pickler = ApartFromTensors(file)
    pickler.dump(module)
    return joblib.hash((file.getvalue(), tensor_digest(enumerate(pickler.apart))))


def _state(module: nn.Module) -> tuple:
    return repr(module), module_digest(module)


def _unpickle(digest: str, content: np.ndarray) -> SharedModule:
    """Unpickle a network, or return the one that this process has unpickled before, unless it has changed since."""
    if digest not in _unpickle_cache or _state(_unpickle_cache[digest][0]) != _unpickle_cache[digest][1]:
        module = cloudpickle.loads(content.data)
        _unpickle_cache[digest] = module, _state(module)
    _unpickle_cache.move_to_end(digest)
    while len(_unpickle_cache) > _MAX_UNPICKLED:
        _unpickle_cache.popitem(last=False)
    return SharedModule(_unpickle_cache[digest][0])
