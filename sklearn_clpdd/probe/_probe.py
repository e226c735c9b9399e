"""ClosedFormProbe: classification of features, linear or with kernels, from one factorisation, tuned on held-out predictions."""

from dataclasses import replace
from numbers import Real

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from ..utils._array_api import to_numpy
from ..utils._documented import DocumentedMixin
from ..utils._sklearn_compat import Interval, StrOptions
from ..utils._torch_modes import standard_torch_modes
from ._export import ExportMixin
from ._input import device_for, dtype_for, effective_weights, validate_samples, validated_prior
from ._kernels import KERNELS
from ._partial_fit import PartialFitMixin
from ._predict import PredictMixin
from ._solver import LINEAR_KERNELS, ProbeSolver

_SCORINGS = ("accuracy", "neg_log_loss", "neg_mean_squared_error")


class ClosedFormProbe(DocumentedMixin, PredictMixin, PartialFitMixin, ExportMixin, BaseEstimator):
    """Linear classifier for the features of a frozen encoder, computed in closed form or from there.

    Fits a ridge regression of ±1 class indicators on the features, as :class:`sklearn.linear_model.RidgeClassifier` does. Exact
    leave-one-out predictions choose the ridge strength and calibrate the probabilities. They all come from one factorisation, in
    feature space or in sample space, whichever is smaller. Where there are samples enough, the result is that of a logistic
    regression, which starts from the closed form and uses the same factorisation.

    Parameters
    ----------
    alpha : "loo", float, or array-like of shape (n_candidates,), default="loo"
        Ridge strength, ≥ 0: ``alpha · ‖coef‖²`` is added to the sum of squared errors. From several candidates, the first one
        with the best leave-one-out `scoring` is chosen. ``"loo"`` tries two candidates per decade, from 0.001 to 1000 times the
        mean weighted squared norm of the samples (about their mean if there is an intercept; rounded to a power of ten). With
        ``scoring="accuracy"``, it chooses the one with the least log-loss among those whose accuracy is within one standard error
        of the best; with another `scoring`, the one with the best score. For the logistic loss, it tries them from the middle one
        on for as long as the log-loss falls.
    loss : {"auto", "squared", "logistic"}, default="auto"
        ``"squared"`` is the ridge classifier. ``"logistic"`` is multinomial logistic regression, the minimum of
        ``Σ log-loss + alpha / 2 · ‖coef‖²``, as :class:`sklearn.linear_model.LogisticRegression` with ``C=1 / alpha`` has it; its
        strength and temperature are chosen by the predictions of five folds, which are fitted together. ``"auto"`` is the
        logistic loss if `alpha` is ``"loo"``, the kernel is linear, there are 20 different samples a class or more on average,
        memory suffices, and neither `partial_fit` nor ``scoring="neg_mean_squared_error"`` nor `coef_prior` is used; otherwise it
        is the squared loss. CPUs that are fast in bfloat16 use it for the folds, and for the first steps, of large float32
        problems.
    kernel : {"linear", "cosine", "rbf", "poly"} or callable, default="linear"
        ``"cosine"`` is linear in features scaled to unit norm. The other kernels are solved in sample space, with memory
        proportional to ``n_samples²``. A callable maps two matrices to the matrix of the kernels of their rows, as for
        :class:`sklearn.svm.SVC`.
    gamma : float, default=None
        Parameter of the kernels ``exp(−gamma · ‖a − b‖²)`` and ``(gamma · aᵀb + coef0) ** degree``, > 0. ``None`` is
        ``1 / (n_features · X.var())``, which :class:`sklearn.svm.SVC` calls "scale".
    degree : float, default=3
        Degree of the polynomial kernel, > 0.
    coef0 : float, default=1
        Constant of the polynomial kernel.
    fit_intercept : bool, default=True
        Whether to fit an unpenalised intercept.
    class_weight : dict or "balanced", default=None
        Weights of the classes; ``"balanced"`` is ``n_samples / (n_classes · bincount(y))``.
    coef_prior : array-like of shape (n_classes, n_features), default=None
        Coefficients towards which the ridge penalty pulls, such as a language model's embeddings of the classes' names:
        ``alpha · ‖coef − coef_prior‖²`` instead of ``alpha · ‖coef‖²``. A linear classifier with these coefficients is the limit
        of large `alpha`, and what `partial_fit` has before the first sample. For the squared loss, the scores of a class should
        be about 1 and −1, so scale them accordingly. For two classes, one row or two, of which the difference counts. With a
        prior, ``loss="auto"`` is the squared loss.
    temperature : "loo" or float, default="loo"
        With a number, > 0, `predict_proba` is the softmax of the scores divided by it. ``"loo"`` chooses the one between 0.0001
        and 100 with the least log-loss of the held-out predictions; for the squared loss together with a compression of large
        scores (see `predict_proba`), if there are 200 samples or more.
    scoring : {"accuracy", "neg_log_loss", "neg_mean_squared_error"}, default="accuracy"
        Score of the held-out predictions (leave-one-out, or five folds for the logistic loss) by which candidates for `alpha` are
        compared. Sample and class weights are taken into account.
    solver : {"auto", "primal", "dual"}, default="auto"
        ``"primal"`` solves an ``(n_features, n_features)`` system, ``"dual"`` an ``(n_samples, n_samples)`` one, with the same
        result. Kernels other than ``"linear"`` and ``"cosine"`` are always solved in the dual form. The logistic loss takes the
        smaller one.
    dtype : {"float32", "float64"}, default=None
        Dtype of the coefficients and intercepts, and of intermediate results that do not need float64. ``None``: float64 for
        float64 features, float32 for float32 and float16 ones.
    device : str or torch.device, default="auto"
        Device on which the systems are solved; ``"auto"`` is that of the features under scikit-learn's array API dispatch, else
        CUDA if it is available. Fitted attributes are numpy arrays in any case.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels; for several labels their numbers, 0 to ``n_labels - 1``.
    multilabel_ : bool
        Whether ``y`` was an indicator matrix. Then `coef_` has one row for each label, `alpha_`, `temperature_` and
        `compression_` are arrays of shape (n_labels,), `loo_scores_` is (n_candidates, n_labels), and `loo_score_` their mean.
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        Weights of the features, for the kernels ``"linear"`` and ``"cosine"``; one row for two classes.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts.
    alpha_ : float
        Ridge strength; NaN before the first sample.
    loss_ : {"squared", "logistic"}
        The loss that was minimised.
    temperature_, compression_ : float
        Temperature and compression of `predict_proba`.
    alphas_ : ndarray of shape (n_candidates,)
        Ridge strengths that were compared. This and the next two are only set if leave-one-out or folds were used.
    loo_scores_ : ndarray of shape (n_candidates,)
        Their leave-one-out scores, or those of five folds for the logistic loss, higher is better; NaN for strengths with which
        the system is singular, or that were not tried.
    loo_score_ : float
        Score of `alpha_`; NaN if no class has two samples.
    gamma_ : float
        The `gamma` that was used, for ``"rbf"`` and ``"poly"``.
    dual_coef_ : ndarray of shape (n_kept, 1) or (n_kept, n_classes)
        Weights of training samples, for kernels that are solved in sample space.
    X_fit_ : ndarray of shape (n_kept, n_features)
        The training samples that these weights belong to: those of positive weight, without duplicates if leave-one-out
        was used.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if ``X`` had names.

    Raises
    ------
    ValueError
        In `fit`, if there are fewer than two classes, non-finite features, or the system is singular (``alpha=0`` on collinear
        features).
    MemoryError
        In `fit`, if a kernel matrix, or what the logistic loss needs, does not fit into memory; raised before it is allocated.

    Warns
    -----
    ConvergenceWarning
        In `fit`, if the logistic regression does not converge.

    Notes
    -----
    A leave-one-out prediction is that of a refit without the sample, with the same `alpha`, and with the intercept and weights of
    the other samples. Identical rows of one class are left out together, so that a sample of weight 2 counts like two copies of
    it, and oversampling does not inflate the scores (`partial_fit` only recognises copies among the rows that it keeps). The
    only sample of a class does not contribute to the scores.

    References
    ----------
    CLP-DD, arXiv 2605.07194, for the inner problem in closed form. Rifkin and Lippert, *Notes on Regularized Least Squares*,
    2007, for leave-one-out predictions from one eigendecomposition. Guo et al., *On Calibration of Modern Neural Networks*, 2017,
    for the temperature.

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
        "loss": [StrOptions({"auto", "squared", "logistic"})],
        "kernel": [StrOptions({*LINEAR_KERNELS, *KERNELS}), callable],
        "gamma": [Interval(Real, 0, None, closed="neither"), None],
        "degree": [Interval(Real, 0, None, closed="neither")],
        "coef0": [Real],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "coef_prior": ["array-like", Tensor, None],
        "temperature": [StrOptions({"loo"}), Interval(Real, 0, None, closed="neither")],
        "scoring": [StrOptions(set(_SCORINGS))],
        "solver": [StrOptions({"auto", "primal", "dual"})],
        "dtype": [StrOptions({"float32", "float64"}), None],
        "device": [str, torch.device],
    }

    def __init__(
        self,
        alpha="loo",
        *,
        loss="auto",
        kernel="linear",
        gamma=None,
        degree=3,
        coef0=1,
        fit_intercept=True,
        class_weight=None,
        coef_prior=None,
        temperature="loo",
        scoring="accuracy",
        solver="auto",
        dtype=None,
        device="auto",
    ):
        self.alpha = alpha
        self.loss = loss
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.coef_prior = coef_prior
        self.temperature = temperature
        self.scoring = scoring
        self.solver = solver
        self.dtype = dtype
        self.device = device

    @standard_torch_modes()
    def fit(self, X, y, sample_weight=None):
        """Fit the probe.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Features. float16 and float32 are kept, everything else is converted to float64. With more samples than features,
            the squared loss reads a memmap in chunks and never copies it as a whole. Under scikit-learn's array API dispatch, a
            tensor, or another library's array, stays on its device.
        y : array-like of shape (n_samples,), or array-like or sparse matrix of shape (n_samples, n_labels)
            Class labels, or 1 for each label that a sample has, and 0. Each label is a problem of two classes of its own, with
            its own strength and temperature, from one factorisation (squared loss).
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the losses, ≥ 0.

        Returns
        -------
        ClosedFormProbe
            Itself.
        """
        with self._restored_on_error():
            self._check_params()
            X, y = validate_samples(self, X, y, reset=True)
            is_multilabel = y.ndim == 2
            # Samples with the same labels are a class here, so that identical ones of them are found.
            table, codes = np.unique(y, axis=0, return_inverse=True) if is_multilabel else np.unique(y, return_inverse=True)
            classes, codes = np.arange(y.shape[1]) if is_multilabel else table, codes.ravel()
            if len(classes) < 2:
                raise ValueError(
                    f"a classifier needs samples of at least two classes; y contains only one class, {classes.tolist()[0]!r}"
                )
            if is_multilabel and self.loss == "logistic":
                raise ValueError("loss='logistic' has one label a sample, and y is an indicator matrix; use loss='squared'")
            weight = effective_weights(self, sample_weight, y, classes, codes)
            prior = validated_prior(self, len(classes), X.shape[1], is_multilabel=is_multilabel)
            solver = replace(self._solver, coef_prior=prior)
            rows = solver.rows(X, codes, weight, device_for(self, X))
            if is_multilabel:
                labels = torch.from_numpy(table).to(rows.device)[rows.codes]
                solution = solver.solve_labels(rows, labels, dtype_for(self, X))
            else:
                solution = solver.solve(rows, len(classes), dtype_for(self, X))
            self._forget()
            self.__dict__.update(solution, classes_=classes, multilabel_=is_multilabel)
        return self

    def __getstate__(self):
        state = super().__getstate__()
        return state | {"coef_prior": to_numpy(state["coef_prior"])}

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.loss != "logistic"
        return tags

    @property
    def _solver(self) -> ProbeSolver:
        names = ("alpha", "kernel", "gamma", "degree", "coef0", "fit_intercept", "temperature", "scoring", "solver", "loss")
        return ProbeSolver(**{name: getattr(self, name) for name in names})

    def _check_params(self):
        self._validate_params()
        if not isinstance(self.alpha, str | Real):
            alphas = np.asarray(self.alpha)
            numeric = alphas.ndim == 1 and len(alphas) and alphas.dtype.kind in "iuf"
            if not numeric or not (np.isfinite(alphas) & (alphas >= 0)).all():
                raise ValueError(
                    f"alpha has to be 'loo', a finite number ≥ 0, or a non-empty list of such numbers; got {self.alpha!r}"
                )
        if self.loss == "logistic":
            if not self._solver.is_linear:
                raise ValueError(f"loss='logistic' needs kernel='linear' or 'cosine'; got {self.kernel!r}")
            if self.scoring == "neg_mean_squared_error":
                raise ValueError("loss='logistic' needs scoring='accuracy' or 'neg_log_loss'; got 'neg_mean_squared_error'")
            if not isinstance(self.alpha, str) and np.min(self.alpha) <= 0:
                raise ValueError(f"loss='logistic' needs alpha > 0, because it may have no minimum without; got {self.alpha!r}")
