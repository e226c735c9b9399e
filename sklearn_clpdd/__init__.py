"""Linear probes on frozen encoders, and data sets distilled for them: scikit-learn estimators over torch and timm."""

from importlib.metadata import version

from ._core.augmentations import DSA, Augmentation
from ._core.parametrizations import Parametrization
from ._display import FeatureMapDisplay, HistoryDisplay, Snapshots, SyntheticImagesDisplay
from ._distiller import CLPDistiller
from ._encoder import FrozenEncoder
from ._probe import ClosedFormProbe
from ._report import distillation_report
from ._sampler import DistilledSampler
from .io import load_distilled, save_distilled

__version__ = version("sklearn-clpdd")
__all__ = [
    "DSA",
    "Augmentation",
    "CLPDistiller",
    "ClosedFormProbe",
    "DistilledSampler",
    "FeatureMapDisplay",
    "FrozenEncoder",
    "HistoryDisplay",
    "Parametrization",
    "Snapshots",
    "SyntheticImagesDisplay",
    "distillation_report",
    "load_distilled",
    "save_distilled",
]
