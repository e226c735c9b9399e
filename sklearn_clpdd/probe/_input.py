"""Validation of what a probe is fitted to, and of what it predicts for."""

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import check_consistent_length, compute_class_weight
from sklearn.utils.validation import assert_all_finite, validate_data
from torch import Tensor

from ..utils._array_api import dispatched_tensor, to_numpy
from ..utils._arrays import row_chunks, tensor_from_numpy
from ..utils._device import resolve_device
from ..utils._labels import as_labels
from ..utils._sklearn_compat import check_sample_weight


def validate_samples(probe, X, *labels, reset: bool = False, may_be_empty: bool = False):
    """Validate features, avoiding copies, and labels if given.

    Returns
    -------
    X : ndarray or Tensor of shape (n, d), float16, float32 or float64
        A tensor, on its device, where scikit-learn dispatches arrays like the given one.
    y : ndarray of shape (n,) or (n, n_labels)
        If labels are given.
    """
    y = [label if label is None else labels_or_indicators(label) for label in labels]
    tensor = dispatched_tensor(X)
    if tensor is not None:
        validate_data(probe, tensor, *y, reset=reset, skip_check_array=True)
        check_consistent_length(tensor, *y)
        if len(tensor) or not may_be_empty:
            tensor = _validated_tensor(tensor)
        return (tensor, *y) if labels else tensor
    array = to_numpy(X)
    half = getattr(array, "dtype", None) == np.float16
    checks = {"dtype": [np.float64, np.float32, np.float16], "reset": reset, "ensure_all_finite": not half}
    if may_be_empty and getattr(array, "shape", (1,))[0] == 0 and not sparse.issparse(array):
        check_consistent_length(array, *y)
        return (validate_data(probe, array, ensure_min_samples=0, **checks), *y)
    if labels:
        checks["multi_output"] = True
    checked = validate_data(probe, array, *y, **checks)
    array = checked[0] if labels else checked
    if half:
        for rows in row_chunks(array):
            part = array[rows]
            if not tensor_from_numpy(part).sum(dtype=torch.float32).isfinite():
                assert_all_finite(part.astype(np.float32), input_name="X")
    return checked


def labels_or_indicators(y) -> np.ndarray:
    """Class labels ``(n,)``, or an indicator matrix ``(n, n_labels)``, int64.

    Raises
    ------
    ValueError
        If a matrix has other numbers than 0 and 1.
    """
    values = y.toarray() if sparse.issparse(y) else to_numpy(y)
    is_nested = isinstance(values, list | tuple) and len(values) > 0 and hasattr(values[0], "__len__")
    if is_nested and not isinstance(values[0], str | bytes):
        values = np.asarray(values)
    if getattr(values, "ndim", 1) != 2 or values.shape[1] < 2:
        return as_labels(values)
    matrix = np.asarray(values)
    if matrix.dtype.kind not in "biuf" or not np.isin(matrix, (0, 1)).all():
        seen = np.unique(matrix[~np.isin(matrix, (0, 1))])[:3].tolist() if matrix.dtype.kind in "biuf" else matrix.dtype
        raise ValueError(
            f"Unknown label type: y is a matrix of shape {matrix.shape} with {seen}, so it is no indicator matrix; pass labels "
            "of shape (n_samples,), or 0 and 1 for each label of each sample (sklearn.preprocessing.MultiLabelBinarizer)"
        )
    return matrix.astype(np.int64)


def validated_prior(probe, n_classes: int, n_features: int, *, is_multilabel: bool = False) -> np.ndarray | None:
    """Coefficients towards which the penalty pulls, ``(n_classes, n_features)``, float64, or ``None``.

    Of two classes only the difference matters, so that they become opposite to each other.

    Raises
    ------
    ValueError
        If they have another shape, are not finite, or the kernel has no coefficients.
    """
    if probe.coef_prior is None:
        return None
    if not probe._solver.is_linear:
        raise ValueError(f"coef_prior needs kernel='linear' or 'cosine', which have coefficients; got {probe.kernel!r}")
    prior = np.array(to_numpy(probe.coef_prior), dtype=np.float64)
    is_binary = n_classes == 2 and not is_multilabel
    accepted = [(n_classes, n_features), *([(1, n_features)] if is_binary else [])]
    if prior.shape not in accepted:
        raise ValueError(
            f"coef_prior has the shape {prior.shape}; it has to be {' or '.join(map(str, accepted))}: one row for each of "
            f"{n_classes} {'labels' if is_multilabel else 'classes, sorted (in partial_fit: all `classes`)'}"
        )
    if not np.isfinite(prior).all():
        raise ValueError(f"coef_prior has {np.count_nonzero(~np.isfinite(prior))} numbers that are NaN or infinite")
    if not is_binary:
        return prior
    half = (prior[1] - prior[0]) / 2 if len(prior) == 2 else prior[0] / (2 if probe.loss == "logistic" else 1)
    return np.stack([-half, half])


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


def effective_weights(
    probe, sample_weight, y: np.ndarray, classes: np.ndarray, codes: np.ndarray, *, are_all_classes: bool = True
) -> np.ndarray:
    """Sample weights times class weights, ``(n,)``, float64."""
    if not len(y):
        return np.zeros(0)
    weight = check_sample_weight(to_numpy(sample_weight), y, dtype=np.float64, ensure_non_negative=True)
    if probe.class_weight is not None and y.ndim == 2:
        raise ValueError("class_weight is for classes, and y is an indicator matrix of several labels; use sample_weight")
    if probe.class_weight is not None:
        if are_all_classes:
            by_class = compute_class_weight(probe.class_weight, classes=classes, y=y)
        else:  # those that have weights may come later
            by_class = np.array([probe.class_weight.get(label, 1.0) for label in classes.tolist()])
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
