"""Which real samples stand for a class: the most central ones, or the nearest to given points."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans


def central(R: np.ndarray, n: int, rng: np.random.RandomState) -> np.ndarray:
    """Rows of ``R``, none twice, that are nearest to the means of ``n`` clusters (k-means)."""
    R = np.asarray(R, dtype=np.float32)
    return nearest(KMeans(n, random_state=rng).fit(R).cluster_centers_, R)


def nearest(Z: np.ndarray, R: np.ndarray) -> np.ndarray:
    """Rows of ``R``, none twice, for those of ``Z``, of which there are not more, with the least sum of distances."""
    return linear_sum_assignment(cdist(Z, R))[1]
