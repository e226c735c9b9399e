"""Real samples that synthetic ones start from: random ones, or those nearest to k-means centres."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch import Tensor

from ..utils._ranks import ALONE, Ranks
from ._fit_data import FitData
from ._real_features import RealFeatures

# Noise added to repeated real samples, as a fraction of the standard deviation of their values.
_NOISE_ON_COPIES = 0.1


def nearest_rows(Z: np.ndarray, R: np.ndarray) -> np.ndarray:
    """Distinct rows of ``R``, one for each row of ``Z``, with the least sum of distances."""
    return linear_sum_assignment(cdist(Z, R))[1]


def kmeans_rows(R: np.ndarray, n: int, rng: np.random.RandomState) -> np.ndarray:
    """Distinct rows of ``R`` that are nearest to the centres of ``n`` clusters."""
    R = np.asarray(R, dtype=np.float32)
    return nearest_rows(KMeans(n, random_state=rng).fit(R).cluster_centers_, R)


def real_start(
    data: FitData, real: RealFeatures, init: str, noise: torch.Generator, rng: np.random.RandomState, ranks: Ranks = ALONE
) -> Tensor:
    """Real samples to start from, in the form of synthetic ones; held-out samples are never used.

    Where a class has too few real samples, they are repeated with some noise: without it, copies would remain identical.
    """
    rows = ranks.of_first([_rows_of_class(real.training, c, n, init, rng) for c, n in enumerate(data.images_per_class)])
    samples = data.adapter.read(real.order[np.concatenate(rows)])
    copies = [np.arange(n) >= len(own) for n, own in zip(data.images_per_class, map(np.unique, rows), strict=True)]
    is_copy = np.concatenate(copies)
    if is_copy.any():
        added = torch.randn(samples.shape, generator=noise, dtype=samples.dtype)
        added[torch.from_numpy(~is_copy)] = 0
        samples = samples + _NOISE_ON_COPIES * samples.std() * added.to(samples.device)
    return samples


def _rows_of_class(training: RealFeatures, c: int, n: int, init: str, rng: np.random.RandomState) -> np.ndarray:
    rows = np.flatnonzero(training.codes == c)  # in random order
    if init == "kmeans" and n < len(rows):
        rows = rows[kmeans_rows(training.values[rows], n, rng)]
    return np.resize(rows, n)
