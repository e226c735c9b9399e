"""Recognise the form of ``X``, and say what is wrong with everything else."""

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ._base import Images
from ._lazy import as_lazy_pictures
from ._opening import describe, is_missing, is_picture
from ._pictures import PictureList
from ._pixels import PixelArray

ACCEPTED = (
    "Accepted are arrays (n, H, W) or (n, H, W, 1 or 3) and torch tensors (n, 1 or 3, H, W), uint8 or float in [0, 1]; "
    "rows (n, H*W*C) with image_shape=; and lists, columns, data sets of Hugging Face and torch and other sequences of "
    "pictures: file paths, URLs, contents of files as bytes, {'bytes': ..., 'path': ...}, PIL images, or arrays (H, W) or "
    "(H, W, 1 or 3) of any size"
)


def as_images(X: Any, image_shape: tuple[int, ...] | None = None, missing: str = "error") -> Images:
    """Recognise the form of ``X`` by its shape and type.

    Parameters
    ----------
    X : array-like or sequence of pictures
        See `ACCEPTED`. A sequence of pictures that is no list, such as a data set of Hugging Face or a torch ``Subset``, is
        never copied: its elements are taken batch by batch.
    image_shape : tuple (H, W) or (H, W, C), optional
        Shape of the image in each row of a two-dimensional ``X``.
    missing : {"error", "zero"}
        Whether pictures of a sequence may be missing.

    Raises
    ------
    ValueError, TypeError
        If ``X`` has any other form; the message says what was passed.
    """
    if isinstance(X, Images):
        return X
    if isinstance(X, str | os.PathLike | bytes | Image.Image):
        raise TypeError(f"X is one picture, {describe(X)}; pass a list of pictures. {ACCEPTED}")
    if isinstance(X, Tensor):
        return _tensor_images(X.detach().cpu(), image_shape)
    lazy = as_lazy_pictures(X) if image_shape is None else None
    if lazy is not None:
        return _picture_list(lazy, missing)
    if hasattr(X, "__array__") or hasattr(X, "__array_interface__"):
        return _array_images(X, image_shape, missing)
    pictures = _as_sequence(X)
    if not isinstance(pictures, list):
        return _picture_list(pictures, missing)
    if not pictures or isinstance(pictures[0], list) or all(isinstance(one, Real) for one in pictures):
        return _array_images(pictures, image_shape, missing)
    if not (isinstance(pictures[0], np.ndarray | Tensor) and _have_one_form(pictures)):
        return _picture_list(pictures, missing)
    if isinstance(pictures[0], Tensor):
        return _tensor_images(torch.stack(pictures).detach().cpu(), image_shape)
    return _array_images(pictures, image_shape, missing)


def _have_one_form(pictures: list) -> bool:
    first = pictures[0]
    return all(type(one) is type(first) and (one.shape, one.dtype) == (first.shape, first.dtype) for one in pictures)


def _as_sequence(X) -> Sequence:
    """A list or tuple as a list; another sequence with random access as it is."""
    try:
        len(X)
        is_sequence = not isinstance(X, Mapping | Set | DataLoader | IterableDataset)
    except TypeError:  # also that of scipy's sparse matrices
        is_sequence = False
    if not is_sequence and _is_stream(X):
        raise TypeError(
            f"X is a {type(X).__name__}, a stream, of which neither the length nor a given image is known. "
            "FrozenEncoder.iter_transform encodes pictures of a stream block by block; or pass a list or an indexable data set"
        )
    if not is_sequence:
        raise TypeError(f"X is a {type(X).__name__}, which is not a sequence of images; pass a list. {ACCEPTED}")
    if isinstance(X, list | tuple | deque) or not hasattr(X, "__getitem__"):
        return list(X)
    return X


def _is_stream(X) -> bool:
    if isinstance(X, DataLoader | IterableDataset):
        return True
    return isinstance(X, Iterable) and not isinstance(X, Mapping | Set) and not hasattr(X, "shape")


def _tensor_images(tensor: Tensor, image_shape) -> Images:
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ValueError(f"images have dtype uint8 or float; got a tensor {tuple(tensor.shape)} of {tensor.dtype}. {ACCEPTED}")
    if tensor.dtype not in (torch.uint8, torch.float32, torch.float64):
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.ndim == 2:
        return as_images(tensor.numpy(), image_shape)
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise ValueError(f"X is a tensor of shape {tuple(tensor.shape)}, which is not a shape of images. {ACCEPTED}")
    _check_not_empty(tensor.shape)
    return PixelArray(tensor)


def _array_images(X, image_shape, missing: str = "error") -> Images:
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X is not an array of images of one shape: {error}. {ACCEPTED}") from error
    if array.dtype.kind == "S":
        raise ValueError(f"X is a numpy array of bytes, which has lost zeros at their ends; pass a list of bytes. {ACCEPTED}")
    if array.ndim == 1 or (
        array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "OU"
    ):  # a data frame with one column of paths
        return _picture_list(array.ravel().tolist(), missing)
    if array.ndim == 2 and hasattr(X, "columns") and array.dtype.kind == "O":
        raise ValueError(f"X is a data frame with the columns {list(X.columns)}; pass the one that has the pictures")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(
            f"images have dtype uint8 (0 to 255) or float (in [0, 1]); got an array {array.shape} of {array.dtype}. {ACCEPTED}"
        )
    if array.ndim == 2:
        array = array.reshape(_unfolded(array.shape, image_shape))
    if array.ndim == 3 and array.shape[2] in (1, 3):
        raise ValueError(f"X has shape {array.shape}: one image? Pass X[None]. {ACCEPTED}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(f"X has shape {array.shape}, which is not a shape of images. {ACCEPTED}")
    _check_not_empty(array.shape)
    return PixelArray(array)


def _picture_list(pictures: Sequence, missing: str) -> Images:
    if len(pictures) == 0:
        raise ValueError(f"X contains no images. {ACCEPTED}")
    for i, picture in enumerate(pictures if isinstance(pictures, list) else ()):
        if not (is_picture(picture) or is_missing(picture)):
            raise TypeError(f"element {i} of X is {describe(picture)}, not a picture. {ACCEPTED}")
    return PictureList(pictures, missing)


def _unfolded(shape, image_shape) -> tuple[int, ...]:
    """Shape of ``X`` with each row as an image."""
    n, width = shape
    if image_shape is None:
        raise ValueError(
            f"X has two dimensions, {tuple(shape)}. If its rows are images, pass FrozenEncoder(image_shape=) their shape, "
            f"(H, W) or (H, W, C); if they are features, a distiller needs encoder=None. {ACCEPTED}"
        )
    if not all(isinstance(side, Integral) and int(side) > 0 for side in image_shape):
        raise ValueError(f"image_shape has to be (H, W) or (H, W, C) in whole numbers above 0; got {tuple(image_shape)}")
    if len(image_shape) not in (2, 3) or int(np.prod(image_shape)) != width:
        raise ValueError(
            f"rows of {width} values do not fit image_shape={tuple(image_shape)} ({int(np.prod(image_shape))} values): "
            f"pass (H, W) or (H, W, C) whose product is {width}"
        )
    return (n, *image_shape) if len(image_shape) == 3 else (n, *image_shape, 1)


def _check_not_empty(shape) -> None:
    if 0 in shape:
        raise ValueError(f"X has shape {tuple(shape)}: no images, or images of size zero. {ACCEPTED}")
