"""Arrays of other libraries, under scikit-learn's array API dispatch."""

import numpy as np
import torch
from sklearn import get_config
from torch import Tensor

from ._sklearn_compat import get_namespace


def dispatched_tensor(X) -> Tensor | None:
    """``X`` as a tensor that shares its memory, on its device, if scikit-learn dispatches arrays like it; otherwise ``None``.

    The dispatch is switched on by ``sklearn.set_config(array_api_dispatch=True)``. Arrays of other libraries than torch are taken
    through DLPack, bfloat16 is converted to float32, and numpy's arrays are none of these.
    """
    if not get_config()["array_api_dispatch"]:
        return None
    if isinstance(X, Tensor):
        X = X.detach()
        return X.float() if X.dtype == torch.bfloat16 else X
    if isinstance(X, np.ndarray | np.generic) or not hasattr(X, "__dlpack__"):
        return None
    return torch.from_dlpack(X)


def in_kind(result: Tensor, X):
    """A result as an array of the library of ``X``, on the device of ``result``."""
    if isinstance(X, Tensor):
        return result
    xp, _ = get_namespace(X)
    return xp.from_dlpack(result)


def to_numpy(array):
    """A tensor, or another array that is dispatched, as a numpy array on the CPU; anything else as it is."""
    tensor = array if isinstance(array, Tensor) else dispatched_tensor(array)
    if tensor is None:
        return array
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
