"""Training and scoring of probes on a small image set."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from ..distill._augmentations import DSA, Augmentation
from ..encoder._encoder import FrozenEncoder, as_encoder
from ..encoder._extractor import FeatureExtractor
from ..encoder.images._base import Images
from ..encoder.images._forms import as_images
from ..probe import ClosedFormProbe
from ..probe._solved import relative_probe
from ..utils._labels import as_labels

# Images in a batch, as in LGM's evaluator.
BATCH_SIZE = 100
# Random views on which the closed-form probe is trained.
_VIEWS = DSA()
# Bytes of pixels that are kept in memory; more are read again for each batch.
_IN_MEMORY = 2**30


@dataclass
class ProbeTask:
    """Training and test images of a probe. The test images are encoded once, when they are first needed."""

    images: Images
    labels: np.ndarray
    extractor: FeatureExtractor
    test_images: Images
    y_test: np.ndarray
    groups: np.ndarray | None
    needs_raw: bool  # whether raw features are needed; normalised ones are then computed from them

    @cached_property
    def features(self) -> np.ndarray:
        """Features of the training images."""
        return self.extractor.encode(self.images)

    @property
    def raw_extractor(self) -> FeatureExtractor:
        """The encoder without normalisation."""
        return replace(self.extractor, l2_normalize=False)

    @cached_property
    def raw_features(self) -> np.ndarray:
        """Features of the training images that are not normalised."""
        return self.raw_extractor.encode(self.images)

    @cached_property
    def raw_test_features(self) -> np.ndarray:
        """Features of the test images that are not normalised."""
        return self.raw_extractor.encode(self.test_images)

    @cached_property
    def test_features(self) -> np.ndarray:
        """Features of the test images as the encoder returns them."""
        if not self.needs_raw:
            return self.extractor.encode(self.test_images)
        R = self.raw_test_features
        return F.normalize(torch.from_numpy(R), dim=1).numpy() if self.extractor.l2_normalize else R

    def metrics(self, scores: np.ndarray) -> dict[str, float]:
        """Metrics of scores ``(n_test, n_classes)``, with the classes in sorted order."""
        return metrics_of(scores, np.unique(self.labels), self.y_test, self.groups)


def make_task(images, labels, X_test, y_test, groups, encoder, *, needs_raw=False) -> ProbeTask:
    """Check everything except the images themselves, which are checked when they are read."""
    labels, y_test, groups = check_inputs(images, labels, X_test, y_test, groups)
    encoder = FrozenEncoder() if encoder is None else as_encoder(encoder)
    extractor, shape = encoder.load(), encoder.image_shape
    return ProbeTask(as_images(images, shape), labels, extractor, as_images(X_test, shape), y_test, groups, needs_raw)


def load_encoders(encoders) -> dict[Any, FrozenEncoder]:
    """Check a dict of encoders by loading all of them, before the first one is used."""
    if not isinstance(encoders, Mapping):
        raise TypeError(f"encoders has to be a dict of names to encoders; got {encoders!r}")
    loaded = {name: as_encoder(given) for name, given in encoders.items()}
    for encoder in loaded.values():
        encoder.load()
    return loaded


def check_alpha(alpha):
    """Raise if a ridge strength is neither "loo" nor a number above 0."""
    if alpha != "loo" and not (isinstance(alpha, Real) and 0 < float(alpha) < math.inf):
        raise ValueError(f"alpha has to be a number > 0, or 'loo'; got {alpha!r}")


def check_inputs(images, labels, X_test, y_test, groups):
    """Check numbers of samples and labels; return labels and groups as one-dimensional arrays."""
    labels = as_labels(labels, "labels")
    check_consistent_length(images, labels)
    classes = np.unique(labels)
    y_test, groups = check_test_labels(X_test, y_test, groups, classes, "without training images")
    if len(classes) < 2:
        raise ValueError(f"a probe needs images of at least two classes; labels contains {classes.tolist()}")
    return labels, y_test, groups


def check_test_labels(X_test, y_test, groups, classes: np.ndarray, unknown: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Check labels and groups of the test images; ``unknown`` says what classes are that are not among ``classes``."""
    y_test = as_labels(y_test, "y_test")
    groups = None if groups is None else as_labels(groups, "groups")
    check_consistent_length(X_test, y_test, groups)
    seen, known = (_kind(values) for values in (y_test, classes))
    if seen != known:
        raise ValueError(
            f"y_test contains {seen}, such as {y_test[:1].tolist()}, and the classes are {known}, such as {classes[:1].tolist()}"
        )
    labels = np.unique(y_test)
    others = labels[~np.isin(labels, classes)].tolist()
    if others:
        raise ValueError(f"y_test contains classes {unknown}: {others[:10]}{', …' * (len(others) > 10)}")
    return y_test, groups


