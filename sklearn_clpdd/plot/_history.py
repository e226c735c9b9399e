"""HistoryDisplay: loss and held-out accuracy during a run."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..distill._summary import one_line_summary
from ..utils._sklearn_compat import check_matplotlib_support


class HistoryDisplay:
    """Loss and held-out accuracy over the steps and the time of a run.

    Created by :meth:`from_estimator`.

    Parameters
    ----------
    history : list of dict
        `history_` of a distiller.
    best_iter : int, default=None
        `best_iter_` of the distiller: the step that is marked.
    title : str, default=None
        Title of the figure.

    Attributes
    ----------
    axes_ : ndarray of shape (1,) or (2,) of matplotlib Axes
        Axes of the loss, and of the accuracy if samples were held out.
    figure_ : matplotlib Figure
        The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd import CLPDistiller, HistoryDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> distiller = CLPDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y)
    >>> HistoryDisplay.from_estimator(distiller).axes_.shape
    (2,)
    """

    def __init__(self, history, *, best_iter=None, title=None):
        self.history = history
        self.best_iter = best_iter
        self.title = title

    @classmethod
    def from_estimator(cls, distiller, *, ax=None):
        """Draw the history of a fitted distiller.

        Parameters
        ----------
        distiller : CLPDistiller, LGMDistiller or DMDistiller
            Fitted, or stopped by an error or Ctrl-C.
        ax : array-like of two matplotlib Axes, or one, default=None
            Axes to draw into; if there is one only, it gets the loss. ``None``: a new figure.

        Returns
        -------
        HistoryDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the distiller is not fitted.
        ValueError
            If it has no history, such as a baseline that selects real images.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_is_fitted(distiller)
        history = getattr(distiller, "history_", [])
        if not history:
            raise ValueError(
                f"this {type(distiller).__name__} has no history to draw: it selects real samples, or was stopped before its "
                "first step. Pass a distiller that has made steps, such as CLPDistiller"
            )
        return cls(history, best_iter=distiller.best_iter_, title=one_line_summary(distiller)).plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw the history.

        Parameters
        ----------
        ax : array-like of two matplotlib Axes, or one, default=None
            See :meth:`from_estimator`.

        Returns
        -------
        HistoryDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        scored = [record for record in self.history if "val_accuracy" in record]
        if ax is None:
            n = 2 if scored else 1
            figure, ax = plt.subplots(1, n, figsize=(5 * n, 3.6), layout="constrained")
            if self.title:
                figure.suptitle(self.title, fontsize="medium")
        self.axes_ = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()[: 2 if scored else 1]
        self.figure_ = self.axes_[0].figure
        steps, seconds = ([record[key] for record in self.history] for key in ("step", "seconds"))
        left = self.axes_[0]
        left.plot(steps, [record["loss"] for record in self.history], linewidth=0.8, label="training")
        if scored:
            left.plot([r["step"] for r in scored], [r["val_loss"] for r in scored], marker=".", label="held out")
            left.legend()
        left.set(xlabel="step", ylabel="loss")
        if scored and len(self.axes_) > 1:
            right = self.axes_[1]
            right.plot([r["step"] for r in scored], [r["val_accuracy"] for r in scored], marker=".", color="C1")
            if self.best_iter is not None:
                kept = f"kept: step {self.best_iter}, {self.history[self.best_iter]['val_accuracy']:.3f}"
                right.axvline(self.best_iter, color="grey", linestyle=":", label=kept)
                right.legend()
            right.set(xlabel="step", ylabel="held-out accuracy")
        if len(steps) > 1 and seconds[-1] > seconds[0]:
            # The axis extends beyond the run, so the mapping is extrapolated by one length on both sides, at the mean rate.
            steps, seconds = ([2 * axis[0] - axis[-1], *axis, 2 * axis[-1] - axis[0]] for axis in (steps, seconds))
            functions = (lambda at: np.interp(at, steps, seconds), lambda at: np.interp(at, seconds, steps))
            left.secondary_xaxis("top", functions=functions).set_xlabel("seconds")
        return self
