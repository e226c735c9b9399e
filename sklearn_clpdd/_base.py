"""BaseDistiller: validates for every distiller, and makes it a classifier and a transformer."""

import os
import warnings
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, wraps
from numbers import Integral, Real
from typing import Any

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import check_scalar
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from ._core.calibration import temperature_of
from ._core.devices import caller_modes_off, resolve_device
from ._core.heap import kept_heap
from ._core.objectives import anchors, inner_weights
from ._core.real_features import RealSet
from ._core.ridge import relative_penalty
from ._encoder import FrozenEncoder, as_encoder, joint_features
from ._images import as_images
from ._modules import HoldsModule
from ._output import Transformer
from ._pictures import html_strip
from ._probe import ClosedFormProbe, solved_probe
from ._run import insist
from ._spaces import ImageSpace, PointSpace, Space, standardized

# Real samples on which the probe's temperature is calibrated, at most.
_CALIBRATION_ROWS = 20_000


# Fitted attributes without an underscore at their end.
_PRIVATE = ("_center", "_scale", "_encoder_entries")


@dataclass(frozen=True)
class Task:
    """What a distiller is fitted to."""

    X: Any
    y: np.ndarray
    space: Space
    inputs: dict[str, Any]  # what scikit-learn keeps of a feature matrix, such as the number of features
    classes: np.ndarray
    codes: np.ndarray  # class indices of the real samples
    groups: np.ndarray | None  # indices of the groups within the classes, which are to be balanced
    budget: np.ndarray  # number of synthetic samples of each class

    @property
    def labels(self) -> np.ndarray:
        """Class indices of the synthetic samples."""
        return np.repeat(np.arange(len(self.classes)), self.budget)

    @property
    def members(self) -> list[np.ndarray]:
        """Positions of the samples of each class."""
        return [np.flatnonzero(self.codes == c) for c in range(len(self.classes))]

    @cached_property
    def digest(self) -> str:
        """Digest of the real samples and their labels."""
        return joblib.hash((self.space.fingerprint(), self.y))


@dataclass(frozen=True)
class Result:
    """What a distiller has found, from which all fitted attributes are made.

    Parameters
    ----------
    samples : Tensor of shape (m, ...)
        Synthetic samples, in the form that they have in the space.
    codes : ndarray of shape (m,), int64
        Their class indices.
    real : RealSet
        The real samples.
    targets : Tensor of shape (m, C), or None
        What the probe is fitted to; None for one-hot labels.
    attributes : dict
        Fitted attributes of the method's own.
    warning : str or None
        What is to be said of how it ended.
    error : BaseException or None
        What has ended the search before its end; `fit` raises it when everything is assigned.
    """

    samples: Tensor
    codes: np.ndarray
    real: RealSet
    targets: Tensor | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None
    error: BaseException | None = None


