"""Every accepted form of images as ``X``, read in batches of tensors, and the errors for everything else."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property, partial
from hashlib import blake2b
from numbers import Integral, Real
from stat import S_ISDIR, S_ISREG

import joblib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ._decoding import PICTURES, Picture, UnusablePictureError, decode, describe, picture_content
from ._feature_cache import KEY_BYTES
from ._preprocessing import Preprocessing

ACCEPTED = (
    "Accepted are arrays (n, H, W) or (n, H, W, 1 or 3) and torch tensors (n, 1 or 3, H, W), uint8 or float in [0, 1]; "
    "rows (n, H*W*C) with image_shape=; and lists, one-dimensional arrays, columns and other sequences of pictures: file paths, "
    "contents of files as bytes, PIL images, or arrays (H, W) or (H, W, 1 or 3) of any size"
)
# How many unusable images one error names.
_MAX_LISTED = 10
# Images whose values are checked at once, so that checking a large array needs little memory.
_CHUNK = 1024
_MISSING = "no such file"


class Images(ABC):
    """``n`` images in any form, read in batches and never converted to floats all at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def check(self, indices: Sequence[int] | None = None) -> None:
        """Raise if files are missing or values are out of range; files are not decoded. ``indices`` selects images."""

    @abstractmethod
    def keys(self) -> np.ndarray:
        """A digest of each image that changes with the image: uint8 ``(n, KEY_BYTES)``."""

    @abstractmethod
    def portable_keys(self) -> np.ndarray:
        """Digests that are the same on every machine with a copy of the images."""

    @abstractmethod
    def read(self, indices, preprocessing: Preprocessing, n_jobs: int | None = None) -> Tensor:
        """The images at ``indices``, float32 RGB in [0, 1], resized and cropped: ``(len(indices), 3, s, s)``."""

    def batches(
        self,
        indices: Sequence[int],
        batch_size: int,
        preprocessing: Preprocessing,
        n_jobs: int | None,
        faults: dict[int, str],
    ) -> Iterator[Tensor]:
        """Yield batches of the images at ``indices`` until one cannot be decoded; from then on, only collect faults.

        ``faults`` maps the positions of undecodable images to the reasons.
        """
        for start in range(0, len(indices), batch_size):
            yield self.read(indices[start : start + batch_size], preprocessing, n_jobs)

    def report(self, faults: dict[int, str]) -> None:  # noqa: B027 (arrays have no faults)
        """Raise one error for all images that could not be decoded, if there are any."""


class _PixelArray(Images):
    """A numpy array ``(n, H, W, C)`` or a tensor ``(n, C, H, W)``, with 1 or 3 channels, as the user passed it."""

    def __init__(self, pixels: np.ndarray | Tensor):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def check(self, indices=None):
        if self.pixels.dtype in (np.uint8, torch.uint8):
            return
        indices = range(len(self)) if indices is None else indices
        for part in (indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)):
            chunk = self._at(part)
            low, high = float(chunk.min()), float(chunk.max())
            if not (low >= -1e-6 and high <= 1 + 1e-6):  # also true for NaN, which min and max propagate
                seen = "NaN" if np.isnan(low) or np.isnan(high) else f"values from {low:g} to {high:g}"
                raise ValueError(
                    f"float images have values in [0, 1]; got {seen} (images {part[0]} to {part[-1]}). "
                    "Rescale them to [0, 1], or pass uint8"
                )

    def keys(self):
        return self._keys

    portable_keys = keys

    @cached_property
    def _keys(self) -> np.ndarray:
        pixels = self.pixels if isinstance(self.pixels, np.ndarray) else self.pixels.numpy()
        form = f"{type(self.pixels).__name__} {pixels.dtype} {pixels.shape[1:]}".encode()
        return _stack_keys(_digest(form, np.ascontiguousarray(image).data) for image in pixels)

    def _at(self, indices):
        """The pixels of these images; a view if ``indices`` is a range."""
        return self.pixels[slice(indices.start, indices.stop) if isinstance(indices, range) else indices]

    def read(self, indices, preprocessing, n_jobs=None):
        shape = self.pixels.shape
        if preprocessing.is_alone(*(shape[1:3] if isinstance(self.pixels, np.ndarray) else shape[2:])):
            images = _parallel(n_jobs)(joblib.delayed(decode)(self.pixels[i], preprocessing) for i in indices)
            return torch.cat(images)
        batch = self._at(indices)
        if isinstance(batch, np.ndarray):  # torch has no negative strides, and only native dtypes
            dtype = np.uint8 if batch.dtype == np.uint8 else np.float32
            batch = torch.from_numpy(np.array(batch, dtype, order="C")).permute(0, 3, 1, 2)
        batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
        return preprocessing(batch.expand(-1, 3, -1, -1))


