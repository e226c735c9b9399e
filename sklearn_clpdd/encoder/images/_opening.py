"""Where one picture is: in a file, behind a URL, in bytes, or in a dict or a pair that contains one of these."""

import io
import math
import os
import re
from collections.abc import Mapping
from stat import S_ISDIR, S_ISREG
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

Picture: TypeAlias = str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor
PICTURES = (str, os.PathLike, bytes, Image.Image, np.ndarray, Tensor)

NO_SUCH_FILE = "no such file"
# Keys of a picture in a dict, as Hugging Face and parquet files store it.
_KEYS = {"bytes", "path"}
# At least two letters, because one is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(://|::.*://)")
# What storages say about a content, in lower case; at least one of these besides the size changes with it.
_VERSIONS = {"etag", "lastmodified", "last_modified", "last-modified", "mtime", "modified", "created", "updated", "generation"}
_VERSIONS |= {"crc", "crc32c", "md5", "md5hash", "content_md5", "content-md5", "checksum", "version_id", "versionid", "chksum"}
# Endings of files that are pictures; a label has none.
_SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
# Threads that read one file of the user's at the same time would read it at each other's positions.
_reading = Lock()


class UnusablePictureError(ValueError):
    """What is wrong with a picture, in words that complete "cannot be read: "."""


def resolve(element: Any) -> Picture | None:
    """The picture that an element of a user's sequence stands for; ``None`` if it is missing.

    Raises
    ------
    UnusablePictureError
        If it is no picture.
    """
    if isinstance(element, PICTURES):
        return element
    if is_missing(element):
        return None
    if isinstance(element, Mapping) and _is_record(element):
        content, path = element.get("bytes"), element.get("path")
        return resolve(path if content is None else content)
    if _is_labelled(element):
        return resolve(element[0])
    if isinstance(element, bytearray | memoryview):
        return bytes(element)
    if isinstance(element, io.BytesIO):
        return element.getvalue()
    if isinstance(element, io.IOBase) and not isinstance(element, io.TextIOBase):
        return _content_of_file(element)
    if hasattr(element, "as_py"):  # a scalar of Arrow
        return resolve(element.as_py())
    if hasattr(element, "read_bytes"):  # a path in an archive or in a cloud
        return _content_of_path(element)
    raise UnusablePictureError(f"{describe(element)} is not a picture")


def is_picture(element: Any) -> bool:
    """Whether `resolve` knows what to do with an element; nothing is read."""
    if isinstance(element, tuple):
        return _is_labelled(element)
    if isinstance(element, Mapping):
        return _is_record(element)
    if isinstance(element, io.TextIOBase):
        return False
    readable = (*PICTURES, bytearray, memoryview, io.IOBase)
    return isinstance(element, readable) or hasattr(element, "as_py") or hasattr(element, "read_bytes")


def is_missing(element: Any) -> bool:
    """Whether there is no picture: ``None``, NaN, and the missing values of pandas."""
    if element is None or type(element).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(element, float | np.floating):
        return math.isnan(element)
    return isinstance(element, Mapping) and _is_record(element) and element.get("bytes") is None and element.get("path") is None


def _is_labelled(element: Any) -> bool:
    """Whether an element is a pair of a picture and its label, as data sets of torch return them."""
    if not isinstance(element, tuple) or len(element) != 2 or isinstance(element[0], tuple):
        return False
    picture, label = element
    if isinstance(label, Image.Image | tuple | list | Mapping | bytes | os.PathLike) or np.ndim(label) != 0:
        return False
    if isinstance(label, str) and os.path.splitext(label)[1].lower() in _SUFFIXES:
        return False  # two pictures
    return is_picture(picture)


def _is_record(element: Mapping) -> bool:
    return bool(element) and set(element) <= _KEYS


def _content_of_file(file: io.IOBase) -> bytes:
    """The content of an opened binary file, which stays at its position."""
    readable: Any = file
    try:
        with _reading:
            position = readable.tell()
            readable.seek(0)
            try:
                return readable.read()
            finally:
                readable.seek(position)
    except (OSError, ValueError) as error:  # closed, or without positions
        raise UnusablePictureError(f"{type(error).__name__}: {error}") from error


def _content_of_path(path: Any) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except Exception as error:  # each kind of storage has its own errors
        raise UnusablePictureError(f"{type(error).__name__}: {error}") from error


def describe(picture: Any) -> str:
    """What a picture is, for messages."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture).encode("utf-8", "backslashreplace").decode()
    if isinstance(picture, bytes):
        return f"{len(picture)} bytes"
    if isinstance(picture, np.ndarray | Tensor):
        return f"{type(picture).__name__} of shape {tuple(picture.shape)}"
    if isinstance(picture, Mapping):
        path = picture.get("path")
        if _is_record(picture) and isinstance(path, str):
            return path
        return f"a {type(picture).__name__} with the keys {list(picture)[:10]}"
    if isinstance(picture, tuple | list):
        if is_picture(picture):
            return describe(picture[0])
        return f"a {type(picture).__name__} of {len(picture)} (pass images and labels separately)"
    if picture is None or isinstance(picture, Image.Image):
        return repr(picture)
    return f"a {type(picture).__name__}"


# ---- files and URLs ------------------------------------------------------------------------------------------------------


def is_url(picture: Any) -> bool:
    """Whether a picture is named by a URL."""
    return isinstance(picture, str) and _URL.match(picture) is not None


def check_protocols(urls: set[str]) -> None:
    """Raise if the package that reads these URLs is not installed, or if there is none.

    Raises
    ------
    ImportError, ValueError
    """
    for protocol, url in {_URL.match(url)[1]: url for url in urls}.items():  # type: ignore[index]
        fsspec = _fsspec(url)
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise type(error)(f"{url} cannot be read: {error}") from error


def _fsspec(url: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"{url} is a URL, which needs a package that reads it: pip install fsspec") from error
    return fsspec


def url_content(url: str) -> bytes:
    """The content behind a URL.

    Raises
    ------
    FileNotFoundError
        If there is none.
    UnusablePictureError
        If it cannot be read.
    """
    try:
        system, path = _fsspec(url).core.url_to_fs(url)
        return system.cat_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # each kind of storage has its own errors
        raise UnusablePictureError(f"{type(error).__name__}: {error}") from error


def url_version(url: str) -> tuple[str, str] | None:
    """What changes when the content behind a URL does, and its size; ``None`` if its storage does not say.

    Raises
    ------
    FileNotFoundError, UnusablePictureError
        As `url_content`.
    """
    try:
        system, path = _fsspec(url).core.url_to_fs(url)
        info = system.info(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UnusablePictureError(f"{type(error).__name__}: {error}") from error
    known = sorted((name, str(value)) for name, value in info.items() if name.lower() in _VERSIONS and value is not None)
    return (f"{known} {info.get('size')}", str(info.get("size"))) if known else None


def status_of(path) -> os.stat_result | str:
    """Status of a file, or why it cannot be read."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return NO_SUCH_FILE
    except (OSError, ValueError) as error:  # a loop of links, a folder without permission; a name that contains a zero
        return getattr(error, "strerror", None) or str(error)
    if not S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        return "a folder, not a file" if S_ISDIR(status.st_mode) else "a device or a pipe, not a file"
    return status
