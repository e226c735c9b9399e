"""Resize and crop one picture, converting only the strips of pixels that are needed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._preprocessing import INTERPOLATIONS, Preprocessing

# Steps from stored pixels to those that are shown, by EXIF orientation: swap the axes, then mirror columns, then mirror rows.
_ORIENTATIONS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
# Pixels that are converted to floats at once.
_STRIP = 2**19
# The bicubic filter reaches this many pixels of the coarser of the two grids.
_REACH = 2
_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}


@dataclass
class Pixels:
    """Pixels that are read strip by strip.

    ``read(left, top, right, bottom)`` returns an array ``(h, w, 1 or 3)``, in units of ``1 / white``. ``width`` and ``height``
    are those of the stored picture, of which a reduced one may have a fraction (``scale``) of the pixels.
    """

    read: Callable[[int, int, int, int], np.ndarray]
    width: int
    height: int
    white: float = 1.0
    scale: float = 1.0
    orientation: int = 1


def resample(pixels: Pixels, preprocessing: Preprocessing) -> Tensor:
    """Resize, crop and turn, reading only the strips of pixels that the input of the network shows."""
    swap, mirror_columns, mirror_rows = _ORIENTATIONS.get(pixels.orientation, (False, False, False))
    shown = (pixels.width, pixels.height) if swap else (pixels.height, pixels.width)
    place, side = preprocessing.place(*shown), preprocessing.image_size
    spans = []  # of the input within the resized image: rows, then columns
    for start, length, mirror in ((place.top, place.height, mirror_rows), (place.left, place.width, mirror_columns)):
        low, high = max(start, 0), min(start + side, length)
        spans.append((length - high, length - low, length) if mirror else (low, high, length))
    rows, columns = reversed(spans) if swap else spans
    part = _resize(pixels, rows, columns, _FILTERS[preprocessing.interpolation])
    if swap:
        part = part.swapaxes(1, 2)
    part = part[:, :: -1 if mirror_rows else 1, :: -1 if mirror_columns else 1]
    tensor = torch.from_numpy(np.ascontiguousarray(part)).expand(3, -1, -1)
    return preprocessing.pad(tensor, max(-place.top, 0), max(-place.left, 0))[None]


def _resize(pixels: Pixels, rows: tuple, columns: tuple, method: Image.Resampling) -> np.ndarray:
    """The part of the resized picture in these rows and columns: float32 ``(1 or 3, h, w)`` in [0, 1].

    ``rows`` and ``columns`` are (start, end, length of the resized picture). Like Pillow, columns are resized first, here strip
    by strip, with floats throughout.
    """
    top, bottom, first_row, last_row = _source(rows, pixels.height, pixels.scale)
    left, right, first_column, last_column = _source(columns, pixels.width, pixels.scale)
    n_columns, n_rows = columns[1] - columns[0], rows[1] - rows[0]
    step = max(1, _STRIP // max(last_column - first_column, n_columns))
    span, size = (left - first_column, right - first_column), (n_columns, n_rows)
    if last_row - first_row <= step:  # both at once, which Pillow does in the same order
        strip = pixels.read(first_column, first_row, last_column, last_row)
        whole = _resize_bands(strip, size, method, (span[0], top - first_row, span[1], bottom - first_row))
    else:
        strips = []
        for start in range(first_row, last_row, step):
            strip = pixels.read(first_column, start, last_column, min(start + step, last_row))
            strips.append(_resize_bands(strip, (n_columns, len(strip)), method, (span[0], 0, span[1], len(strip))))
        narrow = np.concatenate(strips, axis=1).transpose(1, 2, 0)
        whole = _resize_bands(narrow, size, method, (0, top - first_row, n_columns, bottom - first_row))
    whole /= np.float32(pixels.white)
    return whole.clip(0, 1, out=whole)


def _source(span: tuple[int, int, int], side: int, scale: float) -> tuple[float, float, int, int]:
    """Start and end of a part of the resized side in the picture's pixels, and the first and last pixel that it depends on."""
    start, end, length = span
    ratio, n_pixels = side * scale / length, math.ceil(side * scale - 1e-9)
    reach = _REACH * max(ratio, 1) + 1
    low, high = start * ratio, min(end * ratio, n_pixels)
    return low, high, max(0, math.floor(low - reach)), min(n_pixels, math.ceil(high + reach))


def _resize_bands(pixels: np.ndarray, size: tuple[int, int], method: Image.Resampling, box: tuple) -> np.ndarray:
    """``Image.resize`` of the bands of ``(h, w, 1 or 3)`` as floats: ``(1 or 3, *size)``."""
    bands = (Image.fromarray(np.ascontiguousarray(pixels[..., i], dtype=np.float32)) for i in range(pixels.shape[2]))
    return np.stack([np.asarray(band.resize(size, method, box)) for band in bands])