class _Fault(str):
    """Why a sequence did not return its element."""


class _PictureList(Images):
    """Pictures of any kind, size and mode, which are decoded batch by batch.

    Parameters
    ----------
    pictures : Sequence
        They are taken one after another, because getting an element of a user's sequence may not be thread-safe.
    """

    def __init__(self, pictures: Sequence):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def _element(self, i: int) -> Picture | _Fault:
        if isinstance(self.pictures, list):
            return self.pictures[i]  # whose files `check` has looked up
        try:
            picture = self.pictures[i]
        except Exception as error:  # a user's sequence can fail in many ways
            return _Fault(f"getting it raised {type(error).__name__}: {error}")
        status = _status_of(picture) if isinstance(picture, str | os.PathLike) else None
        return _Fault(status) if isinstance(status, str) else picture

    def check(self, indices=None):
        if not isinstance(self.pictures, list):  # a column or a data set decodes what it returns
            return
        indices = range(len(self)) if indices is None else indices
        faults = {i: _status_of(self.pictures[i]) for i in indices if isinstance(self.pictures[i], str | os.PathLike)}
        self.report({i: fault for i, fault in faults.items() if isinstance(fault, str)})

    def keys(self):
        return self._key_pairs[0]

    def portable_keys(self):
        return self._key_pairs[1]

    @cached_property
    def _key_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        pairs: list = [_digest_pair(self._element(i)) for i in range(len(self))]
        self.report({i: pair for i, pair in enumerate(pairs) if isinstance(pair, str)})
        return _stack_keys(pair[0] for pair in pairs), _stack_keys(pair[1] for pair in pairs)

    def read(self, indices, preprocessing, n_jobs=None):
        faults: dict[int, str] = {}
        batches = list(self.batches(indices, len(indices), preprocessing, n_jobs, faults))
        self.report(faults)
        return batches[0]

    def batches(self, indices, batch_size, preprocessing, n_jobs, faults):
        parallel, decoded = _parallel(n_jobs), partial(_decode, preprocessing=preprocessing)
        for start in range(0, len(indices), batch_size):
            part = [int(i) for i in indices[start : start + batch_size]]
            images = parallel(joblib.delayed(decoded)(self._element(i)) for i in part)
            faults.update((i, image) for i, image in zip(part, images, strict=True) if isinstance(image, str))
            if not faults:
                yield torch.cat(images)

    def report(self, faults):
        if not faults:
            return
        lines = [f"  X[{i}], {describe(self._element(i))}: {faults[i]}" for i in sorted(faults)[:_MAX_LISTED]]
        if len(faults) > _MAX_LISTED:
            lines.append(f"  … and {len(faults) - _MAX_LISTED} more")
        lines.append("Fix these images, or remove them from X (and y)")
        kind = FileNotFoundError if all(fault == _MISSING for fault in faults.values()) else ValueError
        raise kind(f"{len(faults)} of {len(self)} images cannot be read:\n" + "\n".join(lines))


