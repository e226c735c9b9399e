"""distillation_report: an HTML page about a distilled set, in one file."""

import io
import os
import uuid
from importlib.resources import files
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import check_consistent_length

from ..distill._summary import are_real, provenance_of, summary_of, synthetic_images_of
from ..plot._history import HistoryDisplay
from ..utils._arrays import check_samples_and_labels, evenly_spaced
from ..utils._labels import as_labels, label_text
from ..utils._pictures import to_data_urls
from ..utils._sklearn_compat import check_matplotlib_support
from ._card import encoder_call
from ._replace import check_place
from ._saved_set import SavedSet, reopened

# What the template writes into the head of a page.
_MARK = b'name="generator" content="sklearn-clpdd"'
# Images on the page, at most.
_MAX_IMAGES = 200
# Classes for which the confusion matrix is a full table, at most; and entries of the table for more classes.
_MAX_CLASSES, _MAX_CONFUSIONS = 20, 20


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
    """Write an HTML page about a distilled set: its images, their accuracy, and how they were learned.

    The file needs neither other files nor a network. It contains the images, their accuracy compared with that of random and of
    all real images, the learning curve, transfer to other encoders, the confusion matrix, and how to load the set. For screen
    readers, figures have a description and tables have headings. The layout adapts to phones.

    Parameters
    ----------
    distiller : CLPDistiller, a baseline, str or path
        Fitted to images; or the folder of a set that `save_distilled` has written, or its name on the hub, for which ``X`` and
        ``y`` are needed, and whose learning curve is not known.
    X_test, y_test : images and labels
        Test samples.
    path : str or path, default="report.html"
        File to write.
    X, y : images and labels, default=None
        The data that the distiller was fitted to, for the rows of random and of all real images.
    encoders : dict of str to FrozenEncoder, str or torch.nn.Module, default=None
        Other encoders to try the images with, by names of your choice.
    n_draws : int, default=10
        Number of random selections of real images, whose mean accuracy is shown.
    title : str, default=None
        Heading. ``None``: the numbers of real and synthetic images.
    overwrite : bool, default=False
        Whether to replace an existing report. Other files are never replaced.
    random_state : int, RandomState instance or None, default=None
        Seed of the random selections.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    FileExistsError
        If the file exists and is not replaced.
    ImportError
        If matplotlib is not installed.
    OSError
        If the file cannot be written; an existing one is then unchanged.
    NotFittedError, ValueError, TypeError
        Before anything is encoded: if the distiller is not fitted, or was fitted to features; if the numbers of samples and
        labels differ; for ``X`` without ``y``, or a folder without both; for something that is not an encoder.

    See Also
    --------
    save_distilled : Saves the set itself.

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
    from ..evaluation._comparison import compare_features, known_labels
    from ..evaluation._probes import load_encoders  # slow to import

    path = check_path(Path(path), overwrite)
    check_scalar(n_draws, "n_draws", Integral, min_val=1)
    rng = check_random_state(random_state)
    y_test = as_labels(y_test, "y_test")
    check_consistent_length(X_test, y_test)
    check_samples_and_labels("X and y", X, y)
    distiller, images, provenance = _opened(distiller, X, y)
    y = None if y is None else known_labels(distiller, y, "y")
    others = load_encoders({} if encoders is None else encoders)

    Z_test = distiller.features(X_test)
    predicted = distiller.probe_.predict(Z_test)
    rows = {"distilled": (len(images), float(np.mean(predicted == y_test)))}
    if X is not None:
        rows = compare_features(distiller, distiller.features(X), y, Z_test, y_test, n_draws, rng)
    page = _render(
        title=label_text(title) if title else f"{distiller.class_count_.sum():,} images distilled to {len(images)}",
        summary=summary_of(provenance, len(images)),
        images=to_data_urls(images, distiller.y_synthetic_, _MAX_IMAGES),
        n_images=len(images),
        kind="real" if are_real(provenance) else "synthetic",
        rows=rows,
        n_test=len(y_test),
        n_draws=n_draws,
        held_out=getattr(distiller, "val_accuracy_", None),
        curve=_curve(distiller),
        transfer=_transfer(distiller, X_test, y_test, others),
        confusion=_confusion(y_test, predicted),
        manifest=provenance,
    )
    _write(path, page)
    return path


def _opened(distiller, X, y) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """A fitted distiller, which may have been saved as a set, its images, and its provenance."""
    if isinstance(distiller, str | os.PathLike):
        distiller = reopened(distiller, X, y)
    if isinstance(distiller, SavedSet):
        return distiller, distiller.X_synthetic_, distiller.manifest
    return distiller, synthetic_images_of(distiller), provenance_of(distiller)


def _transfer(distiller, X_test, y_test, encoders) -> dict[str, float]:
    """Accuracy of the closed-form probe with each of the other encoders."""
    from ..evaluation import transfer_scores

    if not encoders:
        return {}
    scores = transfer_scores(distiller.X_synthetic_, distiller.y_synthetic_, X_test, y_test, encoders, n_repeats=0)
    return {label_text(name): float(of_encoder["closed_form"]["top1"][0]) for name, of_encoder in scores.items()}


def check_path(path: Path, overwrite: bool) -> Path:
    """The path, if a report may be written there; raise otherwise."""
    check_place(path)
    if os.path.lexists(path):
        is_report = path.is_file() and _MARK in _beginning(path)
        if not is_report:
            raise FileExistsError(f"{path} exists, and is no report; pass a path that does not exist yet")
        if not overwrite:
            raise FileExistsError(f"{path} exists; overwrite=True replaces it. Or pass a path that does not exist yet")
    return path


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1000)


def _write(path: Path, page: str) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _render(manifest: dict[str, Any], **values) -> str:
    values |= {"manifest": manifest, "encoder": encoder_call(manifest["encoders"][0])}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def _curve(distiller) -> dict | None:
    """The learning curve as SVG, in words, and as a table; None if there were no steps."""
    history = getattr(distiller, "history_", [])
    if not history:
        return None
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scored = [record for record in history if "val_accuracy" in record]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sklearn-clpdd"}):
        figure = Figure(figsize=(6, 6.2) if scored else (6, 3.2), layout="constrained")
        HistoryDisplay(history, best_iter=distiller.best_iter_).plot(ax=figure.subplots(2 if scored else 1, 1))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    words = f"The loss goes from {history[0]['loss']:.3f} to {history[-1]['loss']:.3f} over {len(history)} steps"
    if scored:
        words += f", the held-out accuracy goes from {scored[0]['val_accuracy']:.3f} to {scored[-1]['val_accuracy']:.3f}"
    rows = scored or history
    points = [rows[i] for i in evenly_spaced(len(rows), 11)]
    return {"svg": svg[svg.index("<svg") :], "words": f"{words}.", "points": points}


def _confusion(y_test: np.ndarray, predicted: np.ndarray) -> dict:
    """The confusion matrix, or its largest entries off the diagonal."""
    from sklearn.metrics import confusion_matrix

    classes = np.unique(np.concatenate([y_test, predicted]))
    matrix = confusion_matrix(y_test, predicted, labels=classes)
    names = [label_text(label) for label in classes]
    if len(names) <= _MAX_CLASSES:
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        return {
            "names": names,
            "rows": [list(zip(*row, strict=True)) for row in zip(matrix.tolist(), shares.tolist(), strict=True)],
        }
    off = matrix - np.diag(np.diag(matrix))
    largest = [np.unravel_index(i, off.shape) for i in np.argsort(off, axis=None, kind="stable")[::-1][:_MAX_CONFUSIONS]]
    return {"names": [], "pairs": [(names[i], names[j], int(off[i, j])) for i, j in largest if off[i, j]]}
