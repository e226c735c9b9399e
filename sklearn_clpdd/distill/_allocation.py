"""Divide a total number of synthetic images among the classes."""

from numbers import Integral

import numpy as np
from sklearn.utils import check_scalar

from ..utils._labels import as_labels


def allocate_images(y, total):
    """Divide a number of synthetic images among the classes, as evenly as possible.

    Each class gets at least one image. What is left over goes to the largest classes, and no class gets more synthetic images
    than it has real ones while another class still has spare ones.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Class labels of the real images.
    total : int
        Number of synthetic images, at least the number of classes.

    Returns
    -------
    dict of label to int
        Images of each class, for `images_per_class` of :class:`CLPDistiller`. In a search, where the classes and their sizes
        depend on the split, pass ``functools.partial(allocate_images, total=100)`` instead.

    Raises
    ------
    ValueError
        If `total` is smaller than the number of classes.

    Examples
    --------
    >>> from sklearn_clpdd import allocate_images
    >>> allocate_images(["cat", "cat", "cat", "dog", "dog", "owl"], 5)
    {'cat': 2, 'dog': 2, 'owl': 1}
    """
    classes, counts = np.unique(as_labels(y), return_counts=True)
    check_scalar(total, "total", Integral)
    if total < len(classes):
        raise ValueError(f"total={total} is less than one image for each of {len(classes)} classes; pass at least {len(classes)}")
    allocated, largest_first = np.zeros(len(counts), dtype=int), np.argsort(-counts, kind="stable")
    while (left := total - allocated.sum()) > 0:
        unfilled = largest_first[(allocated < counts)[largest_first]]
        allocated[(unfilled if len(unfilled) else largest_first)[:left]] += 1
    return dict(zip(classes.tolist(), allocated.tolist(), strict=True))
