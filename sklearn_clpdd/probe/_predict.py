"""Scores, labels and probabilities of a fitted probe."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..utils._array_api import in_kind, to_numpy
from ..utils._arrays import tensor_from_numpy
from ..utils._device import resolve_device
from ..utils._torch_modes import standard_torch_modes
from ._calibration import logits
from ._input import labels_or_indicators, torch_dtype, validate_samples
from ._kernels import kernel_matrix
from ._rows import Rows


class PredictMixin(ClassifierMixin):
    """The methods of :class:`ClosedFormProbe` that predict."""

    classes_: np.ndarray
    coef_: np.ndarray
    dual_coef_: np.ndarray
    X_fit_: np.ndarray
    intercept_: np.ndarray
    temperature_: Any
    compression_: Any
    multilabel_: bool
    loss_: str
    kernel: Any
    device: Any
    _is_unsolved: Callable
    _solve_stream: Callable
    _solver: Any  # a property

    def decision_function(self, X):
        """Scores of the classes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Predicted class indicators, between about −1 and 1, or for the logistic loss the logarithms of relative probabilities
            at a temperature of 1; for two classes, those of ``classes_[1]``. Under scikit-learn's array API dispatch, an array of
            the kind of ``X`` on its device.
        """
        scores = self._scores(X)
        return in_kind(scores, X) if isinstance(scores, Tensor) else scores

    @standard_torch_modes()
    def _scores(self, X) -> np.ndarray | Tensor:
        """Scores, as a tensor if ``X`` is dispatched."""
        if self._is_unsolved():
            self._solve_stream()  # raises the error that explains why it cannot be solved
        check_is_fitted(self)
        X = validate_samples(self, X)
        weights = self.coef_.T if self._solver.is_linear else self.dual_coef_
        if isinstance(X, np.ndarray) and self.kernel == "linear" and X.dtype == np.result_type(X.dtype, weights.dtype):
            scores = X @ weights + self.intercept_
        else:
            scores = self._scores_of_chunks(X, weights)
        return scores[:, 0] if len(self.classes_) == 2 and not self.multilabel_ else scores

    def _scores_of_chunks(self, X: np.ndarray | Tensor, weights: np.ndarray) -> np.ndarray | Tensor:
        own = torch_dtype(weights.dtype)
        dtype = torch.promote_types(X.dtype if isinstance(X, Tensor) else torch_dtype(X.dtype), own)
        is_linear = self._solver.is_linear
        of_numpy = torch.device("cpu") if is_linear else resolve_device(self.device)
        device = X.device if isinstance(X, Tensor) else of_numpy
        W, b = (tensor_from_numpy(array).to(device, dtype) for array in (weights, self.intercept_))
        kernel_parameters = self._solver.kernel_parameters(getattr(self, "gamma_", None))
        training = None if is_linear else tensor_from_numpy(self.X_fit_).to(device, dtype)
        scores = torch.empty(len(X), W.shape[1], dtype=dtype, device=device if isinstance(X, Tensor) else "cpu")
        rows = Rows.unlabelled(X, device, unit=self.kernel == "cosine")
        for positions, chunk in rows.chunks(dtype, n_outputs=len(W)):
            Z = chunk if training is None else kernel_matrix(self.kernel, chunk, training, **kernel_parameters)
            scores[positions] = torch.addmm(b, Z, W)
        return scores if isinstance(X, Tensor) else scores.numpy()

    def predict(self, X):
        """Most likely classes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
            Labels from `classes_`, or an indicator matrix. Under scikit-learn's array API dispatch, an array of the kind of
            ``X`` if they are numbers.
        """
        scores = self._scores(X)
        if self.multilabel_:
            return in_kind((scores > 0).long(), X) if isinstance(scores, Tensor) else (scores > 0).astype(int)
        if isinstance(scores, Tensor):
            codes = (scores > 0).long() if scores.ndim == 1 else scores.argmax(1)
            if self.classes_.dtype.kind in "biuf":
                return in_kind(torch.from_numpy(self.classes_).to(codes.device)[codes], X)
            return self.classes_[codes.cpu().numpy()]
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities of the classes.

        The softmax of ``asinh(c · (1 + score)) / (c · temperature_)`` for the compression ``c = compression_``, and of
        ``score / temperature_`` if that is 0. (A score of the squared loss estimates ``2p − 1`` for the probability ``p``, and a
        softmax needs its logarithm.) More probable classes are those with larger scores in any case.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_labels)
            Rows sum to 1, unless there are several labels, each of which has a probability of its own. Under scikit-learn's
            array API dispatch, an array of the kind of ``X`` on its device.
        """
        scores = self._scores(X)
        dispatched = isinstance(scores, Tensor)
        tensor = scores if isinstance(scores, Tensor) else tensor_from_numpy(scores)
        if tensor.ndim == 1:  # two classes
            other = -tensor if self.loss_ == "squared" else torch.zeros_like(tensor)
            tensor = torch.stack([other, tensor], 1)
        if self.multilabel_:
            columns = zip(tensor.T, self.temperature_.tolist(), self.compression_.tolist(), strict=True)
            differences = [logits(s, *own) - logits(-s, *own) for s, *own in columns]
            probabilities = torch.sigmoid(torch.stack(differences, 1))
        else:
            probabilities = torch.softmax(logits(tensor, self.temperature_, self.compression_), 1)
        return in_kind(probabilities, X) if dispatched else probabilities.numpy()

    def score(self, X, y, sample_weight=None):
        """Accuracy.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.
        y : array-like or Tensor of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        float
            Fraction of samples with the right label, or with all the right labels, in [0, 1].
        """
        # Labels, which may be strings, are compared on the CPU.
        return float(accuracy_score(labels_or_indicators(y), to_numpy(self.predict(X)), sample_weight=to_numpy(sample_weight)))
