"""Peers that select real images one after another, each given those before: herding and k-center greedy."""

from collections.abc import Callable

import numpy as np

from ..utils._sklearn_compat import StrOptions
from ._real_subsets import _RealSubset


def herding(R: np.ndarray, n: int) -> np.ndarray:
    """Rows whose mean, after each of them, is as close as possible to the mean of all (Welling, ICML 2009).

    Parameters
    ----------
    R : ndarray of shape (N, d), float64
    n : int
        Number of rows, ≤ N.

    Returns
    -------
    ndarray of shape (n,), int64
        Distinct rows, in their order.
    """
    mean, squares = R.mean(axis=0), np.square(R).sum(axis=1)
    rest = np.zeros_like(mean)  # what the next row should be
    chosen: list[int] = []
    for _ in range(n):
        rest = rest + mean
        distances = squares - 2 * (R @ rest)  # not (2 R) rest, which would copy R
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
        rest = rest - R[chosen[-1]]
    return np.array(chosen)


def k_center(R: np.ndarray, n: int) -> np.ndarray:
    """The row nearest to the mean of all, then always the one that is farthest from those chosen (Gonzalez, 1985).

    Arguments and result are those of `herding`.
    """
    chosen = [int(np.square(R - R.mean(axis=0)).sum(axis=1).argmin())]
    nearest = np.full(len(R), np.inf)
    for _ in range(1, n):
        nearest = np.minimum(nearest, np.square(R - R[chosen[-1]]).sum(axis=1))
        nearest[chosen] = -1  # copies of a chosen row have a distance of 0
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


STRATEGIES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"herding": herding, "k_center": k_center}


class CoreSet(_RealSubset):
    """Real images of each class that are chosen one after another, by herding or as centres of a cover.

    Time and memory are proportional to the number of samples. Nothing is random; with one image per class, both are the image
    that is nearest to the mean of the class, as :class:`ClassCentroids` is.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder, list of these or None, default="tf_efficientnet_lite0"
        Maps images to features; a name or a module stands for ``FrozenEncoder(encoder)``. With several encoders, the probe uses
        the features of all of them. ``None``: ``X`` contains features, and `image_size` is ignored.
    strategy : {"herding", "k_center"}, default="herding"
        ``"herding"``: after each image, the mean of those chosen is as close as possible to the mean of the class.
        ``"k_center"``: after the most central image, always the one that is farthest from its nearest chosen one, so that no
        image is more than twice as far from them as it has to be.
    images_per_class : int, dict or callable, default=1
        Real images of each class; a dict has a number for each label, and a function of ``y`` returns such a dict. For a given
        total, see :func:`allocate_images`.
    image_size : int, default=None
        Side of the selected images in pixels. ``None``: the size to which the encoder resizes images before its centre crop.
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
    verbose : int, default=0
        Above 0: show progress bars.

    Attributes
    ----------
    indices_ : ndarray of shape (n_synthetic,), int64
        Positions in ``X`` of the selected samples, in the order of `X_synthetic_`: within a class, that of their choice.
    X_synthetic_ : ndarray of shape (n_synthetic, image_size, image_size, 3), float32
        The selected images in [0, 1], grouped by class; ``(n_synthetic, n_features)`` if ``encoder=None``.
    y_synthetic_ : ndarray of shape (n_synthetic,)
        Their labels.
    targets_ : ndarray of shape (n_synthetic, n_classes)
        Targets of the probe: one-hot labels.
    probe_ : ClosedFormProbe
        Probe of the synthetic set, with a temperature calibrated on the real training features.
    anchors_ : ndarray of shape (n_classes, n_features)
        Class anchors: unit vectors in feature space.
    encoder_ : FrozenEncoder, list of FrozenEncoder or None
        The encoder or encoders.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    class_count_ : ndarray of shape (n_classes,), int64
        Real samples of each class.
    data_digest_ : str
        Digest of ``X`` and ``y``, the same on another machine with the same numpy and joblib. Arrays and PIL images are
        digested by their content, files by their names and sizes.
    alpha_ : float
        Ridge strength that was used.
    n_features_in_ : int
        Number of features, if ``encoder=None``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        In `fit`, if parameters, images, labels or an encoder cannot be used, or a class has too few samples.

    See Also
    --------
    ClassCentroids : Selects the images nearest to k-means centres.

    References
    ----------
    Herding: M. Welling, *Herding dynamical weights to learn*, ICML 2009; in the form of iCaRL, arXiv 1611.07725, algorithm 4.
    k-center: T. F. Gonzalez, *Clustering to minimize the maximum intercluster distance*, 1985; as a core-set, Sener and Savarese,
    arXiv 1708.00489, algorithm 1.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import CoreSet
    >>> X, y = load_iris(return_X_y=True)
    >>> CoreSet(encoder=None, strategy="k_center", images_per_class=5).fit(X, y).transform().shape
    (15, 4)
    """

    _parameter_constraints = {
        **{name: accepted for name, accepted in _RealSubset._parameter_constraints.items() if name != "random_state"},
        "strategy": [StrOptions(set(STRATEGIES))],
    }

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        strategy="herding",
        images_per_class=1,
        image_size=None,
        alpha=1.0,
        verbose=0,
    ):
        self.encoder = encoder
        self.strategy = strategy
        self.images_per_class = images_per_class
        self.image_size = image_size
        self.alpha = alpha
        self.verbose = verbose

    def _select(self, data, features, attributes):
        choose = STRATEGIES[self.strategy]
        return [
            rows[choose(np.asarray(features(rows), dtype=np.float64), n)]
            for rows, n in zip(data.members, data.images_per_class, strict=True)
        ]
