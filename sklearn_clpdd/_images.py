"""Every accepted form of images as ``X`` → batches of tensors, and the errors for everything else."""

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

from ._store import KEY_BYTES

ACCEPTED = (
    "Accepted are arrays (n, H, W) or (n, H, W, 1 or 3) and torch tensors (n, 1 or 3, H, W), uint8 or float in [0, 1]; "
    "rows (n, H*W*C) with image_shape=; and one-dimensional arrays, lists, or columns of file paths or of PIL images"
)
# How many bad files one error names.
_NAMED = 10
# Images whose values are looked at in one go, so that a check of a large array needs little memory.
_CHUNK = 1024


class Images(ABC):
    """``n`` images, one interface whatever form they came in; read in batches and never held as floats all at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def check(self, n_jobs: int | None = None, indices: Sequence[int] | None = None) -> None:
        """Raise for anything unusable among the pixels or files, all of it at once; at some indices only, if these are given."""

    @abstractmethod
    def keys(self) -> np.ndarray:
        """A digest of each image that changes when it does: uint8 ``(n, KEY_BYTES)``."""

    @abstractmethod
    def portable_keys(self) -> np.ndarray:
        """The same, on all machines that have a copy of the images."""

    @abstractmethod
    def read(self, indices, prepare: Callable[[Tensor], Tensor], n_jobs: int | None = None) -> Tensor:
        """The images at ``indices``, float32 RGB in [0, 1], through ``prepare``: one tensor ``(len(indices), 3, s, s)``."""

    def batches(
        self, indices: Sequence[int], size: int, prepare: Callable[[Tensor], Tensor], n_jobs: int | None = None
    ) -> Iterator[Tensor]:
        """The images at ``indices``, ``size`` at a time."""
        for start in range(0, len(indices), size):
            yield self.read(indices[start : start + size], prepare, n_jobs)


class _PixelArray(Images):
    """A numpy array ``(n, H, W, C)`` or a tensor ``(n, C, H, W)``, with 1 or 3 channels, as the user has it."""

    def __init__(self, pixels: np.ndarray | Tensor):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def check(self, n_jobs=None, indices=None):
        if self.pixels.dtype in (np.uint8, torch.uint8):
            return
        indices = range(len(self)) if indices is None else indices
        for part in (indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)):
            chunk = self._at(part)
            low, high = float(chunk.min()), float(chunk.max())
            if not (low >= -1e-6 and high <= 1 + 1e-6):  # false for NaN too: min and max propagate it
                seen = "NaN" if np.isnan(low) or np.isnan(high) else f"values from {low:g} to {high:g}"
                raise ValueError(
                    f"float images hold values in [0, 1]; got {seen} (images {part[0]} to {part[-1]}). "
                    "Rescale them to [0, 1], or give uint8"
                )

    def keys(self):
        return self._keys

    portable_keys = keys

    @cached_property
    def _keys(self) -> np.ndarray:
        pixels = self.pixels if isinstance(self.pixels, np.ndarray) else self.pixels.numpy()
        form = f"{pixels.dtype} {pixels.shape[1:]}".encode()
        return _stacked(_digest(form, np.ascontiguousarray(image).data) for image in pixels)

    def _at(self, indices):
        """The pixels there, a view where they are a range."""
        return self.pixels[slice(indices.start, indices.stop) if isinstance(indices, range) else indices]

    def read(self, indices, prepare, n_jobs=None):
        batch = self._at(indices)
        if isinstance(batch, np.ndarray):
            batch = torch.from_numpy(np.array(batch, order="C")).permute(0, 3, 1, 2)  # torch knows no negative strides
        return prepare(_unit_rgb(batch))


class _PictureList(Images):
    """Paths, read when their turn comes, or PIL images; of any size and mode."""

    def __init__(self, pictures: list):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def check(self, n_jobs=None, indices=None):
        indices = range(len(self)) if indices is None else indices
        parallel = joblib.Parallel(_threads(n_jobs), prefer="threads")
        self._report(indices, parallel(joblib.delayed(_fault)(self.pictures[i]) for i in indices))

    def keys(self):
        return self._both_keys[0]

    def portable_keys(self):
        return self._both_keys[1]

    @cached_property
    def _both_keys(self) -> tuple[np.ndarray, np.ndarray]:
        both = [_both_digests(picture) for picture in self.pictures]
        self._report(range(len(self)), [None if digests else _MISSING for digests in both])
        return _stacked(key for key, _ in both), _stacked(portable for _, portable in both)

    def _report(self, indices: Sequence[int], faults: list[str | None]) -> None:
        """Raise one error for all pictures that have a fault."""
        bad = [(i, fault) for i, fault in zip(indices, faults, strict=True) if fault is not None]
        if not bad:
            return
        lines = [f"  X[{i}], {self.pictures[i]}: {fault}" for i, fault in bad[:_NAMED]]
        if len(bad) > _NAMED:
            lines.append(f"  … and {len(bad) - _NAMED} more")
        lines.append("Mend them or leave them out of X (and y)")
        kind = FileNotFoundError if all(fault == _MISSING for _, fault in bad) else ValueError
        raise kind(f"{len(bad)} of {len(self)} images cannot be read:\n" + "\n".join(lines))

    def read(self, indices, prepare, n_jobs=None):
        parallel = joblib.Parallel(_threads(n_jobs), prefer="threads")
        arrays = parallel(joblib.delayed(_decode)(self.pictures[i]) for i in indices)
        # Resized here, one after the other: torch's own threads are at work in every call.
        return torch.cat([prepare(_unit_rgb(torch.from_numpy(a).permute(2, 0, 1)[None])) for a in arrays])


def as_images(X, image_shape: tuple[int, ...] | None = None) -> Images:
    """Recognise the form of ``X``; look at shapes and types only.

    Parameters
    ----------
    X : array-like
        See `ACCEPTED`.
    image_shape : tuple (H, W) or (H, W, C), optional
        What each row of a two-dimensional ``X`` is to be unfolded to.

    Raises
    ------
    ValueError, TypeError
        For anything else, with what was seen.
    """
    if isinstance(X, (str, bytes, os.PathLike)):
        raise TypeError(f"X is one path, {os.fspath(X)!r}; give a list of files. {ACCEPTED}")
    if isinstance(X, Images):
        return X
    if isinstance(X, Tensor):
        return _tensor_images(X.detach().cpu(), image_shape)
    if isinstance(X, list | tuple) and len(X) and isinstance(X[0], Image.Image | os.PathLike | str):
        return _picture_list(list(X))
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X is no array of images of one shape: {error}. {ACCEPTED}") from error
    if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "OUS"):  # a frame's column of paths
        return _picture_list(array.ravel().tolist())
    if array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.dtype != np.uint8):
        raise ValueError(
            f"images have dtype uint8 (0 to 255) or float (in [0, 1]); got an array {array.shape} of {array.dtype}. {ACCEPTED}"
        )
    if array.ndim == 2:
        array = array.reshape(_unfolded(array.shape, image_shape))
    if array.ndim == 3 and array.shape[2] in (1, 3):
        raise ValueError(f"X has shape {array.shape}: one image? Give X[None]. {ACCEPTED}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(f"X has shape {array.shape}, which is no shape of images. {ACCEPTED}")
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
        raise ValueError(f"X is a tensor of shape {tuple(tensor.shape)}, which is no shape of images. {ACCEPTED}")
    _check_not_empty(tensor.shape)
    return _PixelArray(tensor)


def _picture_list(pictures: list) -> Images:
    if not pictures:
        raise ValueError(f"X holds no images: 0 of them. {ACCEPTED}")
    for i, picture in enumerate(pictures):
        if not isinstance(picture, str | os.PathLike | Image.Image):
            raise TypeError(
                f"element {i} of a one-dimensional X is a {type(picture).__name__}, no path and no PIL image. {ACCEPTED}"
            )
        if isinstance(picture, Image.Image) and 0 in picture.size:
            raise ValueError(f"element {i} of X is a PIL image of size zero, {picture.size}")
    return _PictureList(pictures)


def _unfolded(shape, image_shape) -> tuple[int, ...]:
    """Shape of rows as images."""
    n, width = shape
    if image_shape is None:
        raise ValueError(f"X has two dimensions, {tuple(shape)}: say image_shape=(H, W) or (H, W, C) of its rows. {ACCEPTED}")
    if len(image_shape) not in (2, 3) or int(np.prod(image_shape)) != width:
        raise ValueError(
            f"rows of {width} values are no images of image_shape={tuple(image_shape)} ({int(np.prod(image_shape))} values)"
        )
    return (n, *image_shape)


def _check_not_empty(shape) -> None:
    if 0 in shape:
        raise ValueError(f"X has shape {tuple(shape)}: no images, or images of size zero. {ACCEPTED}")


def _unit_rgb(batch: Tensor) -> Tensor:
    """uint8 or float, 1 or 3 channels → float32 RGB in [0, 1]."""
    batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
    return batch.expand(-1, 3, -1, -1)


_MISSING = "no such file"


def _fault(picture) -> str | None:
    """What is wrong with a path or a PIL image, by decoding it as cheaply as its format allows."""
    try:
        if isinstance(picture, Image.Image):
            _to_array(picture)
        else:
            with Image.open(picture) as opened:
                opened.draft("RGB", (1, 1))  # a JPEG is then decoded at an eighth of its size, to the end all the same
                opened.load()
                _to_array(opened)
    except FileNotFoundError:
        return _MISSING
    except Exception as error:  # Pillow's decoders raise errors of many types
        return f"{type(error).__name__}: {error}".replace(f" {str(picture)!r}", "")
    return None


def _decode(picture) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return _to_array(picture)
    with Image.open(picture) as opened:
        return _to_array(opened)


def _to_array(picture: Image.Image) -> np.ndarray:
    """uint8 RGB pixels ``(H, W, 3)``."""
    if picture.mode == "F":
        raise ValueError("an image of floats has no range; convert it to 8 bits first")
    if picture.mode.startswith("I"):  # 16 bits, "I" in older versions of Pillow, whose own conversion would clip them to 255
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("an image of 32-bit integers has no range; convert it to 8 bits first")
        grey = grey // 257 if picture.mode != "I" or grey.max() > 255 else grey
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def _threads(n_jobs: int | None) -> int | None:
    """All threads that this process may have: fewer than cores, in a worker beside others (joblib and Dask say so to OpenMP)."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if n_jobs is None or n_jobs >= 0 or not limit.isdecimal():
        return n_jobs
    return max(1, min(joblib.effective_n_jobs(n_jobs), int(limit)))


def _both_digests(picture) -> tuple[bytes, ...]:
    """By what a picture is known here, and wherever there is a copy of it; nothing, of a file that is not there.

    The latter is of a file's name and its size, for to read them all would take as long as to encode them.
    """
    if isinstance(picture, Image.Image):
        pixels = _to_array(picture)
        return (_digest(str(pixels.shape).encode(), pixels.data),) * 2
    try:
        status = os.stat(picture)
    except OSError:
        return ()
    size, time = str(status.st_size).encode(), str(status.st_mtime_ns).encode()
    name = os.fsencode(os.path.abspath(picture))
    return _digest(size + b" " + time, name), _digest(size, os.path.basename(name))


def _digest(form: bytes, content) -> bytes:
    digest = blake2b(content, digest_size=KEY_BYTES)
    digest.update(b"\0" + form)
    return digest.digest()


def _stacked(digests) -> np.ndarray:
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, KEY_BYTES)
