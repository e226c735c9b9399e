"""Where networks come from: one file for each library, and one entry in `SOURCES`.

========================= ==========================================================================================
file                      what it holds
========================= ==========================================================================================
``_timm.py``              timm's names, its folders on the hub and on disk, the short names of this library, and modules
``_transformers.py``      ``transformers:``, and model objects
``_open_clip.py``         ``open_clip:``, and model objects
``_torchvision.py``       ``torchvision:``, and modules
``_network.py``           what a source returns, and how tokens become features: ``pool`` and ``layers``
``_names.py``             names that need more than timm's configuration; add one here
``_hub.py``               errors of downloads and of missing packages
========================= ==========================================================================================

Each of the first four files ends with its `Source`.
"""

from pathlib import Path
from typing import Any

from torch import nn

from ._network import Network, Source, TokenNetwork, name_of, pooled
from ._open_clip import OPEN_CLIP
from ._timm import TIMM
from ._torchvision import TORCHVISION
from ._transformers import TRANSFORMERS

__all__ = ["TORCHVISION", "Network", "TokenNetwork", "create", "local_files", "name_of", "pooled", "source_of", "without_path"]

# A name belongs to the first source whose prefix it has; timm's is empty.
SOURCES: list[Source] = [TRANSFORMERS, OPEN_CLIP, TORCHVISION, TIMM]


def create(name: str, weights: Any, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none; ``options`` are for the function that builds it."""
    source = next(source for source in SOURCES if name.startswith(source.prefix))
    return source.create(name, weights, image_size, options)


def local_files(name: str) -> tuple:
    """Path, size and time of each local file that a name stands for, so that changes are noticed."""
    rest = name.partition(":")[2]
    if not rest:
        return ()
    paths = {Path(path).expanduser() for path in (rest, rest.partition(":")[2], rest.partition("/")[2]) if path}
    files = [file for path in paths if path.exists() for file in ([path] if path.is_file() else path.iterdir()) if file.is_file()]
    return tuple(sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def without_path(name: str) -> str:
    """A name; for one that stands for local files, their name without their place on this machine."""
    prefix, _, rest = name.partition(":")
    inner = rest.partition(":")[2] if rest.startswith("local-dir:") else rest.partition("/")[2]
    path = {"local-dir": rest, "transformers": rest, "open_clip": inner}.get(prefix, "")
    return f"{prefix}:…/{Path(path).name}" if path and Path(path).expanduser().exists() else name


def source_of(module: nn.Module) -> Source | None:
    """The source of a library's own module; None for a user's, such as one whose ``forward`` was replaced."""
    if "forward" in vars(module):
        return None
    return next((source for source in SOURCES if source.owns(module)), None)
