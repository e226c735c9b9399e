"""Peers of :class:`~sklearn_clpdd.CLPDistiller` with the same interface: selections of real images, and other objectives.

======================= ===========================================================
file                    what it holds
======================= ===========================================================
``_real_subsets.py``    peers that select real images
``_core_sets.py``       peers that select real images one after another
``_matching.py``        peers that learn images for the gradients of a head, or for class means
``_flow_matching.py``   a peer that learns images for the differences of class means
======================= ===========================================================
"""

from ._core_sets import CoreSet
from ._flow_matching import SFM_PUBLISHED, SFMDistiller
from ._matching import LGM_PUBLISHED, DMDistiller, LGMDistiller
from ._real_subsets import ClassCentroids, NearestReals, RandomSubset

__all__ = [
    "LGM_PUBLISHED",
    "SFM_PUBLISHED",
    "ClassCentroids",
    "CoreSet",
    "DMDistiller",
    "LGMDistiller",
    "NearestReals",
    "RandomSubset",
    "SFMDistiller",
]
