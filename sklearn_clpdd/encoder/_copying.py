"""Copies of a user's network, and its layers and code apart from its tensors."""

import copy
import io
import pickle

import cloudpickle
from torch import Tensor, jit, nn
from torch.jit import ScriptModule


def copy_module(module: nn.Module) -> nn.Module:
    """A copy whose hooks, closures and replaced methods refer to the copy.

    ``copy.deepcopy`` does not copy functions, so that those which refer to the module would go on to use the original.
    cloudpickle copies those that cannot be imported, with what they refer to. Modules that cannot be pickled, such as
    parametrized ones, are copied by ``copy.deepcopy``.

    Raises
    ------
    ValueError
        If the module cannot be copied.
    """
    try:
        return _by_pickle(module)
    except Exception:  # pickling a user's module can fail in many ways
        pass
    try:
        return copy.deepcopy(module)
    except Exception as error:  # and so can copying it
        raise ValueError(
            f"a {type(module).__name__} cannot be copied, and the encoder freezes a copy ({type(error).__name__}: {error}). "
            "Remove from the module what cannot be copied"
        ) from error


def _by_pickle(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    pickler = ApartFromTensors(file)
    pickler.dump(module)
    memo: dict = {}
    tensors = [copy.deepcopy(tensor, memo) if tensor.is_leaf else tensor.detach().clone() for tensor in pickler.tensors]
    file.seek(0)
    unpickler = pickle.Unpickler(file)
    unpickler.persistent_load = lambda position: tensors[position]  # type: ignore[method-assign]
    return unpickler.load()


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
            jit.save(obj, file)
            return _load_script, (file.getvalue(),)
        return super().reducer_override(obj)


def _load_script(content: bytes) -> ScriptModule:
    return jit.load(io.BytesIO(content))


class ApartFromTensors(_ModulePickler):
    """Pickles layers and code, and collects the tensors."""

    def __init__(self, file):
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._positions: dict[int, int] = {}

    def persistent_id(self, obj):
        """Position of a tensor."""
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._positions:
            self._positions[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._positions[id(obj)]
