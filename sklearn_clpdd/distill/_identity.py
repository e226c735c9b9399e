"""What makes two runs the same: a run and its continuation from a checkpoint, and the processes of a run."""

from numbers import Real
from typing import Any

import joblib
import numpy as np
from sklearn.utils import check_random_state

from ..encoder._extractor import VERSIONS
from ..utils._fingerprint import fingerprint
from ..utils._ranks import Ranks, check_same
from ._checkpoint import Checkpoint, CheckpointFile
from ._fit_data import FitData

# Parameters that may differ; the encoder is compared by its network instead.
_FREE = {"encoder", "verbose", "callback", "checkpoint", "distributed"}


def checkpoint_file(distiller: Any, data: FitData, ranks: Ranks) -> CheckpointFile | None:
    """The checkpoint of a distiller's run, which is read if it exists; ``None`` if there is to be none."""
    if distiller.checkpoint is None:
        return None
    given = distiller.checkpoint
    identity = data.adapter.identity() | _digests_of_labels(data)
    checkpoint = given if isinstance(given, Checkpoint) else Checkpoint(given)
    return CheckpointFile(checkpoint, _fingerprints(distiller), identity, VERSIONS, ranks)


def seed_of_run(distiller: Any, checkpoint: CheckpointFile | None, ranks: Ranks) -> int:
    """Seed of the run: that of the checkpoint, if there is one; of several processes, that of the first one."""
    seed = int(check_random_state(distiller.random_state).randint(2**31 - 1))
    return ranks.of_first(checkpoint.info["seed"] if checkpoint and checkpoint.info else seed)


def check_processes(distiller: Any, data: FitData, ranks: Ranks) -> None:
    """Raise unless all processes fit the same, and each has a synthetic sample to learn."""
    if ranks.size == 1:
        return
    encoder = str(data.adapter.network())
    checkpoint = getattr(distiller.checkpoint, "every", distiller.checkpoint is not None)
    last = joblib.hash((vars(distiller).get("X_synthetic_"), len(vars(distiller).get("history_", ()))))
    of_run = {"X": data.digest, "encoder": encoder, "checkpoint": str(checkpoint)}
    of_run |= {"the last fit, with which warm_start=True begins": last} if distiller.warm_start else {}
    check_same(ranks, _fingerprints(distiller) | _digests_of_labels(data) | of_run | VERSIONS)
    m = len(data.synthetic_codes)
    if ranks.size > m:
        raise ValueError(
            f"{ranks.size} processes cannot share {m} synthetic samples: each needs at least one. Start at most {m} processes, "
            "or use a larger images_per_class"
        )


def _fingerprints(distiller: Any) -> dict[str, str]:
    parameters = {"method": type(distiller), **distiller.get_params(deep=False)}
    # A random_state that is not a number cannot be compared.
    free = _FREE if isinstance(distiller.random_state, Real) else _FREE | {"random_state"}
    return {name: fingerprint(value) for name, value in parameters.items() if name not in free}


def _digests_of_labels(data: FitData) -> dict[str, str]:
    return {"y": joblib.hash(np.ascontiguousarray(data.y)), "groups": joblib.hash(data.groups)}
