"""What a distiller is fitted to, and its result."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import joblib
import numpy as np
from torch import Tensor

from ..utils._ranks import ALONE, Ranks
from ._adapters import DataAdapter
from ._real_features import RealFeatures


@dataclass(frozen=True)
class FitData:
    """The validated arguments of `fit`.

    Parameters
    ----------
    X : images or features
        As the user passed them.
    y : ndarray of shape (n,)
        Class labels.
    adapter : DataAdapter
        Access to ``X``.
    input_attributes : dict
        Attributes that scikit-learn sets for a feature matrix, such as ``n_features_in_``.
    classes : ndarray of shape (C,)
    codes : ndarray of shape (n,), int64
        Class indices of the real samples.
    groups : ndarray of shape (n,), int64, or None
        Indices of the groups within the classes, which are to be balanced.
    images_per_class : ndarray of shape (C,), int64
        Number of synthetic samples of each class.
    """

    X: Any
    y: np.ndarray
    adapter: DataAdapter
    input_attributes: dict[str, Any]
    classes: np.ndarray
    codes: np.ndarray
    groups: np.ndarray | None
    images_per_class: np.ndarray

    @property
    def synthetic_codes(self) -> np.ndarray:
        """Class indices of the synthetic samples, ``(m,)``."""
        return np.repeat(np.arange(len(self.classes)), self.images_per_class)

    @property
    def class_counts(self) -> np.ndarray:
        """Number of real samples of each class."""
        return np.bincount(self.codes)

    @property
    def members(self) -> list[np.ndarray]:
        """Positions of the real samples of each class."""
        return [np.flatnonzero(self.codes == c) for c in range(len(self.classes))]

    @cached_property
    def digest(self) -> str:
        """Digest of the real samples and their labels."""
        return joblib.hash((self.adapter.data_digest(), self.y))

    def real_features(
        self, order: np.ndarray, n_held_out: int = 0, strata: np.ndarray | None = None, ranks: Ranks = ALONE
    ) -> RealFeatures:
        """Features of the real samples in this order, the last ones held out; ``strata`` is in the order of ``X``."""
        self.digest  # noqa: B018 (computed from the data as they are before the long work)
        strata = None if strata is None else strata[order]
        return RealFeatures(self.adapter.real_features(order, ranks), self.codes[order], order, n_held_out, strata)


@dataclass(frozen=True)
class FitResult:
    """Result of a distiller, from which all fitted attributes are computed.

    Parameters
    ----------
    samples : Tensor of shape (m, ...)
        Synthetic samples, in the adapter's form.
    codes : ndarray of shape (m,), int64
        Their class indices.
    real : RealFeatures
    targets : Tensor of shape (m, C), or None
        Targets of the probe; None for one-hot labels.
    attributes : dict
        Fitted attributes of the method.
    warning : str or None
        A warning to issue at the end of `fit`.
    error : BaseException or None
        The error that ended the search early; `fit` raises it after all attributes are set.
    """

    samples: Tensor
    codes: np.ndarray
    real: RealFeatures
    targets: Tensor | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None
    error: BaseException | None = None
