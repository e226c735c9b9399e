"""Replacing a distilled set without touching any other file."""

import json
import os
from hashlib import sha256
from pathlib import Path

from ..utils._warnings import warn
from ._download import PREFIX
from ._manifest import CARD, FORMAT, MANIFEST, is_image_name, manifest_digest


def check_place(path: Path) -> None:
    """Raise if nothing can be written to a path, before any long work.

    Raises
    ------
    ValueError
        If it is a name on the hub.
    OSError
        If the nearest folder that exists is none, or cannot be written.
    """
    if str(path).startswith(PREFIX):
        raise ValueError(f"{path} is a name on the hub; save to a path of this machine, and upload that with push_to_hub")
    parent = next(one for one in Path(os.path.abspath(path)).parents if os.path.lexists(one))
    if not parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written, because {parent} is no folder; pass another path")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written, because {parent} is read-only; pass another path")


def check_target(directory: Path, overwrite: bool, shown_as: Path | None = None) -> dict[str, str]:
    """Return the files of the distilled set at a path, {} if the path is free; raise if it may not be replaced.

    The error calls the path ``shown_as``, if that is given.
    """
    check_place(directory)
    if not os.path.lexists(directory) or (directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())):
        return {}
    listed = _listed_files(directory)
    if directory.is_symlink():
        what = f"is a link to {os.readlink(directory)}; pass the folder itself, or a path"
    elif listed is None:
        what = "exists, and is not a distilled set. Pass a path"
    elif not overwrite:
        what = "exists; overwrite=True replaces it. Pass a path"
    elif faults := _faults(directory, listed):
        more = f" … and {len(faults) - 10} more" if len(faults) > 10 else ""
        shown = ", ".join(faults[:10])
        what = f"exists, and contains files that do not match its manifest: {shown}{more}. Pass a path"
    else:
        return listed
    raise FileExistsError(f"{shown_as or directory} {what} that does not exist yet")


def remove_set(directory: Path, listed: dict[str, str]) -> None:
    """Remove the files of a distilled set that are unchanged, and its folders if nothing else is in them."""
    try:
        for name, digest in listed.items():
            path = directory / name
            if path.is_file() and _digest_of_file(path) == digest:
                path.unlink()
        folders = {(directory / name).parent for name in listed if "/" in name}
        for folder in [*filter(Path.exists, folders), directory]:
            folder.rmdir()
    except OSError as error:
        warn(f"the new set was saved, but the previous one could not be removed completely from {directory}: {error}")


def _faults(directory: Path, listed: dict[str, str]) -> list[str]:
    """Everything in the folder of a distilled set that does not belong to it, or was changed."""
    faults, folders = [], {str(Path(name).parent) for name in listed}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            faults.append(f"{name} (a link)")
        elif path.is_dir():
            faults += [] if name in folders else [f"{name} (a folder)"]
        elif name not in listed or not path.is_file():  # or a device or a pipe
            faults.append(name)
        elif _digest_of_file(path) != listed[name]:
            faults.append(f"{name} (changed)")
    return faults


def _listed_files(directory: Path) -> dict[str, str] | None:
    """Files of a distilled set and their digests, from its manifest; None if it has no manifest."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        files = {entry["file"]: entry["sha256"] for entry in manifest["images"]}
        card, digest = manifest["card"]["sha256"], manifest["sha256"]
        if not all(map(is_image_name, files)):
            return None
        return files | {CARD: card, MANIFEST: digest}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _digest_of_file(path: Path) -> str:
    """SHA-256 of a file; for a manifest, the digest of its content."""
    content = path.read_bytes()
    if path.name != MANIFEST:
        return sha256(content).hexdigest()
    return manifest_digest(json.loads(content))