def as_images(X, image_shape: tuple[int, ...] | None = None) -> Images:
    """Recognise the form of ``X`` by its shape and type.

    Parameters
    ----------
    X : array-like or sequence of pictures
        See `ACCEPTED`. A sequence of pictures that is no list, such as a column of a Hugging Face data set or a torch
        ``Subset``, is never copied: its elements are taken batch by batch.
    image_shape : tuple (H, W) or (H, W, C), optional
        Shape of the image in each row of a two-dimensional ``X``.

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
    if hasattr(X, "__array__") or hasattr(X, "__array_interface__"):
        return _array_images(X, image_shape)
    pictures = _as_sequence(X)
    if not isinstance(pictures, list):
        return _picture_list(pictures)
    if not pictures or isinstance(pictures[0], list) or all(isinstance(one, Real) for one in pictures):
        return _array_images(pictures, image_shape)
    if not (isinstance(pictures[0], np.ndarray | Tensor) and _have_one_form(pictures)):
        return _picture_list(pictures)
    if isinstance(pictures[0], Tensor):
        return _tensor_images(torch.stack(pictures).detach().cpu(), image_shape)
    return _array_images(pictures, image_shape)


def _have_one_form(pictures: list) -> bool:
    first = pictures[0]
    return all(type(one) is type(first) and (one.shape, one.dtype) == (first.shape, first.dtype) for one in pictures)


def _as_sequence(X) -> Sequence:
    """A list or tuple as a list; another sequence with random access as it is."""
    try:
        len(X)
        is_sequence = not isinstance(X, Mapping | Set)
    except TypeError:  # also that of scipy's sparse matrices
        is_sequence = False
    if not is_sequence:
        raise TypeError(f"X is a {type(X).__name__}, which is not a sequence of images; pass a list. {ACCEPTED}")
    if isinstance(X, list | tuple | deque) or not hasattr(X, "__getitem__"):
        return list(X)
    return X


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
    return _PixelArray(tensor)


def _array_images(X, image_shape) -> Images:
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X is not an array of images of one shape: {error}. {ACCEPTED}") from error
    if array.dtype.kind == "S":
        raise ValueError(f"X is a numpy array of bytes, which has lost zeros at their ends; pass a list of bytes. {ACCEPTED}")
    if array.ndim == 1 or (
        array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "OU"
    ):  # a data frame with one column of paths
        return _picture_list(array.ravel().tolist())
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
    return _PixelArray(array)


def _picture_list(pictures: Sequence) -> Images:
    if len(pictures) == 0:
        raise ValueError(f"X contains no images. {ACCEPTED}")
    for i, picture in enumerate(pictures if isinstance(pictures, list) else ()):
        if not isinstance(picture, PICTURES):
            raise TypeError(f"element {i} of X is {describe(picture)}, not a picture. {ACCEPTED}")
    return _PictureList(pictures)


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


def _decode(picture: Picture | _Fault, preprocessing: Preprocessing) -> Tensor | str:
    """A picture as the network sees it, or what is wrong with it."""
    if isinstance(picture, _Fault):
        return str(picture)
    try:
        return decode(picture, preprocessing)
    except FileNotFoundError:
        return _MISSING
    except UnusablePictureError as error:
        return str(error)


def _parallel(n_jobs: int | None) -> joblib.Parallel:
    return joblib.Parallel(_n_threads(n_jobs), prefer="threads")


def _n_threads(n_jobs: int | None) -> int | None:
    """The number of threads; a negative ``n_jobs`` is limited by ``OMP_NUM_THREADS``, which joblib and Dask set in workers."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if n_jobs is None or n_jobs >= 0 or not limit.isdecimal():
        return n_jobs
    return max(1, min(joblib.effective_n_jobs(n_jobs), int(limit)))


def _status_of(path) -> os.stat_result | str:
    """Status of a file, or why it cannot be read."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _MISSING
    except (OSError, ValueError) as error:  # a loop of links, a folder without permission; a name that contains a zero
        return getattr(error, "strerror", None) or str(error)
    if not S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        return "a folder, not a file" if S_ISDIR(status.st_mode) else "a device or a pipe, not a file"
    return status


def _digest_pair(picture: Picture | _Fault) -> tuple[bytes, bytes] | str:
    """Two digests of a picture, for this machine and for every machine with a copy of it; or why it cannot be read.

    The second one is of a file's name and size, because reading all files would take as long as encoding them.
    """
    if isinstance(picture, _Fault):
        return str(picture)
    if not isinstance(picture, str | os.PathLike):
        try:
            digest = _digest(b"", b"".join(picture_content(picture)))
        except UnusablePictureError as error:
            return str(error)
        return digest, digest
    status = _status_of(picture)
    if isinstance(status, str):
        return status
    size, time = str(status.st_size).encode(), str(status.st_mtime_ns).encode()
    name = os.fsencode(os.path.abspath(picture))
    return _digest(size + b" " + time, name), _digest(size, os.path.basename(name))


def _digest(form: bytes, content) -> bytes:
    digest = blake2b(content, digest_size=KEY_BYTES)
    digest.update(b"\0" + form)
    return digest.digest()


def _stack_keys(digests) -> np.ndarray:
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, KEY_BYTES)
