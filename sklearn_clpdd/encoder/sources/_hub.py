"""Errors of downloads, and of libraries that are not installed."""

import difflib
import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def imported(package: str, extra: str, name: str) -> ModuleType:
    """A package that an extra of this library installs.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f'{name!r} needs {package}; install it with pip install "sklearn-clpdd[{extra}]"') from error


def from_hub(name: str, load: Callable[[], T], advice: str = "") -> T:
    """The result of a call that may read a hub.

    Raises
    ------
    ValueError
        If the weights do not exist or do not fit.
    OSError
        If the hub cannot be reached, or refuses.
    """
    try:
        return load()
    except Exception as error:  # the hub's client, its transport and its cache raise errors of many types
        kind = type(error).__name__
        if isinstance(error, RuntimeError | TypeError | ValueError) and not isinstance(error, OSError):
            raise ValueError(
                f"{name!r} cannot be loaded with pretrained weights: {error}. Pass weights= a local checkpoint, or weights=None "
                "for an untrained network"
            ) from error
        gated = "Gated" in kind or any(code in str(error) for code in ("401 Client", "403 Client", "gated repo"))
        raise OSError(
            f"the pretrained weights of {name!r} could not be downloaded ({kind}: {error}). "
            + ("Accept its conditions on its page on the hub, and log in with `hf auth login` or HF_TOKEN. " if gated else "")
            + f"Without a network, pass weights= a local checkpoint{advice}; weights=None builds it untrained"
        ) from error


def unknown(name: str, rest: str, known: Iterable[str], accepted: str) -> ValueError:
    """The error for a name that a library does not have."""
    near = difflib.get_close_matches(rest, sorted(set(known)), n=5)
    return ValueError(f"unknown encoder {name!r}; {f'did you mean one of {near}? ' if near else ''}Known are {accepted}")
