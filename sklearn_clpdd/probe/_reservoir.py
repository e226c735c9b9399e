"""Uniform sample of bounded size from a stream of rows."""

from zlib import crc32

import numpy as np


class Reservoir:
    """Uniform sample of at most `size` rows of a stream.

    Every row draws a random key, and the rows with the smallest keys are kept. Two reservoirs thus merge into one of both
    streams.
    """

    def __init__(self, size: int):
        self.size = size
        self.n_seen = 0
        self._parts: tuple[np.ndarray, ...] = ()  # keys, rows, codes, weights

    def __len__(self):
        return len(self._parts[0]) if self._parts else 0

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, class indices and weights in the sample."""
        return self._parts[1:]  # type: ignore[return-value]

    def add(self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
        """Add rows; those that are kept are copied."""
        if not len(X):
            return
        # Seeded by the content of the batch: the same stream gives the same sample, and shards draw different positions.
        seed = [self.n_seen, crc32(X[0].tobytes()), crc32(X[-1].tobytes()), crc32(codes.tobytes())]
        keys = np.random.default_rng(seed).random(len(X))
        self.n_seen += len(X)
        chosen = np.arange(len(keys))
        if len(self) == self.size:
            chosen = np.flatnonzero(keys < self._parts[0][-1])
        chosen = chosen[np.argsort(keys[chosen], kind="stable")[: self.size]]
        self._take(keys[chosen], X[chosen], codes[chosen], weight[chosen])

    def recode(self, positions: np.ndarray) -> None:
        """Replace each class index by its position among more classes."""
        if self._parts:
            keys, rows, codes, weights = self._parts
            self._parts = keys, rows, positions[codes], weights

    def merge(self, other: "Reservoir") -> None:
        """Add the rows that another reservoir has seen."""
        self.n_seen += other.n_seen
        if other._parts:
            self._take(*other._parts)

    def _take(self, *parts: np.ndarray) -> None:
        if self._parts:
            parts = tuple(np.concatenate(pair) for pair in zip(self._parts, parts, strict=True))
        kept = np.argsort(parts[0], kind="stable")[: self.size]
        self._parts = tuple(part[kept] for part in parts)
