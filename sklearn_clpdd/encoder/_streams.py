"""Features of a stream of pictures, block by block."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..utils._labels import as_labels
from ._extractor import FeatureExtractor
from .images._base import Images
from .images._forms import as_images
from .images._opening import describe, is_missing, is_picture
from .images._pictures import PictureList


class _Block(NamedTuple):
    """Images of a stream, with their labels if the stream has labels."""

    images: Images
    labels: Any


def features_of_stream(
    extractor: FeatureExtractor, iterable: Iterable, batch_size: int, missing: str
) -> Iterator[np.ndarray | tuple[np.ndarray, np.ndarray]]:
    """Yield the features of a stream, or pairs of features and labels; see `FrozenEncoder.iter_transform`.

    The stream is read in the caller's thread, because a cursor of a database, for example, is bound to it; the network runs in
    another one. What the stream or a picture raises is raised after the features of the blocks before it have been yielded.

    Raises
    ------
    TypeError
        If ``iterable`` is not iterable.
    """
    if isinstance(iterable, str | bytes) or not isinstance(iterable, Iterable):
        raise TypeError(f"a stream is an iterable of pictures, or of pairs of a picture and its label; got {describe(iterable)}")
    if isinstance(iterable, np.ndarray | Tensor) and iterable.ndim == 3 and 3 in (iterable.shape[0], iterable.shape[-1]):
        raise TypeError(f"a stream is an iterable of pictures; got one, of shape {tuple(iterable.shape)}")
    return _features(extractor.uncached(), iterable, batch_size, missing)


def _features(extractor: FeatureExtractor, iterable: Iterable, batch_size: int, missing: str) -> Iterator:
    waiting: tuple[Future, Any] | None = None
    failed: Exception | None = None
    with ThreadPoolExecutor(1) as pool:
        blocks = _blocks(iterable, batch_size, missing)
        while True:
            try:
                block = next(blocks, None)
            except Exception as error:
                block, failed = None, error
            done = None if waiting is None else (waiting[0].result(), waiting[1])
            waiting = None if block is None else (pool.submit(extractor.encode, block.images), block.labels)
            if done is not None:
                features, labels = done
                yield features if labels is None else (features, labels)
            if failed is not None:
                raise failed
            if block is None:
                return


def _blocks(iterable: Iterable, batch_size: int, missing: str) -> Iterator[_Block]:
    """Blocks of a stream."""
    pictures: list = []
    labels: list = []
    has_labels: bool | None = None
    n = 0
    for item in iterable:
        batch, own_labels = _as_batch(item)
        if batch is not None and pictures:
            raise TypeError(f"element {n + len(pictures)} of the stream is a batch of images, and those before it are pictures")
        if batch is not None:
            yield _Block(as_images(batch), own_labels)
            n += len(batch)
            continue
        picture, *label = item if isinstance(item, tuple) and len(item) == 2 else (item,)
        number = n + len(pictures)
        if not (is_picture(picture) or is_missing(picture)):
            raise TypeError(
                f"element {number} of the stream is {describe(item)}, and neither a picture nor a pair of a picture and its "
                "label; pass a generator of these, such as ((row['image'], row['label']) for row in stream)"
            )
        if has_labels is None:
            has_labels = bool(label)
        elif has_labels != bool(label):
            raise TypeError(f"element {number} of the stream has {'a' if label else 'no'} label, unlike those before it")
        pictures.append(picture)
        labels += label
        if len(pictures) == batch_size:
            yield _Block(_StreamedPictures(pictures, missing, n), as_labels(labels) if has_labels else None)
            n, pictures, labels = n + len(pictures), [], []
    if pictures:
        yield _Block(_StreamedPictures(pictures, missing, n), as_labels(labels) if has_labels else None)


def _as_batch(item: Any) -> tuple[Any, Any]:
    """Images and labels of a batch, as a ``DataLoader`` yields it; None for one picture."""
    images, *labels = item if isinstance(item, tuple | list) and len(item) == 2 else (item,)
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return images, as_labels(labels[0]) if labels else None
    return None, None


class _StreamedPictures(PictureList):
    """Pictures of a stream, of which the first one is number ``first``."""

    def __init__(self, pictures: list, missing: str, first: int):
        super().__init__(pictures, missing)
        self._first = first

    def name(self, i):
        return f"picture {self._first + i} of the stream"
