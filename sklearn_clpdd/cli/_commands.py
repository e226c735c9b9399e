"""What each command does: calls of the public functions, and a summary.

A command gets the parsed options, and returns its result as JSON-serialisable values, and the lines of its summary.
"""

import os
import shlex
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from ..datasets import load_digit_images
from ..datasets._folders import image_files
from ..distill import CLPDistiller
from ..encoder import FrozenEncoder
from ..evaluation import compare_with_real
from ..io import distillation_report, load_probe, save_distilled, save_probe
from ..io._download import PROBE_FILE, downloaded_file
from ..io._encoder_record import recorded_encoder
from ..io._probe_file import check_probe_target, probe_info
from ..io._replace import check_place, check_target
from ..io._report import check_path
from ..io._saved_set import reopened
from ..plot import HistoryDisplay, SyntheticImagesDisplay
from ..probe import ClosedFormProbe
from ..utils._labels import label_text
from ..utils._sklearn_compat import check_matplotlib_support
from ._images import Images, read_folder

Result = tuple[dict[str, Any], list[str]]
DEFAULT_ENCODER = "tf_efficientnet_lite0"
_SOFTWARE = "sklearn_clpdd demo"
# Classes whose test accuracy the summary of a probe shows.
_N_WORST = 3


def probe(options: Namespace) -> Result:
    """Train a probe on a folder of images."""
    if options.out is not None:
        check_probe_target(options.out, options.overwrite)
    train, test = read_folder(options.folder, options.test, 0.0, options.seed)
    encoder = encoder_of(options)
    start = time.perf_counter()
    test_features = None if test is None else encoder.transform(test.X)  # first, because an image may be unreadable
    pipeline = make_pipeline(encoder, ClosedFormProbe()).fit(train.X, train.y)
    fitted = pipeline[-1]
    result = {
        "images": len(train),
        "classes": len(fitted.classes_),
        "encoder": encoder.load().provenance(),
        "features": int(fitted.n_features_in_),
        "seconds": time.perf_counter() - start,
        "loss": fitted.loss_,
        "alpha": float(fitted.alpha_),
        "held_out_accuracy": _number(fitted.loo_score_),
    }
    lines = [
        f"{len(train):,} images of {len(fitted.classes_)} classes from {train.source}, {result['seconds']:.1f} s",
        f"{fitted.loss_} loss, ridge strength {fitted.alpha_:g}",
    ]
    if result["held_out_accuracy"] is not None:
        lines.append(f"accuracy on held-out training images: {fitted.loo_score_:.3f}")
    if test is not None:
        predicted = fitted.predict(test_features)
        result |= {"test_images": len(test), "test_accuracy": float(np.mean(predicted == test.y))}
        result["test_accuracy_by_class"] = _by_class(test.y, predicted)
        worst = sorted(result["test_accuracy_by_class"].items(), key=lambda item: item[1])[:_N_WORST]
        lines.append(f"accuracy on the {len(test):,} images of {test.source}: {result['test_accuracy']:.3f}")
        lines.append(f"least accurate: {', '.join(f'{label} {accuracy:.3f}' for label, accuracy in worst)}")
    if options.out is None:
        lines.append("not saved; --out probe.safetensors saves it")
    else:
        known = {} if test is None else {f"test images, {len(test)}": result["test_accuracy"]}
        path = save_probe(pipeline, options.out, accuracies=known, overwrite=options.overwrite)
        result["probe"] = str(path)
        own = [f"--{name} {shlex.quote(str(value))}" for name, value in _own_network(options, path).items()]
        lines.append(" ".join([f"saved: {path}; python -m sklearn_clpdd predict", shlex.quote(str(path)), "photo.jpg", *own]))
    return result, lines


