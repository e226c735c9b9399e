"""FeatureMapDisplay: real and synthetic samples in two dimensions."""

from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from ..utils._labels import as_labels, label_text
from ..utils._sklearn_compat import check_matplotlib_support, safe_indexing


class FeatureMapDisplay:
    """Features of real and synthetic samples, reduced to two dimensions.

    Created by :meth:`from_estimator`.

    Parameters
    ----------
    real, synthetic : ndarray of shape (n_samples, 2)
        Positions of the samples.
    y_real, y_synthetic : array-like of shape (n_samples,)
        Their classes.
    max_classes : int, default=10
        Classes with a colour and an entry in the legend, at most; colours repeat after 20.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd import CLPDistiller, FeatureMapDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> distiller = CLPDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y)
    >>> FeatureMapDisplay.from_estimator(distiller, X, y).synthetic.shape
    (3, 2)
    """

    def __init__(self, real, y_real, synthetic, y_synthetic, *, max_classes=10):
        self.real = real
        self.y_real = y_real
        self.synthetic = synthetic
        self.y_synthetic = y_synthetic
        self.max_classes = max_classes

    @classmethod
    def from_estimator(cls, distiller, X, y, *, reducer=None, max_samples=2000, max_classes=10, random_state=None, ax=None):
        """Draw the features of real samples and of a fitted distiller's synthetic ones.

        Parameters
        ----------
        distiller : CLPDistiller or a baseline
            Fitted.
        X, y : images or features, and labels
            Real samples.
        reducer : transformer, default=None
            Reduces the features to two dimensions: the ``fit_transform`` of a clone gets the features of real and synthetic
            samples together, and their classes. ``None``: :class:`~sklearn.decomposition.PCA`. Alternatives are ``TSNE()`` and
            ``LinearDiscriminantAnalysis(n_components=2)``.
        max_samples : int, default=2000
            Maximum number of real samples that are encoded and drawn, selected at random.
        max_classes : int, default=10
            Classes with their own colour and an entry in the legend; the others are grey.
        random_state : int, RandomState instance or None, default=None
            Seed of the selection.
        ax : matplotlib Axes, default=None
            Axes to draw into. ``None``: a new figure.

        Returns
        -------
        FeatureMapDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the distiller is not fitted.
        ValueError
            If ``X`` and ``y`` have different lengths, or the reducer does not return two dimensions.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        from sklearn.decomposition import PCA  # slow to import

        check_is_fitted(distiller)
        check_scalar(max_samples, "max_samples", Integral, min_val=1)
        y = as_labels(y)
        check_consistent_length(X, y)
        rng = check_random_state(random_state)
        rows = np.sort(rng.permutation(len(y))[:max_samples])
        Z = np.concatenate([distiller.features(safe_indexing(X, rows)), distiller.features(distiller.X_synthetic_)])
        labels = np.concatenate([y[rows], distiller.y_synthetic_])
        reducer = PCA(2, random_state=0) if reducer is None else clone(reducer)
        places = np.asarray(reducer.fit_transform(Z, labels))
        if places.shape != (len(Z), 2):
            raise ValueError(
                f"reducer has to return two dimensions, an array of shape {(len(Z), 2)}; {reducer} returned one of shape "
                f"{places.shape}"
            )
        n = len(rows)
        display = cls(places[:n], labels[:n], places[n:], labels[n:], max_classes=max_classes)
        return display.plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw into. ``None``: a new figure.

        Returns
        -------
        FeatureMapDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        check_scalar(self.max_classes, "max_classes", Integral, min_val=0)
        if ax is None:
            _, ax = plt.subplots(figsize=(6.5, 4.8), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        y_real, y_synthetic = np.asarray(self.y_real), np.asarray(self.y_synthetic)
        classes = np.unique(np.concatenate([y_real, y_synthetic]))
        colors = plt.get_cmap("tab10" if min(len(classes), self.max_classes) <= 10 else "tab20")
        stars = {}
        for i, label in enumerate(classes):
            named = i < self.max_classes
            color = colors(i % colors.N) if named else "lightgrey"
            ax.scatter(*self.real[y_real == label].T, s=8, alpha=0.4, color=color, linewidths=0)
            star = ax.scatter(
                *self.synthetic[y_synthetic == label].T,
                s=110,
                marker="*",
                color=color,
                edgecolors="black",
                linewidths=0.8,
                zorder=3,
            )
            if named:  # matplotlib leaves out what begins with an underscore
                text = label_text(label)
                stars["\u200b" + text if text.startswith("_") else text] = star
        more = f"; {len(classes) - self.max_classes} more are grey" if len(classes) > self.max_classes else ""
        title = f"stars: synthetic{more}"
        legend = ax.legend(stars.values(), stars, title=title, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
        ax.set(xlabel="first reduced dimension", ylabel="second reduced dimension")
        return self
