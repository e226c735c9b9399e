"""Every accepted form of images as ``X``, read in batches of tensors, and the errors for everything else."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b

import joblib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ._feature_cache import KEY_BYTES

ACCEPTED = (
    "Accepted are arrays (n, H, W) or (n, H, W, 1 or 3) and torch tensors (n, 1 or 3, H, W), uint8 or float in [0, 1]; "
    "rows (n, H*W*C) with image_shape=; and one-dimensional arrays, lists, or columns of file paths or of PIL images"
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
    def read(self, indices, prepare: Callable[[Tensor], Tensor], n_jobs: int | None = None) -> Tensor:
        """The images at ``indices``, float32 RGB in [0, 1], passed through ``prepare``: ``(len(indices), 3, s, s)``."""

    def batches(
        self,
        indices: Sequence[int],
        batch_size: int,
        prepare: Callable[[Tensor], Tensor],
        n_jobs: int | None,
        faults: dict[int, str],
    ) -> Iterator[Tensor]:
        """Yield batches of the images at ``indices`` until one cannot be decoded; from then on, only collect faults.

        ``faults`` maps the positions of undecodable images to the reasons.
        """
        for start in range(0, len(indices), batch_size):
            yield self.read(indices[start : start + batch_size], prepare, n_jobs)

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
        form = f"{pixels.dtype} {pixels.shape[1:]}".encode()
        return _stack_keys(_digest(form, np.ascontiguousarray(image).data) for image in pixels)

    def _at(self, indices):
        """The pixels of these images; a view if ``indices`` is a range."""
        return self.pixels[slice(indices.start, indices.stop) if isinstance(indices, range) else indices]

    def read(self, indices, prepare, n_jobs=None):
        batch = self._at(indices)
        if isinstance(batch, np.ndarray):  # torch has no negative strides, and only native dtypes
            dtype = np.uint8 if batch.dtype == np.uint8 else np.float32
            batch = torch.from_numpy(np.array(batch, dtype, order="C")).permute(0, 3, 1, 2)
        return prepare(_to_unit_rgb(batch))


class _PictureList(Images):
    """Paths, whose files are decoded batch by batch, or PIL images; of any size and mode."""

    def __init__(self, pictures: list):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def check(self, indices=None):
        indices = range(len(self)) if indices is None else indices
        faults = {i: _status_of(self.pictures[i]) for i in indices if not isinstance(self.pictures[i], Image.Image)}
        self.report({i: fault for i, fault in faults.items() if isinstance(fault, str)})

    def keys(self):
        return self._key_pairs[0]

    def portable_keys(self):
        return self._key_pairs[1]

    @cached_property
    def _key_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        pairs: list = [_digest_pair(picture) for picture in self.pictures]
        self.report({i: pair for i, pair in enumerate(pairs) if isinstance(pair, str)})
        return _stack_keys(pair[0] for pair in pairs), _stack_keys(pair[1] for pair in pairs)

    def read(self, indices, prepare, n_jobs=None):
        faults: dict[int, str] = {}
        batches = list(self.batches(indices, len(indices), prepare, n_jobs, faults))
        self.report(faults)
        return batches[0]

    def batches(self, indices, batch_size, prepare, n_jobs, faults):
        parallel = joblib.Parallel(_n_threads(n_jobs), prefer="threads")
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            decoded = parallel(joblib.delayed(_decode)(self.pictures[i]) for i in part)
            faults.update((int(i), one) for i, one in zip(part, decoded, strict=True) if isinstance(one, str))
            if not faults:
                # Resized one after another in this thread, because torch uses several threads for each image.
                pixels = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in decoded)
                yield torch.cat([prepare(_to_unit_rgb(image)) for image in pixels])

    def report(self, faults):
        if not faults:
            return
        lines = [f"  X[{i}], {self.pictures[i]}: {faults[i]}" for i in sorted(faults)[:_MAX_LISTED]]
        if len(faults) > _MAX_LISTED:
            lines.append(f"  … and {len(faults) - _MAX_LISTED} more")
        lines.append("Fix these images, or remove them from X (and y)")
        kind = FileNotFoundError if all(fault == _MISSING for fault in faults.values()) else ValueError
        raise kind(f"{len(faults)} of {len(self)} images cannot be read:\n" + "\n".join(lines))


def as_images(X, image_shape: tuple[int, ...] | None = None) -> Images:
    """Recognise the form of ``X`` by its shape and type.

    Parameters
    ----------
    X : array-like
        See `ACCEPTED`.
    image_shape : tuple (H, W) or (H, W, C), optional
        Shape of the image in each row of a two-dimensional ``X``.

    Raises
    ------
    ValueError, TypeError
        If ``X`` has any other form; the message says what was passed.
    """
    if isinstance(X, (str, bytes, os.PathLike)):
        raise TypeError(f"X is one path, {os.fspath(X)!r}; pass a list of files. {ACCEPTED}")
    if isinstance(X, Image.Image):
        raise TypeError(f"X is one image, {X!r}; pass a list of images. {ACCEPTED}")
    if isinstance(X, Images):
        return X
    if isinstance(X, Tensor):
        return _tensor_images(X.detach().cpu(), image_shape)
    if isinstance(X, list | tuple) and len(X) and isinstance(X[0], Image.Image | os.PathLike | str):
        return _picture_list(list(X))
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X is not an array of images of one shape: {error}. {ACCEPTED}") from error
    if array.ndim == 1 or (
        array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "OUS"
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


def _picture_list(pictures: list) -> Images:
    if not pictures:
        raise ValueError(f"X contains no images. {ACCEPTED}")
    for i, picture in enumerate(pictures):
        if not isinstance(picture, str | os.PathLike | Image.Image):
            raise TypeError(
                f"element {i} of a one-dimensional X is a {type(picture).__name__}, neither a path nor a PIL image. {ACCEPTED}"
            )
        if isinstance(picture, Image.Image) and 0 in picture.size:
            raise ValueError(f"element {i} of X is a PIL image of size zero, {picture.size}")
    return _PictureList(pictures)


def _unfolded(shape, image_shape) -> tuple[int, ...]:
    """Shape of ``X`` with each row as an image."""
    n, width = shape
    if image_shape is None:
        raise ValueError(
            f"X has two dimensions, {tuple(shape)}. If its rows are images, pass FrozenEncoder(image_shape=) their shape, "
            f"(H, W) or (H, W, C); if they are features, a distiller needs encoder=None. {ACCEPTED}"
        )
    if len(image_shape) not in (2, 3) or int(np.prod(image_shape)) != width:
        raise ValueError(
            f"rows of {width} values do not fit image_shape={tuple(image_shape)} ({int(np.prod(image_shape))} values): "
            f"pass (H, W) or (H, W, C) whose product is {width}"
        )
    return (n, *image_shape) if len(image_shape) == 3 else (n, *image_shape, 1)


def _check_not_empty(shape) -> None:
    if 0 in shape:
        raise ValueError(f"X has shape {tuple(shape)}: no images, or images of size zero. {ACCEPTED}")


def _to_unit_rgb(batch: Tensor) -> Tensor:
    """uint8 or float, 1 or 3 channels → float32 RGB in [0, 1]."""
    batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
    return batch.expand(-1, 3, -1, -1)


def _decode(picture) -> np.ndarray | str:
    """Pixels of a path or a PIL image, or what is wrong with it."""
    try:
        if isinstance(picture, Image.Image):
            return _to_array(picture)
        with Image.open(picture) as opened:
            return _to_array(opened)
    except FileNotFoundError:
        return _MISSING
    except Exception as error:  # Pillow's decoders raise errors of many types
        return f"{type(error).__name__}: {error}".replace(f" {str(picture)!r}", "")


def _to_array(picture: Image.Image) -> np.ndarray:
    """uint8 RGB pixels ``(H, W, 3)``."""
    if picture.mode == "F":
        raise ValueError("the range of a floating-point image is unknown; convert it to 8 bits first")
    if picture.mode.startswith("I"):  # 16 bits ("I" in older versions of Pillow), which convert() would clip to 255
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("the range of a 32-bit image is unknown; convert it to 8 bits first")
        grey = grey // 257 if picture.mode != "I" or grey.max() > 255 else grey
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def _n_threads(n_jobs: int | None) -> int | None:
    """The number of threads; a negative ``n_jobs`` is limited by ``OMP_NUM_THREADS``, which joblib and Dask set in workers."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if n_jobs is None or n_jobs >= 0 or not limit.isdecimal():
        return n_jobs
    return max(1, min(joblib.effective_n_jobs(n_jobs), int(limit)))


def _status_of(path) -> os.stat_result | str:
    """Status of a file, or why it cannot be accessed."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return _MISSING
    except OSError as error:  # a loop of links, a folder without permission
        return error.strerror or str(error)


def _digest_pair(picture) -> tuple[bytes, bytes] | str:
    """Two digests of a picture, for this machine and for every machine with a copy of it; or why it cannot be read.

    The second one is of a file's name and size, because reading all files would take as long as encoding them.
    """
    if isinstance(picture, Image.Image):
        pixels = _decode(picture)
        if isinstance(pixels, str):
            return pixels
        digest = _digest(str(pixels.shape).encode(), pixels.data)
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
