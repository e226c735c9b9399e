"""BaseDistiller: validates for every distiller, and makes it a classifier and a transformer."""

from abc import abstractmethod
from contextlib import ExitStack, nullcontext
from functools import wraps
from numbers import Integral, Real
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from ._core.calibration import temperature_of
from ._core.devices import resolve_device
from ._core.heap import kept_heap
from ._core.objectives import anchors, inner_weights
from ._core.real_features import RealSet
from ._core.ridge import relative_penalty
from ._encoder import FrozenEncoder
from ._images import as_images
from ._probe import ClosedFormProbe
from ._spaces import ImageSpace, PointSpace, Space

# Real samples on which the probe's temperature is calibrated, at most.
_CALIBRATION_ROWS = 20_000


class Task(NamedTuple):
    """What a distiller is fitted to."""

    X: Any
    y: np.ndarray
    space: Space
    classes: np.ndarray
    codes: np.ndarray  # class indices of the real samples

    @property
    def members(self) -> list[np.ndarray]:
        """Positions of the samples of each class."""
        return [np.flatnonzero(self.codes == c) for c in range(len(self.classes))]


class BaseDistiller(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator):
    """Validate the data, have `_find` find synthetic samples, and fit the probe that they induce.

    A subclass has the parameters that concern data, encoder and probe, as :class:`CLPDistiller` has them, and fills `_find`.
    """

    _parameter_constraints: dict = {
        "encoder": [str, nn.Module, FrozenEncoder, None],
        "images_per_class": [Interval(Integral, 1, None, closed="left")],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "memory": [str, joblib.Memory, None],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def fit(self, X, y):
        """Find a small synthetic set that stands for ``(X, y)``.

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
        space, y = self._enter(X, y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"distillation needs samples of at least two classes; y holds one class, {classes.tolist()[0]!r}")
        self._check(classes, np.bincount(codes))
        device = space.device.type
        as_ever = torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False)
        with ExitStack() as stack:  # whatever mode the caller is in
            for context in (*as_ever, kept_heap() if device == "cpu" else nullcontext()):
                stack.enter_context(context)
            self._find(Task(X, y, space, classes, codes))
        return self

    @abstractmethod
    def _find(self, task: Task) -> None:
        """Find synthetic samples for the real ones; set what `_fitted` gives."""

    def _encode(self, task: Task, order: np.ndarray, n_held_out: int = 0) -> RealSet:
        """Features of the real samples in some order; from here on, and until `_fitted`, this is not fitted."""
        space = task.space
        real = RealSet(space.real_features(order), task.codes[order], order, n_held_out)
        self.__dict__.pop("probe_", None)
        self.classes_, self.encoder_ = task.classes, space.encoder
        self._center, self._scale = space.center, space.scale
        self.alpha_ = float(self.alpha)
        return real

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

    def _check_enough(self, classes: np.ndarray, counts: np.ndarray, what: str) -> None:
        """Raise where a class has fewer real samples than are to be taken from it."""
        few = np.flatnonzero(counts < self.images_per_class)
        if len(few):
            labels = classes.tolist()
            raise ValueError(
                f"{what} takes {self.images_per_class} real samples of each class, and these classes have fewer: "
                f"{', '.join(f'{labels[c]!r} ({counts[c]})' for c in few[:10])}. Give a smaller images_per_class"
            )

    def _fitted(self, space: Space, samples: Tensor, y: np.ndarray, real: RealSet) -> dict:
        """Fitted attributes from synthetic samples and their class indices."""
        X_synthetic = space.to_user(samples.detach())
        labels = self.classes_[y]
        Z = space.features(X_synthetic)
        probe = self._fit_probe(Z, labels)
        some = np.unique(np.linspace(0, len(real.R) - 1, _CALIBRATION_ROWS).astype(int))
        scores = torch.from_numpy(probe.decision_function(real.R[some].astype(Z.dtype)))
        if scores.ndim == 1:
            scores = torch.stack([-scores, scores], 1)
        probe.temperature_ = temperature_of(scores, torch.from_numpy(real.codes[some]))
        probe.set_params(temperature=probe.temperature_)
        Y = F.one_hot(torch.from_numpy(y), len(self.classes_))
        # From the space's units to the user's.
        probe.coef_ = probe.coef_ / self._scale
        probe.intercept_ = probe.intercept_ - probe.coef_ @ np.broadcast_to(self._center, Z.shape[1:])
        return {
            "X_synthetic_": X_synthetic,
            "y_synthetic_": labels,
            "anchors_": anchors(inner_weights(torch.from_numpy(Z), Y, self.alpha_)).T.contiguous().numpy(),
            "probe_": probe,
        }

    def _fit_probe(self, Z: np.ndarray, labels: np.ndarray) -> ClosedFormProbe:
        """The inner problem once more: no intercept, λ relative to the norms of ``Z``, which is in the space's units."""
        penalty = relative_penalty(torch.from_numpy(Z).double(), self.alpha_).item()
        return ClosedFormProbe(penalty, fit_intercept=False, temperature=1.0, device="cpu").fit(Z, labels)

    def _synthetic(self) -> np.ndarray:
        check_is_fitted(self)
        return self.X_synthetic_

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
    """``transform()`` gives the synthetic set.

    Applied once the class exists: scikit-learn's own wrapper demands ``X``.
    """

    @wraps(transform)
    def wrapped(self, X=None):
        return self._synthetic() if X is None else transform(self, X)

    return wrapped


BaseDistiller.transform = _synthetic_without_X(BaseDistiller.transform)  # type: ignore[method-assign]
