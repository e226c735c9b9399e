"""Fitting batch by batch: `partial_fit`, `merge`, and a solution that is computed when it is first read."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ..utils._array_api import to_numpy
from ..utils._device import resolve_device
from ..utils._labels import as_labels
from ..utils._sklearn_compat import check_partial_fit_first_call
from ..utils._torch_modes import standard_torch_modes
from ..utils._warnings import warn
from ._input import device_for, dtype_for, effective_weights, validate_samples, validated_prior
from ._solver import LINEAR_KERNELS
from ._stream import Stream

# Rows of a stream on which `partial_fit` chooses alpha and the temperature.
_RESERVOIR = 2048
# Fitted attributes that are computed by solving.
_SOLVED = (
    "coef_",
    "intercept_",
    "alpha_",
    "alphas_",
    "temperature_",
    "compression_",
    "loss_",
    "loo_score_",
    "loo_scores_",
    "gamma_",
    "dual_coef_",
    "X_fit_",
)


def _has_sufficient_statistics(probe) -> bool:
    if probe.kernel not in LINEAR_KERNELS:
        raise AttributeError(f"partial_fit and merge need kernel='linear' or 'cosine'; got {probe.kernel!r}")
    if probe.loss == "logistic":
        raise AttributeError("partial_fit and merge need loss='squared', or 'auto', which means the same there; got 'logistic'")
    return True


class PartialFitMixin:
    """The methods of :class:`ClosedFormProbe` that see the samples in batches."""

    classes_: np.ndarray
    device: Any
    kernel: Any
    class_weight: Any
    coef_prior: Any
    n_features_in_: int
    multilabel_: bool
    _stream: Stream  # only after `partial_fit`
    _check_params: Callable
    _solver: Any  # a property

    @available_if(_has_sufficient_statistics)
    @standard_torch_modes()
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Fit incrementally on a batch of samples.

        For a given `alpha`, the coefficients after the last batch equal those of one `fit` on all samples with
        ``loss="squared"``. Keeps the weighted Gram matrix, means and counts in float64, about ``n_features · (n_features +
        n_classes)`` numbers whatever the number of samples is. The system is solved when a fitted attribute is first needed,
        with the parameters of the last batch. If `alpha` or the temperature is ``"loo"``, it is chosen by the leave-one-out
        predictions of a uniform sample of up to 2048 rows, which is the choice of that `fit` if the stream has at most 2048
        rows and no duplicates. `fit` does not keep these statistics, so after `fit` this method starts over, with a warning.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.
        y : array-like or Tensor of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), default=None
            All labels that will occur. If they are not given in the first call, each batch may have new ones.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the squared errors, ≥ 0.

        Returns
        -------
        ClosedFormProbe
            Itself.

        Raises
        ------
        ValueError
            If a label is not in the `classes` that were given, or with ``class_weight="balanced"``, which needs all labels at
            once.

        Warns
        -----
        UserWarning
            If the probe was fitted by `fit`, whose samples are then discarded; when it is solved, if some of the `classes` have
            no sample.

        Notes
        -----
        A class that appears late is no approximation. The targets of all earlier samples are −1 for it, so that all that its
        column needs, ``Σ x · target = 2 · Σ_class x − Σ x``, follows from the sums of each class; those of a new class are zero.
        """
        self._check_params()
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs the labels of all batches; pass a dict of class weights instead, such as "
                "dict(zip(classes, compute_class_weight('balanced', classes=classes, y=all_labels)))"
            )
        after_fit = hasattr(self, "classes_") and "_stream" not in vars(self)
        if not after_fit and hasattr(self, "classes_"):
            self._check_stream()
        classes = None if classes is None else as_labels(to_numpy(classes), "classes")
        with self._restored_on_error():
            if after_fit:
                self._forget()
            first = "_stream" not in vars(self)
            if classes is not None:
                check_partial_fit_first_call(self, classes)
                if len(self.classes_) < 2:
                    raise ValueError(f"a classifier needs at least two classes; classes are {self.classes_.tolist()}")
            may_be_empty = self.coef_prior is not None and (classes is not None or not first)
            X, y = validate_samples(self, X, y, reset=first, may_be_empty=may_be_empty)
            if y.ndim == 2:
                raise ValueError("partial_fit has one label a sample, and y is an indicator matrix; use fit")
            known = self.classes_ if classes is not None or not first else y[:0]
            are_all = classes is not None if first else self._stream.are_all_classes
            self.classes_ = _more_classes(known, np.unique(y), are_all)
            prior = validated_prior(self, len(self.classes_), X.shape[1])
            codes = np.searchsorted(self.classes_, y)
            weight = effective_weights(self, sample_weight, y, self.classes_, codes, are_all_classes=are_all)
            rows = self._solver.rows(X, codes, weight, device_for(self, X), keep_duplicates=True)
            if after_fit:
                warn(
                    "`fit` does not keep its samples or their statistics, so the earlier samples are discarded. Call "
                    "`partial_fit` from the first batch on"
                )
            if first:
                own = len(self.classes_), X.shape[1], _RESERVOIR, self.kernel, rows.device
                stream = Stream(*own, are_all_classes=are_all)
            else:
                stream = self._stream.with_classes(known, self.classes_)
            if len(rows):
                stream.add(rows, dtype_for(self, X))
            stream.dtype = torch.promote_types(stream.dtype, dtype_for(self, X))
            self.multilabel_ = False
            self._stream = stream
            self._stream_solver = replace(copy.deepcopy(self._solver), coef_prior=prior)
            self._forget_solution()
        return self

    def _check_stream(self):
        """Raise if there are no statistics that samples could be added to."""
        if "_stream" not in vars(self):
            raise ValueError(
                "a probe that was fitted by `fit` keeps no statistics that could be merged; fit both probes by `partial_fit`"
            )
        if self._stream.kernel != self.kernel:
            raise ValueError(
                f"the samples so far were added for kernel={self._stream.kernel!r}; it is now {self.kernel!r}; "
                "set it back, or start with a new probe"
            )

    @available_if(_has_sufficient_statistics)
    @standard_torch_modes()
    def merge(self, other):
        """Add the samples that another probe has seen.

        Parameters
        ----------
        other : ClosedFormProbe
            Another probe that was fitted by `partial_fit`. It is not changed. Its classes are added, unless `classes` were given
            to one of them. The result is solved with the parameters of this probe.

        Returns
        -------
        ClosedFormProbe
            Itself.

        Raises
        ------
        NotFittedError
            If one of the probes has seen no samples.
        ValueError
            If one of them was fitted by `fit`, if their numbers of features, kernels or class weights differ, or if `classes`
            were given to one that lack some of the other's.
        """
        for probe in (self, other):
            check_is_fitted(probe, "classes_")
        for name in ("n_features_in_", "kernel", "class_weight"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"the probes differ in {name}: {getattr(self, name)!r} and {getattr(other, name)!r}; merge probes that have "
                    "the same"
                )
        for probe in (self, other):
            probe._check_stream()
        classes = _more_classes(self.classes_, other.classes_, are_all=False)
        for probe in (self, other):
            if probe._stream.are_all_classes and len(classes) > len(probe.classes_):
                raise ValueError(
                    f"the probes have different classes: {self.classes_.tolist()} and {other.classes_.tolist()}; fit both "
                    "without `classes`, or with the same"
                )
        prior = validated_prior(self, len(classes), self.n_features_in_)
        stream = self._stream.with_classes(self.classes_, classes)
        stream.merge(other._stream.with_classes(other.classes_, classes))
        stream.are_all_classes |= other._stream.are_all_classes
        self._stream, self.classes_ = stream, classes
        self._stream_solver = replace(copy.deepcopy(self._solver), coef_prior=prior)
        self._forget_solution()
        return self

    def __sklearn_is_fitted__(self):
        return hasattr(self, "intercept_")

    def __getattr__(self, name):
        # Only called for missing attributes: after `partial_fit`, those that are computed when they are first read.
        if name in _SOLVED and self._is_unsolved():
            try:
                self._solve_stream()
            except Exception as error:  # hasattr expects an AttributeError
                raise AttributeError(f"{name} cannot be computed from the samples so far: {error}") from error
            if name in vars(self):
                return vars(self)[name]
        if name in ("partial_fit", "merge"):
            _has_sufficient_statistics(self)  # raises an error that says why
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _is_unsolved(self) -> bool:
        return "_stream" in vars(self) and "intercept_" not in vars(self)

    @standard_torch_modes()
    def _solve_stream(self):
        """Solve for the samples of `partial_fit`, with the parameters that were set at the last batch."""
        empty = self.classes_[(self._stream.moments.class_rows == 0).cpu().numpy()].tolist()
        if empty and self._stream.moments.n_rows:
            warn(f"the classes {empty} were announced and have no sample yet: all samples so far count against them")
        self.__dict__.update(self._stream_solver.solve_stream(self._stream, resolve_device(self.device)))

    def _forget(self):
        """Remove the results of an earlier `fit` or `partial_fit`."""
        self._forget_solution()
        for name in ("classes_", "multilabel_", "_stream", "_stream_solver"):
            self.__dict__.pop(name, None)

    def _forget_solution(self):
        for name in _SOLVED:
            self.__dict__.pop(name, None)

    @contextmanager
    def _restored_on_error(self):
        """Restore all attributes if the block fails, or Ctrl-C ends it."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise


def _more_classes(known: np.ndarray, seen: np.ndarray, are_all: bool) -> np.ndarray:
    """The known classes, and those of a batch.

    Raises
    ------
    ValueError
        If there are new ones and all were known, or if they have another type.
    """
    new = np.setdiff1d(seen, known) if not len(known) or _kind(seen) == _kind(known) else seen
    if not len(new):
        return known
    if are_all:
        raise ValueError(
            f"y contains {new.tolist()}, which are not among the classes {known.tolist()}; pass all labels that will occur as "
            "`classes` in the first call, or none"
        )
    if len(known) and _kind(seen) != _kind(known):
        raise ValueError(
            f"labels are of another type than before: {seen.dtype} and {known.dtype}, such as {seen[0]!r} and {known[0]!r}; "
            "convert them, for example to str"
        )
    return np.union1d(known, new)


def _kind(labels: np.ndarray) -> str:
    """Numbers, strings, or dates: labels of one kind can be sorted together."""
    return {"O": "U", "T": "U", "i": "number", "u": "number", "f": "number"}.get(labels.dtype.kind, labels.dtype.kind)
