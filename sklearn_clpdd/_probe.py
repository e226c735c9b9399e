"""ClosedFormProbe: ridge classification of features, linear or by kernels, with everything chosen by leave-one-out."""

import copy
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    assert_all_finite,
    check_is_fitted,
    validate_data,
)
from torch import Tensor

from ._core.calibration import best_temperatures, choose_penalty
from ._core.devices import available_memory, resolve_device
from ._core.kernels import KERNELS, kernel_matrix, variance_gamma
from ._core.leave_one_out import FeatureSpace, LinearSampleSpace, SampleSpace
from ._core.moments import Moments
from ._core.ridge import SOLVERS, in_double, relative_penalty
from ._core.rows import CHUNK, Rows, shared, without_copies
from ._core.stream import Stream

# What `alpha="loo"` tries, times the power of ten next to the mean squared norm of the centred features.
_CANDIDATES = np.logspace(-3, 3, 13)
# Taken where leave-one-out says nothing, because no class has two samples.
_DEFAULT_TEMPERATURE = 0.2
# Rows of a stream on which `partial_fit` chooses alpha and the temperature.
_RESERVOIR = 2048
# Square matrices in float64 that a factorisation in sample space has in memory at once.
_MATRICES = 5
# Bytes that nobody has to ask for.
_SURELY_FREE = 2**28

_SCORINGS = ("accuracy", "neg_log_loss", "neg_mean_squared_error")
_LINEAR = ("linear", "cosine")
_SOLVED = (
    "coef_",
    "intercept_",
    "alpha_",
    "alphas_",
    "temperature_",
    "loo_score_",
    "loo_scores_",
    "gamma_",
    "dual_coef_",
    "X_fit_",
)


def _is_linear(probe) -> bool:
    if probe.kernel in _LINEAR:
        return True
    raise AttributeError(f"partial_fit and merge work in feature space: kernel='linear' or 'cosine', not {probe.kernel!r}")


