"""Classifier inheritance: the probe of all real images, behind an encoder that the image set was not made for."""

from numbers import Integral, Real

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from ..encoder._encoder import FrozenEncoder, as_encoder
from ..encoder.images._forms import as_images
from ..utils._labels import as_labels
from ..utils._torch_modes import standard_torch_modes
from ._probes import ProbeTask, features_of_views, stack_metrics, two_columns


@standard_torch_modes()
def inherited_probe_scores(
    images, X_test, y_test, *, probe, probe_encoder, encoder=None, n_views=100, alpha=1.0, groups=None, random_state=None
):
    """Test scores of a probe of one encoder on the features of another, which a linear map of a small image set connects.

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
        Before anything is encoded: if the numbers of images, labels and groups differ, a test label is not one of the probe's
        classes, the probe is for another number of features than `probe_encoder` has, a number is out of range, or an encoder is
        none.
    NotFittedError
        If the probe is not fitted.
    FileNotFoundError, OSError
        If the weights of an encoder do not exist, or cannot be downloaded.

    See Also
    --------
    transfer_scores : Probes that are trained on the image set, with other encoders.

    Notes
    -----
    Classifier inheritance is from SFM (arXiv 2602.05391). Its released code (commit cb0746a, ``distillation/eval_syn.py``, mode
    "CI") learns the map with Adam, in 1,000 epochs with one random view of each image; here it is a ridge regression in closed
    form, on as many views as `n_views` says.

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
    check_is_fitted(probe)
    if not hasattr(probe, "decision_function"):
        raise TypeError(f"probe has to be a classifier with a decision_function, such as ClosedFormProbe; got {probe!r}")
    given = (images, X_test, *_labels_and_groups(X_test, y_test, groups, probe.classes_), probe.classes_)
    encoders = as_encoder(probe_encoder), FrozenEncoder() if encoder is None else as_encoder(encoder)
    old, new = (_task(*given, one) for one in encoders)
    if probe.n_features_in_ != old.extractor.n_features:
        raise ValueError(
            f"probe was fitted to {probe.n_features_in_} features, and probe_encoder has {old.extractor.n_features}; pass the "
            "encoder whose features the probe was fitted to"
        )
    seed = check_random_state(random_state).randint(2**31 - 1)
    old_Z, new_Z = (_features(task, n_views, seed) for task in (old, new))
    mapped = _ridge(new_Z, old_Z, float(alpha)).predict(new.test_features)
    return stack_metrics([new.metrics(two_columns(probe.decision_function(mapped)))])


def _labels_and_groups(X_test, y_test, groups, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Checked labels and groups of the test images."""
    y_test = as_labels(y_test, "y_test")
    groups = None if groups is None else as_labels(groups, "groups")
    check_consistent_length(X_test, y_test, groups)
    unknown = np.setdiff1d(y_test, classes).tolist()
    if unknown:
        raise ValueError(
            f"y_test contains classes that the probe does not know: {unknown[:10]}; it knows {classes[:10].tolist()}"
        )
    return y_test, groups


def _task(images, X_test, y_test, groups, classes: np.ndarray, encoder: FrozenEncoder) -> ProbeTask:
    """The images and the test images behind an encoder; of the labels, only the classes are known."""
    extractor, shape = encoder.load(), encoder.image_shape
    return ProbeTask(as_images(images, shape), classes, extractor, as_images(X_test, shape), y_test, groups, needs_raw=False)


def _features(task: ProbeTask, n_views: int, seed: int) -> np.ndarray:
    """Features of the images and of random views of them, the same views for each encoder."""
    return np.concatenate([task.features, features_of_views(task, n_views, seed)]) if n_views else task.features


def _ridge(Z: np.ndarray, targets: np.ndarray, alpha: float) -> Ridge:
    """Ridge regression with an intercept, of a strength relative to the mean squared norm of the centred features."""
    variance = float(np.square(Z - Z.mean(axis=0)).sum(axis=1).mean())
    return Ridge(alpha * max(variance, np.finfo(Z.dtype).tiny)).fit(Z, targets)
