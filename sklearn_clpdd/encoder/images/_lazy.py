"""Data sets and columns of other libraries as sequences of pictures, of which only those are read that are needed."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, Protocol

import numpy as np


class PictureSource(Protocol):
    """Where the pictures of `LazyPictures` are."""

    def __len__(self) -> int: ...

    def read(self, rows: list[int]) -> list:
        """The pictures of these rows, as they are stored."""

    def one(self, row: int) -> Any:
        """A picture as the library of the data set returns it."""

    def keys(self, rows: np.ndarray) -> list[bytes] | None:
        """Names of these rows that change with their content; ``None`` if the data set has none."""


class LazyPictures(Sequence):
    """Pictures of a data set of another library, which are read when they are needed.

    A number gives a picture; a slice, an array of indices or a mask gives a part of the pictures, which is lazy as well, so that
    the splitters of scikit-learn need no memory.

    Parameters
    ----------
    source : PictureSource
    rows : ndarray of shape (n,), int64, default=None
        Rows of the source. ``None``: all.
    """

    ndim = 1

    def __init__(self, source: PictureSource, rows: np.ndarray | None = None):
        self._source = source
        self._rows = np.arange(len(source)) if rows is None else rows

    @property
    def shape(self) -> tuple[int]:
        """Number of pictures, as numpy has it; for this attribute, scikit-learn selects by arrays."""
        return (len(self),)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, key):
        if isinstance(key, tuple):  # scikit-learn's ``array[rows, ...]``
            (key,) = (one for one in key if one is not Ellipsis)
        if isinstance(key, Integral):
            return self._source.one(int(self._rows[key]))
        return LazyPictures(self._source, self._rows[key if isinstance(key, slice) else np.asarray(key)])

    def take(self, indices: Sequence[int]) -> list:
        """Several pictures as they are stored, read together."""
        return self._source.read(self._rows[list(indices)].tolist())

    def keys(self) -> list[bytes] | None:
        """Names of the pictures that change with their content, if the data set has them."""
        return self._source.keys(self._rows)

    def __repr__(self):
        return f"LazyPictures of {len(self):,} pictures of {self._source!r}"


class HuggingFaceColumn:
    """A column of a data set of Hugging Face.

    Pictures are read as they are stored, whatever the format of the data set is, unless it transforms its rows.

    Parameters
    ----------
    dataset : datasets.Dataset
    name : str
    """

    def __init__(self, dataset: Any, name: str):
        self._dataset, self.name = dataset, name
        self._fingerprint = None if dataset.format["type"] == "custom" else getattr(dataset, "_fingerprint", None)
        self._stored = self._shown = dataset
        if dataset.format["type"] != "custom":
            kind = type(dataset.features[name]).__name__
            form = "arrow" if kind in ("Image", "Value") else "numpy"  # arrays are not stored as such
            self._stored = dataset.with_format(form, columns=[name])
            self._shown = dataset.with_format(None) if form == "arrow" else self._stored

    def __len__(self):
        return len(self._dataset)

    def read(self, rows):
        values = self._stored[rows][self.name]
        return values.to_pylist() if hasattr(values, "to_pylist") else list(values)

    def one(self, row):
        return self._shown[row][self.name]

    def keys(self, rows):
        if self._fingerprint is None or not self._holds_contents():
            return None
        return [f"{self._fingerprint} {self.name} {row}".encode() for row in rows]

    def _holds_contents(self) -> bool:
        """Whether all pictures are in the data set itself, and not in files, which may change."""
        chunks = self._dataset.data.column(self.name).chunks
        kinds = {str(chunk.type) for chunk in chunks}
        if any("bytes" not in kind for kind in kinds):
            return "string" not in "".join(kinds)
        return all(chunk.field("bytes").null_count == chunk.null_count for chunk in chunks)

    def __repr__(self):
        return f"the column {self.name!r}"


class TorchItems:
    """Items of an indexable data set of torch: pictures, or tuples that begin with one.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
    """

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __len__(self):
        return len(self._dataset)

    def read(self, rows):
        return [self.one(row) for row in rows]

    def one(self, row):
        item = self._dataset[row]
        return item[0] if isinstance(item, tuple) else item

    def keys(self, rows):
        return None

    def __repr__(self):
        return f"a {type(self._dataset).__name__}"


class ArrowColumn:
    """A column of Arrow: bytes, paths, or structs of both.

    Parameters
    ----------
    column : pyarrow.Array or pyarrow.ChunkedArray
    """

    def __init__(self, column: Any):
        self._column = column

    def __len__(self):
        return len(self._column)

    def read(self, rows):
        return [self.one(row) for row in rows]  # `take` would copy the whole column

    def one(self, row):
        return self._column[row].as_py()

    def keys(self, rows):
        return None

    def __repr__(self):
        return f"a column of {self._column.type}"


# ---- recognition ---------------------------------------------------------------------------------------------------------


def as_lazy_pictures(X: Any) -> LazyPictures | None:
    """Pictures of a data set or column of another library; ``None`` for anything else.

    Raises
    ------
    ValueError
        If a data set or a table does not have exactly one column of pictures.
    TypeError
        If a data set has splits.
    """
    refuse_splits(X)
    if isinstance(X, LazyPictures):
        return X
    if is_of(X, "datasets", "Dataset"):
        return LazyPictures(HuggingFaceColumn(X, column_of(X, "Image")))
    if is_of(X, "datasets", "Column") and is_of(X.source, "datasets", "Dataset"):
        return LazyPictures(HuggingFaceColumn(X.source, X.column_name))
    if is_of(X, "torch", "Dataset") and hasattr(X, "__len__") and not is_of(X, "torch", "IterableDataset"):
        return LazyPictures(TorchItems(X))
    if is_of(X, "pyarrow", "Table"):
        X = X.column(_only(X.column_names, "an Arrow table"))
    if is_of(X, "polars", "DataFrame"):
        X = X[_only(X.columns, "a data frame of polars")]
    if is_of(X, "polars", "Series"):
        return LazyPictures(ArrowColumn(X.to_arrow()))
    if is_of(X, "pyarrow", "Array") or is_of(X, "pyarrow", "ChunkedArray"):
        return LazyPictures(ArrowColumn(X))
    return None


def is_of(X: Any, package: str, name: str) -> bool:
    """Whether the class of an object, or one of its bases, has this name in this package, which is not imported."""
    return any(own.__name__ == name and own.__module__.partition(".")[0] == package for own in type(X).__mro__)


def column_of(dataset: Any, kind: str, name: str | None = None, usual: str | None = None) -> str:
    """The column of a Hugging Face data set that has a feature of this kind, such as ``Image``.

    Parameters
    ----------
    dataset : datasets.Dataset
    kind : str
        Name of the feature's class.
    name : str, optional
        The column that the user has named, of whatever kind.
    usual : str, optional
        Name of the column that is meant if there is not exactly one of this kind.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    columns = list(dataset.features)
    if name is not None:
        if name not in columns:
            raise ValueError(f"the data set has no column {name!r}; it has {columns}")
        return name
    found = [column for column, feature in dataset.features.items() if type(feature).__name__ == kind]
    if len(found) == 1:
        return found[0]
    if usual is not None and usual in columns:
        return usual
    seen = f"several columns of the kind {kind}, {found}" if found else f"no column of the kind {kind}, but {columns}"
    raise ValueError(f"the data set has {seen}; name one of them, as in dataset[{(found or columns)[0]!r}] or load_hf_dataset")


def refuse_splits(X: Any) -> None:
    """Raise a TypeError for a Hugging Face data set of several splits."""
    if is_of(X, "datasets", "DatasetDict"):
        first = next(iter(X), "train")
        raise TypeError(f"this is a data set with the splits {list(X)}; pass one of them, such as dataset[{first!r}]")


def _only(names: Iterable[str], what: str) -> str:
    names = list(names)
    if len(names) != 1:
        raise ValueError(f"X is {what} with the columns {names}; pass the one that has the pictures")
    return names[0]
