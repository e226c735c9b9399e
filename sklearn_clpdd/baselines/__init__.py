"""Peers of :class:`~sklearn_clpdd.CLPDistiller` with the same interface: selections of real images, and other objectives.

======================= ===========================================================
file                    what it holds
======================= ===========================================================
``_real_subsets.py``    peers that select real images
``_matching.py``        peers that learn images for other objectives
======================= ===========================================================
"""

from ._matching import LGM_PUBLISHED, DMDistiller, LGMDistiller
from ._real_subsets import ClassCentroids, NearestReals, RandomSubset

__all__ = ["LGM_PUBLISHED", "ClassCentroids", "DMDistiller", "LGMDistiller", "NearestReals", "RandomSubset"]
