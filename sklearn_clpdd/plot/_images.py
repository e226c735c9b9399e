"""SyntheticImagesDisplay: a grid of synthetic images."""

from numbers import Integral

import numpy as np
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_consistent_length

from ..distill._summary import one_line_summary, synthetic_images_of
from ..utils._arrays import check_samples_and_labels, evenly_spaced
from ..utils._labels import as_labels, label_text
from ..utils._pictures import columns_for
from ..utils._sklearn_compat import check_matplotlib_support


class SyntheticImagesDisplay:
    """Synthetic images in a grid, each with its class.

    Created by :meth:`from_estimator`.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width, 3)
        Images, float in [0, 1] or uint8.
    labels : array-like of shape (n_images,)
        Their classes.
    title : str, default=None
        Title of the figure.

    Attributes
    ----------
    axes_ : ndarray of shape (n_shown,) of matplotlib Axes
        Axes of the single images.
    figure_ : matplotlib Figure
        The figure.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_clpdd import SyntheticImagesDisplay
    >>> images = np.random.default_rng(0).random((3, 8, 8, 3))
    >>> SyntheticImagesDisplay(images, ["cat", "dog", "owl"]).plot().axes_.shape
    (3,)
    """

    def __init__(self, images, labels, *, title=None):
        self.images = images
        self.labels = labels
        self.title = title

    @classmethod
    def from_estimator(cls, distiller, X=None, y=None, *, max_images=50, n_columns=None, ax=None):
        """Draw the synthetic images of a fitted distiller, with its accuracy and provenance.

        Parameters
        ----------
        distiller : CLPDistiller or a baseline
            Fitted to images.
        X, y : images and labels, default=None
            Test samples for the accuracy in the title. ``None``: the accuracy on the held-out real features, if there are any.
        max_images : int, default=50
            Images that are drawn, at most, evenly spaced among all.
        n_columns : int, default=None
            Columns of the grid. ``None``: one row per class for images grouped by class of which each class shows the same
            number, more than one; otherwise a grid about twice as wide as high.
        ax : matplotlib Axes, default=None
            Axes to draw into. ``None``: a new figure.

        Returns
        -------
        SyntheticImagesDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the distiller is not fitted.
        ValueError, TypeError
            If it was fitted to features (``encoder=None``), or is not a distiller; for ``X`` without ``y``; for an `ax` that is
            not part of a grid of subplots.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        images = synthetic_images_of(distiller)
        check_samples_and_labels("X and y", X, y)
        accuracy = getattr(distiller, "val_accuracy_", None) if X is None else distiller.score(X, y)
        scored = "" if accuracy is None else f"{'held-out' if X is None else 'test'} accuracy {accuracy:.3f}\n"
        display = cls(images, distiller.y_synthetic_, title=scored + one_line_summary(distiller))
        return display.plot(max_images=max_images, n_columns=n_columns, ax=ax)

    def plot(self, *, max_images=50, n_columns=None, ax=None):
        """Draw the images.

        Parameters
        ----------
        max_images, n_columns, ax
            See :meth:`from_estimator`.

        Returns
        -------
        SyntheticImagesDisplay
            The display itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        check_scalar(max_images, "max_images", Integral, min_val=1)
        if ax is not None and ax.get_subplotspec() is None:
            raise ValueError(
                "ax has to be part of a grid of subplots, which the images subdivide; pass one that plt.subplots() has created"
            )
        labels = as_labels(self.labels, "labels")
        check_consistent_length(self.images, labels)
        rows = evenly_spaced(len(labels), max_images)
        counts = np.unique(labels[rows], return_counts=True)[1]
        one_row_per_class = counts.min() == counts.max() > 1
        n_columns = checked_columns(n_columns, int(counts[0]) if one_row_per_class else columns_for(len(rows)))
        n_rows = -(-len(rows) // n_columns)
        if ax is None:
            figure, ax = plt.subplots(figsize=(max(1.3 * n_columns, 5), 1.55 * n_rows + 0.5), layout="constrained")
            figure.suptitle(self.title or "", fontsize="medium")
        elif self.title:
            ax.set_title(self.title, fontsize="medium", pad=16)
        ax.set_axis_off()
        self.figure_ = ax.figure
        grid = ax.get_subplotspec().subgridspec(n_rows, n_columns)
        self.axes_ = np.array([self.figure_.add_subplot(grid[i // n_columns, i % n_columns]) for i in range(len(rows))])
        for cell, row in zip(self.axes_, rows, strict=True):
            cell.imshow(self.images[row])
            cell.set_title(label_text(labels[row]), fontsize="small", pad=2, parse_math=False)
            cell.set(xticks=[], yticks=[])
        return self


def checked_columns(given, default: int) -> int:
    """A number of columns, or its default."""
    return default if given is None else check_scalar(given, "n_columns", Integral, min_val=1)
