"""One picture of any kind → the pixels that a network sees."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from .._preprocessing import Preprocessing
from ._opening import Picture, UnusablePictureError, is_url, url_content
from ._resampling import Pixels, resample

# A format that can decode at a reduced scale keeps at least this multiple of the resized image.
_REDUCING_GAP = 2
# Storage of colours with 16 bits, of which Pillow reads one byte.
_DEEP = re.compile("(RGB|RGBA|RGBX|[RGBA]);16[BLN]|LA;16B")
# Factors between a grey value of 2 or 4 bits in a PNG and Pillow's; the transparent value stays as it is in the file.
_GREY_STEPS = {"L;2": 85, "L;4": 17}
# Tags of TIFF: bits, whether zero is black, whether colours are stored plane by plane.
_BITS, _PHOTOMETRIC, _PLANAR = 258, 262, 284
# Threads that decode one picture of the user's at the same time would read its file at each other's positions.
_locks = [Lock() for _ in range(64)]


def decode(picture: Picture, preprocessing: Preprocessing) -> Tensor:
    """A picture as the network sees it, before normalisation: float32 RGB in [0, 1], ``(1, 3, image_size, image_size)``.

    This function alone decides what becomes of a picture; a file, the bytes of the file and Pillow's image of it are equal, as
    long as the image has not been loaded: of colours with 16 bits it then has 8, and it is not decoded at a reduced scale.

    =================================== =====================================================================================
    what the picture has                what the network sees
    =================================== =====================================================================================
    orientation in its metadata         the picture as it is shown, in every format
    transparency (an alpha channel, a   the picture over white, composited by Pillow in 8 bits, or in floats if it has 16
    transparent colour of a palette)
    8 bits: RGB, grey, palette, CMYK,   value / 255, after Pillow's conversion to RGB
    1 bit, YCbCr, HSV, LAB
    16 bits: grey; PNG, TIFF in colour  value / 65535; 12-bit grey in TIFF: value / 4095
    16 bits: PPM, SGI, TIFF by planes   an error, because Pillow reads only 8 of them
    more than 8 bits: JPEG 2000, AVIF   the 8 bits that Pillow reads, and says nothing about
    integers of 32 bits, floats         an error, because their range is unknown (but 16-bit PGM: value / 65535)
    an array or a tensor                value / 255 if uint8, else the value, which has to be in [0, 1]
    several frames                      the first one, or the one to which Pillow's image has been moved
    a very large JPEG                   pixels decoded at 1/2, 1/4 or 1/8 of the size, if that leaves at least two pixels for
                                        each one of the resized image
    =================================== =====================================================================================

    Raises
    ------
    UnusablePictureError
        If the picture cannot be decoded, or its range is unknown.
    FileNotFoundError
        If the file does not exist.
    """
    try:
        if is_url(picture):
            picture = url_content(picture)  # type: ignore[arg-type]
        if isinstance(picture, np.ndarray | Tensor):
            return resample(_array_pixels(picture), preprocessing)
        with _opened(picture) as (image, is_ours):
            return resample(_image_pixels(image, preprocessing if is_ours else None), preprocessing)
    except (UnusablePictureError, FileNotFoundError):
        raise
    except Image.DecompressionBombError as error:
        raise UnusablePictureError(f"{error}. If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except UnidentifiedImageError as error:
        raise UnusablePictureError("not an image in a format that Pillow can read") from error
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise UnusablePictureError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__}; is the picture's file closed?"


@contextmanager
def _opened(picture: str | os.PathLike | bytes | Image.Image) -> Iterator[tuple[Image.Image, bool]]:
    """Pillow's image, locked for this thread if it is the user's, and whether it is ours.

    A picture that the user has opened and that has not been read yet is read from its file again, and stays as it is.
    """
    if isinstance(picture, Image.Image):
        with _locks[id(picture) // 16 % len(_locks)]:
            again = _reopened(picture)
            if again is None:
                yield picture, False
                return
        with again:
            yield again, True
        return
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        yield image, True


def picture_content(picture: bytes | Image.Image | np.ndarray | Tensor) -> Iterator[bytes]:
    """Everything of a picture in memory that `decode` depends on, for a digest.

    Raises
    ------
    UnusablePictureError
        If the picture cannot be decoded.
    """
    try:
        yield from _content(picture)
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise UnusablePictureError(_reason(error)) from error


def _content(picture) -> Iterator[bytes]:
    if isinstance(picture, bytes):
        yield picture
    elif isinstance(picture, Image.Image):
        with _locks[id(picture) // 16 % len(_locks)]:
            again, image = _reopened(picture), picture
            if again is not None:
                yield _file_of(again) + str(again.tell()).encode()
                return
            _load(image)
            palette = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
            facts = (
                image.mode,
                image.size,
                image.format,
                palette,
                image.info.get("transparency"),
                _orientation(image),
                _bits(image),
                getattr(image, "tag_v2", {}).get(_PHOTOMETRIC),
            )
            yield repr(facts).encode()
            yield image.tobytes()
    else:
        array = picture.detach().cpu() if isinstance(picture, Tensor) else picture
        yield f"{type(picture).__name__} {array.dtype} {tuple(array.shape)}".encode()
        if isinstance(array, Tensor):
            array = array.contiguous().view(torch.uint8).numpy()
        yield np.ascontiguousarray(array).tobytes()


def _image_pixels(image: Image.Image, preprocessing: Preprocessing | None) -> Pixels:
    """Pixels of Pillow's image; decoded at a reduced scale where that suffices for ``preprocessing``."""
    if _is_deep(image):
        return _deep_pixels(image)
    _check_depth(image)
    if 0 in image.size:
        raise UnusablePictureError(f"a picture of {image.size[0]} × {image.size[1]} px has no pixels")
    tiles = getattr(image, "tile", []) if image.format == "PNG" else []
    shift = _GREY_STEPS.get(_raw_mode(tiles[0]), 1) if tiles else 1
    width, height = image.size
    scale = 1.0
    if preprocessing is not None:
        place = preprocessing.place(height, width)
        reduced = image.draft(None, (_REDUCING_GAP * place.width, _REDUCING_GAP * place.height))
        scale = 1.0 if reduced is None else reduced[1][2] / width
    _load(image)
    if shift > 1 and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= shift
    if scale == 1:
        width, height = image.size  # TIFF's orientation is applied while it is loaded
    white = _white(image)
    is_negative = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0

    def read(left: int, top: int, right: int, bottom: int) -> np.ndarray:
        part = _strip(image.crop((left, top, right, bottom)), white)
        return white - part if is_negative else part

    return Pixels(read, width, height, white, scale, _orientation(image))