def predict(options: Namespace) -> Result:
    """Classify images by a saved probe."""
    files = _files(options.images)
    path = downloaded_file(options.probe, PROBE_FILE)
    changes = {"model": options.encoder, "weights": options.weights}
    changes = {name: value for name, value in changes.items() if value is not None}
    pipeline = load_probe(path, encoder=recorded_encoder(probe_info(path)["encoder"], **changes) if changes else None)
    if isinstance(pipeline, ClosedFormProbe):
        raise ValueError(f"{options.probe} is a probe without an encoder, which classifies features, not images")
    verbose = options.verbose if len(files) > pipeline[0].batch_size else 0
    pipeline[0].set_params(n_jobs=options.n_jobs, device=options.device, verbose=verbose)
    probabilities = pipeline.predict_proba(files)
    labels = [label_text(label) for label in pipeline[-1].classes_]
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, : options.top]
    found: list[dict[str, Any]] = [
        {"file": label_text(file), "classes": [{"label": labels[c], "probability": float(row[c])} for c in best]}
        for file, row, best in zip(files, probabilities, top, strict=True)
    ]
    lines = [
        "\t".join(_cell(text) for text in (one["file"], *(text for own in one["classes"] for text in own.values())))
        for one in found
    ]
    return {"predictions": found}, lines


def distill(options: Namespace) -> Result:
    """Distil a folder of images, and save the set."""
    with TemporaryDirectory() as folder:  # features are needed more than once
        options.cache = options.cache or folder
        return _distill(options)


def _distill(options: Namespace) -> Result:
    check_target(options.out.absolute(), options.overwrite)
    if options.report is not None:
        check_matplotlib_support("--report")
        check_path(options.report, options.overwrite)
    train, test = read_folder(options.folder, options.test, options.test_size, options.seed)
    if options.report is not None:
        _check_tested(test)
    budget = {} if options.seconds is None else {"time_budget": options.seconds, "max_iter": 10**6}
    budget |= {} if options.steps is None else {"max_iter": options.steps}
    encoder = encoder_of(options)
    distiller = CLPDistiller(
        encoder,
        images_per_class=options.images_per_class,
        augmentation=None if options.no_views else "dsa",
        init=options.init,
        checkpoint=options.checkpoint,
        random_state=options.seed,
        verbose=options.verbose,
        **budget,
    )
    distiller.fit(train.X, train.y)
    folder = _saved(distiller, test, options)
    seconds = distiller.history_[-1]["seconds"] if distiller.history_ else 0.0
    result = {"set": str(folder), "steps": distiller.n_iter_, "seconds": seconds}
    result |= {"images": len(distiller.y_synthetic_), "classes": len(distiller.classes_)}
    lines = []
    if test is not None:
        rows = compare_with_real(distiller, train.X, train.y, test.X, test.y, random_state=options.seed)
        result["accuracy"] = {name: {"images": n, "accuracy": accuracy} for name, (n, accuracy) in rows.items()}
        lines += [*_table(rows), f"on the {len(test):,} images of {test.source}"]
    elif distiller.val_accuracy_ is not None:
        result["held_out_accuracy"] = distiller.val_accuracy_
        lines.append(f"accuracy on held-out training images: {distiller.val_accuracy_:.3f}")
    lines.append(f"{distiller.n_iter_} steps in {seconds:.0f} s; saved: {folder}")
    if options.report is not None:
        result["report"] = str(_report_of(distiller, train, test, options.report, options))
        lines.append(f"report: {result['report']}")
    return result, lines


def report(options: Namespace) -> Result:
    """Measure a saved set again, and write a page about it."""
    check_matplotlib_support("report")
    check_path(options.out, options.overwrite)
    train, test = read_folder(options.folder, options.test, options.test_size, options.seed)
    _check_tested(test)
    machine = {"n_jobs": options.n_jobs, "device": options.device, "verbose": options.verbose}
    with TemporaryDirectory() as folder:  # features are needed more than once
        saved = reopened(options.set, train.X, train.y, memory=folder, **machine)
        path = _report_of(saved, train, test, options.out, options)
    return {"report": str(path)}, [f"report: {path}"]


