"""BaseDistiller: validation and prediction, which all distillers share."""

from abc import abstractmethod
from contextlib import nullcontext
from functools import wraps
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor, nn

from ..encoder._encoder import FrozenEncoder, as_encoder
from ..encoder._extractor import joint_features
from ..encoder._shared_module import SharedModuleMixin
from ..encoder.images._forms import as_images
from ..probe._calibration import best_temperature
from ..probe._solved import solved_probe
from ..utils._arrays import evenly_spaced, standardize
from ..utils._classifier import LabelCheckedClassifier
from ..utils._device import resolve_device
from ..utils._documented import DocumentedMixin
from ..utils._heap import reuse_freed_memory
from ..utils._labels import as_labels
from ..utils._pictures import to_html
from ..utils._ridge import relative_penalty
from ..utils._sklearn_compat import HtmlAppendixMixin, Interval, check_output_container
from ..utils._torch_modes import standard_torch_modes
from ..utils._transformer import OutputCheckedTransformer
from ..utils._warnings import warn
from ._adapters import DataAdapter, FeatureAdapter, ImageAdapter
from ._fit_data import FitData, FitResult
from ._objectives import anchors, inner_weights
from ._real_features import RealFeatures
from ._trainer import retry_on_interrupt

# Real samples on which the temperature of the probe is calibrated, at most.
_CALIBRATION_ROWS = 20_000
# Fitted attributes whose names do not end with an underscore.
_PRIVATE_ATTRIBUTES = ("_center", "_scale", "_encoder_provenance")


