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

from typing import Any

from torch import nn

from ._network import Network, Source, TokenNetwork, pooled
from ._open_clip import OPEN_CLIP
from ._timm import TIMM
from ._torchvision import TORCHVISION
from ._transformers import TRANSFORMERS

__all__ = ["TORCHVISION", "Network", "TokenNetwork", "create", "pooled", "source_of"]

# A name belongs to the first source whose prefix it has; timm's is empty.
SOURCES: list[Source] = [TRANSFORMERS, OPEN_CLIP, TORCHVISION, TIMM]


def create(name: str, weights: Any, image_size: int | None, options: dict[str, Any]) -> Network:
    """A network by name, with weights ``"auto"``, of a file, or none; ``options`` are for the function that builds it."""
    source = next(source for source in SOURCES if name.startswith(source.prefix))
    return source.create(name, weights, image_size, options)


def source_of(module: nn.Module) -> Source | None:
    """The source of a library's own module; None for a user's, such as one whose ``forward`` was replaced."""
    if "forward" in vars(module):
        return None
    return next((source for source in SOURCES if source.owns(module)), None)
