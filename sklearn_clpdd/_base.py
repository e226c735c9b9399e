"""BaseDistiller: validates for every distiller, and makes it a classifier and a transformer."""

from abc import abstractmethod
from functools import wraps

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from ._core.calibration import temperature_of
from ._core.devices import resolve_device
from ._core.objectives import anchors, inner_weights
from ._core.ridge import relative_penalty
from ._encoder import FrozenEncoder
from ._images import as_images
from ._probe import ClosedFormProbe
from ._spaces import ImageSpace, PointSpace, Space

# Real samples on which the probe's temperature is calibrated, at most.
_CALIBRATION_ROWS = 20_000


class BaseDistiller(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator):
    """Validate the data, have `_learn` find synthetic samples, and fit the probe that they induce.

    A subclass has the parameters `encoder`, `image_size`, `memory`, `device`, `random_state` and `verbose`, and fills `_learn`.
    """

    @abstractmethod
    def _learn(self, space: Space, R: np.ndarray, codes: np.ndarray, rng: np.random.RandomState) -> None:
        """Find synthetic samples for real features ``(n, d)`` and class indices ``(n,)``; set `alpha_`, call `_keep`."""

    def fit(self, X, y):
        """Learn a small synthetic set that stands for ``(X, y)``.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            Images in any form that :class:`FrozenEncoder` takes; features when ``encoder=None``.
        y : array-like of shape (n_samples,)
            Class labels, numbers or strings.

        Returns
        -------
        BaseDistiller
            Itself.
        """
        self._validate_params()
        rng = check_random_state(self.random_state)
        space, y = self._enter(X, y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"distillation needs samples of at least two classes; y holds one class, {classes.tolist()[0]!r}")
        self._check(classes, np.bincount(codes))
        R = space.features()
        if not np.isfinite(R).all():
            bad = np.flatnonzero(~np.isfinite(R).all(axis=1))
            raise ValueError(f"the encoder gives non-finite features for {len(bad)} of {len(R)} samples, first for X[{bad[0]}]")
        self.__dict__.pop("probe_", None)  # from here on not fitted, until `_keep`
        self.classes_, self.encoder_ = classes, space.encoder
        self._center, self._scale = space.center, space.scale
        with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
            self._learn(space, R, codes, rng)
        return self

    def _enter(self, X, y) -> tuple[Space, np.ndarray]:
        """The data behind one interface; all that can be said against it without long work is said here."""
        if self.encoder is None:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
            check_classification_targets(y)
            return PointSpace(X, resolve_device(self.device)), y
        encoder = self._make_encoder()
        images = as_images(X, encoder.image_shape)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_consistent_length(images, y)
        check_classification_targets(y)
        return ImageSpace(images, encoder, self.image_size), y

    def _make_encoder(self) -> FrozenEncoder:
        if isinstance(self.encoder, str | nn.Module):
            return FrozenEncoder(self.encoder, memory=self.memory, device=self.device, verbose=self.verbose)
        # A copy that shares the module: `clone` would copy the weights.
        return type(self.encoder)(**self.encoder.get_params(deep=False))

    def _check(self, classes: np.ndarray, counts: np.ndarray) -> None:
        """Raise where parameters do not fit one another or the number of real samples of each class."""

    def _keep(self, space: Space, samples: Tensor, y: np.ndarray, R: np.ndarray, codes: np.ndarray) -> None:
        """Fitted attributes from synthetic samples and their class indices."""
        self.X_synthetic_ = space.to_user(samples)
        self.y_synthetic_ = self.classes_[y]
        Z = space.features(self.X_synthetic_)
        probe = self._fit_probe(Z, self.y_synthetic_)
        some = np.unique(np.linspace(0, len(R) - 1, _CALIBRATION_ROWS).astype(int))
        scores = torch.from_numpy(probe.decision_function(R[some]))
        if scores.ndim == 1:
            scores = torch.stack([-scores, scores], 1)
        probe.temperature_ = temperature_of(scores, torch.from_numpy(codes[some]))
        probe.set_params(temperature=probe.temperature_)
        Y = F.one_hot(torch.from_numpy(y), len(self.classes_))
        self.anchors_ = anchors(inner_weights(torch.from_numpy(Z), Y, self.alpha_)).T.contiguous().numpy()
        # From the space's units to the user's.
        probe.coef_ = probe.coef_ / self._scale
        probe.intercept_ = probe.intercept_ - probe.coef_ @ np.broadcast_to(self._center, Z.shape[1:])
        self.probe_ = probe

    def _fit_probe(self, Z: np.ndarray, labels: np.ndarray) -> ClosedFormProbe:
        """The inner problem once more: no intercept, λ relative to the norms of ``Z``, which is in the space's units."""
        penalty = relative_penalty(torch.from_numpy(Z).double(), self.alpha_).item()
        return ClosedFormProbe(penalty, fit_intercept=False, temperature=1.0, device="cpu").fit(Z, labels)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "probe_")

    def features(self, X):
        """Features of samples, in which the probe and the anchors live.

        Parameters
        ----------
        X : images or features, as in `fit`
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Those of the encoder; ``X`` itself when ``encoder=None``.
        """
        check_is_fitted(self)
        if self.encoder_ is None:
            return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self.encoder_.encode(X)

    def transform(self, X):
        """Similarity of samples to the class anchors; without ``X``, the synthetic set.

        Parameters
        ----------
        X : images or features, as in `fit`, optional
            Samples to be scored.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Inner products of the features with the anchors (cosines, for an encoder's normalised features).
            Without ``X``: `X_synthetic_`.
        """
        return (self.features(X) - self._center) / self._scale @ self.anchors_.T

    def decision_function(self, X):
        """Scores of the classes, by the probe that was fitted on the synthetic set.

        Parameters
        ----------
        X : images or features, as in `fit`
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Those of :meth:`ClosedFormProbe.decision_function`.
        """
        features = self.features(X)
        return self.probe_.decision_function(features)

    def predict(self, X):
        """Most likely classes, by the probe that was fitted on the synthetic set.

        Parameters
        ----------
        X : images or features, as in `fit`
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels from `classes_`.
        """
        features = self.features(X)
        return self.probe_.predict(features)

    def predict_proba(self, X):
        """Probabilities of the classes, by the probe that was fitted on the synthetic set.

        Parameters
        ----------
        X : images or features, as in `fit`
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Rows sum to 1; calibrated on the real training features.
        """
        features = self.features(X)
        return self.probe_.predict_proba(features)

    @property
    def _n_features_out(self):
        return len(self.classes_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.encoder is None
        tags.input_tags.three_d_array = tags.input_tags.string = self.encoder is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"] if self.encoder is None else ["float32"]
        return tags


def _synthetic_without_X(transform):
    """``transform()`` gives the synthetic set. Applied once the class exists: scikit-learn's own wrapper demands ``X``."""

    @wraps(transform)
    def wrapped(self, X=None):
        if X is None:
            check_is_fitted(self)
            return self.X_synthetic_
        return transform(self, X)

    return wrapped


BaseDistiller.transform = _synthetic_without_X(BaseDistiller.transform)  # type: ignore[method-assign]
