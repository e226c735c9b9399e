"""Linear probes on frozen encoders, and data sets distilled for them: scikit-learn estimators over torch and timm."""

from importlib.metadata import version

from .distill import (
    DSA,
    Augmentation,
    Checkpoint,
    CLPDistiller,
    DistilledSampler,
    LinearSchedule,
    Parametrization,
    allocate_images,
)
from .encoder import FrozenEncoder
from .io import distillation_report, load_distilled, save_distilled
from .plot import FeatureMapDisplay, HistoryDisplay, Snapshots, SyntheticImagesDisplay
from .probe import ClosedFormProbe

__version__ = version("sklearn-clpdd")
__all__ = [
    "DSA",
    "Augmentation",
    "CLPDistiller",
    "Checkpoint",
    "ClosedFormProbe",
    "DistilledSampler",
    "FeatureMapDisplay",
    "FrozenEncoder",
    "HistoryDisplay",
    "LinearSchedule",
    "Parametrization",
    "Snapshots",
    "SyntheticImagesDisplay",
    "allocate_images",
    "distillation_report",
    "load_distilled",
    "save_distilled",
]
