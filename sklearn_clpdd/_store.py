"""FeatureStore: features on disk, image by image, that processes and the fits of a search share."""

import os
import uuid
import warnings
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np

# Bytes of the digest by which an image is known.
KEY_BYTES = 16


class FeatureStore:
    """Features of single images under one encoder, in files that are written whole and never changed.

    Each file holds the features of some images, beside one with their keys. Any number of processes may read and write at once:
    a file is there when its keys are, and what two of them have both computed is kept twice. Files that cannot be read, or are
    gone, are as if they had never been.

    Parameters
    ----------
    folder : Path
        Of one encoder and its preprocessing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._seen: set[str] = set()
        self._places: dict[bytes, tuple[str, int]] = {}  # file and row of each key
        self._lock = Lock()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Which of the keys ``(n, KEY_BYTES)`` have features here: bools ``(n,)``."""
        with self._lock:
            self._refresh()
            return np.array([key.tobytes() in self._places for key in keys], dtype=bool)

    def read(self, keys: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Fill in the rows of ``features`` whose keys are here: bools ``(n,)``."""
        with self._lock:
            self._refresh()
            places = [self._places.get(key.tobytes()) for key in keys]
        rows: dict[str, list[tuple[int, int]]] = {}
        for i, place in enumerate(places):
            if place is not None:
                rows.setdefault(place[0], []).append((i, place[1]))
        known, lost = np.zeros(len(keys), dtype=bool), set()
        for name, pairs in rows.items():
            here, there = np.array(pairs).T
            try:
                features[here] = np.load(self._folder / f"{name}.npy", mmap_mode="r")[there]
                known[here] = True
            except (OSError, ValueError, IndexError, EOFError):
                lost.add(name)
        if lost:
            with self._lock:
                self._places = {key: place for key, place in self._places.items() if place[0] not in lost}
        return known

    def write(self, keys: np.ndarray, features: np.ndarray) -> None:
        """Keep features; a failure is a warning, for they have been computed."""
        name = uuid.uuid4().hex
        partial = self._folder / f"{name}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for suffix, array in ((".npy", features), (".keys.npy", keys)):  # in this order
                with partial.open("wb") as file:
                    np.save(file, array)
                os.replace(partial, self._folder / f"{name}{suffix}")
        except OSError as error:
            warnings.warn(f"features could not be kept in {self._folder}, and will be computed again: {error}", stacklevel=2)
            partial.unlink(missing_ok=True)

    def _refresh(self) -> None:
        """Take note of the files that have come since."""
        found = {path.name.removesuffix(".keys.npy") for path in self._folder.glob("*.keys.npy")} - self._seen
        for name in sorted(found):
            self._seen.add(name)
            try:
                keys = np.load(self._folder / f"{name}.keys.npy")
            except (OSError, ValueError, EOFError):  # cut off by a crash of the machine
                continue
            self._places |= {key.tobytes(): (name, row) for row, key in enumerate(keys)}


@lru_cache(maxsize=16)
def feature_store(folder: Path) -> FeatureStore:
    """The store of a folder, one for each process, so that what is there need not be listed for each call."""
    return FeatureStore(folder)
