"""Scores of an image set for the closed-form probe, for other probes, and with other encoders."""

from numbers import Integral, Real

from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils import check_random_state, check_scalar

from ..utils._torch_modes import standard_torch_modes
from ._head import HeadRecipe, check_heads, head_metrics
from ._probes import (
    check_alpha,
    check_inputs,
    closed_form_metrics,
    features_of_views,
    load_encoders,
    make_task,
    stack_metrics,
)

# Views of each image on which `probe_scores` trains the closed-form probe.
_N_VIEWS = 20


@standard_torch_modes()
def closed_form_probe_scores(
    images, labels, X_test, y_test, *, encoder=None, alpha=1.0, n_views=0, groups=None, random_state=None
):
    """Test scores of the closed-form probe trained on a small image set.

    Parameters
    ----------
    images : images
        Training images, in any form that :class:`FrozenEncoder` accepts.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoder : FrozenEncoder, str, torch.nn.Module or None, default=None
        A name or a module stands for ``FrozenEncoder(encoder)``, ``None`` for ``FrozenEncoder()``.
    alpha : float or "loo", default=1.0
        Ridge strength, relative to the mean squared norm of the features as in a distiller; ``"loo"``: chosen by
        :class:`ClosedFormProbe`, for image sets that are not small.
    n_views : int, default=0
        Random views of each image (crops of 0.08 to 1 of its area, flips) on which the probe is trained instead of the images.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as pairs of class and background.
    random_state : int, RandomState instance or None, default=None
        Seed of the views.

    Returns
    -------
    dict of str to ndarray of shape (1,)
        ``"top1"`` accuracy; ``"top5"`` accuracy, if there are more than five classes; ``"worst_group"``, the least accuracy of a
        group, if there are groups.

    Raises
    ------
    ValueError, TypeError
        Before anything is encoded: if the numbers of images, labels and groups differ, there is only one class, a test label does
        not occur among the training labels, a number is out of range, or `encoder` is not an encoder.
    FileNotFoundError, OSError
        If the weights of an encoder do not exist, or cannot be downloaded.

    See Also
    --------
    sgd_probe_scores : A probe trained as LGM trains it.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import closed_form_probe_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> scores = closed_form_probe_scores(X[:100], y[:100], X[100:200], y[100:200], encoder=encoder)
    >>> sorted(scores), bool(scores["top5"] >= scores["top1"])
    (['top1', 'top5'], True)
    """
    check_alpha(alpha)
    check_scalar(n_views, "n_views", Integral, min_val=0)
    if n_views and alpha == "loo":
        raise ValueError(
            'alpha="loo" would leave out one view and keep the others of the same image: pass a number, or n_views=0'
        )
    task = make_task(images, labels, X_test, y_test, groups, encoder)
    Z = features_of_views(task, n_views, random_state) if n_views else task.features
    return closed_form_metrics(Z, task, alpha)


@standard_torch_modes()
def probe_scores(
    images, labels, X_test, y_test, *, encoder=None, alpha=1.0, n_epochs=1000, n_repeats=1, groups=None, random_state=None
):
    """Test scores of five probes trained on a small image set.

    Parameters
    ----------
    images : images
        Training images, in any form that :class:`FrozenEncoder` accepts.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoder : FrozenEncoder, str, torch.nn.Module or None, default=None
        A name or a module stands for ``FrozenEncoder(encoder)``, ``None`` for ``FrozenEncoder()``.
    alpha : float, default=1.0
        See :func:`closed_form_probe_scores`.
    n_epochs : int, default=1000
        See :func:`sgd_probe_scores`.
    n_repeats : int, default=1
        Number of heads; with 0, none are trained.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as pairs of class and background.
    random_state : int, RandomState instance or None, default=None
        Seed of views and heads.

    Returns
    -------
    dict of str to dict
        Scores as :func:`closed_form_probe_scores` returns them, for the probes ``"closed_form"``; ``"closed_form_views"``,
        trained on 20 random views of each image; ``"logistic"``, scikit-learn's ``LogisticRegression`` with its default
        strength; and ``"knn"``, the nearest image (without ``"top5"``). ``"sgd"`` has the scores of :func:`sgd_probe_scores`.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        As :func:`closed_form_probe_scores`.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import probe_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> scores = probe_scores(X[:20], y[:20], X[100:200], y[100:200], encoder=encoder, n_epochs=2, random_state=0)
    >>> list(scores)
    ['closed_form', 'closed_form_views', 'logistic', 'knn', 'sgd']
    """
    check_scalar(alpha, "alpha", Real, min_val=0, include_boundaries="neither")
    recipe = HeadRecipe(n_epochs)
    check_heads(recipe, n_repeats, 0)
    seed = check_random_state(random_state).randint(2**31 - 1)
    task = make_task(images, labels, X_test, y_test, groups, encoder, needs_raw=True)
    Z, Z_views = task.features, features_of_views(task, _N_VIEWS, seed)
    scores = {"closed_form": closed_form_metrics(Z, task, alpha), "closed_form_views": closed_form_metrics(Z_views, task, alpha)}
    for name, probe in (("logistic", LogisticRegression(max_iter=1000)), ("knn", KNeighborsClassifier(1))):
        probe.fit(Z, task.labels)
        scores[name] = stack_metrics([task.metrics(probe.predict_proba(task.test_features))])
    scores["knn"].pop("top5", None)  # a single neighbour has only one class
    if n_repeats:
        scores["sgd"] = head_metrics(task, recipe, n_repeats, seed)
    return scores


@standard_torch_modes()
def transfer_scores(
    images, labels, X_test, y_test, encoders, *, n_epochs=1000, n_repeats=1, alpha=1.0, groups=None, random_state=None
):
    """Test scores of an image set with several encoders, including those that it was not distilled with.

    Parameters
    ----------
    images : images
        Training images, in any form that :class:`FrozenEncoder` accepts.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoders : dict of str to FrozenEncoder, str or torch.nn.Module
        Encoders by names of your choice.
    n_epochs : int, default=1000
        See :func:`sgd_probe_scores`.
    n_repeats : int, default=1
        Number of heads for each encoder; with 0, none are trained.
    alpha : float or "loo", default=1.0
        See :func:`closed_form_probe_scores`.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as pairs of class and background.
    random_state : int, RandomState instance or None, default=None
        Seed of the heads.

    Returns
    -------
    dict of str to dict
        For each encoder, the results of :func:`closed_form_probe_scores` and :func:`sgd_probe_scores`, under ``"closed_form"``
        and ``"sgd"``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        As :func:`closed_form_probe_scores`.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import transfer_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> encoders = {"32 px": encoder, "48 px": FrozenEncoder(image_size=48)}
    >>> scores = transfer_scores(X[:20], y[:20], X[100:200], y[100:200], encoders, n_repeats=0)
    >>> list(scores), list(scores["48 px"])
    (['32 px', '48 px'], ['closed_form'])
    """
    check_alpha(alpha)
    recipe = HeadRecipe(n_epochs)
    check_heads(recipe, n_repeats, 0)
    labels, y_test, groups = check_inputs(images, labels, X_test, y_test, groups)
    encoders = load_encoders(encoders)
    seed = check_random_state(random_state).randint(2**31 - 1)
    table = {}
    for name, encoder in encoders.items():
        task = make_task(images, labels, X_test, y_test, groups, encoder, needs_raw=n_repeats > 0)
        table[name] = {"closed_form": closed_form_metrics(task.features, task, alpha)}
        if n_repeats:
            table[name]["sgd"] = head_metrics(task, recipe, n_repeats, seed)
    return table
