"""Linear probes on frozen encoders, and data sets distilled for them: scikit-learn estimators over torch and timm."""

from ._version import __version__ as __version__
from .distill import (
    DSA,
    Augmentation,
    Checkpoint,
    CLPDistiller,
    DistilledSampler,
    LinearSchedule,
    LostProcessError,
    Parametrization,
    allocate_images,
)
from .encoder import FrozenEncoder
from .io import distillation_report, load_distilled, load_probe, push_to_hub, save_distilled, save_probe
from .plot import FeatureMapDisplay, HistoryDisplay, Snapshots, SyntheticImagesDisplay
from .probe import ClosedFormProbe

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
    "LostProcessError",
    "Parametrization",
    "Snapshots",
    "SyntheticImagesDisplay",
    "allocate_images",
    "distillation_report",
    "load_distilled",
    "load_probe",
    "push_to_hub",
    "save_distilled",
    "save_probe",
]
