"""What there is to see of a distillation: its images, its history, its features, and how the images came into being."""

import os
from numbers import Integral

import numpy as np
from PIL import Image, ImageDraw
from sklearn.base import BaseEstimator, clone
from sklearn.utils import _safe_indexing, check_random_state, check_scalar
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from ._base import BaseDistiller
from ._pictures import columns_for, evenly, mosaic, to_8_bit
from ._provenance import held_out_accuracy, in_words


class SyntheticImagesDisplay:
    """Synthetic images in a grid, each with its class.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width, 3)
        Images, float in [0, 1] or uint8.
    labels : array-like of shape (n_images,)
        Their classes.
    title : str, default=None
        What stands above them.

    Attributes
    ----------
    axes_ : ndarray of shape (n_shown,) of matplotlib Axes
        Those of the single images.
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
        """Draw the synthetic images of a fitted distiller, with its accuracy and where they come from.

        Parameters
        ----------
        distiller : CLPDistiller or a baseline
            Fitted to images.
        X, y : images and labels, default=None
            Test samples for the accuracy in the title. ``None``: it is that on the held-out real features, where there are some.
        max_images : int, default=50
            Images that are drawn, at most: evenly spaced ones of all.
        n_columns : int, default=None
            Columns of the grid. ``None``: the images of a class side by side, if each has as many, else about two to one.
        ax : matplotlib Axes, default=None
            Where to draw. ``None``: a new figure.

        Returns
        -------
        SyntheticImagesDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            If the distiller is not fitted.
        ValueError, TypeError
            If it was fitted to features (``encoder=None``), or is no distiller; ``X`` without ``y``; an `ax` outside of a grid.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        images = images_of(distiller)
        check_both("X and y", X, y)
        accuracy = held_out_accuracy(distiller) if X is None else distiller.score(X, y)
        scored = "" if accuracy is None else f"{'held-out' if X is None else 'test'} accuracy {accuracy:.3f}\n"
        display = cls(images, distiller.y_synthetic_, title=scored + in_words(distiller))
        return display.plot(max_images=max_images, n_columns=n_columns, ax=ax)

    def plot(self, *, max_images=50, n_columns=None, ax=None):
        """Draw them.

        Parameters
        ----------
        max_images, n_columns, ax
            See :meth:`from_estimator`.

        Returns
        -------
        SyntheticImagesDisplay
            Itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        check_scalar(max_images, "max_images", Integral, min_val=1)
        if ax is not None and ax.get_subplotspec() is None:
            raise ValueError(
                "ax has no place in a grid of subplots, which the images divide; give one that plt.subplots() has made"
            )
        labels = column_or_1d(self.labels)
        check_consistent_length(self.images, labels)
        rows = evenly(len(labels), max_images)
        counts = set(np.unique(labels[rows], return_counts=True)[1].tolist())
        in_rows_of_classes = len(counts) == 1 and counts != {1}
        n_columns = _checked_columns(n_columns, counts.pop() if in_rows_of_classes else columns_for(len(rows)))
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
            cell.set_title(str(labels[row]), fontsize="small", pad=2)
            cell.set(xticks=[], yticks=[])
        return self


class HistoryDisplay:
    """Loss and held-out accuracy over the steps of a run, and over its time.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    history : list of dict
        `history_` of a distiller.
    best : int, default=None
        Its `best_iter_`: the step that is marked.
    name : str, default=None
        What stands above it.

    Attributes
    ----------
    axes_ : ndarray of shape (1,) or (2,) of matplotlib Axes
        That of the loss, and that of the accuracy where some samples were held out.
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

    def __init__(self, history, *, best=None, name=None):
        self.history = history
        self.best = best
        self.name = name

    @classmethod
    def from_estimator(cls, distiller, *, ax=None):
        """Draw the history of a fitted distiller.

        Parameters
        ----------
        distiller : CLPDistiller, LGMDistiller or DMDistiller
            Fitted, or stopped by an error or Ctrl-C.
        ax : array-like of two matplotlib Axes, or one, default=None
            Where to draw; into one, the loss only. ``None``: a new figure.

        Returns
        -------
        HistoryDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            If the distiller is not fitted.
        ValueError
            If it has no history, as the baselines that choose real images have none.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        check_is_fitted(distiller)
        history = getattr(distiller, "history_", [])
        if not history:
            raise ValueError(f"a {type(distiller).__name__} has no history: it makes no steps")
        return cls(history, best=distiller.best_iter_, name=in_words(distiller)).plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw it.

        Parameters
        ----------
        ax : array-like of two matplotlib Axes, or one, default=None
            See :meth:`from_estimator`.

        Returns
        -------
        HistoryDisplay
            Itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        scored = [record for record in self.history if "val_accuracy" in record]
        if ax is None:
            n = 2 if scored else 1
            figure, ax = plt.subplots(1, n, figsize=(5 * n, 3.6), layout="constrained")
            if self.name:
                figure.suptitle(self.name, fontsize="medium")
        self.axes_ = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()[: 2 if scored else 1]
        self.figure_ = self.axes_[0].figure
        steps, seconds = ([record[key] for record in self.history] for key in ("step", "seconds"))
        left = self.axes_[0]
        left.plot(steps, [record["loss"] for record in self.history], linewidth=0.8, label="steps")
        if scored:
            left.plot([r["step"] for r in scored], [r["val_loss"] for r in scored], marker=".", label="held out")
            left.legend()
        left.set(xlabel="step", ylabel="loss")
        if scored and len(self.axes_) > 1:
            right = self.axes_[1]
            right.plot([r["step"] for r in scored], [r["val_accuracy"] for r in scored], marker=".", color="C1")
            if self.best is not None:
                kept = f"kept: step {self.best}, {self.history[self.best]['val_accuracy']:.3f}"
                right.axvline(self.best, color="grey", linestyle=":", label=kept)
                right.legend()
            right.set(xlabel="step", ylabel="held-out accuracy")
        if len(steps) > 1 and seconds[-1] > seconds[0]:
            # The axis is longer than the run: on both sides by as much again, at its mean rate.
            steps, seconds = ([2 * own[0] - own[-1], *own, 2 * own[-1] - own[0]] for own in (steps, seconds))
            functions = (lambda at: np.interp(at, steps, seconds), lambda at: np.interp(at, seconds, steps))
            left.secondary_xaxis("top", functions=functions).set_xlabel("seconds")
        return self


class FeatureMapDisplay:
    """Real and synthetic samples in two dimensions of their features.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    real, synthetic : ndarray of shape (n_samples, 2)
        Places of the samples.
    y_real, y_synthetic : array-like of shape (n_samples,)
        Their classes.
    max_classes : int, default=10
        Classes that have a colour of their own and a line in the legend.

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
            To two dimensions: a clone of it gets the features, and the classes, of both kinds together in ``fit_transform``.
            ``None``: :class:`~sklearn.decomposition.PCA`; ``TSNE()`` and ``LinearDiscriminantAnalysis(n_components=2)`` are
            others.
        max_samples : int, default=2000
            Real samples that are encoded and drawn, at most: random ones.
        max_classes : int, default=10
            Classes that have a colour of their own and a line in the legend; the others are grey.
        random_state : int, RandomState instance or None, default=None
            Seed of the choice.
        ax : matplotlib Axes, default=None
            Where to draw. ``None``: a new figure.

        Returns
        -------
        FeatureMapDisplay
            The display.

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            If the distiller is not fitted.
        ValueError
            If ``X`` and ``y`` do not have one length, or the reducer does not give two dimensions.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        from sklearn.decomposition import PCA  # slow to import

        check_is_fitted(distiller)
        check_scalar(max_samples, "max_samples", Integral, min_val=1)
        y = column_or_1d(y)
        check_consistent_length(X, y)
        rng = check_random_state(random_state)
        rows = np.sort(rng.permutation(len(y))[:max_samples])
        Z = np.concatenate([distiller.features(_safe_indexing(X, rows)), distiller.features(distiller.X_synthetic_)])
        labels = np.concatenate([y[rows], distiller.y_synthetic_])
        reducer = PCA(2, random_state=0) if reducer is None else clone(reducer)
        places = np.asarray(reducer.fit_transform(Z, labels))
        if places.shape != (len(Z), 2):
            raise ValueError(f"reducer has to give two dimensions, {(len(Z), 2)}; {reducer} gave {places.shape}")
        n = len(rows)
        display = cls(places[:n], labels[:n], places[n:], labels[n:], max_classes=max_classes)
        return display.plot(ax=ax)

    def plot(self, *, ax=None):
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. ``None``: a new figure.

        Returns
        -------
        FeatureMapDisplay
            Itself.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(6.5, 4.8), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        y_real, y_synthetic = np.asarray(self.y_real), np.asarray(self.y_synthetic)
        classes = np.unique(np.concatenate([y_real, y_synthetic]))
        colors = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
        for i, label in enumerate(classes):
            named = i < self.max_classes
            color = colors(i % colors.N) if named else "lightgrey"
            ax.scatter(*self.real[y_real == label].T, s=8, alpha=0.4, color=color, linewidths=0)
            ax.scatter(
                *self.synthetic[y_synthetic == label].T,
                s=110,
                marker="*",
                color=color,
                edgecolors="black",
                linewidths=0.8,
                label=str(label) if named else None,
                zorder=3,
            )
        more = f"; {len(classes) - self.max_classes} more are grey" if len(classes) > self.max_classes else ""
        ax.legend(title=f"stars: synthetic{more}", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        ax.set(xlabel="first dimension of the features", ylabel="second")
        return self


class Snapshots:
    """Callback that keeps how the synthetic images looked on the way, and makes an animation of it.

    Parameters
    ----------
    every : int, default=20
        Steps between two snapshots. On a GPU, where a callback sees the images at every tenth step only, a snapshot is taken at
        the next of these.
    max_images : int, default=20
        Images that are kept, at most: evenly spaced ones of all.

    Attributes
    ----------
    steps_ : list of int
        Steps of the snapshots.
    frames_ : list of ndarray of shape (n_images, height, width, 3), uint8
        The images at these steps.

    Examples
    --------
    >>> from sklearn_clpdd import CLPDistiller, FrozenEncoder, Snapshots
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> X, y = load_digit_images()
    >>> snapshots = Snapshots(every=1)
    >>> distiller = CLPDistiller(FrozenEncoder(image_size=32), max_iter=3, callback=snapshots, random_state=0).fit(X[:50], y[:50])
    >>> snapshots.steps_
    [0, 1, 2]
    """

    def __init__(self, every=20, *, max_images=20):
        check_scalar(every, "every", Integral, min_val=1)
        check_scalar(max_images, "max_images", Integral, min_val=1)
        self.every = every
        self.max_images = max_images
        self.steps_: list[int] = []
        self.frames_: list[np.ndarray] = []

    def __call__(self, distiller, record):
        """Take a snapshot if it is time to."""
        step = record["step"]
        if step == 0:  # another run
            self.steps_, self.frames_ = [], []
        if step != distiller.n_iter_ - 1:
            return  # on a GPU records come in tens, and the images are those of the last of them
        last = self.steps_[-1] if self.steps_ else -1
        if step // self.every > last // self.every or step == distiller.max_iter - 1:
            images = distiller.transform()
            if images.ndim != 4:
                raise ValueError("snapshots are of images, and the distiller has points of feature space (encoder=None)")
            self.steps_.append(step)
            self.frames_.append(to_8_bit(images[evenly(len(images), self.max_images)]))

    def save_gif(self, path, *, n_columns=None, seconds=4.0):
        """Write the animation.

        Parameters
        ----------
        path : str or path
            A GIF file, which is replaced if it is there.
        n_columns : int, default=None
            Columns of the grid. ``None``: about two to one.
        seconds : float, default=4.0
            How long it runs, the last frame aside, which stays for two seconds.

        Raises
        ------
        ValueError
            If there are no snapshots.
        """
        if not self.frames_:
            raise ValueError(
                "there are no snapshots: give this object as callback= to a distiller, and fit it to images. A search or a "
                "sampler fits a clone, which has its own: its `callback`"
            )
        n_columns = _checked_columns(n_columns, columns_for(len(self.frames_[0])))
        pages = [_titled(mosaic(frame, n_columns), f"step {s}") for s, frame in zip(self.steps_, self.frames_, strict=True)]
        each = max(20, round(1000 * seconds / len(pages)))
        durations = [each] * (len(pages) - 1) + [2000]
        pages[0].save(os.fspath(path), format="gif", save_all=True, append_images=pages[1:], duration=durations, loop=0)


def _titled(picture: np.ndarray, title: str, margin: int = 14) -> Image.Image:
    page = Image.new("RGB", (picture.shape[1], picture.shape[0] + margin), "white")
    page.paste(Image.fromarray(picture), (0, margin))
    ImageDraw.Draw(page).text((2, 1), title, fill="black")
    return page


def _checked_columns(given, otherwise: int) -> int:
    return otherwise if given is None else check_scalar(given, "n_columns", Integral, min_val=1)


def check_both(names: str, X, y) -> None:
    """Raise where samples are given without labels, labels without samples, or numbers of them that differ."""
    if (X is None) != (y is None):
        raise ValueError(f"{names} are samples and their labels: give both of them, or none")
    if X is not None:
        check_consistent_length(X, y)


def images_of(distiller: BaseEstimator) -> np.ndarray:
    """The synthetic images of a fitted distiller; an error for one of points."""
    if not isinstance(distiller, BaseDistiller):
        raise TypeError(f"a distiller is needed, such as CLPDistiller; got {distiller!r}")
    check_is_fitted(distiller)
    if distiller.X_synthetic_.ndim != 4:
        raise ValueError(
            f"this {type(distiller).__name__} was fitted to features (encoder=None): it has points of feature space, no images"
        )
    return distiller.X_synthetic_
