"""Checkpoints of a run: one safetensors file whose header carries JSON. Nothing is pickled.

A file is written beside its place and moved there, so that whoever is killed at whatever moment leaves a whole one: the last
or the one before.
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEY = "sklearn_clpdd"


def write_checkpoint(path: Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Replace the checkpoint at ``path``.

    Parameters
    ----------
    path : Path
    tensors : dict of str to Tensor
    info : dict
        What JSON can hold; floats come back as they were.

    Raises
    ------
    OSError
        When it cannot be written; the one before is then still there.
    """
    beside = path.with_name(path.name + ".part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata={_KEY: json.dumps(info)})
    except SafetensorError as error:
        raise OSError(f"{beside}: {error}") from error
    _to_disk(beside, os.O_RDWR)
    os.replace(beside, path)
    if os.name == "posix":
        _to_disk(path.parent, os.O_RDONLY)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors, on the CPU, and what was written beside them.

    Raises
    ------
    ValueError
        If the file is no checkpoint of this library.
    """
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name).clone() for name in file.keys()}, info  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint={os.fspath(path)!r} is there, but no checkpoint of a distillation: {error!r}") from error


def _to_disk(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
