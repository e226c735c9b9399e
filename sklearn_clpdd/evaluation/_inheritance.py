"""Classifier inheritance: the probe of all real images, behind an encoder that it was not trained for."""

from collections.abc import Iterator
from itertools import islice
from math import ceil
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.linalg import solve
from sklearn.base import is_classifier
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import check_is_fitted

from ..encoder._encoder import FrozenEncoder, as_encoder
from ..encoder._extractor import FeatureExtractor
from ..encoder.images._base import Images
from ..encoder.images._forms import as_images
from ..utils._torch_modes import standard_torch_modes
from ._probes import check_finite, check_test_labels, each_view, metrics_of, stack_metrics, two_columns

# Rows of features that are multiplied at once, at least, if there are so many.
_BLOCK = 2048
# Random feature vectors by which a classifier's scores are compared with its predictions.
_N_TRIED = 64


@standard_torch_modes()
def inherited_probe_scores(
    images, X_test, y_test, *, probe, probe_encoder, encoder=None, n_views=100, alpha=1.0, groups=None, random_state=None
):
    """Test scores of one encoder's probe on another encoder's features, to which a linear map leads.

    A probe that was trained on all real images is better than one of a few synthetic images, but belongs to one encoder. Where
    another encoder is used, the synthetic images show how its features correspond to the old ones: a ridge regression, fitted to
    random views of them, maps the new features to the old ones, which the probe classifies. Neither real images nor labels are
    needed.

    Parameters
    ----------
    images : images
        Images from which the map is learned, in any form that :class:`FrozenEncoder` accepts.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    probe : classifier
        Fitted to features of `probe_encoder`, with a ``decision_function``: a :class:`ClosedFormProbe`, or a linear classifier of
        scikit-learn.
    probe_encoder : FrozenEncoder, str or torch.nn.Module
        The encoder of these features.
    encoder : FrozenEncoder, str, torch.nn.Module or None, default=None
        The other encoder, which encodes the test images. A name or a module stands for ``FrozenEncoder(encoder)``, ``None`` for
        ``FrozenEncoder()``.
    n_views : int, default=100
        Random views of each image (crops of 0.08 to 1 of its area, flips) to which the map is fitted, beside the image itself.
    alpha : float, default=1.0
        Ridge strength of the map, > 0, relative to the mean squared norm of the centred new features.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as pairs of class and background.
    random_state : int, RandomState instance or None, default=None
        Seed of the views.

    Returns
    -------
    dict of str to ndarray of shape (1,)
        As :func:`closed_form_probe_scores`.

    Raises
    ------
    ValueError, TypeError
        Before anything is encoded: if the numbers of test images, labels and groups differ, a test label is not one of the
        probe's classes, the probe is for another number of features than `probe_encoder` has or is not a classifier that
        predicts the class of the largest ``decision_function``, a number is out of range, or an encoder is not an encoder.
        Later: if all views have the same features.
    NotFittedError
        If the probe is not fitted.
    FileNotFoundError, OSError
        If the weights of an encoder do not exist, or cannot be downloaded. If an image cannot be read; the test images are read
        first.

    See Also
    --------
    transfer_scores : Probes that are trained on the image set, with other encoders.

    Notes
    -----
    Classifier inheritance is from SFM (arXiv 2602.05391). Its released code (commit cb0746a, ``distillation/eval_syn.py``, mode
    "CI") learns the map with Adam, in 1,000 epochs with one random view of each image; here it is a ridge regression in closed
    form, on as many views as `n_views` says. Memory is that of one view of all images, and of a few matrices with as many rows
    and columns as there are features.

    Examples
    --------
    >>> from sklearn_clpdd import ClosedFormProbe, FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import inherited_probe_scores
    >>> X, y = load_digit_images()
    >>> old, new = FrozenEncoder(image_size=32), FrozenEncoder(image_size=48)
    >>> probe = ClosedFormProbe().fit(old.transform(X[:100]), y[:100])
    >>> scores = inherited_probe_scores(X[:20], X[100:200], y[100:200], probe=probe, probe_encoder=old, encoder=new, n_views=2)
    >>> sorted(scores)
    ['top1', 'top5']
    """
    check_scalar(n_views, "n_views", Integral, min_val=0)
    check_scalar(alpha, "alpha", Real, min_val=0, include_boundaries="neither")
    check_finite(alpha, "alpha")
    check_is_fitted(probe)
    old, new = as_encoder(probe_encoder), FrozenEncoder() if encoder is None else as_encoder(encoder)
    old_extractor, new_extractor = old.load(), new.load()
    _check_probe(probe, old_extractor.n_features)
    y_test, groups = check_test_labels(X_test, y_test, groups, probe.classes_, "that the probe does not know")
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    given = as_images(images, old.image_shape), as_images(images, new.image_shape)
    if len(given[0]) * (1 + n_views) < 2:
        raise ValueError("a map needs two images at least, or random views of one; got one image and n_views=0")
    for one in given:
        one.check()
    test_Z = new_extractor.encode(as_images(X_test, new.image_shape))
    pairs = zip(_features(given[1], new_extractor, n_views, seed), _features(given[0], old_extractor, n_views, seed), strict=True)
    W, intercept = _ridge(pairs, ceil(_BLOCK / len(given[0])), float(alpha))
    scores = two_columns(probe.decision_function((test_Z @ W + intercept).astype(test_Z.dtype)))
    return stack_metrics([metrics_of(scores, probe.classes_, y_test, groups)])


