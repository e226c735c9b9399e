"""BaseDistiller: validates for every distiller, and makes it a classifier and a transformer."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial, wraps

import joblib
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
from ._core.heap import kept_heap
from ._core.objectives import anchors, inner_weights
from ._core.real_features import RealSet, shuffled
from ._core.ridge import relative_penalty
from ._encoder import FrozenEncoder
from ._images import as_images
from ._probe import ClosedFormProbe
from ._run import Checkpoint, Run
from ._spaces import ImageSpace, PointSpace, Space

try:  # since scikit-learn 1.9, experimental
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """There are no callbacks."""

    def with_callbacks(method):
        """The method as it is."""
        return method


# Real samples on which the probe's temperature is calibrated, at most.
_CALIBRATION_ROWS = 20_000


class BaseDistiller(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, CallbackSupportMixin, BaseEstimator):
    """Validate the data, have `_learn` find synthetic samples, and fit the probe that they induce.

    A subclass has the parameters that concern data, encoder and run, as :class:`CLPDistiller` has them, and fills `_learn`.
    """

    @abstractmethod
    def _learn(
        self, space: Space, real: RealSet, rng: np.random.RandomState, start: np.ndarray | None, run: Callable[..., Run]
    ) -> None:
        """Find synthetic samples for the real ones; set `alpha_` and what `_fitted` gives.

        ``start`` are samples to start from; ``run`` makes a `Run`, given all but what is known here.
        """

    @with_callbacks
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
        if self.warm_start and self.checkpoint is not None:
            raise ValueError("warm_start=True goes on from the last fit and checkpoint= from a file; give one of the two")
        space, y = self._enter(X, y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"distillation needs samples of at least two classes; y holds one class, {classes.tolist()[0]!r}")
        self._check(classes, np.bincount(codes))
        start = self._warm_start_from(classes, (len(classes) * self.images_per_class, *space.sample_shape))
        checkpoint = (
            None if self.checkpoint is None else Checkpoint(self, {**space.identity(), "y": joblib.hash(np.ascontiguousarray(y))})
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if checkpoint is not None and checkpoint.info:
            seed = checkpoint.info["seed"]
        rng = np.random.RandomState(seed)
        if hasattr(self, "_init_callback_context"):
            self._init_callback_context(max_subtasks=self.max_iter).call_on_fit_task_begin(estimator=self, X=X, y=y)
        order, n_held_out = shuffled(codes, self.validation_fraction, rng)
        if self.n_iter_no_change is not None and not n_held_out:
            raise ValueError(
                f"n_iter_no_change={self.n_iter_no_change} needs held-out real samples, and validation_fraction="
                f"{self.validation_fraction} of classes of at most {np.bincount(codes).max()} samples is none; give more"
            )
        real = RealSet(space.real_features(order), codes[order], order, n_held_out)
        self.__dict__.pop("probe_", None)  # from here on not fitted, until `_learn` is done
        if start is None:
            self.history_, self.n_iter_ = [], 0
        self.classes_, self.encoder_ = classes, space.encoder
        self._center, self._scale = space.center, space.scale
        run = partial(Run, self, checkpoint=checkpoint, seed=seed, data={"X": X, "y": y})
        device = space.device.type
        as_ever = torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False)
        with ExitStack() as stack:  # whatever mode the caller is in
            for context in (*as_ever, kept_heap() if device == "cpu" else nullcontext()):
                stack.enter_context(context)
            self._learn(space, real, rng, start, run)
        if hasattr(self, "_callback_fit_ctx"):
            self._callback_fit_ctx.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

    def _warm_start_from(self, classes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Synthetic samples of the last fit, where they are to be gone on with."""
        if not (self.warm_start and hasattr(self, "probe_")):
            return None
        if np.array_equal(classes, self.classes_) and self.X_synthetic_.shape == shape:
            return self.X_synthetic_
        raise ValueError(
            f"warm_start=True goes on with synthetic samples of shape {self.X_synthetic_.shape} and classes "
            f"{self.classes_.tolist()[:10]}; data and parameters now ask for {shape} and {classes.tolist()[:10]}. "
            "Give the same, or warm_start=False"
        )

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

    def __sklearn_is_fitted__(self):
        return hasattr(self, "probe_")

    def __getstate__(self):
        # `_present` is there during `fit` only.
        return {name: value for name, value in super().__getstate__().items() if name != "_present"}

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
    """``transform()`` gives the synthetic set; while a callback is at work, that of the moment.

    Applied once the class exists: scikit-learn's own wrapper demands ``X``.
    """

    @wraps(transform)
    def wrapped(self, X=None):
        if X is None:
            if "_present" in self.__dict__:
                return self._present()
            check_is_fitted(self)
            return self.X_synthetic_
        return transform(self, X)

    return wrapped


BaseDistiller.transform = _synthetic_without_X(BaseDistiller.transform)  # type: ignore[method-assign]
