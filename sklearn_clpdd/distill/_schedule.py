"""How the learning rate changes during a run."""

from numbers import Integral, Real

from sklearn.base import BaseEstimator

from ..utils._documented import DocumentedMixin
from ..utils._sklearn_compat import Interval


class LinearSchedule(DocumentedMixin, BaseEstimator):
    """Learning rate that rises linearly during the first steps and falls linearly to zero at the end.

    Parameters
    ----------
    peak : float, default=0.05
        Largest learning rate, > 0.
    warmup_steps : int, default=10
        Number of first steps of each `fit` during which the rate rises. 0: none.
    decay_fraction : float in [0, 1], default=0.5
        Last fraction of the run during which the rate falls. 0: none.

    Examples
    --------
    >>> from sklearn_clpdd import LinearSchedule
    >>> constant = LinearSchedule(0.01, warmup_steps=0, decay_fraction=0.0)
    >>> constant.rate(0, 0.0), constant.rate(99, 0.99)
    (0.01, 0.01)
    """

    _parameter_constraints = {
        "peak": [Interval(Real, 0, None, closed="neither")],
        "warmup_steps": [Interval(Integral, 0, None, closed="left")],
        "decay_fraction": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(self, peak=0.05, *, warmup_steps=10, decay_fraction=0.5):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.decay_fraction = decay_fraction

    def rate(self, step, progress):
        """Learning rate of a step.

        Parameters
        ----------
        step : int
            Steps of this `fit` that have been made.
        progress : float in [0, 1)
            Fraction of the run that is done, by steps or by time.

        Returns
        -------
        float
            The rate.
        """
        rise = (step + 1) / (self.warmup_steps + 1)
        fall = (1 - progress) / self.decay_fraction if self.decay_fraction else 1.0
        return self.peak * min(1.0, rise) * min(1.0, fall)
