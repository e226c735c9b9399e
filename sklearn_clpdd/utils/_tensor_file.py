"""Files of tensors and JSON without any pickles: safetensors, with a digest, replaced as a whole.

A file is written next to its final place and then moved there. Whenever a process is killed, there is a complete file: the latest
one or the one before.
"""

import json
import os
import uuid
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ._fingerprint import tensor_digest

_KEY, _DIGEST = "sklearn_clpdd", "sha256"


def write_tensors(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write a file, or replace it.

    Parameters
    ----------
    path : Path
    tensors : dict of str to Tensor
    info : dict
        JSON-serialisable values; floats are restored exactly.

    Raises
    ------
    OSError
        If it cannot be written; an existing file is then unchanged.
    """
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}.part")
    content = json.dumps(info)
    metadata = {_KEY: content, _DIGEST: _digest(content, tensors)}
    try:
        part.touch()
        mode = part.stat().st_mode  # that of the user's new files; safetensors' are private
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
        part.chmod(mode)
        _sync(part, os.O_RDWR)
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":
        _sync(path.parent, os.O_RDONLY)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
    """Tensors, on the CPU; what was written beside them; and whether both have the digest of the file.

    Raises
    ------
    ValueError, OSError
        If the file is not one of `write_tensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            info = json.loads(metadata[_KEY])
            if not isinstance(info, dict):
                raise TypeError("its description is no JSON object")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(repr(error)) from error
    return tensors, info, metadata.get(_DIGEST) == _digest(metadata[_KEY], tensors)


def _digest(content: str, tensors: dict[str, Tensor]) -> str:
    return sha256((content + tensor_digest(sorted(tensors.items()))).encode()).hexdigest()


def _sync(path: Path, flags: int) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