def _load(image: Image.Image) -> None:
    """Read the pixels, but not by a memory map, with which Pillow (13.0) mixes up the rows of a TIFF that is turned."""
    name = getattr(image, "filename", "")
    if image.format != "TIFF" or not name:
        image.load()
        return
    image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        image.filename = name  # type: ignore[attr-defined]


def _white(image: Image.Image) -> float:
    """Value of white."""
    if image.mode.startswith("I;16"):
        return 4095.0 if _bits(image) == 12 else 65535.0
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # 16 bits; PNG in older versions of Pillow
        return 65535.0
    if image.mode[0] in "IF":
        kind = "a floating-point" if image.mode == "F" else "a 32-bit"
        raise UnusablePictureError(f"the range of {kind} image is unknown; convert it to 8 or 16 bits first")
    return 255.0


def _strip(image: Image.Image, white: float) -> np.ndarray:
    """Part of a picture ``(h, w, 1 or 3)``, over white."""
    transparent = image.info.get("transparency")
    if image.mode[0] in "IF":
        grey = np.asarray(image).astype(np.float32)[..., None]
        if isinstance(transparent, int):
            grey[grey == transparent] = white
        return grey
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        return np.asarray(canvas)[..., :3]
    if image.mode == "L":
        return np.asarray(image)[..., None]
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _over_white(deep: np.ndarray) -> np.ndarray:
    """16-bit pixels ``(h, w, 1 to 4)`` over white: float32 ``(h, w, 1 or 3)``, up to 65535."""
    pixels = deep.astype(np.float32)
    if deep.shape[2] in (1, 3):
        return pixels
    alpha = pixels[..., -1:] / 65535
    return pixels[..., :-1] * alpha + 65535 * (1 - alpha)


def _reopened(image: Image.Image) -> Image.Image | None:
    """A picture that has been opened, and neither read nor changed since (by ``draft``, for example), opened again in memory."""
    if getattr(image, "fp", None) is None or not getattr(image, "tile", []):
        return None
    again = Image.open(io.BytesIO(_file_of(image)))
    again.seek(image.tell())
    return again if (again.format, again.mode, again.size) == (image.format, image.mode, image.size) else None


def _file_of(image: Image.Image) -> bytes:
    """The content of the file of an opened picture."""
    file: Any = image.fp  # type: ignore[attr-defined]
    position = file.tell()
    try:
        file.seek(0)
        return file.read()
    finally:
        file.seek(position)


