"""Networks as parameters of estimators: shared by their clones, and sent to another process once."""

import copy
import io
from collections import OrderedDict
from pickle import PicklingError
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
import joblib
import numpy as np
from torch import Tensor, nn

from ._core.backbones import module_digest, tensor_digest

# Networks that a process keeps of those that were sent to it.
_KEPT = 4


class HoldsModule:
    """Mixin of an estimator with a parameter that may be a network, or a list with some.

    ``clone`` would copy the weights and every task of a search would carry them. Nothing here ever changes a network that a user
    gave, so clones share it. Its pickle is one array: joblib writes such to a file that all tasks of its workers read, and a
    process makes the network of it once.
    """

    _module_parameter: str

    def __sklearn_clone__(self):
        cloned = super(HoldsModule, self._with(_hold)).__sklearn_clone__()  # type: ignore[misc]
        return cloned._with(_release)

    def __repr__(self, N_CHAR_MAX=700):
        """scikit-learn's, with the types of networks in the place of their layers."""
        return super(HoldsModule, self._with(_shown)).__repr__(N_CHAR_MAX)  # type: ignore[call-arg]

    def _with(self, change):
        """The same estimator, with its parameter changed."""
        name, other = self._module_parameter, object.__new__(type(self))
        other.__dict__.update(vars(self))
        if name in vars(self):
            other.__dict__[name] = _each(change, vars(self)[name])
        return other

    def __getstate__(self):
        state: Any = super().__getstate__()
        name = self._module_parameter
        return state | {name: _each(_hold, state[name])} if name in state else state

    def __setstate__(self, state):
        name = self._module_parameter
        super().__setstate__(state | {name: _each(_release, state[name])} if name in state else state)  # type: ignore[misc]


class _Held:
    """A network in the state of an estimator."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __sklearn_clone__(self):
        return self

    def __repr__(self):
        return f"<{type(self.module).__name__}>"

    def __deepcopy__(self, memo):
        return _Held(copy.deepcopy(self.module, memo))

    def __reduce__(self):
        return _arrived, _packed(self.module)


def _each(function, value: Any) -> Any:
    """A parameter, changed; of a list its members."""
    return type(value)(_each(function, one) for one in value) if isinstance(value, list | tuple) else function(value)


def _hold(value: Any) -> Any:
    return _Held(value) if isinstance(value, nn.Module) else value


def _release(value: Any) -> Any:
    return value.module if isinstance(value, _Held) else value


def _shown(value: Any) -> Any:
    return value._with(_shown) if isinstance(value, HoldsModule) else _hold(value)


_sent: WeakKeyDictionary[nn.Module, tuple[str, np.ndarray]] = WeakKeyDictionary()


def _packed(module: nn.Module) -> tuple[str, np.ndarray]:
    """Digest and pickle of a network; the same array as before if nothing has changed, by which joblib knows it again."""
    try:
        digest = _digest(module)
        if module not in _sent or _sent[module][0] != digest:
            on_cpu = all(tensor.device.type == "cpu" for tensor in (*module.parameters(), *module.buffers()))
            content = cloudpickle.dumps(module if on_cpu else copy.deepcopy(module).cpu())
            _sent[module] = digest, np.frombuffer(content, dtype=np.uint8)
    except Exception as error:  # whatever pickling a user's module raises
        raise PicklingError(
            f"a {type(module).__name__} cannot be saved or sent to another process ({type(error).__name__}: {error}). "
            "Take out of the module what cannot be pickled; or give the name of a timm model; or keep to one process, with "
            "n_jobs=1 or joblib.parallel_config(backend='threading')"
        ) from error
    return _sent[module]


class _WithoutTensors(cloudpickle.Pickler):
    """Pickles layers and code; tensors are put aside."""

    def __init__(self, file):
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj):
        """The number of a tensor."""
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors)


def _digest(module: nn.Module) -> str:
    """Of its layers, their code and the values of its tensors: torch's own pickles hold addresses."""
    file = io.BytesIO()
    pickler = _WithoutTensors(file)
    pickler.dump(module)
    return joblib.hash((file.getvalue(), tensor_digest(enumerate(pickler.tensors))))


def _state(module: nn.Module) -> tuple:
    return repr(module), module_digest(module)


_kept: OrderedDict[str, tuple[nn.Module, tuple]] = OrderedDict()


def _arrived(digest: str, content: np.ndarray) -> _Held:
    """The network of a pickle: that which this process has made of it before, unless it was changed since."""
    if digest not in _kept or _state(_kept[digest][0]) != _kept[digest][1]:
        module = cloudpickle.loads(content.data)
        _kept[digest] = module, _state(module)
    _kept.move_to_end(digest)
    while len(_kept) > _KEPT:
        _kept.popitem(last=False)
    return _Held(_kept[digest][0])
