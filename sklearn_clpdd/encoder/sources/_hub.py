"""Errors of downloads, and of libraries that are not installed."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
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


def from_hub(name: str, load: Callable[[], T], advice: str = "", what: str = "pretrained weights") -> T:
    """The result of a call that may read a hub.

    Raises
    ------
    ValueError
        If what is there does not fit.
    OSError
        If the hub cannot be reached, or refuses.
    """
    try:
        return load()
    except Exception as error:  # the hub's client, its transport and its cache raise errors of many types
        cause = next((one for one in _causes(error) if isinstance(one, OSError)), None)
        if cause is None:
            raise ValueError(
                f"the {what} of {name!r} cannot be used: {type(error).__name__}: {error}. {_ways_out(what)}"
            ) from error
        kind = type(cause).__name__
        gated = "Gated" in kind or any(code in str(cause) for code in ("401 Client", "403 Client", "gated repo"))
        raise OSError(
            f"the {what} of {name!r} could not be downloaded ({kind}: {cause}). "
            + ("Accept its conditions on its page on the hub, and log in with `hf auth login` or HF_TOKEN. " if gated else "")
            + _ways_out(what, advice)
        ) from error


def _ways_out(what: str, advice: str = "") -> str:
    if what != "pretrained weights":
        return "Check the name and model_kwargs="
    return f"Pass weights= a local checkpoint{advice}; weights=None builds it untrained"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_folder(name: str, path: str, accepted: str) -> None:
    """Raise if a name is that of a folder which does not exist.

    Raises
    ------
    FileNotFoundError
        If that is so.
    """
    if path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().exists():
        raise FileNotFoundError(f"{name!r} names a folder that does not exist; pass {accepted}")


def unknown(name: str, rest: str, known: Iterable[str], accepted: str) -> ValueError:
    """The error for a name that a library does not have."""
    near = difflib.get_close_matches(rest, sorted(set(known)), n=5)
    return ValueError(f"unknown encoder {name!r}; {f'did you mean one of {near}? ' if near else ''}Known are {accepted}")
