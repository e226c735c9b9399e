"""Peers that select real images."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from ..distill import CLPDistiller
from ..distill._base import BaseDistiller
from ..distill._fit_data import FitData, FitResult
from ..distill._start import kmeans_rows, nearest_rows


class _RealSubset(BaseDistiller):
    """Selects real samples; a subclass implements `_select`."""

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        images_per_class=1,
        image_size=None,
        alpha=1.0,
        random_state=None,
        verbose=0,
    ):
        self.encoder = encoder
        self.images_per_class = images_per_class
        self.image_size = image_size
        self.alpha = alpha
        self.random_state = random_state
        self.verbose = verbose

    def _check_data(self, data):
        self._check_enough(data, data.class_counts, type(self).__name__)

    def _distill(self, data):
        # The order does not affect the selection; the probe is calibrated on rows that are evenly spaced in it.
        order = np.random.RandomState(0).permutation(len(data.codes))
        position = np.argsort(order)
        attributes = self._prepare(data)
        real = data.real_features(order)
        selected = self._select(data, lambda rows: real.values[position[rows]], attributes)
        codes = np.repeat(np.arange(len(selected)), [len(rows) for rows in selected])
        indices = np.concatenate(selected)
        return FitResult(data.adapter.read(indices), codes, real, attributes=attributes | {"indices_": indices})

    def _prepare(self, data: FitData) -> dict[str, Any]:
        """Fitted attributes that are computed before the features."""
        return {}

    @abstractmethod
    def _select(
        self, data: FitData, features: Callable[[np.ndarray], np.ndarray], attributes: dict[str, Any]
    ) -> list[np.ndarray]:
        """Positions of the selected samples of each class; ``features`` maps positions to features."""


class RandomSubset(_RealSubset):
    """Random real images of each class.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder, list of these or None, default="tf_efficientnet_lite0"
        Maps images to features; a name or a module stands for ``FrozenEncoder(encoder)``. With several encoders, the probe uses
        the features of all of them. ``None``: ``X`` contains features, and `image_size` is ignored.
    images_per_class : int, dict or callable, default=1
        Real images of each class; a dict has a number for each label, and a function of ``y`` returns such a dict. For a given
        total, see :func:`allocate_images`.
    image_size : int, default=None
        Side of the selected images in pixels. ``None``: the size to which the encoder resizes images before its centre crop.
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
    random_state : int, RandomState instance or None, default=None
        Seed of the selection.
    verbose : int, default=0
        Above 0: show progress bars.

    Attributes
    ----------
    indices_ : ndarray of shape (n_synthetic,), int64
        Positions in ``X`` of the selected samples, in the order of `X_synthetic_`.
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
    ClassCentroids : Selects the most typical images.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import RandomSubset
    >>> X, y = load_iris(return_X_y=True)
    >>> subset = RandomSubset(encoder=None, random_state=0).fit(X, y)
    >>> X[subset.indices_].shape == subset.transform().shape
    True
    """

    def _select(self, data, features, attributes):
        rng = check_random_state(self.random_state)
        return [rng.choice(rows, n, replace=False) for rows, n in zip(data.members, data.images_per_class, strict=True)]


class ClassCentroids(_RealSubset):
    """The real images of each class that are nearest to the centres of its k-means clusters; a single one is nearest to the mean.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder, list of these or None, default="tf_efficientnet_lite0"
        Maps images to features; a name or a module stands for ``FrozenEncoder(encoder)``. With several encoders, the probe uses
        the features of all of them. ``None``: ``X`` contains features, and `image_size` is ignored.
    images_per_class : int, dict or callable, default=1
        Real images of each class; a dict has a number for each label, and a function of ``y`` returns such a dict. For a given
        total, see :func:`allocate_images`.
    image_size : int, default=None
        Side of the selected images in pixels. ``None``: the size to which the encoder resizes images before its centre crop.
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
    random_state : int, RandomState instance or None, default=None
        Seed of k-means.
    verbose : int, default=0
        Above 0: show progress bars.

    Attributes
    ----------
    indices_ : ndarray of shape (n_synthetic,), int64
        Positions in ``X`` of the selected samples, in the order of `X_synthetic_`.
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
    RandomSubset : Selects random images.
    NearestReals : Selects the images nearest to synthetic ones.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import ClassCentroids
    >>> X, y = load_iris(return_X_y=True)
    >>> ClassCentroids(encoder=None).fit(X, y).transform().shape
    (3, 4)
    """

    def _select(self, data, features, attributes):
        rng = check_random_state(self.random_state)
        return [rows[kmeans_rows(features(rows), n, rng)] for rows, n in zip(data.members, data.images_per_class, strict=True)]


class NearestReals(_RealSubset):
    """The real images whose features are nearest to those of a distilled set, each within its class.

    Parameters
    ----------
    distiller : CLPDistiller or another distiller, default=None
        Its synthetic set is replaced by real images; its encoder, image size and ridge strength are used. A fitted distiller is
        used as it is. Otherwise a clone is fitted first; with a cache (``FrozenEncoder(memory=)``), the real images are then
        encoded only once. A clone of this estimator has an unfitted distiller, as for any nested estimator, so a search fits it
        again. ``None`` stands for ``CLPDistiller()``.

    Attributes
    ----------
    distiller_ : CLPDistiller or another distiller
        The fitted distiller.
    indices_ : ndarray of shape (n_synthetic,), int64
        Positions in ``X`` of the selected samples, in the order of `X_synthetic_`. No sample is selected twice, and the sum of
        the distances is minimal.
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
        In `fit`, if parameters, images, labels or an encoder cannot be used, or a fitted distiller has other classes, or more
        images of a class than there are samples.

    See Also
    --------
    ClassCentroids : Selects the images nearest to k-means centres.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd import CLPDistiller
    >>> from sklearn_clpdd.baselines import NearestReals
    >>> X, y = load_iris(return_X_y=True)
    >>> distiller = CLPDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y)
    >>> NearestReals(distiller).fit(X, y).indices_.shape
    (3,)
    """

    _parameter_constraints = {"distiller": [BaseDistiller, None]}

    def __init__(self, distiller=None):
        self.distiller = distiller

    def _validate_params(self):
        super()._validate_params()
        if not self._given.__sklearn_is_fitted__():
            self._given._validate_params()

    @property
    def _given(self) -> BaseDistiller:
        return CLPDistiller() if self.distiller is None else self.distiller

    encoder = property(lambda self: self._given.encoder)
    images_per_class = property(lambda self: self._given.images_per_class)
    image_size = property(lambda self: self._given.image_size)
    alpha = property(lambda self: self._given.alpha)
    verbose = property(lambda self: self._given.verbose)

    def _check_data(self, data):
        given, counts = self._given, data.class_counts
        if not given.__sklearn_is_fitted__():  # the rest is checked by its own `fit`, which comes first
            super()._check_data(data)
            return
        if not np.array_equal(given.classes_, data.classes):
            raise ValueError(
                f"the fitted distiller has classes {given.classes_.tolist()[:10]} and y contains {data.classes.tolist()[:10]}; "
                "pass the data that it was fitted to, or an unfitted distiller"
            )
        wanted = np.bincount(np.searchsorted(data.classes, given.y_synthetic_))
        if (counts < wanted).any():
            raise ValueError(
                f"the distilled set has up to {wanted.max()} images of a class, and y as few as {counts.min()}; "
                "pass the data that it was distilled from"
            )

    def _prepare(self, data):
        given = self._given
        return {"distiller_": given if given.__sklearn_is_fitted__() else clone(given).fit(data.X, data.y, data.groups)}

    def _select(self, data, features, attributes):
        distiller = attributes["distiller_"]
        codes = np.searchsorted(data.classes, distiller.y_synthetic_)
        Z = data.adapter.features(distiller.X_synthetic_)
        return [rows[nearest_rows(Z[codes == c], features(rows))] for c, rows in enumerate(data.members)]
