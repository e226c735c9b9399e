"""Distilled samples compared with random real ones and with all real ones."""

from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from ..distill._base import BaseDistiller
from ..probe import ClosedFormProbe
from ..probe._solved import relative_probe
from ..utils._arrays import standardize
from ..utils._labels import as_labels
from ..utils._torch_modes import standard_torch_modes


@standard_torch_modes()
def compare_with_real(distiller: BaseDistiller, X, y, X_test, y_test, *, n_draws=10, random_state=None):
    """Test accuracies of the closed-form probe trained on all real samples, on a few of them, and on the distilled ones.

    Parameters
    ----------
    distiller : CLPDistiller or a baseline
        Fitted.
    X, y : images or features, and labels
        The data that the distiller was fitted to.
    X_test, y_test : images or features, and labels
        Test samples.
    n_draws : int, default=10
        Number of random selections, each with as many real samples per class as there are synthetic ones.
    random_state : int, RandomState instance or None, default=None
        Seed of the selections.

    Returns
    -------
    dict of str to tuple (int, float)
        For ``"all real"``, ``"random real"`` (mean of the draws) and ``"distilled"``: number of training samples, and accuracy.
        The ridge strength for all real samples is chosen by leave-one-out; the others use that of the distiller.

    Raises
    ------
    ValueError, TypeError
        Before anything is encoded: if the numbers of samples and labels differ, or ``n_draws`` is out of range.
    NotFittedError
        If the distiller is not fitted.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import compare_with_real
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> from sklearn_clpdd.baselines import ClassCentroids
    >>> distiller = ClassCentroids(encoder).fit(X[:100], y[:100])
    >>> rows = compare_with_real(distiller, X[:100], y[:100], X[100:200], y[100:200], random_state=0)
    >>> {name: n for name, (n, accuracy) in rows.items()}
    {'all real': 100, 'random real': 10, 'distilled': 10}
    """
    check_scalar(n_draws, "n_draws", Integral, min_val=1)
    check_is_fitted(distiller)
    y, y_test = known_labels(distiller, y, "y"), as_labels(y_test, "y_test")
    check_consistent_length(X, y)
    check_consistent_length(X_test, y_test)
    rng = check_random_state(random_state)
    return compare_features(distiller, distiller.features(X), y, distiller.features(X_test), y_test, n_draws, rng)


def known_labels(distiller: BaseDistiller, y, name: str) -> np.ndarray:
    """Labels of the data that a distiller was fitted to; raise for others."""
    labels = as_labels(y, name)
    found, known = np.unique(labels).tolist(), distiller.classes_.tolist()
    if found != known:
        raise ValueError(f"{name} has the classes {found[:10]}, and the distiller was fitted to {known[:10]}; pass the same data")
    return labels


def compare_features(distiller: BaseDistiller, Z, y, Z_test, y_test, n_draws: int, rng) -> dict[str, tuple[int, float]]:
    """`compare_with_real` for features."""
    features, test_features = (standardize(values, distiller._center, distiller._scale) for values in (Z, Z_test))
    full = ClosedFormProbe(loss="squared").fit(features, y)
    members = [np.flatnonzero(y == label) for label in distiller.classes_]
    wanted = [int(np.sum(distiller.y_synthetic_ == label)) for label in distiller.classes_]
    sizes = [min(len(rows), n) for rows, n in zip(members, wanted, strict=True)]
    draws = []
    for _ in range(n_draws):
        rows = np.concatenate([rng.choice(rows, n, replace=False) for rows, n in zip(members, sizes, strict=True)])
        probe = relative_probe(features[rows], distiller.alpha_).fit(features[rows], y[rows])
        draws.append(probe.score(test_features, y_test))
    return {
        "all real": (len(y), full.score(test_features, y_test)),
        "random real": (sum(sizes), float(np.mean(draws))),
        "distilled": (len(distiller.y_synthetic_), distiller.probe_.score(Z_test, y_test)),
    }
