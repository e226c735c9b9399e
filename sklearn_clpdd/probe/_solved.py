"""Probes for solutions computed elsewhere, and with relative ridge strengths."""

import numpy as np
import torch

from ..utils._ridge import relative_penalty
from ._probe import ClosedFormProbe


def solved_probe(
    classes: np.ndarray, coefficients: np.ndarray, intercept: np.ndarray, *, alpha: float, temperature: float
) -> ClosedFormProbe:
    """A fitted linear probe with a solution that was computed elsewhere.

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
            "features are collinear; use a larger alpha"
        )
    probe = ClosedFormProbe(alpha, loss="squared", fit_intercept=False, temperature=temperature, device="cpu")
    solution = {"coef_": coefficients, "intercept_": intercept, "alpha_": float(alpha), "temperature_": float(temperature)}
    solution |= {"compression_": 0.0, "loss_": "squared", "multilabel_": False}
    probe.__dict__.update(solution, classes_=classes, n_features_in_=coefficients.shape[1])
    return probe


def relative_probe(Z: np.ndarray, alpha: float) -> ClosedFormProbe:
    """An unfitted probe without intercept, whose ridge strength is ``alpha`` times the mean squared norm of ``Z``."""
    penalty = relative_penalty(torch.from_numpy(Z).double(), alpha).item()
    return ClosedFormProbe(penalty, loss="squared", fit_intercept=False, temperature=1.0)
