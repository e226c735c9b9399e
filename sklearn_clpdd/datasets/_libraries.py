"""Data sets of Hugging Face and torch, as lazy pictures and an array of labels."""

from typing import Any

import numpy as np

from ..encoder.images._lazy import HuggingFaceColumn, LazyPictures, TorchItems, column_of, is_of, refuse_splits


def load_hf_dataset(dataset, image=None, label=None):
    """Pictures and labels of a Hugging Face data set; no picture is read.

    Estimators read the pictures block by block, when they need them. scikit-learn's splitters take parts of them, which are not
    read either, so that a search over a large set needs no more memory than one over a small set. With ``memory=``, an encoder
    caches features by the fingerprint of the data set and the row, without reading a picture.

    Parameters
    ----------
    dataset : datasets.Dataset
        One split; a data set that is streamed has no length, see :meth:`FrozenEncoder.iter_transform`.
    image : str, default=None
        The column of the pictures. ``None``: the only column of images.
    label : str, default=None
        The column of the labels. ``None``: the only column of class labels, or the one called ``label``.

    Returns
    -------
    X : LazyPictures
        A sequence of the pictures.
    y : ndarray of shape (n_samples,)
        Labels; names, for a column of class labels.

    Raises
    ------
    TypeError
        If ``dataset`` is a stream, has splits, or is no data set of Hugging Face.
    ValueError
        If a column does not exist, or is not the only one of its kind; or if labels are missing.

    Examples
    --------
    >>> from sklearn_clpdd.datasets import load_hf_dataset
    >>> import datasets  # doctest: +SKIP
    >>> X, y = load_hf_dataset(datasets.load_dataset("cifar10", split="train"))  # doctest: +SKIP
    """
    refuse_splits(dataset)
    if is_of(dataset, "datasets", "IterableDataset"):
        raise TypeError(
            "a streamed data set has no length; FrozenEncoder.iter_transform encodes ((row['image'], row['label']) for row in it)"
        )
    if not is_of(dataset, "datasets", "Dataset"):
        raise TypeError(f"dataset has to be a Dataset of the package datasets; got a {type(dataset).__name__}")
    X = LazyPictures(HuggingFaceColumn(dataset, column_of(dataset, "Image", image)))
    name = column_of(dataset, "ClassLabel", label, usual="label")
    values = dataset.with_format("arrow", columns=[name])[:][name].to_pylist()
    feature = dataset.features[name]
    if type(feature).__name__ != "ClassLabel":
        return X, np.asarray(values)
    unknown = [i for i, value in enumerate(values) if value is None or value < 0]
    if unknown:
        raise ValueError(f"{len(unknown)} rows have no label in the column {name!r}, first row {unknown[0]}; filter them out")
    return X, np.asarray(feature.names)[values]


def load_torch_dataset(dataset):
    """Pictures and labels of an indexable data set of torch or torchvision; no picture is read if it knows its labels.

    Estimators read the pictures block by block, when they need them, as scikit-learn's splitters need them.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Its items are pairs of a picture and a label, and it has a length. Pictures are of any kind that :class:`FrozenEncoder`
        accepts; the data set's transforms are applied, so that it should have none.

    Returns
    -------
    X : LazyPictures
        A sequence of the pictures.
    y : ndarray of shape (n_samples,)
        Labels: those of the attribute ``targets`` of torchvision's data sets and of their subsets, as names if there is an
        attribute ``classes`` with a name for each; else those of the items, each of which is read once.

    Raises
    ------
    TypeError
        If ``dataset`` has no length, or its items are not pairs.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from sklearn_clpdd.datasets import load_torch_dataset
    >>> X, y = load_torch_dataset(TensorDataset(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])))
    >>> X.shape, y
    ((4,), array([0, 1, 0, 1]))
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dataset has to have a length and items, and a {type(dataset).__name__} does not; "
            "FrozenEncoder.iter_transform encodes streams"
        )
    labels = _known_labels(dataset)
    return LazyPictures(TorchItems(dataset)), _labels_of_items(dataset) if labels is None else labels


def _known_labels(dataset: Any) -> np.ndarray | None:
    """Labels of a data set of torchvision, or of a part of one; ``None`` if it has to be asked for each item."""
    if is_of(dataset, "torch", "Subset"):
        labels = _known_labels(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices)]
    targets, classes = getattr(dataset, "targets", None), getattr(dataset, "classes", None)
    if targets is None or len(targets) != len(dataset) or getattr(dataset, "target_transform", None) is not None:
        return None
    targets = np.asarray(targets)
    named = (
        isinstance(classes, list | tuple) and all(isinstance(one, str) for one in classes) and len(set(classes)) == len(classes)
    )
    return np.asarray(classes)[targets] if named and targets.dtype.kind in "iu" else targets


def _labels_of_items(dataset: Any) -> np.ndarray:
    labels = []
    for i in range(len(dataset)):
        item = dataset[i]
        if not (isinstance(item, tuple) and len(item) == 2):
            raise TypeError(
                f"item {i} of the data set is a {type(item).__name__}, not a pair of a picture and a label; pass the data set "
                "itself as X, and its labels as y"
            )
        labels.append(item[1].item() if hasattr(item[1], "item") else item[1])
    return np.asarray(labels)
