"""DistilledSampler: replaces the training set inside an imbalanced-learn pipeline by a distilled one."""

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ..utils._documented import DocumentedMixin
from ..utils._sklearn_compat import HasMethods, RequestMethod
from ._base import BaseDistiller
from ._clp import CLPDistiller


class DistilledSampler(DocumentedMixin, BaseEstimator):
    """Replace a training set by its distilled one, as a step of an imbalanced-learn pipeline.

    The following steps of the pipeline are trained on the synthetic samples. At prediction time, samples pass unchanged. Use it
    in pipelines of `imbalanced-learn <https://imbalanced-learn.org>`_, which support steps with ``fit_resample``;
    scikit-learn's own pipelines cannot change the number of samples.

    Parameters
    ----------
    distiller : CLPDistiller or a baseline, default=None
        A clone of it is fitted. ``None`` stands for ``CLPDistiller()``. To use a fitted distiller as it is, wrap it in a
        :class:`sklearn.frozen.FrozenEstimator`.

    Attributes
    ----------
    distiller_ : CLPDistiller or a baseline
        The fitted distiller.

    See Also
    --------
    CLPDistiller : Has a probe of its own.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd import CLPDistiller, DistilledSampler
    >>> X, y = load_iris(return_X_y=True)
    >>> sampler = DistilledSampler(CLPDistiller(encoder=None, max_iter=100, random_state=0))
    >>> X_few, y_few = sampler.fit_resample(X, y)
    >>> X_few.shape, y_few.tolist()
    ((3, 4), [0, 1, 2])
    """

    # imbalanced-learn adds metadata routing for `fit_resample` when it is imported, which may be after this class is created.
    set_fit_resample_request = RequestMethod("fit_resample", ["groups"])

    _parameter_constraints = {"distiller": [HasMethods("fit"), None]}

    def __init__(self, distiller=None):
        self.distiller = distiller

    def fit(self, X, y, groups=None):
        """Distil ``(X, y)``.

        Parameters
        ----------
        X, y, groups
            As in :meth:`CLPDistiller.fit`.

        Returns
        -------
        DistilledSampler
            Itself.

        Raises
        ------
        TypeError
            If `distiller` is not a distiller. Other errors are those of its `fit`.
        """
        self._validate_params()
        distiller = CLPDistiller() if self.distiller is None else clone(self.distiller)
        if not isinstance(distiller.estimator if isinstance(distiller, FrozenEstimator) else distiller, BaseDistiller):
            raise TypeError(
                f"distiller has to be a CLPDistiller or a baseline; got {self.distiller}. To use a search, fit it, and pass its "
                "best_estimator_"
            )
        self.distiller_ = distiller.fit(X, y) if groups is None else distiller.fit(X, y, groups=groups)
        return self

    def fit_resample(self, X, y, groups=None):
        """Distil ``(X, y)``, and return the synthetic samples and their labels.

        Parameters
        ----------
        X, y, groups
            As in :meth:`CLPDistiller.fit`.

        Returns
        -------
        X_synthetic : ndarray of shape (n_synthetic, height, width, 3), float32
            Images in [0, 1]; for features ``(n_synthetic, n_features)``, as a pandas DataFrame if ``X`` is one.
        y_synthetic : ndarray of shape (n_synthetic,)
            Their labels; a pandas Series or data frame of the same dtype if ``y`` is one.

        Raises
        ------
        TypeError
            If `distiller` is not a distiller. Other errors are those of its `fit`.
        """
        self.fit(X, y, groups)
        return _samples_like(X, self.distiller_.X_synthetic_), _labels_like(y, self.distiller_.y_synthetic_)

    def __sklearn_is_fitted__(self):
        return hasattr(self, "distiller_")

    @property
    def n_features_in_(self):
        """Number of features, if the distiller has ``encoder=None``."""
        check_is_fitted(self)
        return self.distiller_.n_features_in_


def _samples_like(given, array: np.ndarray):
    """Features as a pandas data frame if that is what was given."""
    if not _is_pandas(given) or array.ndim > 2 or not hasattr(given, "columns"):
        return array
    return type(given)(array, columns=given.columns)


def _labels_like(given, labels: np.ndarray):
    """Labels in pandas' container and with its dtype if that is what was given."""
    if not _is_pandas(given):
        return labels
    if hasattr(given, "columns"):
        return type(given)({given.columns[0]: _labels_like(given.iloc[:, 0], labels)})
    return type(given)(labels, dtype=given.dtype, name=given.name)


def _is_pandas(given) -> bool:
    return type(given).__module__.partition(".")[0] == "pandas" and (hasattr(given, "columns") or hasattr(given, "name"))