def _kind(labels: np.ndarray) -> str:
    """What labels are, in words; those of different kinds are never equal."""
    return {"U": "text", "O": "text", "M": "dates", "m": "durations"}.get(labels.dtype.kind, "numbers")


def check_finite(value, name: str) -> None:
    """Raise for NaN and infinity, which scikit-learn's `check_scalar` accepts."""
    if not math.isfinite(value):
        raise ValueError(f"{name} has to be a finite number; got {value!r}")


def closed_form_metrics(Z: np.ndarray, task: ProbeTask, alpha) -> dict[str, np.ndarray]:
    """Metrics of the probe of features ``Z``: of the images, or of several views of all images, view after view."""
    probe = ClosedFormProbe(loss="squared") if alpha == "loo" else relative_probe(Z, alpha)
    n_views = len(Z) // len(task.labels)
    scores = probe.fit(Z, np.tile(task.labels, n_views)).decision_function(task.test_features)
    return stack_metrics([task.metrics(two_columns(scores))])


def two_columns(scores: np.ndarray) -> np.ndarray:
    """Scores with one column for each class; for two classes, a decision function has only those of the second."""
    return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores


def features_of_views(task: ProbeTask, n_views: int, random_state, views: Augmentation = _VIEWS) -> np.ndarray:
    """Features ``(n_views · n_images, d)`` of random views: one view of all images after another."""
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    return np.concatenate(list(each_view(task.images, task.extractor, n_views, seed, views)))


def each_view(
    images: Images, extractor: FeatureExtractor, n_views: int, seed: int, views: Augmentation = _VIEWS
) -> Iterator[np.ndarray]:
    """Features ``(n_images, d)`` of one random view of all images after another."""
    read, generator = pixel_reader(images, extractor), torch.Generator().manual_seed(seed)
    for _ in range(n_views):
        parts = []
        for rows in torch.arange(len(images)).split(BATCH_SIZE):
            draws = views.draw(len(rows), generator)
            with torch.no_grad():
                parts.append(extractor(views(read(rows), draws, extractor.preprocessing)).cpu())
        yield torch.cat(parts).numpy()


def pixel_reader(images: Images, extractor: FeatureExtractor) -> Callable[[Tensor], Tensor]:
    """A function from positions to images, in the size from which the encoder crops."""
    n_jobs, device = extractor.n_jobs, extractor.device
    images.check()
    uncropped = extractor.preprocessing.uncropped(extractor.preprocessing.resize_size)
    if 4 * len(images) * 3 * uncropped.image_size**2 > _IN_MEMORY:
        return lambda rows: images.read(rows.numpy(), uncropped, n_jobs).to(device)
    pixels = images.read(range(len(images)), uncropped, n_jobs).to(device)
    return lambda rows: pixels[rows.to(pixels.device)]


def metrics_of(scores: np.ndarray, classes: np.ndarray, y_test: np.ndarray, groups: np.ndarray | None) -> dict[str, float]:
    """Metrics of scores ``(n_test, n_classes)`` of these classes."""
    correct = classes[scores.argmax(axis=1)] == y_test
    metrics = {"top1": correct.mean()}
    if len(classes) > 5:
        best = classes[np.argpartition(scores, -5, axis=1)[:, -5:]]
        metrics["top5"] = (best == y_test[:, None]).any(axis=1).mean()
    if groups is not None:
        _, members = np.unique(groups, return_inverse=True)
        metrics["worst_group"] = (np.bincount(members, correct) / np.bincount(members)).min()
    return metrics


def stack_metrics(runs: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Metrics of several runs as arrays."""
    return {name: np.array([run[name] for run in runs]) for name in runs[0]}
