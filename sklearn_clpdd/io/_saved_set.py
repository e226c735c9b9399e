"""A saved distilled set as a fitted distiller, to be measured again."""

from typing import Any

import numpy as np
import torch

from ..distill._base import BaseDistiller
from ..distill._fit_data import FitResult
from ._distilled_set import load_distilled
from ._encoder_record import encoder_from


class _SavedSet(BaseDistiller):
    """Images that were distilled before: `fit` computes their probe, calibrated on the real samples."""

    def __init__(self, encoder, images, labels, targets, alpha=1.0):
        self.encoder = encoder
        self.images = images
        self.labels = labels
        self.targets = targets
        self.alpha = alpha
        self.images_per_class = 1
        self.image_size = images.shape[1]
        self.random_state = None
        self.verbose = 0

    def _check_data(self, data):
        found, known = data.classes.tolist(), np.unique(self.labels).tolist()
        if found != known:
            raise ValueError(f"y has the classes {found[:10]}, and the set has {known[:10]}; pass the data that it was made from")

    def _distill(self, data):
        order = np.random.RandomState(0).permutation(len(data.codes))
        samples = data.adapter.from_user(self.images)
        codes = np.searchsorted(data.classes, self.labels)
        targets = None if self.targets is None else torch.tensor(self.targets)
        return FitResult(samples, codes, data.real_features(order), targets)


def reopened(directory, X, y) -> tuple[BaseDistiller, dict[str, Any]]:
    """A saved set, fitted to the real samples that it was made from, and its manifest.

    Raises
    ------
    ValueError, TypeError, OSError
        If the set, its encoders or the samples cannot be used.
    """
    if X is None or y is None:
        raise ValueError("a saved set needs the real images that it was made from: pass X and y")
    images, labels, manifest = load_distilled(directory)
    encoders = [encoder_from(record, None, str(directory)) for record in manifest["encoders"]]
    alpha = float(manifest["fitted"]["alpha"])
    encoder = encoders[0] if len(encoders) == 1 else encoders
    values = images.astype(np.float32) / 255
    return _SavedSet(encoder, values, labels, manifest.get("targets"), alpha).fit(X, y), manifest
