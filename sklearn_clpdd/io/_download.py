"""Sets and probes on the Hugging Face hub: ``hf:OWNER/NAME``."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ._manifest import MANIFEST, is_image_name, read_manifest

PREFIX = "hf:"
# Name of a probe in its repository.
PROBE_FILE = "probe.safetensors"


class Repository(NamedTuple):
    """A repository of the hub, and one of its revisions."""

    repo_id: str
    revision: str | None


def repository(name: str | os.PathLike) -> Repository | None:
    """The repository that a name stands for; None for a path.

    Raises
    ------
    ValueError
        If it begins with ``hf:`` and has another form.
    """
    text = os.fspath(name)
    if not text.startswith(PREFIX):
        return None
    repo_id, _, revision = text.removeprefix(PREFIX).partition("@")
    if len([part for part in repo_id.split("/") if part]) != 2 or repo_id.count("/") != 1:
        raise ValueError(f"{text!r} is not of the form 'hf:OWNER/NAME' or 'hf:OWNER/NAME@REVISION'")
    return Repository(repo_id, revision or None)


def downloaded_file(path: str | os.PathLike, file: str) -> Path:
    """A path, or the downloaded file of a model repository."""
    found = repository(path)
    if found is None:
        return Path(path)
    from huggingface_hub import hf_hub_download

    with hub_errors(f"{os.fspath(path)!r} could not be downloaded"):
        return Path(hf_hub_download(found.repo_id, file, revision=found.revision))


def downloaded_set(directory: str | os.PathLike) -> Path:
    """A path, or the downloaded folder of a data set repository: its manifest and its images."""
    found = repository(directory)
    if found is None:
        return Path(directory)
    from huggingface_hub import hf_hub_download, snapshot_download

    what = f"{os.fspath(directory)!r} could not be downloaded"
    where: dict[str, Any] = {"repo_id": found.repo_id, "repo_type": "dataset", "revision": found.revision}
    with hub_errors(what):
        local = Path(hf_hub_download(filename=MANIFEST, **where))
    listed = [entry["file"] for entry in read_manifest(local)[0]["images"] if is_image_name(entry["file"])]
    with hub_errors(what):
        return Path(snapshot_download(allow_patterns=[MANIFEST, *map(glob.escape, listed)], **where))


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Errors of the hub's client as OSErrors that say what to do."""
    try:
        yield
    except FileExistsError:  # of this library
        raise
    except Exception as error:  # the client and its transport raise errors of many types
        raise OSError(
            f"{what} ({type(error).__name__}: {error}). Check the name and the network; `hf auth login` or HF_TOKEN gives access "
            "to what is private, and the right to write"
        ) from error