def _is_deep(image: Image.Image) -> bool:
    """Whether a picture is a PNG or TIFF in colour with 16 bits that has not been read yet; Pillow would read 8 of them."""
    tiles = getattr(image, "tile", [])
    is_planar = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_PLANAR) == 2
    if image.format not in ("PNG", "TIFF") or is_planar or not tiles:
        return False
    return all(_DEEP.fullmatch(_raw_mode(tile)) for tile in tiles)


def _deep_pixels(image: Image.Image) -> Pixels:
    """Pixels of a PNG or TIFF in colour with 16 bits.

    Pillow decodes either the high or the low byte of each value, depending on the byte order that it is told.
    """
    content, frame = _file_of(image), image.tell()
    with Image.open(io.BytesIO(content)) as first:
        first.seek(frame)
        if _raw_mode(first.tile[0]) == "LA;16B":  # as many bytes as RGBA
            first.tile = [_with_raw_mode(tile, "RGBA") for tile in first.tile]
            pairs = np.asarray(first).astype(np.uint16)
            deep = 256 * pairs[..., ::2] + pairs[..., 1::2]
        else:
            deep = 256 * np.asarray(first).astype(np.uint16)
            with Image.open(io.BytesIO(content)) as second:
                second.seek(frame)
                second.tile = [_with_raw_mode(tile, _other_byte(_raw_mode(tile))) for tile in second.tile]
                deep += np.asarray(second)
        orientation = _orientation(first)
        transparent = first.info.get("transparency")
    if isinstance(transparent, tuple) and deep.shape[2] == 3:
        deep[(deep == np.array(transparent)).all(axis=2)] = 65535

    def read(left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return _over_white(deep[top:bottom, left:right])

    return Pixels(read, deep.shape[1], deep.shape[0], 65535.0, orientation=orientation)


def _other_byte(raw: str) -> str:
    order = raw[-1].replace("N", "L" if sys.byteorder == "little" else "B")
    return raw[:-1] + {"L": "B", "B": "L"}[order]


def _raw_mode(tile) -> str:
    """How a tile is stored, in Pillow's notation, such as ``RGB;16B``."""
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple | list) and arguments else arguments)


def _with_raw_mode(tile, raw: str):
    arguments = tile[3]
    return type(tile)(*tile[:3], (raw, *arguments[1:]) if isinstance(arguments, tuple | list) else raw)


def _check_depth(image: Image.Image) -> None:
    """Raise for colours of 16 bits, of which Pillow would read 8, or other bytes (TIFF plane by plane)."""
    if image.mode[0] in "IF":
        return
    tiles = getattr(image, "tile", [])
    is_deep_tiff = image.format == "TIFF" and (_bits(image) or 0) > 8
    is_deep_ppm = image.format == "PPM" and any(isinstance(one, int) and one > 255 for tile in tiles for one in tile[3])
    if is_deep_tiff or is_deep_ppm or any(_raw_mode(tile).endswith((";16B", ";16L", ";16N")) for tile in tiles):
        raise UnusablePictureError(
            f"{image.format} with 16 bits in {image.mode}, of which Pillow reads 8; save it as a PNG with 16 bits, or with 8"
        )


def _bits(image: Image.Image) -> int | None:
    """Bits per sample of a TIFF."""
    bits = getattr(image, "tag_v2", {}).get(_BITS)
    return bits[0] if isinstance(bits, tuple) else bits


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 if it is missing or its metadata cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata, which viewers ignore as well
        return 1


def _array_pixels(array: np.ndarray | Tensor) -> Pixels:
    """Pixels of an array ``(H, W)`` or ``(H, W, 1 or 3)``, or of a tensor ``(1 or 3, H, W)``."""
    shape = tuple(array.shape)
    if isinstance(array, Tensor):
        if array.dtype != torch.uint8 and not array.is_floating_point():
            raise UnusablePictureError(f"dtype {array.dtype} is neither uint8 nor float")
        array = array.detach().cpu()
        array = array.numpy() if array.dtype in (torch.uint8, torch.float32, torch.float64) else array.float().numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array[None, None]
    elif array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in shape:
        raise UnusablePictureError(f"shape {shape} is none of (H, W), (H, W, 1 or 3), or for tensors (1 or 3, H, W)")
    height, width, _ = array.shape

    def read(left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return array[top:bottom, left:right]

    if array.dtype == np.uint8:
        return Pixels(read, width, height, 255.0)
    if array.dtype.kind != "f":
        raise UnusablePictureError(f"dtype {array.dtype} is neither uint8 nor float")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise UnusablePictureError(f"float pixels are in [0, 1], not from {low:g} to {high:g}")
    return Pixels(read, width, height)
