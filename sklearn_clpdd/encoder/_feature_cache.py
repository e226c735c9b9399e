"""Features on disk, image by image, shared by processes and by the fits of a search."""

import io
import os
import uuid
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock

import numpy as np

from ..utils._warnings import warn

# Bytes of the digest of an image, and of that of its features.
KEY_BYTES = 16


class FeatureCache:
    """Features of single images under one encoder, in files that are written once and never changed.

    Each file contains the features of some images; a second file contains their keys, and digests of their features and of the
    folder's name. Any number of processes may read and write at once: a file counts once its keys are written, and features that
    two processes have computed are stored twice. Files that cannot be read are ignored, and so are features without their digest,
    such as those of a file that was cut, or moved here from another encoder; such files are removed.

    Parameters
    ----------
    folder : Path
        Folder of one encoder and its preprocessing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen: set[str] = set()
        self._places: dict[bytes, tuple[str, int, bytes]] = {}  # file, row and digest of the features of each key
        self._lock = Lock()

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """Whether each of the keys ``(n, KEY_BYTES)`` is cached, as bools ``(n,)``."""
        with self._lock:
            self._refresh()
            return np.array([key.tobytes() in self._places for key in keys], dtype=bool)

    def read(self, keys: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Copy cached features into ``features``; return a mask ``(n,)`` of the rows found."""
        with self._lock:
            self._refresh()
            places = [self._places.get(key.tobytes()) for key in keys]
        files: dict[str, list[tuple[int, int, bytes]]] = {}
        for i, place in enumerate(places):
            if place is not None:
                files.setdefault(place[0], []).append((i, *place[1:]))
        known, unread, damaged = np.zeros(len(keys), dtype=bool), set(), set()
        for name, entries in files.items():
            positions, rows, digests = zip(*entries, strict=True)
            try:
                found = np.load(self._folder / f"{name}.npy", mmap_mode="r")[list(rows)]
                if any(self._digest(row) != digest for row, digest in zip(found, digests, strict=True)):
                    raise ValueError("the features do not have their digests")
                features[list(positions)] = found
                known[list(positions)] = True
            except OSError:  # removed meanwhile, or a disk that fails for now
                unread.add(name)
            except MemoryError:
                raise
            except Exception:  # numpy's reader raises errors of many types for a damaged file
                damaged.add(name)
        for name in damaged:  # so that the next process does not find it again
            for suffix in (".keys.npy", ".npy"):
                with suppress(OSError):
                    (self._folder / f"{name}{suffix}").unlink()
        if unread or damaged:
            with self._lock:
                lost = unread | damaged
                self._places = {key: place for key, place in self._places.items() if place[0] not in lost}
        return known

    def write(self, keys: np.ndarray, features: np.ndarray) -> None:
        """Store features. A failure is only a warning, because the features have been computed."""
        name = uuid.uuid4().hex
        partial = self._folder / f"{name}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            digests = np.frombuffer(b"".join(map(self._digest, features)), dtype=np.uint8).reshape(len(keys), KEY_BYTES)
            for suffix, array in ((".npy", features), (".keys.npy", np.hstack([keys, digests]))):  # in this order
                content = io.BytesIO()
                np.save(content, array)  # into memory, because numpy does not notice that a disk is full
                partial.write_bytes(content.getbuffer())
                os.replace(partial, self._folder / f"{name}{suffix}")
        except OSError as error:
            warn(f"features could not be cached in {self._folder}, and will be computed again: {error}")
            with suppress(OSError):  # on a read-only file system, even removing a missing file fails
                partial.unlink()

    def _refresh(self) -> None:
        """Read the keys of files that are new."""
        found = {path.name.removesuffix(".keys.npy") for path in self._folder.glob("*.keys.npy")} - self._seen
        for name in sorted(found):
            self._seen.add(name)
            try:
                keys = np.asarray(np.load(self._folder / f"{name}.keys.npy"))
            except Exception:  # whatever is wrong with a file of the cache, its features are computed again
                continue
            if keys.dtype == np.uint8 and keys.ndim == 2 and keys.shape[1] == 2 * KEY_BYTES:
                self._places |= {
                    key[:KEY_BYTES].tobytes(): (name, row, key[KEY_BYTES:].tobytes()) for row, key in enumerate(keys)
                }

    def _digest(self, row: np.ndarray) -> bytes:
        return blake2b(self._folder.name.encode() + row.tobytes(), digest_size=KEY_BYTES).digest()


@lru_cache(maxsize=16)
def feature_cache(folder: Path) -> FeatureCache:
    """The cache in a folder, one object per process, so that the folder is not read again in every call."""
    return FeatureCache(folder)
