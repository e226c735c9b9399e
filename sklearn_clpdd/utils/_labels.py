"""Class labels: which ones are accepted, and how they are shown and stored."""

import numpy as np
import torch
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite
from torch import Tensor

_NUMBERS = (bool, int, float, np.generic)
# How many missing labels one error names.
_MAX_LISTED = 10
# Bytes by which the width of labels may exceed the longest one.
_MAX_ITEM = 2**12


def as_labels(y, name: str = "y") -> np.ndarray:
    """Labels as an array that numpy can sort and store: bool, integers, whole floats, strings, dates or durations.

    pandas' nullable, categorical and Arrow types become those of their values.

    Parameters
    ----------
    y : array-like of shape (n,) or (n, 1)
    name : str
        What the labels are called in messages.

    Returns
    -------
    ndarray of shape (n,)
        Its dtype is object only for strings.

    Raises
    ------
    ValueError
        If labels are missing, infinite, continuous, or of other or several types.
    """
    labels = column_or_1d(_to_numpy(y), warn=True)
    if labels.dtype == object and len({type(label) for label in labels}) == 1 and isinstance(labels[0], _NUMBERS):
        labels = np.array(labels.tolist())
    labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    if labels.dtype.kind == "f" and labels.dtype.itemsize > 8 and (labels == labels.astype(np.float64)).all():
        labels = labels.astype(np.float64)
    masked = np.ma.getmaskarray(y).ravel() if np.ma.isMaskedArray(y) else False
    missing = np.flatnonzero(_is_missing(labels) | masked)
    if len(missing):
        more = ", …" if len(missing) > _MAX_LISTED else ""
        raise ValueError(
            f"{len(missing)} of {len(labels)} labels are missing (NaN, None or NA), at the positions "
            f"{', '.join(map(str, missing[:_MAX_LISTED].tolist()))}{more} of {name}; remove these samples, or give them a class"
        )
    if labels.dtype.kind == "T":  # numpy's own strings of any length
        labels = labels.astype(object)
    kinds = {type(label).__name__ for label in labels} - {"str", "str_"} if labels.dtype == object else set()
    if kinds or labels.dtype.kind in "SVc":
        seen = ", ".join(sorted(kinds)) or str(labels.dtype)
        raise ValueError(
            f"Unknown label type: unknown. {name} contains labels of type {seen}; accepted are bool, int, whole numbers as "
            f"float, str, datetime64 and timedelta64, all of one type. Convert them, for example to str"
        )
    if labels.dtype.kind not in "biuUMm":
        assert_all_finite(labels, input_name=name)
        check_classification_targets(labels)
    return labels


def _to_numpy(y):
    if isinstance(y, Tensor):
        y = y.detach().cpu()
        return (y.float() if y.dtype == torch.bfloat16 else y).numpy()
    if isinstance(y, list | tuple) and not any(isinstance(label, list | tuple | np.ndarray) for label in y):
        return _from_list(y)
    if not hasattr(y, "__len__") and not hasattr(y, "__array__"):
        raise ValueError(f"labels are a one-dimensional array, not {y!r}")
    if getattr(y, "ndim", 1) == 2 and hasattr(y, "iloc") and y.shape[1] == 1:
        return _to_numpy(y.iloc[:, 0])[:, None]
    if not hasattr(y, "to_numpy"):
        return y
    try:
        return np.asarray(y.to_numpy())
    except Exception:  # pyarrow's arrays, of which only some can share their memory
        return np.asarray(y.to_numpy(zero_copy_only=False))


def _from_list(y: list | tuple) -> np.ndarray:
    """An array of labels of one type; of objects where numpy would turn labels of several types into strings or numbers."""
    objects = np.empty(len(y), dtype=object)
    objects[:] = y
    kinds = {type(label) for label in y}
    is_text = kinds <= {str, np.str_} and not any(label.endswith("\0") for label in y)  # which numpy would drop
    is_simple = len(kinds) == 1 and issubclass(next(iter(kinds)), (*_NUMBERS, np.datetime64, np.timedelta64))
    return np.array(list(y)) if is_text or is_simple or kinds <= {int, float} else objects


def _is_missing(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "f":
        return np.isnan(labels)
    if labels.dtype.kind in "Mm":
        return np.isnat(labels)
    if labels.dtype != object:
        return np.zeros(len(labels), dtype=bool)
    names = ("NoneType", "NAType", "NaTType")
    numbers = (float, np.floating)
    return np.array(
        [type(label).__name__ in names or (isinstance(label, numbers) and label != label) for label in labels.ravel()], dtype=bool
    )


def label_text(label) -> str:
    """A label in words; undecodable bytes of a folder's name are escaped, so that the text can be encoded."""
    return str(label).encode("utf-8", "backslashreplace").decode()


def labels_to_json(labels: np.ndarray) -> list:
    """Labels as JSON's types, which `labels_from_json` turns back into the same array."""
    if labels.dtype.kind == "M":
        return np.datetime_as_string(labels).tolist()
    return (labels.astype(np.int64) if labels.dtype.kind == "m" else labels).tolist()


def labels_from_json(values: list, dtype: str) -> np.ndarray:
    """Labels of a dtype that `as_labels` accepts.

    Raises
    ------
    TypeError, ValueError
        If it is another dtype, or they do not fit.
    """
    if not isinstance(values, list) or not all(isinstance(value, bool | int | float | str) for value in values):
        raise TypeError("labels are no list of numbers and strings")
    kind = np.dtype(object if dtype == "object" else dtype)
    longest = max((len(value) for value in values if isinstance(value, str)), default=0)
    if kind.kind not in "biufUMmO" or kind.itemsize > 4 * longest + _MAX_ITEM:  # a tiny file must not ask for gigabytes
        raise TypeError(f"label_dtype {dtype!r} is not one of labels")
    if kind.kind in "OU" and not all(isinstance(value, str) for value in values):
        raise TypeError("labels are not strings")
    labels = np.array(values, dtype=kind)
    back = labels_to_json(labels)
    if not isinstance(dtype, str) or back != values or [type(one) for one in back] != [type(one) for one in values]:
        raise TypeError(f"labels {values[:3]} are not of label_dtype {dtype!r}")
    if len(set(values)) < len(values):
        raise TypeError("two classes have the same label")
    return labels
