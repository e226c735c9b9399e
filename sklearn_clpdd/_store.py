"""FeatureStore: features on disk, image by image, that processes and the fits of a search share."""

import os
import uuid
import warnings
from pathlib import Path

import numpy as np

# Bytes of the digest by which an image is known.
KEY_BYTES = 16


class FeatureStore:
    """Features of single images under one encoder, in files that are written whole and never changed.

    Each file holds the features of some images, beside one with their keys. Any number of processes may read and write at once:
    a file is there when its keys are, and what two of them have both computed is kept twice.

    Parameters
    ----------
    folder : Path
        Of one encoder and its preprocessing.
    width : int
        Number of features.
    """

    def __init__(self, folder: Path, width: int):
        self._folder, self._width = folder, width
        self._files: list[str] = []
        self._places: dict[bytes, tuple[int, int]] = {}  # file and row of each key

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Which of the keys ``(n, KEY_BYTES)`` have features here: bools ``(n,)``."""
        self._refresh()
        return np.array([key.tobytes() in self._places for key in keys], dtype=bool)

    def read(self, keys: np.ndarray) -> np.ndarray:
        """Features ``(n, width)`` of keys that are all here."""
        features = np.empty((len(keys), self._width), dtype=np.float32)
        places = np.array([self._places[key.tobytes()] for key in keys]).reshape(-1, 2)
        for file in np.unique(places[:, 0]):
            here = places[:, 0] == file
            features[here] = np.load(self._folder / f"{self._files[file]}.npy", mmap_mode="r")[places[here, 1]]
        return features

    def write(self, keys: np.ndarray, features: np.ndarray) -> None:
        """Keep features; a failure is a warning, for they have been computed."""
        name = uuid.uuid4().hex
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for suffix, array in ((".npy", features), (".keys.npy", keys)):  # in this order
                partial = self._folder / f"{name}.partial"
                with partial.open("wb") as file:
                    np.save(file, array)
                os.replace(partial, self._folder / f"{name}{suffix}")
        except OSError as error:
            warnings.warn(f"features could not be kept in {self._folder}, and will be computed again: {error}", stacklevel=2)

    def _refresh(self) -> None:
        """Take note of the files that have come since."""
        known = set(self._files)
        found = {path.name.removesuffix(".keys.npy") for path in self._folder.glob("*.keys.npy")} - known
        for name in sorted(found):
            keys = np.load(self._folder / f"{name}.keys.npy")
            self._places |= {key.tobytes(): (len(self._files), row) for row, key in enumerate(keys)}
            self._files.append(name)