def _check_probe(probe: Any, n_features: int) -> None:
    """Raise if a classifier is not one of these features, or its scores are not those of its classes."""
    if not (is_classifier(probe) and hasattr(probe, "decision_function") and np.ndim(getattr(probe, "classes_", 0)) == 1):
        raise TypeError(
            f"probe has to be a classifier with a decision_function and one label, such as ClosedFormProbe; got {probe!r}"
        )
    if probe.n_features_in_ != n_features:
        raise ValueError(
            f"probe was fitted to {probe.n_features_in_} features, and probe_encoder has {n_features}; pass the encoder whose "
            "features the probe was fitted to"
        )
    Z = np.random.RandomState(0).normal(size=(_N_TRIED, n_features)).astype(np.float32)
    scores, predicted = two_columns(probe.decision_function(Z)), probe.predict(Z)
    if scores.shape != (_N_TRIED, len(probe.classes_)) or not np.array_equal(probe.classes_[scores.argmax(1)], predicted):
        raise TypeError(
            "probe has to predict the class with the largest value of its decision_function, which has a column for each class, "
            f"or is one number for two classes; got {probe!r}, of which that is not true"
        )


def _features(images: Images, extractor: FeatureExtractor, n_views: int, seed: int) -> Iterator[np.ndarray]:
    """Features of the images and of random views of them, one view of all images after another."""
    yield extractor.encode(images)
    if n_views:
        yield from each_view(images, extractor, n_views, seed)


def _ridge(pairs: Iterator[tuple[np.ndarray, np.ndarray]], n_together: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercept of the ridge regression of the second features on the first ones, from sums over the views.

    `n_together` views are summed at once: a product of few rows would take as long as one of many.
    """
    sums: list[Any] = [0, 0.0, 0.0, 0.0, 0.0]
    while block := list(islice(pairs, n_together)):
        Z, T = (np.concatenate(parts).astype(np.float64) for parts in zip(*block, strict=True))
        sums = [total + own for total, own in zip(sums, (len(Z), Z.sum(0), T.sum(0), Z.T @ Z, Z.T @ T), strict=True)]
    n, mean_Z, mean_T = sums[0], sums[1] / sums[0], sums[2] / sums[0]
    gram, products = sums[3] - n * np.outer(mean_Z, mean_Z), sums[4] - n * np.outer(mean_Z, mean_T)
    variance = gram.trace() / n
    if not variance > 1e-12 * sums[3].trace() / n:
        raise ValueError("all views of all images have the same features under the new encoder; a map needs different ones")
    W = solve(gram + alpha * variance * np.eye(len(gram)), products, assume_a="pos")
    return W, mean_T - mean_Z @ W
