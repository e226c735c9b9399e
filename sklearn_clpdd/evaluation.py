"""How good a distilled set is: beside real images, and for probes other than the one that made it."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length

from ._base import BaseDistiller
from ._core.augmentations import DSA
from ._core.backbones import Backbone, Preprocessing
from ._encoder import FrozenEncoder
from ._images import as_images
from ._probe import ClosedFormProbe

# Published settings of the protocol (LGM's code): images of a batch, and Adam's rate for a batch of 256.
_BATCH_SIZE = 100
_LEARNING_RATE = 1e-3


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
    """
    rng = check_random_state(random_state)
    test = distiller.features(X_test)
    features, test_features = ((Z - distiller._center) / distiller._scale for Z in (distiller.features(X), test))
    y = np.asarray(y)
    full = ClosedFormProbe().fit(features, y)
    m = len(distiller.y_synthetic_)
    draws = []
    for _ in range(n_draws):
        members = (np.flatnonzero(y == label) for label in distiller.classes_)
        wanted = (np.sum(distiller.y_synthetic_ == label) for label in distiller.classes_)
        chosen = [rng.choice(own, min(n, len(own)), replace=False) for own, n in zip(members, wanted, strict=True)]
        rows = np.concatenate(chosen)
        draws.append(distiller._fit_probe(features[rows], y[rows]).score(test_features, y_test))
    return {
        "all real": (len(y), full.score(test_features, y_test)),
        "random real": (m, float(np.mean(draws))),
        "distilled": (m, distiller.probe_.score(test, y_test)),
    }


def sgd_probe_scores(images, labels, X_test, y_test, *, encoder=None, n_epochs=1000, n_repeats=1, random_state=None):
    """Test accuracy of a linear head trained by SGD on random views of a small image set: LGM's protocol.

    Each epoch sees one random resized crop (0.08 to 1 of the area) with a random flip of each image; the head is trained on the
    encoder's features, not normalised, by Adam with a rate of ``1e-3 · batch / 256`` and cosine decay. The test set is read
    once, after the last epoch.

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
    encoder : FrozenEncoder, default=None
        ``None`` is ``FrozenEncoder()``.
    n_epochs : int, default=1000
        Passes over ``images``.
    n_repeats : int, default=1
        Heads to train, each from its own start and with its own views.
    random_state : int, RandomState instance or None, default=None
        Seed.

    Returns
    -------
    ndarray of shape (n_repeats,)
        Accuracies.

    References
    ----------
    *Dataset Distillation for Pre-Trained Self-Supervised Vision Models*, arXiv 2511.16674, evaluation; but for its choice of
    the best epoch by test accuracy.
    """
    check_consistent_length(images, labels)
    check_consistent_length(X_test, y_test)
    encoder = FrozenEncoder() if encoder is None else encoder
    raw = type(encoder)(**{**encoder.get_params(deep=False), "normalize": False})
    backbone = raw.load()
    source = as_images(images, encoder.image_shape)
    source.check(encoder.n_jobs)
    whole = Preprocessing(image_size=backbone.preprocessing.resized)
    pixels = source.read(range(len(source)), whole, encoder.n_jobs).to(backbone.device)
    classes, codes = np.unique(labels, return_inverse=True)
    y = torch.from_numpy(codes).to(backbone.device)
    test_features = raw.encode(X_test)
    scores = []
    for seed in check_random_state(random_state).randint(2**31 - 1, size=n_repeats):
        weight, bias = _train_head(backbone, pixels, y, len(classes), n_epochs, torch.Generator().manual_seed(int(seed)))
        predicted = classes[(test_features @ weight.T + bias).argmax(axis=1)]
        scores.append(np.mean(predicted == np.asarray(y_test)))
    return np.array(scores)


def _train_head(backbone: Backbone, images, y, n_classes: int, n_epochs: int, generator: torch.Generator):
    """Weights ``(C, d)`` and biases ``(C,)`` of a linear head, as arrays."""
    bound = backbone.n_features**-0.5  # torch's own start of a linear layer
    head = [
        (2 * torch.rand(shape, generator=generator, device="cpu") - 1) * bound
        for shape in ((n_classes, backbone.n_features), (n_classes,))
    ]
    weight, bias = (tensor.to(backbone.device).requires_grad_() for tensor in head)
    batch_size = min(_BATCH_SIZE, len(images))
    optimizer = torch.optim.Adam([weight, bias], lr=_LEARNING_RATE * batch_size / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs)
    views = DSA()
    for _ in range(n_epochs):
        for rows in torch.randperm(len(images), generator=generator, device="cpu").split(batch_size):
            rows = rows.to(backbone.device)
            with torch.no_grad():
                features = backbone(views(images[rows], views.draw(len(rows), generator), backbone.preprocessing))
            loss = F.cross_entropy(F.linear(features, weight, bias), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return weight.detach().cpu().numpy(), bias.detach().cpu().numpy()
