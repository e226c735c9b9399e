"""A saved distilled set as a fitted distiller, to be measured again."""

import numpy as np
import torch

from ..distill._base import BaseDistiller
from ..distill._fit_data import FitResult
from ._distilled_set import load_distilled
from ._encoder_record import encoder_from


class SavedSet(BaseDistiller):
    """Images that were distilled before: `fit` computes their probe, calibrated on the real samples."""

    def __init__(self, encoder, images, labels, manifest):
        self.encoder = encoder
        self.images = images
        self.labels = labels
        self.manifest = manifest
        self.alpha = float(manifest["fitted"]["alpha"])
        self.images_per_class = 1
        self.image_size = images.shape[1]
        self.random_state = None
        self.verbose = 0

    def _check_data(self, data):
        made_from = self.manifest["data"]
        if data.digest != made_from["digest"]:
            raise ValueError(
                f"the set was made from {made_from['n_samples']:,} images of {len(made_from['class_counts'])} classes, and X and "
                f"y are not these, but {len(data.y):,} of {len(data.classes)}. Pass the same files and labels in the same order; "
                "on the command line, with the same --test, --test-size and --seed"
            )

    def _distill(self, data):
        order = np.random.RandomState(0).permutation(len(data.codes))
        samples = data.adapter.from_user(self.images)
        codes = np.searchsorted(data.classes, self.labels)
        targets = torch.tensor(self.manifest["targets"]) if "targets" in self.manifest else None
        return FitResult(samples, codes, data.real_features(order), targets)


def reopened(directory, X, y, **settings) -> SavedSet:
    """A saved set, fitted to the real samples that it was made from.

    Parameters
    ----------
    directory : str or path
    X, y : images and labels
    **settings
        Parameters of the encoders that do not change features, such as ``n_jobs``.

    Raises
    ------
    ValueError, TypeError, OSError
        If the set, its encoders or the samples cannot be used.
    """
    if X is None or y is None:
        raise ValueError("a saved set needs the real images that it was made from: pass X and y")
    images, labels, manifest = load_distilled(directory)
    how = "fit a distiller with this encoder again, and pass it in the place of the folder"
    encoders = [encoder_from(record, None, str(directory), how).set_params(**settings) for record in manifest["encoders"]]
    encoder = encoders[0] if len(encoders) == 1 else encoders
    return SavedSet(encoder, images.astype(np.float32) / 255, labels, manifest).fit(X, y)
