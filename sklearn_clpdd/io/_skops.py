"""The types in skops files of this library's estimators."""

from ..baselines import ClassCentroids, CoreSet, DMDistiller, LGMDistiller, NearestReals, RandomSubset, SFMDistiller
from ..distill import DSA, Checkpoint, CLPDistiller, DistilledSampler, LinearSchedule
from ..encoder import FrozenEncoder
from ..plot import Snapshots
from ..probe import ClosedFormProbe
from ..probe._moments import Moments
from ..probe._reservoir import Reservoir
from ..probe._solver import ProbeSolver
from ..probe._stream import Stream

_ESTIMATORS = (ClosedFormProbe, FrozenEncoder, CLPDistiller, DistilledSampler)
_BASELINES = (RandomSubset, ClassCentroids, CoreSet, NearestReals, LGMDistiller, DMDistiller, SFMDistiller)
_PARAMETERS = (Checkpoint, DSA, LinearSchedule, Snapshots)
# What a probe keeps after `partial_fit`.
_STREAM = (Stream, Moments, Reservoir, ProbeSolver)

#: Types of this library that skops finds in files of its estimators, for ``skops.io.load(file, trusted=TRUSTED_TYPES)``.
#: All of them only set attributes when they are loaded. Networks are not among them, because they are code.
TRUSTED_TYPES = [f"{one.__module__}.{one.__qualname__}" for one in (*_ESTIMATORS, *_BASELINES, *_PARAMETERS, *_STREAM)]
