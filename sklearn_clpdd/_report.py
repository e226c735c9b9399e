"""distillation_report: one page of HTML about a distilled set, that needs no other file."""

import io
import os
import uuid
from importlib.resources import files
from numbers import Integral
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_consistent_length, column_or_1d

from ._display import HistoryDisplay, check_both, images_of
from ._pictures import evenly, for_html
from ._provenance import held_out_accuracy, in_words, manifest_of

# Images on the page, at most.
_IMAGES = 200
# Classes up to which the confusion matrix is a table; beyond, its largest entries are, at most so many.
_CLASSES, _CONFUSIONS = 20, 20


def distillation_report(
    distiller,
    X_test,
    y_test,
    path="report.html",
    *,
    X=None,
    y=None,
    encoders=None,
    n_draws=10,
    title=None,
    overwrite=False,
    random_state=None,
):
    """Write a page about a distilled set: its images, what they are worth, and how they came about.

    One HTML file that needs no other and no network: images, accuracies beside random and all real images, the learning curve,
    transfer to other encoders, the confusion matrix, how to load the set. Figures have a text that says what they show, and
    tables their headings, for screen readers; it fits a phone.

    Parameters
    ----------
    distiller : CLPDistiller or a baseline
        Fitted to images.
    X_test, y_test : images and labels
        Test samples.
    path : str or path, default="report.html"
        File to be written.
    X, y : images and labels, default=None
        What the distiller was fitted to, for the rows of random and of all real images.
    encoders : dict of str to FrozenEncoder, str or torch.nn.Module, default=None
        Other encoders, by names of your choice, under which the images are to be tried.
    n_draws : int, default=10
        Random choices of real images, whose mean is shown.
    title : str, default=None
        Heading. ``None``: what was distilled into what.
    overwrite : bool, default=False
        Whether a file that is there is replaced.
    random_state : int, RandomState instance or None, default=None
        Seed of the random choices.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileExistsError
        If the file is there, and is not to be replaced.
    ImportError
        Without matplotlib.
    OSError
        If it cannot be written; what was there is there still.
    NotFittedError, ValueError, TypeError
        Before an encoder is at work: a distiller that is not fitted, or was fitted to features; samples and labels of different
        numbers; ``X`` without ``y``; something that is not an encoder.

    See Also
    --------
    save_distilled : The set itself, for others.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_clpdd import CLPDistiller, FrozenEncoder, distillation_report
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> X, y = load_digit_images()
    >>> distiller = CLPDistiller(FrozenEncoder(image_size=32), max_iter=3, random_state=0).fit(X[:50], y[:50])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = distillation_report(distiller, X[50:100], y[50:100], f"{folder}/report.html").read_text()
    >>> page[:15]
    '<!DOCTYPE html>'
    """
    check_matplotlib_support("distillation_report")
    from .evaluation import compared, named_encoders, transfer_scores  # slow to import, as below

    images, path = images_of(distiller), Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} is there; give another path{'' if path.is_dir() else ', or overwrite=True'}")
    check_scalar(n_draws, "n_draws", Integral, min_val=1)
    y_test = column_or_1d(y_test)
    check_consistent_length(X_test, y_test)
    check_both("X and y", X, y)
    others = named_encoders({} if encoders is None else encoders)

    Z_test = distiller.features(X_test)
    predicted = distiller.probe_.predict(Z_test)
    rows = {"distilled": (len(images), float(np.mean(predicted == y_test)))}
    if X is not None:
        rng = check_random_state(random_state)
        rows = compared(distiller, distiller.features(X), np.asarray(y), Z_test, y_test, n_draws, rng)
    scores = transfer_scores(images, distiller.y_synthetic_, X_test, y_test, others, n_repeats=0) if others else {}
    page = _render(
        title=title or f"{distiller.class_count_.sum():,} images distilled to {len(images)}",
        summary=in_words(distiller),
        images=for_html(images, distiller.y_synthetic_, _IMAGES),
        n_images=len(images),
        rows=rows,
        n_test=len(y_test),
        n_draws=n_draws,
        held_out=held_out_accuracy(distiller),
        curve=_curve(distiller),
        transfer={name: float(own["closed_form"]["top1"][0]) for name, own in scores.items()},
        confusion=_confusion(y_test, predicted),
        manifest=manifest_of(distiller),
    )
    _write(path, page)
    return path


def _write(path: Path, page: str) -> None:
    """Write it whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _render(**values) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def _curve(distiller) -> dict | None:
    """The learning curve as SVG, and in words; None where there were no steps."""
    history = getattr(distiller, "history_", [])
    if not history:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scored = [record for record in history if "val_accuracy" in record]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sklearn-clpdd"}):
        figure = Figure(figsize=(6, 6.2) if scored else (6, 3.2), layout="constrained")
        HistoryDisplay(history, best=distiller.best_iter_).plot(ax=figure.subplots(2 if scored else 1, 1))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    words = f"The loss goes from {history[0]['loss']:.3f} to {history[-1]['loss']:.3f} over {len(history)} steps"
    if scored:
        words += f", the held-out accuracy goes from {scored[0]['val_accuracy']:.3f} to {scored[-1]['val_accuracy']:.3f}"
    rows = scored or history
    points = [rows[i] for i in evenly(len(rows), 11)]
    return {"svg": svg[svg.index("<svg") :], "words": f"{words}.", "points": points}


def _confusion(y_test: np.ndarray, predicted: np.ndarray) -> dict:
    """The confusion matrix, or its largest entries off the diagonal."""
    from sklearn.metrics import confusion_matrix

    classes = np.unique(np.concatenate([y_test, predicted]))
    matrix = confusion_matrix(y_test, predicted, labels=classes)
    names = [str(label) for label in classes]
    if len(names) <= _CLASSES:
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        return {
            "names": names,
            "rows": [list(zip(*row, strict=True)) for row in zip(matrix.tolist(), shares.tolist(), strict=True)],
        }
    off = matrix - np.diag(np.diag(matrix))
    largest = [np.unravel_index(i, off.shape) for i in np.argsort(off, axis=None, kind="stable")[::-1][:_CONFUSIONS]]
    return {"names": [], "pairs": [(names[i], names[j], int(off[i, j])) for i, j in largest if off[i, j]]}