class BaseDistiller(HoldsModule, Transformer, ClassifierMixin, BaseEstimator):
    """Validate the data, have `_find` find synthetic samples, and fit the probe that they induce.

    A subclass has the parameters that concern data, encoder and probe, as :class:`CLPDistiller` has them, and fills `_find`.
    A fit changes the estimator once, at its end: all fitted attributes are of one result, or still of the last one.
    """

    _module_parameter = "encoder"
    _parameter_constraints: dict = {
        "encoder": [str, nn.Module, FrozenEncoder, list, tuple, None],
        "images_per_class": [Interval(Integral, 1, None, closed="left"), dict],
        "n_synthetic": [Interval(Integral, 2, None, closed="left"), None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "memory": [str, os.PathLike, joblib.Memory, None],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def fit(self, X, y, groups=None):
        """Find a small synthetic set that stands for ``(X, y)``.

        Parameters
        ----------
        X : images, or array-like of shape (n_samples, n_features)
            Images in any form that :class:`FrozenEncoder` takes; features when ``encoder=None``.
        y : array-like of shape (n_samples,)
            Class labels, numbers or strings.
        groups : array-like of shape (n_samples,), default=None
            What the class must not be told by, such as the background. Real samples are then drawn such that all groups of a
            class are equally likely, and all classes. Where real samples are chosen, they have no part.

        Returns
        -------
        BaseDistiller
            Itself.
        """
        self._validate_params()
        space, y, inputs = self._enter(X, y)
        classes, codes = np.unique(y, return_inverse=True)
        groups = None if groups is None else _within(codes, groups)
        if len(classes) < 2:
            raise ValueError(f"distillation needs samples of at least two classes; y holds one class, {classes.tolist()[0]!r}")
        counts = np.bincount(codes)
        budget = self._budget(classes, counts)
        self._check(classes, counts, budget)
        task = Task(X, y, space, inputs, classes, codes, groups, budget)
        with caller_modes_off(space.device), kept_heap() if space.device.type == "cpu" else nullcontext():
            result = self._find(task)
            try:
                fitted = insist(lambda: self._fitted(task, result))  # the images are worth the second that this takes
            except Exception:
                if result.error is not None:
                    raise result.error from None
                raise
            self.__dict__ = self._unfitted() | fitted
        if result.warning is not None:
            warnings.warn(result.warning, stacklevel=3 if hasattr(type(self).fit, "__wrapped__") else 2)
        if result.error is not None:
            try:
                raise result.error
            finally:
                del result, fitted, task, space  # an error holds the frames that it has come through
        self._has_fitted(task)
        return self

    def _unfitted(self) -> dict[str, Any]:
        """All that is no fitted attribute."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_") and name not in _PRIVATE}

    @abstractmethod
    def _find(self, task: Task) -> Result:
        """Find synthetic samples for the real ones. The estimator is read only, and fitted to something else, if at all."""

    def _has_fitted(self, task: Task) -> None:
        """Tell whoever is to be told."""

    def _encode(self, task: Task, order: np.ndarray, n_held_out: int = 0) -> RealSet:
        """Features of the real samples in some order."""
        task.digest  # noqa: B018 (of the data as they are before the long work)
        return RealSet(task.space.real_features(order), task.codes[order], order, n_held_out)

    def _enter(self, X, y) -> tuple[Space, np.ndarray, dict[str, Any]]:
        """The data behind one interface; all that can be said against it without long work is said here."""
        if self.encoder is None:
            other = object.__new__(type(self))  # which scikit-learn may write to
            other.__dict__.update(before := self._unfitted())
            X, y = validate_data(other, X, y, dtype=[np.float64, np.float32])
            check_classification_targets(y)
            inputs = {name: value for name, value in vars(other).items() if name not in before}
            return PointSpace(X, resolve_device(self.device)), y, inputs
        encoders = self._make_encoders()
        if len({repr(encoder.image_shape) for encoder in encoders}) > 1:
            raise ValueError(f"encoders have to agree on image_shape; got {[encoder.image_shape for encoder in encoders]}")
        images = as_images(X, encoders[0].image_shape)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_consistent_length(images, y)
        check_classification_targets(y)
        return ImageSpace(images, encoders, self.image_size), y, {}

    def _make_encoders(self) -> list[FrozenEncoder]:
        several = isinstance(self.encoder, list | tuple)
        given = list(self.encoder) if several else [self.encoder]
        if not given:
            raise ValueError("encoder is an empty list; give one encoder at least, or None for features")
        return [self._make_encoder(one) for one in given]

    def _make_encoder(self, given) -> FrozenEncoder:
        encoder = as_encoder(given, memory=self.memory, device=self.device, verbose=self.verbose)
        return clone(encoder)

    def _budget(self, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Number of synthetic samples of each class."""
        given = self.images_per_class
        if self.n_synthetic is not None:
            if given != 1:
                raise ValueError(f"images_per_class={given} and n_synthetic={self.n_synthetic}: give one of the two")
            if self.n_synthetic < len(classes):
                raise ValueError(f"n_synthetic={self.n_synthetic} is less than one for each of {len(classes)} classes")
            return apportioned(self.n_synthetic, counts)
        if not isinstance(given, dict):
            return np.full(len(classes), given)
        labels = classes.tolist()
        if set(given) != set(labels):
            raise ValueError(
                "images_per_class as a dict gives a number for each class of y; without one are "
                f"{[label for label in labels if label not in given][:10]}, and no classes are "
                f"{[label for label in given if label not in labels][:10]}"
            )
        for label, number in given.items():
            check_scalar(number, f"images_per_class[{label!r}]", Integral, min_val=1)
        return np.array([given[label] for label in labels])

    def _check(self, classes: np.ndarray, counts: np.ndarray, budget: np.ndarray) -> None:
        """Raise where parameters do not fit one another or the number of real samples of each class."""

    def _check_enough(self, classes: np.ndarray, counts: np.ndarray, budget: np.ndarray, what: str) -> None:
        """Raise where a class has fewer real samples than are to be taken from it."""
        few = np.flatnonzero(counts < budget)
        if len(few):
            labels = classes.tolist()
            raise ValueError(
                f"{what} takes as many real samples of each class as there are to be synthetic ones, and these classes have "
                f"fewer: {', '.join(f'{labels[c]!r} ({counts[c]} of {budget[c]})' for c in few[:10])}. "
                "Give a smaller images_per_class or n_synthetic"
            )

    def _fitted(self, task: Task, result: Result) -> dict[str, Any]:
        """All fitted attributes."""
        space, alpha = task.space, float(self.alpha)
        X_synthetic = space.to_user(result.samples.detach())
        Z = torch.from_numpy(space.features(X_synthetic))
        one_hot = F.one_hot(torch.from_numpy(result.codes), len(task.classes))
        Y = one_hot if result.targets is None else result.targets.detach().cpu()
        W = inner_weights(Z, Y, alpha)
        encoders = space.encoders if isinstance(self.encoder, list | tuple) else next(iter(space.encoders), None)
        return {
            **task.inputs,
            "X_synthetic_": X_synthetic,
            "y_synthetic_": task.classes[result.codes],
            "targets_": Y.to(W, copy=True).numpy(),
            "anchors_": anchors(W).T.contiguous().numpy(),
            "probe_": _induced_probe(task, result.real, Z, Y, alpha),
            "encoder_": encoders,
            "classes_": task.classes,
            "class_count_": np.bincount(task.codes),
            "data_digest_": task.digest,
            "alpha_": alpha,
            "_center": space.center,
            "_scale": space.scale,
            "_encoder_entries": space.provenance(),
            **result.attributes,
        }

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
            Those of the encoder; ``X`` itself when ``encoder=None``. Those of several encoders stand side by side, over the
            square root of their number.
        """
        check_is_fitted(self)
        if self.encoder_ is None:
            return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return joint_features(self.encoder_ if isinstance(self.encoder_, list) else [self.encoder_], X)

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
        self._check_output()
        return standardized(self.features(X), self._center, self._scale) @ self.anchors_.T

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

    def _repr_html_inner(self):
        return super()._repr_html_inner() + self._html_images()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        return {kind: text + self._html_images() if kind == "text/html" else text for kind, text in bundle.items()}

    def _html_images(self) -> str:
        """What a notebook shows below the parameters: the synthetic images, once there are some."""
        if not self.__sklearn_is_fitted__() or self.X_synthetic_.ndim != 4:
            return ""
        return html_strip(self.X_synthetic_, self.y_synthetic_)

    @property
    def _n_features_out(self):
        return len(self.classes_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.encoder is None
        tags.input_tags.three_d_array = tags.input_tags.string = self.encoder is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"] if self.encoder is None else ["float32"]
        return tags


def _induced_probe(task: Task, real: RealSet, Z: Tensor, Y: Tensor, alpha: float) -> ClosedFormProbe:
    """The inner problem's probe of synthetic features, calibrated on real ones, for features in the user's units.

    Targets of a probe are -1 and 1 where ``Y`` has 0 and 1. There is no intercept but for that of the user's units.
    """
    weights = inner_weights(Z, 2 * Y - 1, alpha)
    if len(task.classes) == 2:  # one score, of the second class
        weights = (weights[:, 1:] - weights[:, :1]) / 2
    some = np.unique(np.linspace(0, len(real.R) - 1, _CALIBRATION_ROWS).astype(int))
    scores = torch.from_numpy(real.R[some]).to(Z) @ weights
    if len(task.classes) == 2:
        scores = torch.cat([-scores, scores], dim=1)
    coefficients = weights.T.double().numpy() / task.space.scale
    intercept = 0.0 - coefficients @ np.broadcast_to(task.space.center, Z.shape[1:])
    dtype = Z.numpy().dtype
    return solved_probe(
        task.classes,
        coefficients.astype(dtype),
        intercept.astype(dtype),
        alpha=(relative_penalty(Z.double(), alpha) * float(task.space.scale) ** 2).item(),
        temperature=temperature_of(scores, torch.from_numpy(real.codes[some])),
    )


def apportioned(total: int, counts: np.ndarray) -> np.ndarray:
    """``total`` synthetic samples, at least one a class, among classes of so many real ones: as equal as can be.

    Classes of more real samples come first. No class gets more than it has real ones while another could take them.
    """
    budget, largest_first = np.zeros(len(counts), dtype=int), np.argsort(-counts, kind="stable")
    while (left := total - budget.sum()) > 0:
        open_to = largest_first[(budget < counts)[largest_first]]
        budget[(open_to if len(open_to) else largest_first)[:left]] += 1
    return budget


def _within(codes: np.ndarray, groups) -> np.ndarray:
    """Indices of the groups within the classes."""
    groups = column_or_1d(groups, warn=True)
    check_consistent_length(codes, groups)
    assert_all_finite(groups, input_name="groups")
    return np.unique(np.stack([codes, np.unique(groups, return_inverse=True)[1]]), axis=1, return_inverse=True)[1].reshape(-1)


def _synthetic_without_X(transform):
    """``transform()`` gives the synthetic set.

    Applied once the class exists: scikit-learn's own wrapper demands ``X``.
    """

    @wraps(transform)
    def wrapped(self, X=None):
        return self._synthetic() if X is None else transform(self, X)

    return wrapped


BaseDistiller.transform = _synthetic_without_X(BaseDistiller.transform)  # type: ignore[method-assign]
