"""Validation of what a probe is fitted to, and of what it predicts for."""

import numpy as np
import torch
from sklearn.utils import check_consistent_length, compute_class_weight
from sklearn.utils.validation import assert_all_finite, validate_data
from torch import Tensor

from ..utils._array_api import dispatched_tensor, to_numpy
from ..utils._arrays import row_chunks, tensor_from_numpy
from ..utils._device import resolve_device
from ..utils._labels import as_labels
from ..utils._sklearn_compat import check_sample_weight


def validate_samples(probe, X, *labels, reset: bool = False):
    """Validate features, avoiding copies, and labels if given.

    Returns
    -------
    X : ndarray or Tensor of shape (n, d), float16, float32 or float64
        A tensor, on its device, where scikit-learn dispatches arrays like the given one.
    y : ndarray of shape (n,)
        If labels are given.
    """
    y = [label if label is None else as_labels(to_numpy(label)) for label in labels]
    tensor = dispatched_tensor(X)
    if tensor is not None:
        validate_data(probe, tensor, *y, reset=reset, skip_check_array=True)
        check_consistent_length(tensor, *y)
        tensor = _validated_tensor(tensor)
        return (tensor, *y) if labels else tensor
    array = to_numpy(X)
    half = getattr(array, "dtype", None) == np.float16
    checks = {"dtype": [np.float64, np.float32, np.float16], "reset": reset, "ensure_all_finite": not half}
    checked = validate_data(probe, array, *y, **checks)
    array = checked[0] if labels else checked
    if half:
        for rows in row_chunks(array):
            part = array[rows]
            if not tensor_from_numpy(part).sum(dtype=torch.float32).isfinite():
                assert_all_finite(part.astype(np.float32), input_name="X")
    return checked


def _validated_tensor(X: Tensor) -> Tensor:
    if X.ndim != 2 or not len(X) or not X.shape[1] or X.is_complex():
        raise ValueError(
            f"X is a tensor of shape {tuple(X.shape)} and {X.dtype}; it has to be (n_samples, n_features), neither of them 0, "
            "and of real numbers"
        )
    if X.dtype not in (torch.float16, torch.float32, torch.float64):
        X = X.to(torch.float32 if X.device.type == "mps" else torch.float64)
    if not X.sum(dtype=max(X.dtype, torch.float32, key=lambda dtype: dtype.itemsize)).isfinite() and not X.isfinite().all():
        raise ValueError("Input X contains NaN or infinity; impute missing values, or remove these samples")
    return X


def effective_weights(probe, sample_weight, y: np.ndarray, classes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Sample weights times class weights, ``(n,)``, float64."""
    weight = check_sample_weight(to_numpy(sample_weight), y, dtype=np.float64, ensure_non_negative=True)
    if probe.class_weight is not None:
        by_class = compute_class_weight(probe.class_weight, classes=classes, y=y)
        if (by_class < 0).any():
            raise ValueError(f"class weights have to be ≥ 0; got {probe.class_weight}")
        weight = weight * by_class[codes]
    if not np.isfinite(weight.sum()):
        raise ValueError("the weights of the samples are NaN or infinite, or their sum is; check class_weight and sample_weight")
    if not weight.any():  # scikit-learn checks the sample weights without the class weights
        raise ValueError("all weights are zero; at least one sample needs a positive weight")
    return weight


def device_for(probe, X: np.ndarray | Tensor) -> torch.device:
    """Device on which a probe is fitted: that of a tensor, or the one that is set.

    Raises
    ------
    ValueError
        If a tensor is on another device than the one that is set.
    """
    if not isinstance(X, Tensor):
        return resolve_device(probe.device)
    if probe.device != "auto" and torch.empty(0, device=resolve_device(probe.device)).device != X.device:
        raise ValueError(f"X is on {X.device}, and device={str(probe.device)!r}; move X there, or use device='auto'")
    return X.device


def dtype_for(probe, X: np.ndarray | Tensor) -> torch.dtype:
    """dtype of the solution."""
    return torch_dtype(probe.dtype or ("float64" if X.dtype in (np.float64, torch.float64) else "float32"))


def torch_dtype(dtype) -> torch.dtype:
    """torch's dtype for numpy's."""
    return getattr(torch, np.dtype(dtype).name)
