"""Sequences of pictures of any kind, decoded batch by batch."""

import os
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor

from .._preprocessing import Preprocessing
from ._base import Findings, Images, digest, parallel, stack_keys
from ._decoding import decode, picture_content
from ._lazy import LazyPictures
from ._opening import (
    NO_SUCH_FILE,
    UnusablePictureError,
    check_protocols,
    describe,
    is_missing,
    is_url,
    resolve,
    status_of,
    url_content,
    url_version,
)

# How many unusable images one error names.
_MAX_LISTED = 10
# Pictures whose digests are computed together.
_BLOCK = 256
_MISSING = "missing"
_MISSING_PAIR = (digest(b"missing", b""),) * 2


class _Fault(str):
    """Why a sequence did not return its element, or why its element cannot be used."""


class PictureList(Images):
    """Pictures of any kind, size and mode.

    Parameters
    ----------
    pictures : Sequence
        They are taken one after another, because getting an element of a user's sequence may not be thread-safe.
    missing : {"error", "zero"}
        Whether pictures may be missing.
    """

    def __init__(self, pictures: Sequence, missing: str = "error"):
        self.pictures = pictures
        self._may_be_missing = missing == "zero"

    def __len__(self):
        return len(self.pictures)

    def _elements(self, indices: Sequence[int]) -> list:
        """Elements of the sequence, or faults."""
        if isinstance(self.pictures, list):
            return [self.pictures[i] for i in indices]  # whose files `check` has looked up
        if isinstance(self.pictures, LazyPictures):
            try:
                return [_checked(element) for element in self.pictures.take(indices)]
            except Exception:  # a user's data set can fail in many ways; the next lines find out where
                pass
        return [self._element(i) for i in indices]

    def _element(self, i: int) -> Any:
        if isinstance(self.pictures, list):
            return self.pictures[i]
        try:
            return _checked(self.pictures[i])
        except Exception as error:
            return _Fault(f"getting it raised {type(error).__name__}: {error}")

    def check(self, indices=None):
        if not isinstance(self.pictures, list):  # a column or a data set decodes what it returns
            return
        indices = range(len(self)) if indices is None else indices
        faults, urls = {}, set[str]()
        for i in indices:
            element = self.pictures[i]
            if is_missing(element):
                if not self._may_be_missing:
                    faults[i] = _MISSING
                continue
            path = _path_of(element)
            if isinstance(path, str) and is_url(path):
                urls.add(path)
            elif path is not None and isinstance(status := status_of(path), str):
                faults[i] = status
        check_protocols(urls)
        self.report(faults)

    def keys(self):
        return self._own_keys

    def portable_keys(self):
        return self._key_pairs[1]

    @cached_property
    def _own_keys(self) -> np.ndarray:
        versions = self.pictures.keys() if isinstance(self.pictures, LazyPictures) else None
        if versions is None:
            return self._key_pairs[0]
        form = b"row, may be missing" if self._may_be_missing else b"row"
        return stack_keys(digest(form, version) for version in versions)

    @cached_property
    def _key_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        pairs: list = []
        for start in range(0, len(self), _BLOCK):
            pairs += map(self._digest_pair, self._elements(range(start, min(start + _BLOCK, len(self)))))
        self.report({i: pair for i, pair in enumerate(pairs) if isinstance(pair, str)})
        return stack_keys(pair[0] for pair in pairs), stack_keys(pair[1] for pair in pairs)

    def _digest_pair(self, element: Any) -> tuple[bytes, bytes] | str:
        pair = _digest_pair(element)
        return _MISSING_PAIR if pair == _MISSING and self._may_be_missing else pair

    def read(self, indices, preprocessing, n_jobs=None):
        findings = Findings()
        batches = list(self.batches(indices, len(indices), preprocessing, n_jobs, findings))
        self.report(findings.faults)
        return batches[0]

    def batches(self, indices, batch_size, preprocessing, n_jobs, findings):
        run, decoded = parallel(n_jobs), partial(_decode, preprocessing=preprocessing)
        for start in range(0, len(indices), batch_size):
            part = [int(i) for i in indices[start : start + batch_size]]
            images = run(joblib.delayed(decoded)(element) for element in self._elements(part))
            for position, (i, image) in enumerate(zip(part, images, strict=True)):
                if image is _MISSING and self._may_be_missing:
                    findings.missing.add(i)
                    images[position] = torch.zeros(1, 3, preprocessing.image_size, preprocessing.image_size)
                elif isinstance(image, str):
                    findings.faults[i] = image
            if findings.clean:
                yield torch.cat(images)

    def name(self, i: int) -> str:
        """What a picture is called in messages."""
        return f"X[{i}]"

    def report(self, faults):
        if not faults:
            return
        lines = [f"  {self.name(i)}, {describe(self._elements([i])[0])}: {faults[i]}" for i in sorted(faults)[:_MAX_LISTED]]
        if len(faults) > _MAX_LISTED:
            lines.append(f"  … and {len(faults) - _MAX_LISTED} more")
        if _MISSING in faults.values():
            lines.append("FrozenEncoder(missing='zero') gives missing pictures features of zeros")
        lines.append("Fix these images, or remove them from X (and y)")
        kind = FileNotFoundError if all(fault == NO_SUCH_FILE for fault in faults.values()) else ValueError
        raise kind(f"{len(faults)} of {len(self)} images cannot be read:\n" + "\n".join(lines))


def _path_of(element: Any) -> str | os.PathLike | None:
    """The path or URL that names a picture, if one does."""
    if isinstance(element, tuple) and element:
        element = element[0]
    if isinstance(element, dict):
        element = element.get("path") if element.get("bytes") is None else None
    return element if isinstance(element, str | os.PathLike) else None


def _checked(element: Any) -> Any:
    """An element that a sequence has just returned, or what is wrong with its file."""
    path = _path_of(element)
    status = None if path is None or is_url(path) else status_of(path)
    return _Fault(status) if isinstance(status, str) else element


def _decode(element: Any, preprocessing: Preprocessing) -> Tensor | str:
    """A picture as the network sees it, or what is wrong with it."""
    if isinstance(element, _Fault):
        return str(element)
    try:
        picture = resolve(element)
        return _MISSING if picture is None else decode(picture, preprocessing)
    except FileNotFoundError:
        return NO_SUCH_FILE
    except UnusablePictureError as error:
        return str(error)


def _digest_pair(element: Any) -> tuple[bytes, bytes] | str:
    """Two digests of a picture, for this machine and for every machine with a copy of it; or why it cannot be read.

    The second one is of a file's name and size, because reading all files would take as long as encoding them.
    """
    if isinstance(element, _Fault):
        return str(element)
    try:
        picture = resolve(element)
        if picture is None:
            return _MISSING
        if is_url(picture):
            version = url_version(picture)  # type: ignore[arg-type]
            url = picture.encode()  # type: ignore[union-attr]
            if version is not None:
                return digest(version[0].encode(), url), digest(version[1].encode(), url)
            picture = url_content(picture)  # type: ignore[arg-type]
        if not isinstance(picture, str | os.PathLike):
            content = digest(b"", b"".join(picture_content(picture)))
            return content, content
    except FileNotFoundError:
        return NO_SUCH_FILE
    except UnusablePictureError as error:
        return str(error)
    status = status_of(picture)
    if isinstance(status, str):
        return status
    size, time = str(status.st_size).encode(), str(status.st_mtime_ns).encode()
    name = os.fsencode(os.path.abspath(picture))
    return digest(size + b" " + time, name), digest(size, os.path.basename(name))
