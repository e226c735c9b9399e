"""Displays: synthetic images, history, feature map, and snapshots of a run."""

from ._feature_map import FeatureMapDisplay
from ._history import HistoryDisplay
from ._images import SyntheticImagesDisplay
from ._snapshots import Snapshots

__all__ = ["FeatureMapDisplay", "HistoryDisplay", "Snapshots", "SyntheticImagesDisplay"]