class BaseDistiller(
    DocumentedMixin, HtmlAppendixMixin, SharedModuleMixin, OutputCheckedTransformer, LabelCheckedClassifier, BaseEstimator
):
    """Validate the data, find synthetic samples by `_distill`, and fit the probe of these samples.

    A subclass has the data, encoder and probe parameters of :class:`CLPDistiller`, and implements `_distill`. `fit` sets all
    fitted attributes at once, at its end. They never belong to two different fits.
    """

    _module_parameter = "encoder"
    _parameter_constraints: dict = {
        "encoder": [str, nn.Module, FrozenEncoder, list, tuple, None],
        "images_per_class": [Interval(Integral, 1, None, closed="left"), dict, callable],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def fit(self, X, y, groups=None):
        """Find a small synthetic set that can replace ``(X, y)`` for training a probe.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            Images in any form that :class:`FrozenEncoder` accepts; features if ``encoder=None``.
        y : array-like of shape (n_samples,)
            Class labels, numbers or strings.
        groups : array-like of shape (n_samples,), default=None
            An attribute from which the class must not be inferred, such as the background. Real samples are then drawn
            such that all classes are equally likely, and so are all groups of a class. Methods that select real samples ignore
            it, except `NearestReals`, which passes it to the distiller that it fits.

        Returns
        -------
        BaseDistiller
            The distiller itself.
        """
        self._validate_params()
        data = self._validated(X, y, groups)
        self._check_data(data)
        device = data.adapter.device
        with standard_torch_modes(device), reuse_freed_memory() if device.type == "cpu" else nullcontext():
            result = self._distill(data)
            try:
                fitted = retry_on_interrupt(lambda: self._fitted_attributes(data, result))
            except Exception as error:
                if result.error is None:
                    raise
                try:
                    raise result.error from error
                finally:
                    del result, data  # an error references the frames that it has passed through
            self.__dict__ = self._without_fitted_attributes() | fitted
        if result.warning is not None:
            warn(result.warning)
        if result.error is not None:
            try:
                raise result.error
            finally:
                del result, fitted, data  # an error references the frames that it has passed through
        self._after_fit(data)
        return self

    def _without_fitted_attributes(self) -> dict[str, Any]:
        """All other attributes: parameters, and settings such as metadata requests."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_") and name not in _PRIVATE_ATTRIBUTES}

    @abstractmethod
    def _distill(self, data: FitData) -> FitResult:
        """Find synthetic samples. Must not change the estimator, which may be fitted to other data."""

    def _after_fit(self, data: FitData) -> None:
        """Called after a successful fit."""

    def _validated(self, X, y, groups) -> FitData:
        """Validate everything that is quick to check."""
        adapter, y, input_attributes = self._adapt_features(X, y) if self.encoder is None else self._adapt_images(X, y)
        classes, codes = np.unique(y, return_inverse=True)
        groups = None if groups is None else _groups_within_classes(codes, groups)
        if len(classes) < 2:
            raise ValueError(
                f"distillation needs samples of at least two classes; y contains only one class, {classes.tolist()[0]!r}"
            )
        return FitData(X, y, adapter, input_attributes, classes, codes, groups, self._resolve_images_per_class(classes, y))

    def _adapt_features(self, X, y) -> tuple[DataAdapter, np.ndarray, dict[str, Any]]:
        # scikit-learn sets attributes, such as n_features_in_, while it validates; on a copy, because `fit` may still fail.
        copy = object.__new__(type(self))
        copy.__dict__.update(before := self._without_fitted_attributes())
        X, y = validate_data(copy, X, None if y is None else as_labels(y), dtype=[np.float64, np.float32])
        set_by_sklearn = {name: value for name, value in vars(copy).items() if name not in before}
        return FeatureAdapter(X, resolve_device("auto")), y, set_by_sklearn

    def _adapt_images(self, X, y) -> tuple[DataAdapter, np.ndarray, dict[str, Any]]:
        several = isinstance(self.encoder, list | tuple)
        given = list(self.encoder) if several else [self.encoder]
        if not given:
            raise ValueError("encoder is an empty list; pass at least one encoder, or None for features")
        encoders = [clone(as_encoder(one, verbose=self.verbose)) for one in given]
        if len({repr(encoder.image_shape) for encoder in encoders}) > 1:
            raise ValueError(f"encoders have to agree on image_shape; got {[encoder.image_shape for encoder in encoders]}")
        images = as_images(X, encoders[0].image_shape)
        y = as_labels(y)
        check_consistent_length(images, y)
        return ImageAdapter(images, encoders, self.image_size), y, {}

    def _resolve_images_per_class(self, classes: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Number of synthetic samples of each class."""
        given = self.images_per_class(y) if callable(self.images_per_class) else self.images_per_class
        if not isinstance(given, dict):
            check_scalar(given, "images_per_class", Integral, min_val=1)
            return np.full(len(classes), given)
        labels = classes.tolist()
        if set(given) != set(labels):
            raise ValueError(
                "images_per_class as a dict needs a number for each class of y. Missing from the dict: "
                f"{[label for label in labels if label not in given][:10]}; not in y: "
                f"{[label for label in given if label not in labels][:10]}"
            )
        for label, number in given.items():
            check_scalar(number, f"images_per_class[{label!r}]", Integral, min_val=1)
        return np.array([given[label] for label in labels])

    def _check_data(self, data: FitData) -> None:
        """Raise if parameters contradict each other, or there are too few real samples."""

    def _check_enough(self, data: FitData, available: np.ndarray, what: str) -> None:
        """Raise if fewer real samples of a class are available than are needed."""
        needed = data.images_per_class
        few = np.flatnonzero(available < needed)
        if len(few):
            labels = data.classes.tolist()
            raise ValueError(
                f"{what} needs as many real samples of each class as synthetic ones, and some classes have fewer: "
                f"{', '.join(f'{labels[c]!r} ({available[c]} of {needed[c]})' for c in few[:10])}. Use a smaller images_per_class"
            )

    def _fitted_attributes(self, data: FitData, result: FitResult) -> dict[str, Any]:
        """All fitted attributes."""
        adapter, alpha = data.adapter, float(self.alpha)
        X_synthetic = adapter.to_user(result.samples.detach())
        Z = torch.from_numpy(adapter.features(X_synthetic))
        one_hot = F.one_hot(torch.from_numpy(result.codes), len(data.classes))
        Y = one_hot if result.targets is None else result.targets.detach().cpu()
        W = inner_weights(Z, Y, alpha)
        encoders = adapter.encoders if isinstance(self.encoder, list | tuple) else next(iter(adapter.encoders), None)
        return {
            **data.input_attributes,
            "X_synthetic_": X_synthetic,
            "y_synthetic_": data.classes[result.codes],
            "targets_": Y.to(W, copy=True).numpy(),
            "anchors_": anchors(W).T.contiguous().numpy(),
            "probe_": _inner_probe(data, result.real, Z, Y, alpha),
            "encoder_": encoders,
            "classes_": data.classes,
            "class_count_": data.class_counts,
            "data_digest_": data.digest,
            "alpha_": alpha,
            "_center": adapter.center,
            "_scale": adapter.scale,
            "_encoder_provenance": adapter.provenance(),
            **result.attributes,
        }

    def _synthetic_set(self) -> np.ndarray:
        check_is_fitted(self)
        return self.X_synthetic_

    def __sklearn_is_fitted__(self):
        return hasattr(self, "probe_")

    def features(self, X):
        """Features of samples, for the probe and the anchors.

        Parameters
        ----------
        X : images or features, as in `fit`
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Features of the encoder; ``X`` itself if ``encoder=None``. Those of several encoders are concatenated and divided by
            the square root of the number of encoders.
        """
        check_is_fitted(self)
        if self.encoder_ is None:
            return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        encoders = self.encoder_ if isinstance(self.encoder_, list) else [self.encoder_]
        return joint_features([encoder.load() for encoder in encoders], as_images(X, encoders[0].image_shape))

    def transform(self, X):
        """Similarity of samples to the class anchors; without ``X``, the synthetic set.

        Parameters
        ----------
        X : images or features, as in `fit`, optional
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Inner products of the features with the anchors (cosines, for normalised features of an encoder). Without ``X``:
            `X_synthetic_`.
        """
        check_output_container(self)
        return standardize(self.features(X), self._center, self._scale) @ self.anchors_.T

    def decision_function(self, X):
        """Scores of the classes by the probe of the synthetic set.

        Parameters
        ----------
        X : images or features, as in `fit`
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            As those of :meth:`ClosedFormProbe.decision_function`.
        """
        features = self.features(X)
        return self.probe_.decision_function(features)

    def predict(self, X):
        """Most likely classes by the probe of the synthetic set.

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
        """Probabilities of the classes by the probe of the synthetic set.

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

    def _html_appendix(self) -> str:
        """The synthetic images, which a notebook shows below the parameters of a fitted distiller."""
        if not self.__sklearn_is_fitted__() or self.X_synthetic_.ndim != 4:
            return ""
        return to_html(self.X_synthetic_, self.y_synthetic_)

    @property
    def _n_features_out(self):
        return len(self.classes_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.encoder is None
        tags.input_tags.three_d_array = tags.input_tags.string = self.encoder is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"] if self.encoder is None else ["float32"]
        return tags


def _inner_probe(data: FitData, real: RealFeatures, Z: Tensor, Y: Tensor, alpha: float):
    """The probe of the inner problem, for features in the user's units; its temperature is calibrated on real features.

    Targets of a probe are −1 and 1 where ``Y`` has 0 and 1. The intercept only accounts for the centring.
    """
    weights = inner_weights(Z, 2 * Y - 1, alpha)
    if len(data.classes) == 2:  # one score, for the second class
        weights = (weights[:, 1:] - weights[:, :1]) / 2
    rows = evenly_spaced(len(real), _CALIBRATION_ROWS)
    scores = torch.from_numpy(real.values[rows]).to(Z) @ weights
    if len(data.classes) == 2:
        scores = torch.cat([-scores, scores], dim=1)
    coefficients = weights.T.double().numpy() / data.adapter.scale
    intercept = 0.0 - coefficients @ np.broadcast_to(data.adapter.center, Z.shape[1:])
    dtype = Z.numpy().dtype
    return solved_probe(
        data.classes,
        coefficients.astype(dtype),
        intercept.astype(dtype),
        alpha=(relative_penalty(Z.double(), alpha) * float(data.adapter.scale) ** 2).item(),
        temperature=best_temperature(scores, torch.from_numpy(real.codes[rows])),
    )


def _groups_within_classes(codes: np.ndarray, groups) -> np.ndarray:
    """Index of the pair of class and group of each sample."""
    groups = as_labels(groups, "groups")
    check_consistent_length(codes, groups)
    return np.unique(np.stack([codes, np.unique(groups, return_inverse=True)[1]]), axis=1, return_inverse=True)[1].reshape(-1)


def _with_optional_X(transform):
    """Let ``transform()`` return the synthetic set. Applied to the finished class, because scikit-learn's wrapper needs ``X``."""

    @wraps(transform)
    def wrapped(self, X=None):
        return self._synthetic_set() if X is None else transform(self, X)

    return wrapped


BaseDistiller.transform = _with_optional_X(BaseDistiller.transform)  # type: ignore[method-assign]
