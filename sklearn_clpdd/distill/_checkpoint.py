"""Checkpoints of a run: a file of tensors and JSON, which is replaced as a whole."""

import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator
from torch import Tensor

from ..utils._documented import DocumentedMixin
from ..utils._ranks import ALONE, Ranks
from ..utils._sklearn_compat import Interval
from ..utils._tensor_file import read_tensors, write_tensors
from ..utils._warnings import warn

# Version of the content of a checkpoint; files with another one are refused.
_FORMAT = 4


class Checkpoint(DocumentedMixin, BaseEstimator):
    """Where and how often a run is saved.

    Parameters
    ----------
    path : str or path
        File that is written. A `fit` that finds a file of the same run continues it.
    every : float or int, default=60.0
        Interval between writes: seconds if it is a float, steps if it is an integer.

    Examples
    --------
    >>> from sklearn_clpdd import Checkpoint, CLPDistiller
    >>> CLPDistiller(checkpoint=Checkpoint("run.safetensors", every=50)).checkpoint.every
    50
    """

    _parameter_constraints = {
        "path": [str, os.PathLike],
        "every": [Interval(Integral, 1, None, closed="left"), Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, path, *, every=60.0):
        self.path = path
        self.every = every


class CheckpointFile:
    """The file of a run, and what it contains.

    Parameters
    ----------
    checkpoint : Checkpoint
    parameters : dict of str to str
        Fingerprints of the parameters that a run and its continuation have to share.
    data : dict of str to str
        Digests of the data.
    versions : dict of str to str
        Versions of the packages that compute the features.
    ranks : Ranks
        The processes of the run, of which the first one reads and writes the file.

    Attributes
    ----------
    tensors, info : dict
        Content of the file; empty if it does not exist. Only the first process has the tensors.

    Raises
    ------
    ValueError
        If the file is not a checkpoint, or belongs to another run.
    FileNotFoundError
        If its folder does not exist.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        parameters: dict[str, str],
        data: dict[str, str],
        versions: dict[str, str],
        ranks: Ranks = ALONE,
    ):
        self.path, self._every = Path(checkpoint.path), checkpoint.every
        self._is_writer = ranks.rank == 0
        self._run: dict[str, Any] = {"parameters": parameters, "data": data, "versions": versions, "format": _FORMAT}
        self.tensors: dict[str, Tensor] = {}
        self.info: dict[str, Any] = ranks.on_first(self._read)

    def _read(self) -> dict[str, Any]:
        """Read the file, and check that it belongs to this run."""
        if self.path.is_dir() or not self.path.parent.is_dir():
            found = "it is a folder" if self.path.is_dir() else f"there is no folder {str(self.path.parent)!r}"
            raise FileNotFoundError(f"checkpoint={str(self.path)!r} has to be a file in an existing folder; {found}")
        if not self.path.exists():
            return {}
        self.tensors, info = read_checkpoint(self.path)
        differ = self._differences(info)
        if differ:
            raise ValueError(
                f"checkpoint={str(self.path)!r} belongs to another run: {'; '.join(differ)}. "
                "Continue with the settings that it was started with, pass another path, or delete the file"
            )
        self._check_info(info)
        return info

    def _check_info(self, info: dict[str, Any]) -> None:
        """Raise unless the state of a run has the types that `Trainer` writes."""
        number = float | int
        kinds: dict[str, Any] = {
            "step": int,
            "seed": int,
            "improved": int,
            "best_stage": int,
            "best_iter": int | None,
            "finished": bool,
        }
        kinds |= {"progress": number, "seconds": number, "best": number, "best_accuracy": number, "history": list}
        wrong = {name for name, kind in kinds.items() if not isinstance(info.get(name, ...), kind)}
        for name in {"step", "improved", "progress", "seconds"} - wrong:
            if not 0 <= info[name] < 1e18:
                wrong.add(name)
        if "history" not in wrong and not all(isinstance(record, dict) for record in info["history"]):
            wrong.add("history")
        if wrong:
            raise ValueError(
                f"checkpoint={str(self.path)!r} is damaged: {', '.join(sorted(wrong))} cannot be used. Pass another path, or "
                "delete the file"
            )

    def _differences(self, info: dict[str, Any]) -> list[str]:
        """How the run of a file differs from this one."""
        if info.get("format") != _FORMAT:
            return [f"its format is {info.get('format', 1)}, and this version of the library writes {_FORMAT}"]
        if not all(isinstance(info.get(kind), dict) for kind in ("data", "parameters", "versions")):
            return ["it does not say to which one"]
        differ = [f"{name} changed" for name in _differing(info["data"], self._run["data"])]
        for kind in ("versions", "parameters"):
            was, now = info[kind], self._run[kind]
            differ += [f"{name} was {was.get(name)} and is {now.get(name)}" for name in _differing(was, now)]
        return differ

    def is_due(self, steps: int, seconds: float) -> bool:
        """Whether to write, this many steps and seconds after the last write."""
        return (steps if isinstance(self._every, Integral) else seconds) >= self._every

    def write(self, tensors: dict[str, Tensor], info: dict) -> None:
        """Replace the file, in the first process. A failure only warns, so that the run continues."""
        if not self._is_writer:
            return
        try:
            write_tensors(self.path, tensors, info | self._run)
        except OSError as error:
            warn(f"the checkpoint could not be written, and the run continues: {error}", RuntimeWarning)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors, on the CPU, and the information that was written with them.

    Raises
    ------
    ValueError
        If the file is not a checkpoint of this library, or was changed.
    """
    try:
        tensors, info, is_intact = read_tensors(path)
        if info.get("format") == _FORMAT and not is_intact:
            raise ValueError("its content does not have its digest, so that it was changed or damaged")
        return tensors, info
    except ValueError as error:
        raise ValueError(
            f"checkpoint={os.fspath(path)!r} exists, but is not a checkpoint of a distillation: {error!r}. "
            "Pass another path, or delete the file"
        ) from error


def _differing(was: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