class ClosedFormProbe(ClassifierMixin, BaseEstimator):
    """Ridge classifier in closed form: the probe of a frozen encoder's features, without a training loop.

    Fits one ridge regression of ±1 class indicators on the features, as :class:`sklearn.linear_model.RidgeClassifier` does. The
    ridge strength is chosen, and the probabilities are calibrated, by exact leave-one-out predictions, all from one
    factorisation in feature space or in sample space, whichever is smaller.

    Parameters
    ----------
    alpha : "loo", float, or array-like of shape (n_candidates,), default="loo"
        Ridge strength, ≥ 0: the penalty ``alpha · ‖coef‖²`` beside the summed squared errors. Of given candidates the first
        with the best leave-one-out `scoring` is taken. ``"loo"`` tries two per decade, from 0.001 to 1000 times the mean of
        the samples' weighted squared norms (about the mean with an intercept; rounded to a power of ten); of those whose
        accuracy is within one standard error of the best it takes the one with the least log-loss.
    kernel : {"linear", "cosine", "rbf", "poly"} or callable, default="linear"
        ``"cosine"`` is linear in features that are scaled to unit norm. The others are solved in sample space: memory grows
        with ``n_samples²``. A callable takes two matrices, as those of :class:`sklearn.svm.SVC` do, and gives the matrix of
        their rows' kernels.
    gamma : float, default=None
        Of the kernels ``exp(−gamma · ‖a − b‖²)`` and ``(gamma · aᵀb + coef0) ** degree``. ``None`` is
        ``1 / (n_features · X.var())``, what :class:`sklearn.svm.SVC` calls "scale".
    degree : float, default=3
        Of the polynomial kernel, > 0.
    coef0 : float, default=1
        Of the polynomial kernel.
    fit_intercept : bool, default=True
        Whether to fit an unpenalised intercept.
    class_weight : dict or "balanced", default=None
        Weights of the classes; ``"balanced"`` is ``n_samples / (n_classes · bincount(y))``.
    temperature : "loo" or float, default="loo"
        ``predict_proba`` is the softmax of the scores divided by it, > 0. ``"loo"`` is the one, from 0.0001 to 100, with the
        least log-loss of the leave-one-out predictions.
    scoring : {"accuracy", "neg_log_loss", "neg_mean_squared_error"}, default="accuracy"
        Leave-one-out score by which candidates for `alpha` are judged. Sample and class weights enter it.
    solver : {"auto", "primal", "dual"}, default="auto"
        ``"primal"`` solves an ``(n_features, n_features)`` system, ``"dual"`` an ``(n_samples, n_samples)`` one; the
        result is the same. Kernels other than ``"linear"`` and ``"cosine"`` are always solved in the latter form.
    dtype : {"float32", "float64"}, default=None
        Of the attributes, and of what is not kept in float64 for its accuracy. ``None`` is float64 for float64 features and
        float32 for float32 and float16 ones.
    device : str or torch.device, default="auto"
        Where the systems are solved. Fitted attributes are numpy arrays whatever it is.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        Weights of the features, for the kernels ``"linear"`` and ``"cosine"``; one row for two classes.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts.
    alpha_ : float
        Ridge strength.
    temperature_ : float
        Temperature of `predict_proba`.
    alphas_ : ndarray of shape (n_candidates,)
        Ridge strengths that were scored.
    loo_scores_ : ndarray of shape (n_candidates,)
        Their leave-one-out scores, higher is better; NaN for strengths with which the system is singular. Only set, as
        `alphas_` and `loo_score_`, where leave-one-out was asked for.
    loo_score_ : float
        The score of `alpha_`. NaN where no class has two samples.
    gamma_ : float
        The kernel's `gamma`; for ``"rbf"`` and ``"poly"``.
    dual_coef_ : ndarray of shape (n_kept, 1) or (n_kept, n_classes)
        Weights of the training samples, for kernels in sample space.
    X_fit_ : ndarray of shape (n_kept, n_features)
        The training samples that they belong to: those of positive weight, copies once.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, when ``X`` had some.

    Raises
    ------
    ValueError
        In `fit`: fewer than two classes, non-finite features, a singular system (``alpha=0`` on collinear features).
    MemoryError
        In `fit`: a kernel matrix that does not fit, before it is allocated.

    Notes
    -----
    Leave-one-out predictions are those of refits without the sample, at the same `alpha`, with the intercept and the weights of
    the others. Identical rows of one class leave together: a sample of weight 2 is one that is there twice, and oversampling
    deceives no score (`partial_fit` sees only the copies among the rows that it has kept). A sample that is alone in its class
    enters no score.

    References
    ----------
    CLP-DD, arXiv 2605.07194: the closed-form inner problem. Rifkin and Lippert, *Notes on Regularized Least Squares*, 2007:
    leave-one-out from one eigendecomposition.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_clpdd import ClosedFormProbe
    >>> X, y = load_digits(return_X_y=True)
    >>> probe = ClosedFormProbe(kernel="rbf").fit(X[::2], y[::2])
    >>> round(probe.loo_score_, 2), round(probe.score(X[1::2], y[1::2]), 2)
    (0.99, 0.98)
    """

    _parameter_constraints = {
        "alpha": [StrOptions({"loo"}), Interval(Real, 0, None, closed="left"), "array-like"],
        "kernel": [StrOptions({*_LINEAR, *KERNELS}), callable],
        "gamma": [Interval(Real, 0, None, closed="neither"), None],
        "degree": [Interval(Real, 0, None, closed="neither")],
        "coef0": [Real],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "temperature": [StrOptions({"loo"}), Interval(Real, 0, None, closed="neither")],
        "scoring": [StrOptions(set(_SCORINGS))],
        "solver": [StrOptions(set(SOLVERS))],
        "dtype": [StrOptions({"float32", "float64"}), None],
        "device": [str, torch.device],
    }

    def __init__(
        self,
        alpha="loo",
        *,
        kernel="linear",
        gamma=None,
        degree=3,
        coef0=1,
        fit_intercept=True,
        class_weight=None,
        temperature="loo",
        scoring="accuracy",
        solver="auto",
        dtype=None,
        device="auto",
    ):
        self.alpha = alpha
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.temperature = temperature
        self.scoring = scoring
        self.solver = solver
        self.dtype = dtype
        self.device = device

    def fit(self, X, y, sample_weight=None):
        """Fit the probe.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features. float16 and float32 are kept, all else becomes float64; a memmap is read in chunks and never copied whole
            where there are more samples than features.
        y : array-like or Tensor of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the squared errors, ≥ 0.

        Returns
        -------
        ClosedFormProbe
            Itself.
        """
        with self._all_or_nothing():
            self._check_params()
            X, y = self._check(X, y, reset=True)
            classes, codes = np.unique(y, return_inverse=True)
            if len(classes) < 2:
                raise ValueError(
                    f"a classifier needs samples of at least two classes; y holds one class, {classes.tolist()[0]!r}"
                )
            weight = self._weights(sample_weight, X, y, classes, codes)
            rows = self._rows(X, codes, weight)
            if self.kernel in _LINEAR and (self.solver == "primal" or (self.solver == "auto" and len(rows) >= X.shape[1])):
                moments = Moments(len(classes), X.shape[1], rows.device).add(rows)
                solution = self._solve_in_feature_space(moments, rows, self._dtype_for(X))
            else:
                self._check_memory(len(rows), rows.device)
                solution = self._solve_in_sample_space(rows, len(classes))
            self._forget()
            self.__dict__.update(solution, classes_=classes)
        return self

    @available_if(_is_linear)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Take a batch of samples in: after the last one the coefficients are those of one `fit` on all of them at that `alpha`.

        Keeps weighted Gram matrix, means and counts in float64, about the size of ``n_features · (n_features + n_classes)``
        numbers however many samples there are. The system is solved when a result is asked for, by the parameters that were set
        when the last batch came. `alpha` and the temperature, where they are ``"loo"``, are chosen by the leave-one-out
        predictions of a uniform sample of up to 2048 rows: what `fit` would choose, where there are no more rows than that and
        no copies among them. A probe that was fitted by `fit` has none of these sums: it begins anew, with a warning.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.
        y : array-like or Tensor of shape (n_samples,)
            Class labels.
        classes : array-like of shape (n_classes,), default=None
            All labels there will be; needed in the first call.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the squared errors, ≥ 0.

        Returns
        -------
        ClosedFormProbe
            Itself.

        Raises
        ------
        ValueError
            If a label is not in `classes`, or ``class_weight="balanced"``, which needs all labels.

        Warns
        -----
        UserWarning
            If the probe was fitted by `fit`, whose samples are forgotten.
        """
        self._check_params()
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs the labels of all batches; give a dict of class weights, for instance "
                "compute_class_weight('balanced', classes=classes, y=all_labels) by class"
            )
        after_fit = hasattr(self, "classes_") and "_stream" not in vars(self)
        if after_fit:
            classes = self.classes_ if classes is None else classes
        elif hasattr(self, "classes_"):
            self._check_stream()
        with self._all_or_nothing():
            if after_fit:
                self._forget()
            first = _check_partial_fit_first_call(self, classes)
            if len(self.classes_) < 2:
                raise ValueError(f"a classifier needs at least two classes; classes are {self.classes_.tolist()}")
            X, y = self._check(X, y, reset=first)
            codes = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
            unknown = self.classes_[codes] != y
            if unknown.any():
                raise ValueError(f"y holds {np.unique(y[unknown]).tolist()}, not among the classes {self.classes_.tolist()}")
            weight = self._weights(sample_weight, X, y, self.classes_, codes)
            rows = self._rows(X, codes, weight, keep_copies=True)
            if after_fit:
                warnings.warn(
                    "the samples that `fit` has seen are forgotten: it keeps no sums that others could be added to, so "
                    "`partial_fit` begins anew. Use `partial_fit` from the first batch on",
                    stacklevel=2,
                )
            if first:
                self._stream = Stream(len(self.classes_), X.shape[1], _RESERVOIR, self.kernel, rows.device)
            self._stream.add(rows, (X, codes, weight), self._dtype_for(X))
            self._stream_parameters = copy.deepcopy(self.get_params(deep=False))
            self._forget_solution()
        return self

    def _check_stream(self):
        """Raise where there are no sums that samples could be added to."""
        if "_stream" not in vars(self):
            raise ValueError(
                "a probe that was fitted by `fit` keeps no sums that could be added to others'; use `partial_fit` for both"
            )
        if self._stream.kernel != self.kernel:
            raise ValueError(f"the samples so far were taken in for kernel={self._stream.kernel!r}; it is {self.kernel!r} now")

    @available_if(_is_linear)
    def merge(self, other):
        """Take in what another probe has seen: two probes of parts become the probe of the whole.

        Parameters
        ----------
        other : ClosedFormProbe
            Fitted by `partial_fit`, as this one, with the same classes. It stays as it is. The whole is solved with this
            probe's parameters, not with the other's.

        Returns
        -------
        ClosedFormProbe
            Itself.

        Raises
        ------
        NotFittedError
            If one of them has seen nothing.
        ValueError
            If one of them was fitted by `fit`, or classes, numbers of features or kernels differ.
        """
        for probe in (self, other):
            check_is_fitted(probe, "classes_")
        for name in ("n_features_in_", "kernel", "class_weight"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"the probes differ in {name}: {getattr(self, name)!r} and {getattr(other, name)!r}")
        for probe in (self, other):
            probe._check_stream()
        if not np.array_equal(self.classes_, other.classes_):
            raise ValueError(f"the probes have different classes: {self.classes_.tolist()} and {other.classes_.tolist()}")
        self._stream.merge(other._stream)
        self._stream_parameters = copy.deepcopy(self.get_params(deep=False))
        self._forget_solution()
        return self

    def decision_function(self, X):
        """Scores of the classes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Predicted class indicators, about −1 to 1; for two classes those of ``classes_[1]``.
        """
        if self._is_unsolved():
            self._solve_stream()  # or an error that says why that cannot be
        check_is_fitted(self)
        X = self._check(X)
        in_features = self.kernel in _LINEAR
        weights = self.coef_.T if in_features else self.dual_coef_
        dtype = np.result_type(X.dtype, weights.dtype)
        if in_features and self.kernel == "linear" and X.dtype == dtype:
            scores = X @ weights + self.intercept_
        else:
            device = torch.device("cpu") if in_features else resolve_device(self.device)
            rows = Rows.plain(X, device, unit=self.kernel == "cosine")
            scores = np.empty((len(X), weights.shape[1]), dtype)
            W, b = (shared(array).to(device, _torch_dtype(dtype)) for array in (weights, self.intercept_))
            kernel_parameters = self._kernel_parameters(getattr(self, "gamma_", None))
            known = None if in_features else shared(self.X_fit_).to(device, _torch_dtype(dtype))
            for positions, chunk in rows.chunks(_torch_dtype(dtype), width=len(W)):
                Z = chunk if known is None else kernel_matrix(self.kernel, chunk, known, **kernel_parameters)
                scores[positions] = torch.addmm(b, Z, W).cpu().numpy()
        return scores.ravel() if len(self.classes_) == 2 else scores

    def predict(self, X):
        """Most likely classes.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels from `classes_`.
        """
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities of the classes: the softmax of the scores over the temperature.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Rows sum to 1.
        """
        scores = self.decision_function(X)
        if scores.ndim == 2:
            return softmax(scores / self.temperature_, axis=1)
        positive = expit(2 * scores / self.temperature_)
        return np.stack([1 - positive, positive], axis=1)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "intercept_")

    def __getattr__(self, name):
        # Reached only by names that are not there: after `partial_fit`, what is solved for when it is first asked.
        if name in _SOLVED and self._is_unsolved():
            try:
                self._solve_stream()
            except Exception as error:  # whoever asks whether there is such an attribute gets an answer
                raise AttributeError(f"there is no {name} for the samples so far: {error}") from error
            if name in vars(self):
                return vars(self)[name]
        if name in ("partial_fit", "merge"):
            _is_linear(self)  # says why
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _is_unsolved(self) -> bool:
        return "_stream" in vars(self) and "intercept_" not in vars(self)

    def _solve_stream(self):
        """Solve for what `partial_fit` has taken in, by the parameters of then."""
        then = object.__new__(type(self))
        then.__dict__.update(self._stream_parameters, device=self.device)  # it may be another machine
        stream = self._stream
        rows = then._rows(*stream.reservoir.rows)
        self.__dict__.update(then._solve_in_feature_space(stream.moments.to(rows.device), rows, stream.dtype))

    # What comes before the solving.

    def _check_params(self):
        self._validate_params()
        if not isinstance(self.alpha, str | Real):
            alphas = np.asarray(self.alpha)
            if alphas.ndim != 1 or not len(alphas) or alphas.dtype.kind not in "iuf" or not (alphas >= 0).all():
                raise ValueError(f"candidates for alpha are a non-empty list of numbers ≥ 0; got {self.alpha!r}")
        if not np.isfinite(self.alpha if not isinstance(self.alpha, str) else 0).all():
            raise ValueError(f"alpha has to be finite; got {self.alpha!r}")

    def _check(self, X, *labels, reset=False):
        """Features as an array that is kept where it lies, and labels if given, without anything that is not finite."""
        arrays = [_from_tensor(array) for array in (X, *labels)]
        half = getattr(arrays[0], "dtype", None) == np.float16
        checks = {"dtype": [np.float64, np.float32, np.float16], "reset": reset, "ensure_all_finite": not half}
        checked = validate_data(self, *arrays, **checks)
        X = checked[0] if labels else checked
        for y in checked[1:] if labels else ():
            if y.dtype.kind not in "biuU":  # others need a look at every label
                check_classification_targets(y)
        if half:
            step = max(1, CHUNK // X.shape[1])
            for start in range(0, len(X), step):
                part = X[start : start + step]
                if not shared(part).sum(dtype=torch.float32).isfinite():
                    assert_all_finite(part.astype(np.float32), input_name="X")
        return checked

    def _weights(self, sample_weight, X, y, classes, codes) -> np.ndarray:
        weight = _check_sample_weight(_from_tensor(sample_weight), X, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            by_class = compute_class_weight(self.class_weight, classes=classes, y=y)
            if (by_class < 0).any():
                raise ValueError(f"class weights have to be ≥ 0; got {self.class_weight}")
            weight = weight * by_class[codes]
        if not weight.any():  # scikit-learn looks at the sample weights alone
            raise ValueError("all weights are zero; give a positive one to some samples")
        return weight

    def _rows(self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray, *, keep_copies: bool = False) -> Rows:
        """Samples of positive weight; without copies of one another where leave-one-out is asked for."""
        device = resolve_device(self.device)
        index = None if weight.all() else np.flatnonzero(weight)
        if index is not None:
            codes, weight = codes[index], weight[index]
        if self._leaves_one_out and not keep_copies:
            kept, weight = without_copies(X, codes, weight, index)
            if kept is not None:
                codes, index = codes[kept], kept if index is None else index[kept]
        w = shared(weight).to(device, torch.float32 if device.type == "mps" else torch.float64)
        return Rows(X, index, shared(codes).to(device), w, self.kernel == "cosine", device)

    @property
    def _leaves_one_out(self) -> bool:
        return not isinstance(self.alpha, Real) or self.temperature == "loo"

    def _dtype_for(self, X: np.ndarray) -> torch.dtype:
        return _torch_dtype(self.dtype or ("float64" if X.dtype == np.float64 else "float32"))

    def _check_memory(self, n: int, device: torch.device):
        needed = 8 * _MATRICES * n**2
        available = available_memory(device) if needed > _SURELY_FREE else None
        if available is not None and needed > available:
            raise MemoryError(
                f"kernel={self.kernel!r} in sample space needs {_MATRICES} float64 matrices of {n} × {n}, "
                f"{needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free; take fewer samples, kernel='linear' with "
                "solver='auto', or the approximate kernel of make_pipeline(Nystroem(...), ClosedFormProbe())"
            )

    def _forget(self):
        """Drop what an earlier fit, of either kind, has left."""
        self._forget_solution()
        for name in ("classes_", "_stream", "_stream_parameters"):
            self.__dict__.pop(name, None)

    def _forget_solution(self):
        for name in _SOLVED:
            self.__dict__.pop(name, None)

    @contextmanager
    def _all_or_nothing(self):
        """Leave the probe as it was if the block fails, or is ended by Ctrl-C."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    # The solving.

    def _penalties(self, mean_square: float) -> Sequence[float]:
        if isinstance(self.alpha, Real):
            return [float(self.alpha)]
        if isinstance(self.alpha, str):
            scale = 10.0 ** round(np.log10(mean_square)) if mean_square > 0 else 1.0
            return (scale * _CANDIDATES).tolist()
        return np.asarray(self.alpha, dtype=float).tolist()

    def _solve_in_feature_space(self, moments: Moments, rows: Rows, dtype: torch.dtype) -> dict[str, Any]:
        """Fitted attributes for all samples, of which ``rows`` are all or some."""
        return self._solve(FeatureSpace(moments, rows, self._penalties, self.fit_intercept, dtype), dtype)

    def _solve_in_sample_space(self, rows: Rows, n_classes: int) -> dict[str, Any]:
        dtype = self._dtype_for(rows.X)
        if self.kernel in _LINEAR:
            return self._solve(LinearSampleSpace(rows, n_classes, self._penalties, self.fit_intercept, dtype), dtype)
        Z, kernel = rows.whole(rows.weight.dtype), {}
        if isinstance(self.kernel, str):
            kernel["gamma_"] = variance_gamma(Z, rows.weight) if self.gamma is None else self.gamma
        K = kernel_matrix(self.kernel, Z, Z, **self._kernel_parameters(**kernel))
        kept = rows.X.copy() if rows.index is None else rows.X[rows.index]
        space = SampleSpace(K, rows.codes, rows.weight, n_classes, self._penalties, self.fit_intercept)
        return self._solve(space, dtype) | {"X_fit_": kept} | kernel

    def _solve(self, space: FeatureSpace | SampleSpace, dtype: torch.dtype) -> dict[str, Any]:
        """Fitted attributes for the penalty to take: coefficients and intercepts, for two classes those of the second one."""
        chosen, solution = self._choose(space)
        coefficients = space.coefficients(chosen)
        intercept = space.intercept(coefficients)
        if not coefficients.isfinite().all():
            self._raise_singular()
        wanted = slice(1 if space.n_classes == 2 else 0, None)
        weights, solution["intercept_"] = (values[..., wanted].to(dtype).cpu().numpy() for values in (coefficients, intercept))
        if self.kernel in _LINEAR:
            solution["coef_"] = np.ascontiguousarray(weights.T)
        else:
            solution["dual_coef_"] = weights
        return solution

    def _choose(self, space) -> tuple[int, dict[str, Any]]:
        """Index of the penalty to take, and all that leave-one-out has to say."""
        temperature = None if self.temperature == "loo" else float(self.temperature)
        chosen = 0
        said: dict[str, Any] = {}
        if self._leaves_one_out:
            said["alphas_"] = np.asarray(space.penalties)
            # The refit without a sample that is alone in its class has never seen the class.
            alone = space.class_rows[space.codes] == 1
            weight = in_double(torch.where(alone, 0, space.weight))
            if alone.all():
                said["loo_scores_"] = np.full(len(space.penalties), np.nan)
                chosen = len(space.penalties) // 3
                temperature = temperature or _DEFAULT_TEMPERATURE
                warnings.warn(
                    "no class has two samples: leave-one-out can choose neither alpha nor the temperature, and alpha="
                    f"{space.penalties[chosen]:g}, temperature={temperature:g} are taken by rule. Give both as numbers",
                    stacklevel=5,
                )
            else:
                simpler = isinstance(self.alpha, str)
                scores, best = choose_penalty(space, weight, self.scoring, temperature, within_error=simpler)
                if best is None:
                    self._raise_singular()
                chosen = best
                said["loo_scores_"] = scores.cpu().numpy()
                temperature = temperature or best_temperatures(space, weight, [chosen])[0]
            said["loo_score_"] = float(said["loo_scores_"][chosen])
        assert temperature is not None  # "loo" is one of the two things that ask for leave-one-out
        return chosen, said | {"alpha_": float(space.penalties[chosen]), "temperature_": temperature}

    def _raise_singular(self) -> NoReturn:
        raise ValueError(
            f"the system is singular to working precision with alpha={self.alpha}: features are collinear, or of scales too far "
            "apart; give a larger alpha, or scale the features"
        )

    def _kernel_parameters(self, gamma_=None):
        return {"gamma": gamma_, "degree": self.degree, "coef0": self.coef0} if isinstance(self.kernel, str) else {}


def solved_probe(
    classes: np.ndarray, coefficients: np.ndarray, intercept: np.ndarray, *, alpha: float, temperature: float
) -> ClosedFormProbe:
    """A fitted linear probe from a solution that was computed elsewhere.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
    coefficients : ndarray of shape (1, n_features) or (n_classes, n_features)
        One row for two classes.
    intercept : ndarray of shape (1,) or (n_classes,)
    alpha, temperature : float
        Ridge strength of the solution, and the temperature of its probabilities.

    Raises
    ------
    ValueError
        If the coefficients are not finite.
    """
    if not np.isfinite(coefficients).all():
        raise ValueError(
            f"the probe of the synthetic samples is singular to working precision with a ridge strength of {alpha:g}: their "
            "features are collinear; give a larger alpha"
        )
    probe = ClosedFormProbe(alpha, fit_intercept=False, temperature=temperature, device="cpu")
    solution = {"coef_": coefficients, "intercept_": intercept, "alpha_": float(alpha), "temperature_": float(temperature)}
    probe.__dict__.update(solution, classes_=classes, n_features_in_=coefficients.shape[1])
    return probe


def relative_probe(Z: np.ndarray, alpha: float, device="auto") -> ClosedFormProbe:
    """The probe of the inner problem, not fitted: no intercept, its ridge strength relative to the mean squared norm of ``Z``."""
    penalty = relative_penalty(torch.from_numpy(Z).double(), alpha).item()
    return ClosedFormProbe(penalty, fit_intercept=False, temperature=1.0, device=device)


def _from_tensor(array):
    if not isinstance(array, Tensor):
        return array
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()


def _torch_dtype(dtype) -> torch.dtype:
    return getattr(torch, np.dtype(dtype).name)