def demo(options: Namespace) -> Result:
    """Distil half of scikit-learn's digits, and classify the other half."""
    picture = options.out / "digits.png"
    _check_picture(picture)
    X, y = load_digit_images()
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    # Digits are upright and centred, so that random crops and flips would distort them.
    distiller = CLPDistiller(
        FrozenEncoder(image_size=80), augmentation=None, max_iter=options.steps, random_state=0, verbose=options.verbose
    ).fit(X_train, y_train)
    rows = compare_with_real(distiller, X_train, y_train, X_test, y_test, n_draws=50, random_state=0)
    result: dict[str, Any] = {"accuracy": {name: {"images": n, "accuracy": own} for name, (n, own) in rows.items()}}
    lines = _table(rows)
    try:
        check_matplotlib_support("demo")
    except ImportError:
        lines.append('no picture: pip install "sklearn-clpdd[plot]" brings matplotlib')
    else:
        _draw(distiller, picture)
        result["picture"] = str(picture)
        lines.append(f"picture: {result['picture']}")
    return result, lines


def encoder_of(options: Namespace) -> FrozenEncoder:
    """The encoder of the options."""
    return FrozenEncoder(
        options.encoder,
        weights="auto" if options.weights is None else options.weights,
        image_size=options.image_size,
        n_jobs=options.n_jobs,
        memory=options.cache,
        device=options.device,
        verbose=options.verbose,
    )


def _saved(distiller, test: Images | None, options: Namespace) -> Path:
    """Folder of the set, which is also written if its accuracy cannot be measured."""
    if test is None:
        return save_distilled(distiller, options.out, overwrite=options.overwrite)
    try:
        return save_distilled(distiller, options.out, test.X, test.y, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        folder = save_distilled(distiller, options.out, overwrite=options.overwrite)
        raise ValueError(f"{error}. The set was saved all the same, without its accuracy: {folder}") from error


def _check_tested(test: Images | None) -> None:
    """Raise if there are no test images for a report."""
    if test is None:
        raise ValueError("a report needs test images; pass --test, or --test-size above 0")


def _own_network(options: Namespace, path: Path) -> dict[str, str]:
    """Options of `predict` for a network that the file of a probe does not name."""
    if probe_info(path)["encoder"]["weights"] != "own":
        return {}
    return {"encoder": options.encoder, **({} if options.weights is None else {"weights": options.weights})}


def _report_of(distiller, train: Images, test: Images | None, path: Path, options: Namespace) -> Path:
    assert test is not None
    return distillation_report(
        distiller, test.X, test.y, path, X=train.X, y=train.y, random_state=options.seed, overwrite=options.overwrite
    )


def _check_picture(path: Path) -> None:
    """Raise if a picture would replace one that is not of the demo."""
    check_place(path)
    if os.path.lexists(path):
        try:
            with Image.open(path) as picture:
                ours = picture.info.get("Software") == _SOFTWARE
        except OSError:
            ours = False
        if not ours:
            raise FileExistsError(f"{path} exists, and is not a picture of the demo; pass another folder as --out")


def _draw(distiller, path: Path) -> None:
    """The synthetic images beside the learning curve, as a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    SyntheticImagesDisplay(distiller.transform(), distiller.y_synthetic_).plot(ax=left)
    HistoryDisplay.from_estimator(distiller, ax=right)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": _SOFTWARE})


def _table(rows: dict[str, tuple[int, float]]) -> list[str]:
    """Accuracies as lines."""
    head = f"{'probe trained on':<20}{'images':>8}{'test accuracy':>16}"
    return [head, *(f"{name:<20}{n:>8,}{accuracy:>16.3f}" for name, (n, accuracy) in rows.items())]


def _cell(value: str | float) -> str:
    """A value between tabs."""
    return f"{value:.3f}" if isinstance(value, float) else value.replace("\t", "\\t").replace("\n", "\\n")


def _by_class(y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Share of the samples of each class that are predicted right."""
    return {label_text(label): float(np.mean(predicted[y == label] == label)) for label in np.unique(y)}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _files(paths: Iterable[Path]) -> list[str]:
    """Files as they are, and the images in folders."""
    found: list[str] = []
    for path in paths:
        inside = image_files(path) if path.is_dir() else [str(path)]
        if not inside:
            raise ValueError(f"{path} contains no images; pass image files, or folders of them")
        found += inside
    return found
