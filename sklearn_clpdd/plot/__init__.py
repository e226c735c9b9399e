"""Displays of a distillation.

======================= ===========================================================
file                    what it holds
======================= ===========================================================
``_images.py``          SyntheticImagesDisplay: a grid of synthetic images
``_history.py``         HistoryDisplay: loss and held-out accuracy during a run
``_feature_map.py``     FeatureMapDisplay: real and synthetic samples in two dimensions
``_snapshots.py``       Snapshots: an animation of the images during a run
======================= ===========================================================
"""

from ._feature_map import FeatureMapDisplay
from ._history import HistoryDisplay
from ._images import SyntheticImagesDisplay
from ._snapshots import Snapshots

__all__ = ["FeatureMapDisplay", "HistoryDisplay", "Snapshots", "SyntheticImagesDisplay"]
