"""How good a distilled set is: beside real images, and for probes other than the one that made it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils.validation import assert_all_finite, check_consistent_length, column_or_1d
from torch import Tensor

from ._base import BaseDistiller
from ._core.augmentations import DSA, LGM_PROBE_VIEWS
from ._core.backbones import Backbone
from ._core.devices import caller_modes_off
from ._encoder import FrozenEncoder, as_encoder, features_of
from ._images import Images, as_images
from ._probe import ClosedFormProbe, relative_probe
from ._spaces import standardized

# The probe of LGM's released evaluator (commit 1d84ffd: `src/distillation/eval.py`, `src/models/linear_classifier.py`): images in
# a batch, Adam's rate for a batch of 256 images, standard deviation of the initial weights, views of the images.
_BATCH_SIZE = 100
_LEARNING_RATE = 1e-3
_INITIAL_STD = 0.01
_HEAD_VIEWS = LGM_PROBE_VIEWS
# Random views on which the closed-form probe is trained.
_CLOSED_FORM_VIEWS = DSA()
# Bytes of pixels that are kept between the epochs; more are read anew for each batch.
_IN_MEMORY = 2**30
# Views of each image on which `probe_scores` trains the closed-form probe.
_N_VIEWS = 20


def compare_with_real(distiller: BaseDistiller, X, y, X_test, y_test, *, n_draws=10, random_state=None):
    """Test accuracy of the closed-form probe trained on all real samples, on a few of them, and on the distilled ones.

    Parameters
    ----------
    distiller : CLPDistiller
        Fitted.
    X, y : images or features, and labels
        What it was fitted on.
    X_test, y_test : images or features, and labels
        Test samples, read once.
    n_draws : int, default=10
        Random choices of as many real samples per class as there are synthetic ones.
    random_state : int, RandomState instance or None, default=None
        Seed of the choices.

    Returns
    -------
    dict of str to tuple (int, float)
        For ``"all real"``, ``"random real"`` (mean of the draws) and ``"distilled"``: number of training samples, accuracy. The
        ridge strength for all real samples is chosen by leave-one-out on them; the others have the distiller's own probe.

    Raises
    ------
    ValueError, TypeError
        Before an encoder is at work: samples and labels of different numbers, ``n_draws`` out of its range.
    NotFittedError
        If the distiller is not fitted.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import compare_with_real
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> from sklearn_clpdd.baselines import ClassCentroids
    >>> distiller = ClassCentroids(encoder).fit(X[:100], y[:100])
    >>> rows = compare_with_real(distiller, X[:100], y[:100], X[100:200], y[100:200], random_state=0)
    >>> {name: n for name, (n, accuracy) in rows.items()}
    {'all real': 100, 'random real': 10, 'distilled': 10}
    """
    check_scalar(n_draws, "n_draws", Integral, min_val=1)
    check_consistent_length(X, y)
    check_consistent_length(X_test, y_test)
    rng = check_random_state(random_state)
    return compared(distiller, distiller.features(X), np.asarray(y), distiller.features(X_test), y_test, n_draws, rng)


def compared(distiller: BaseDistiller, Z, y, Z_test, y_test, n_draws: int, rng) -> dict[str, tuple[int, float]]:
    """`compare_with_real` for features."""
    features, test_features = (standardized(own, distiller._center, distiller._scale) for own in (Z, Z_test))
    full = ClosedFormProbe().fit(features, y)
    draws = []
    for _ in range(n_draws):
        members = (np.flatnonzero(y == label) for label in distiller.classes_)
        wanted = (np.sum(distiller.y_synthetic_ == label) for label in distiller.classes_)
        chosen = [rng.choice(own, min(n, len(own)), replace=False) for own, n in zip(members, wanted, strict=True)]
        rows = np.concatenate(chosen)
        probe = relative_probe(features[rows], distiller.alpha_).fit(features[rows], y[rows])
        draws.append(probe.score(test_features, y_test))
    return {
        "all real": (len(y), full.score(test_features, y_test)),
        "random real": (len(rows), float(np.mean(draws))),
        "distilled": (len(distiller.y_synthetic_), distiller.probe_.score(Z_test, y_test)),
    }


def closed_form_probe_scores(
    images, labels, X_test, y_test, *, encoder=None, alpha=1.0, n_views=0, groups=None, random_state=None
):
    """Test scores of the closed-form probe that is trained on a small image set.

    Parameters
    ----------
    images : images
        The set to train on, in any form that :class:`FrozenEncoder` takes.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images, read once.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoder : FrozenEncoder, str, torch.nn.Module or None, default=None
        A name or a module stands for ``FrozenEncoder(encoder)``, ``None`` for ``FrozenEncoder()``.
    alpha : float or "loo", default=1.0
        Ridge strength relative to the mean squared norm of the features, as a distiller has it; ``"loo"``: that of
        :class:`ClosedFormProbe`'s own choice, for image sets that are not small.
    n_views : int, default=0
        Random views of each image (crops of 0.08 to 1 of its area, flips) that the probe is trained on, instead of the images
        themselves.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as class and background.
    random_state : int, RandomState instance or None, default=None
        Seed of the views.

    Returns
    -------
    dict of str to ndarray of shape (1,)
        ``"top1"``; ``"top5"``, where there are more than five classes; ``"worst_group"``, the least accuracy of a group, where
        there are groups.

    Raises
    ------
    ValueError, TypeError
        Before an encoder is at work: images, labels or groups of different numbers, a single class, test labels that are not
        among those of the images, numbers out of their range, something that is not an encoder.
    FileNotFoundError, OSError
        If an encoder's weights are not there, or cannot be downloaded.

    See Also
    --------
    sgd_probe_scores : A probe that is trained as LGM trains it.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import closed_form_probe_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> scores = closed_form_probe_scores(X[:100], y[:100], X[100:200], y[100:200], encoder=encoder)
    >>> sorted(scores), bool(scores["top5"] >= scores["top1"])
    (['top1', 'top5'], True)
    """
    _check_alpha(alpha)
    check_scalar(n_views, "n_views", Integral, min_val=0)
    if n_views and alpha == "loo":
        raise ValueError('alpha="loo" leaves out one view and keeps the others of the same image: give a number, or n_views=0')
    task = _task(images, labels, X_test, y_test, groups, encoder)
    Z = _features_of_views(task, n_views, random_state) if n_views else task.features
    return _closed_form(Z, task, alpha)


def probe_scores(
    images, labels, X_test, y_test, *, encoder=None, alpha=1.0, n_epochs=1000, n_repeats=1, groups=None, random_state=None
):
    """Test scores of five probes that are trained on a small image set: whether it serves all of them.

    Parameters
    ----------
    images : images
        The set to train on, in any form that :class:`FrozenEncoder` takes.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoder : FrozenEncoder, str, torch.nn.Module or None, default=None
        A name or a module stands for ``FrozenEncoder(encoder)``, ``None`` for ``FrozenEncoder()``.
    alpha : float, default=1.0
        See :func:`closed_form_probe_scores`.
    n_epochs, n_repeats : int
        See :func:`sgd_probe_scores`; no heads are trained with ``n_repeats=0``.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as class and background.
    random_state : int, RandomState instance or None, default=None
        Seed of views and heads.

    Returns
    -------
    dict of str to dict
        What :func:`closed_form_probe_scores` returns, for the probes ``"closed_form"``; ``"closed_form_views"``, on 20 random
        views of each image; ``"logistic"``, scikit-learn's ``LogisticRegression`` at its default strength, and ``"knn"``, the
        nearest image (without ``"top5"``), both on the features of the images themselves; and ``"sgd"``, what
        :func:`sgd_probe_scores` returns.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        As :func:`closed_form_probe_scores`.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import probe_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> scores = probe_scores(X[:20], y[:20], X[100:200], y[100:200], encoder=encoder, n_epochs=2, random_state=0)
    >>> list(scores)
    ['closed_form', 'closed_form_views', 'logistic', 'knn', 'sgd']
    """
    check_scalar(alpha, "alpha", Real, min_val=0, include_boundaries="neither")
    _check_heads(n_epochs, n_repeats, 0)
    seed = check_random_state(random_state).randint(2**31 - 1)
    task = _task(images, labels, X_test, y_test, groups, encoder, raw=True)
    Z, Z_views = task.features, _features_of_views(task, _N_VIEWS, seed)
    scores = {"closed_form": _closed_form(Z, task, alpha), "closed_form_views": _closed_form(Z_views, task, alpha)}
    for name, probe in (("logistic", LogisticRegression(max_iter=1000)), ("knn", KNeighborsClassifier(1))):
        probe.fit(Z, task.labels)
        scores[name] = _collected([task.metrics(probe.predict_proba(task.test_features))])
    scores["knn"].pop("top5", None)  # one neighbour has one class
    if n_repeats:
        scores["sgd"] = _heads(task, n_epochs, n_repeats, seed)
    return scores


def sgd_probe_scores(images, labels, X_test, y_test, *, encoder=None, n_epochs=1000, n_repeats=1, groups=None, random_state=None):
    """Test scores of a linear head trained by SGD on random views of a small image set: LGM's protocol.

    Weights start from a normal distribution of standard deviation 0.01, biases from zero. Each epoch sees one random resized
    crop (0.08 to 1 of the area) with a random flip of each image, in shuffled batches of up to 100; the head is trained on the
    encoder's features, not normalised, by Adam with a rate of ``1e-3 · batch / 256`` that falls to zero along a cosine over the
    epochs. The test set is scored once, with the head of the last epoch.

    Parameters
    ----------
    images : images
        The set to train on, in any form that :class:`FrozenEncoder` takes.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoder : FrozenEncoder, str, torch.nn.Module or None, default=None
        A name or a module stands for ``FrozenEncoder(encoder)``, ``None`` for ``FrozenEncoder()``.
    n_epochs : int, default=1000
        Passes over ``images``.
    n_repeats : int, default=1
        Heads to train, each from its own start and with its own views; the published protocol has five.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as class and background.
    random_state : int, RandomState instance or None, default=None
        Seed.

    Returns
    -------
    dict of str to ndarray of shape (n_repeats,)
        ``"top1"``; ``"top5"``, where there are more than five classes; ``"worst_group"``, the least accuracy of a group, where
        there are groups.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        As :func:`closed_form_probe_scores`.

    See Also
    --------
    closed_form_probe_scores : The probe in closed form.

    Notes
    -----
    This is the evaluator of LGM's released code (commit 1d84ffd: ``src/distillation/eval.py``,
    ``src/models/linear_classifier.py``, ``src/augmentation/basic_aug.py``), compared line by line. What remains different:

    * Images are normalised as the encoder was trained with; there, by ImageNet's mean and standard deviation for every encoder.
    * Features and head are computed in float32 (the encoder in its own `dtype`); the released code trains under mixed precision,
      with a scaled loss, and tests in float32.
    * Test images are resized and cropped as the encoder does it; there, they are resized to 256 and cropped to 224 px for all
      encoders, as the four of the paper are here.
    * On several GPUs the released code divides the rate by their number; here one device computes.
    * ``"top5"`` is given where there are more than five classes; there, from five on, where it is 1.

    References
    ----------
    *Dataset Distillation for Pre-Trained Self-Supervised Vision Models*, arXiv 2511.16674, evaluation.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import sgd_probe_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> scores = sgd_probe_scores(X[:20], y[:20], X[100:200], y[100:200], encoder=encoder, n_epochs=2, n_repeats=3)
    >>> scores["top1"].shape
    (3,)
    """
    _check_heads(n_epochs, n_repeats, 1)
    task = _task(images, labels, X_test, y_test, groups, encoder, raw=True)
    return _heads(task, n_epochs, n_repeats, random_state)


def transfer_scores(
    images, labels, X_test, y_test, encoders, *, n_epochs=1000, n_repeats=1, alpha=1.0, groups=None, random_state=None
):
    """Test scores of an image set under several encoders, those among them that it was not distilled with.

    Parameters
    ----------
    images : images
        The set to train on, in any form that :class:`FrozenEncoder` takes.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoders : dict of str to FrozenEncoder, str or torch.nn.Module
        Encoders by names of your choice.
    n_epochs, n_repeats, random_state : int, int, seed
        See :func:`sgd_probe_scores`; no heads are trained with ``n_repeats=0``.
    alpha : float or "loo", default=1.0
        See :func:`closed_form_probe_scores`.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images.

    Returns
    -------
    dict of str to dict
        For each encoder, under ``"closed_form"`` and ``"sgd"``, what the two functions return.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        As :func:`closed_form_probe_scores`.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import transfer_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> encoders = {"32 px": encoder, "48 px": FrozenEncoder(image_size=48)}
    >>> scores = transfer_scores(X[:20], y[:20], X[100:200], y[100:200], encoders, n_repeats=0)
    >>> list(scores), list(scores["48 px"])
    (['32 px', '48 px'], ['closed_form'])
    """
    _check_alpha(alpha)
    _check_heads(n_epochs, n_repeats, 0)
    labels, y_test, groups = _check_sets(images, labels, X_test, y_test, groups)
    encoders = named_encoders(encoders)
    seed = check_random_state(random_state).randint(2**31 - 1)
    table = {}
    for name, encoder in encoders.items():
        task = _task(images, labels, X_test, y_test, groups, encoder, raw=n_repeats > 0)
        table[name] = {"closed_form": _closed_form(task.features, task, alpha)}
        if n_repeats:
            table[name]["sgd"] = _heads(task, n_epochs, n_repeats, seed)
    return table


def named_encoders(encoders) -> dict[Any, FrozenEncoder]:
    """Encoders by names, all of them loaded: or an error, before the first is at work."""
    if not isinstance(encoders, Mapping):
        raise TypeError(f"encoders is a dict, of names of your choice to encoders; got {encoders!r}")
    loaded = {name: as_encoder(given) for name, given in encoders.items()}
    for encoder in loaded.values():
        encoder.load()
    return loaded


@dataclass
class _Task:
    """What probes are trained on, and what they are scored by; the test images pass the encoder once, when they are needed."""

    source: Images
    labels: np.ndarray
    encoder: FrozenEncoder
    backbone: Backbone  # that of the encoder
    X_test: Any
    y_test: np.ndarray
    groups: np.ndarray | None
    needs_raw: bool  # whether raw features are needed: those of unit norm are made of them then

    @cached_property
    def features(self) -> np.ndarray:
        """Of the images to train on."""
        return self.encoder.encode_by(self.backbone, self.source)

    @cached_property
    def raw_test_features(self) -> np.ndarray:
        """Not normalised."""
        return clone(self.encoder).set_params(normalize=False).encode_by(self.backbone, self.X_test)

    @cached_property
    def test_features(self) -> np.ndarray:
        """As the encoder gives them."""
        if not self.needs_raw:
            return self.encoder.encode_by(self.backbone, self.X_test)
        R = self.raw_test_features
        return F.normalize(torch.from_numpy(R), dim=1).numpy() if self.encoder.normalize else R

    def metrics(self, scores: np.ndarray) -> dict[str, float]:
        """Of scores ``(n_test, n_classes)``, the classes in sorted order."""
        return _metrics(scores, np.unique(self.labels), self.y_test, self.groups)


def _task(images, labels, X_test, y_test, groups, encoder, *, raw=False) -> _Task:
    """Check all that is given, but for the images themselves: that is done by what reads them, or encodes them."""
    labels, y_test, groups = _check_sets(images, labels, X_test, y_test, groups)
    encoder = FrozenEncoder() if encoder is None else as_encoder(encoder)
    backbone = encoder.load()  # once: each looks at all weights
    return _Task(as_images(images, encoder.image_shape), labels, encoder, backbone, X_test, y_test, groups, raw)


def _check_alpha(alpha):
    if alpha != "loo":
        check_scalar(alpha, "alpha", Real, min_val=0, include_boundaries="neither")


def _check_heads(n_epochs, n_repeats, least):
    check_scalar(n_epochs, "n_epochs", Integral, min_val=1)
    check_scalar(n_repeats, "n_repeats", Integral, min_val=least)


def _check_sets(images, labels, X_test, y_test, groups):
    """Labels and groups, one-dimensional."""
    labels, y_test = (column_or_1d(values, warn=True) for values in (labels, y_test))
    groups = None if groups is None else column_or_1d(groups)
    check_consistent_length(images, labels)
    check_consistent_length(X_test, y_test, groups)
    for name, values in (("labels", labels), ("y_test", y_test), ("groups", groups)):
        if values is not None:
            assert_all_finite(values, input_name=name)
    classes = np.unique(labels).tolist()
    if len(classes) < 2:
        raise ValueError(f"a probe needs images of at least two classes; labels holds {classes}")
    unknown = np.setdiff1d(y_test, labels).tolist()
    if unknown:
        raise ValueError(f"y_test holds classes of which there is no image to train on: {unknown[:10]}")
    return labels, y_test, groups


def _closed_form(Z: np.ndarray, task: _Task, alpha) -> dict[str, np.ndarray]:
    """Scores of the probe of features ``Z``: of the images, or of some views of each, all images in turn."""
    probe = ClosedFormProbe() if alpha == "loo" else relative_probe(Z, alpha)
    n_views = len(Z) // len(task.labels)
    scores = probe.fit(Z, np.tile(task.labels, n_views)).decision_function(task.test_features)
    return _collected([task.metrics(np.stack([-scores, scores], 1) if scores.ndim == 1 else scores)])


def _features_of_views(task: _Task, n_views: int, random_state, views: DSA = _CLOSED_FORM_VIEWS) -> np.ndarray:
    """Features ``(n_views · n_images, d)`` of random views, all images in turn."""
    encoder = task.encoder
    backbone, read = task.backbone, _reader(task)
    generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
    parts = []
    for _ in range(n_views):
        for rows in torch.arange(len(task.source)).split(_BATCH_SIZE):
            draws = views.draw(len(rows), generator)
            with torch.no_grad():
                seen = views(read(rows), draws, backbone.preprocessing)
                parts.append(features_of(backbone, seen, encoder.normalize, encoder.dtype).cpu())
    return torch.cat(parts).numpy()


def _heads(task: _Task, n_epochs: int, n_repeats: int, random_state) -> dict[str, np.ndarray]:
    """Scores of heads trained by SGD on features that are not normalised."""
    seeds = check_random_state(random_state).randint(2**31 - 1, size=n_repeats)
    read = _reader(task)  # or an error, before the test images are at work
    test, runs = task.raw_test_features, []
    for seed in seeds:
        with caller_modes_off(task.backbone.device):
            weight, bias = _train_head(task, read, n_epochs, torch.Generator().manual_seed(int(seed)))
        runs.append(task.metrics(test @ weight.T + bias))
    return _collected(runs)


def _reader(task: _Task) -> Callable[[Tensor], Tensor]:
    """What gives images by their positions, at the size from which the encoder crops."""
    source, n_jobs, backbone = task.source, task.encoder.n_jobs, task.backbone
    source.check(n_jobs)
    whole = backbone.preprocessing.whole(backbone.preprocessing.resized)
    if 4 * len(source) * 3 * whole.image_size**2 > _IN_MEMORY:
        return lambda rows: source.read(rows.numpy(), whole, n_jobs).to(backbone.device)
    pixels = source.read(range(len(source)), whole, n_jobs).to(backbone.device)
    return lambda rows: pixels[rows.to(pixels.device)]


def _metrics(scores: np.ndarray, classes: np.ndarray, y_test: np.ndarray, groups: np.ndarray | None) -> dict[str, float]:
    right = classes[scores.argmax(axis=1)] == y_test
    metrics = {"top1": right.mean()}
    if len(classes) > 5:
        best = classes[np.argpartition(scores, -5, axis=1)[:, -5:]]
        metrics["top5"] = (best == y_test[:, None]).any(axis=1).mean()
    if groups is not None:
        _, members = np.unique(groups, return_inverse=True)
        metrics["worst_group"] = (np.bincount(members, right) / np.bincount(members)).min()
    return metrics


def _collected(runs: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([run[name] for run in runs]) for name in runs[0]}


def _train_head(task: _Task, read: Callable, n_epochs: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(C, d)`` and biases ``(C,)`` of a linear head; ``read`` gives images by their positions."""
    backbone = task.backbone
    classes, codes = np.unique(task.labels, return_inverse=True)
    y, n_classes = torch.from_numpy(codes), len(classes)
    drawn = torch.randn(n_classes, backbone.n_features, generator=generator, dtype=torch.float32, device="cpu")
    weight = (_INITIAL_STD * drawn).to(backbone.device).requires_grad_()
    bias = torch.zeros(n_classes, dtype=torch.float32, device=backbone.device, requires_grad=True)
    batch_size = min(_BATCH_SIZE, len(y))
    optimizer = torch.optim.Adam([weight, bias], lr=_LEARNING_RATE * batch_size / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs)
    views = _HEAD_VIEWS

    def batches():
        """Rows, the random numbers of their views, and whether an epoch ends with them."""
        for _ in range(n_epochs):
            parts = torch.randperm(len(y), generator=generator, device="cpu").split(batch_size)
            for i, rows in enumerate(parts):
                yield rows, views.draw(len(rows), generator), i == len(parts) - 1

    coming = batches()
    # Views do not depend on the head: those of several small batches pass the encoder together.
    while together := list(islice(coming, max(1, _BATCH_SIZE // batch_size))):
        rows = torch.cat([rows for rows, _, _ in together])
        draws = {name: torch.cat([drawn[name] for _, drawn, _ in together]) for name in together[0][1]}
        with torch.no_grad():
            features = features_of(backbone, views(read(rows), draws, backbone.preprocessing), False, task.encoder.dtype)
        targets = y[rows].to(backbone.device)
        sizes = [len(rows) for rows, _, _ in together]
        for Z, r, (_, _, ends) in zip(features.split(sizes), targets.split(sizes), together, strict=True):
            loss = F.cross_entropy(F.linear(Z, weight, bias), r)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if ends:
                schedule.step()
    return weight.detach().cpu().numpy(), bias.detach().cpu().numpy()
