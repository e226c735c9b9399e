"""Image sets in folders of class folders."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils._warnings import warn

# Names of folders that hold a split of a data set, in any case.
SPLITS = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "dev", "eval"},
    "test": {"test", "testing"},
}
# What may follow them, as in train2017 and test_set.
_SUFFIX = re.compile(r"[-_ ]?(set|data|images|split|\d{4})$")
# Formats that Pillow knows by name, but that are not images, or that need another program to be read.
_NOT_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


def load_image_folder(root, split=None):
    """List the image files of a folder that contains one folder per class.

    No image is read; estimators decode the files when they need them. Links are followed, except those that lead back to a folder
    above them. A link to a missing file is listed, so that estimators report the file.

    Parameters
    ----------
    root : str or path
        ``root/<class name>/…/<image file>``, or ``root/<split>/<class name>/…/<image file>`` with ``split``.
    split : str, default=None
        Name of a split to read, in any case. ``"train"``, ``"val"`` and ``"test"`` also find their other usual names: training;
        valid, validation, dev and eval; testing.

    Returns
    -------
    paths : ndarray of shape (n_images,), str
        Files, sorted within each class.
    labels : ndarray of shape (n_images,), str
        Names of their class folders, sorted.

    Raises
    ------
    NotADirectoryError
        If ``root`` is not a folder.
    ValueError
        If it contains no class folders; if it contains splits and ``split`` is not given, or if it does not contain the given
        one; or if a class folder contains no image.
    OSError
        If a folder cannot be read.

    Warns
    -----
    UserWarning
        If files are passed over: hidden ones, those without the extension of an image that Pillow can read, and images that are
        in no class folder. One warning counts them by kind.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> from sklearn_clpdd.datasets import load_image_folder
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ["cat", "dog"]:
    ...         pathlib.Path(root, name).mkdir()
    ...         Image.new("RGB", (8, 8)).save(pathlib.Path(root, name, "0.png"))
    ...     paths, labels = load_image_folder(root)
    >>> labels
    array(['cat', 'dog'], dtype='<U3')
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder; pass one that contains a folder of images per class")
    root = _split_folder(root, split)
    known = _image_extensions()
    skipped: Counter[str] = Counter()
    files: dict[str, list[str]] = {}
    above = frozenset(_identity(folder) for folder in (root.resolve(), *root.resolve().parents))
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            files[child.name] = []
            for path, is_loop in _walk(str(child), above):
                kind = "link to a folder above it" if is_loop else _kind(path[len(str(child)) + 1 :], known)
                if kind and os.path.islink(path) and not os.path.exists(path):
                    kind = "link to nothing"
                skipped.update([kind] if kind else [])
                files[child.name] += [] if kind else [path]
        elif child.is_symlink() and not child.exists():
            skipped["link to nothing"] += 1
        else:
            skipped[_kind(child.name, known) or "image outside of the class folders"] += 1
    empty = [name for name, paths in files.items() if not paths]
    if not files or empty:
        seen = f"no images in {', '.join(empty[:10])}" if empty else "no folders in it"
        raise ValueError(f"{root} has to contain a folder of images per class; found {seen}")
    if skipped:
        kinds = ", ".join(f"{n} × {kind}" for kind, n in skipped.most_common())
        warn(f"{skipped.total()} entries of {root} are not listed: {kinds}")
    paths = np.array([path for members in files.values() for path in sorted(members)])
    return paths, np.repeat(list(files), [len(members) for members in files.values()])


def image_files(folder: Path) -> list[str]:
    """The image files below a folder, sorted; hidden ones are passed over."""
    known = _image_extensions()
    above = frozenset(_identity(parent) for parent in folder.resolve().parents)
    paths = (path for path, is_loop in _walk(str(folder), above) if not is_loop)
    return sorted(path for path in paths if _kind(os.path.relpath(path, folder), known) is None)


def splits_of(root: Path) -> dict[str, str]:
    """Kinds of the splits in a folder, by their names; {} if its folders are classes."""
    folders = _folders(root)
    kinds = {folder: kind for folder in folders if (kind := split_kind(folder.name))}
    # Beside splits, a folder of another name (annotations, for example) is no class either.
    are_splits = kinds and (len(kinds) == len(folders) or all(map(_holds_classes, kinds)))
    return {folder.name: kind for folder, kind in kinds.items()} if are_splits else {}


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _split_folder(root: Path, split: str | None) -> Path:
    """The folder of a split; the root itself if its folders are classes."""
    if split is None:
        if kinds := splits_of(root):
            names = list(kinds)
            one = next((name for name, kind in kinds.items() if kind == "train"), names[0])
            raise ValueError(f"{root} contains the splits {names}, not classes; pass split= one of them, such as {one!r}")
        return root
    split, folders = str(split), _folders(root)
    named = [folder for folder in folders if folder.name == split] or [
        folder for folder in folders if split.casefold() in (folder.name.casefold(), split_kind(folder.name))
    ]
    if len(named) != 1:
        seen = [folder.name for folder in named or folders][:10]
        raise ValueError(f"split={split!r} {'is ambiguous' if named else 'is no folder'} in {root}; pass one of {seen}")
    return named[0]


def split_kind(name: str) -> str | None:
    """The split that a folder's name stands for; ``None`` for others."""
    word = _SUFFIX.sub("", name.casefold())
    return next((kind for kind, names in SPLITS.items() if word in names), None)


def _holds_classes(folder: Path) -> bool:
    """Whether a folder contains no image, but a folder that does."""
    known = _image_extensions()
    children = [child for child in folder.iterdir() if not child.name.startswith(".")]
    if any(_kind(child.name, known) is None and not child.is_dir() for child in children):
        return False
    inner = (one for child in children if child.is_dir() for one in child.iterdir())
    return any(_kind(one.name, known) is None for one in inner)


def _image_extensions() -> set[str]:
    extensions = Image.registered_extensions()
    return {suffix for suffix, kind in extensions.items() if kind in Image.OPEN and kind not in _NOT_IMAGES}


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _walk(folder: str, above: frozenset) -> Iterator[tuple[str, bool]]:
    """Files and dangling links below a folder, and (with True) links to a folder above themselves, which are not followed."""
    own = _identity(folder)
    if own in above:
        yield folder, True
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            # Not `entry.is_dir()`, which raises for a link to itself; a file costs no further look at the disk.
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                yield from _walk(entry.path, above | {own})
            else:
                yield entry.path, False


def _kind(path: str, known: set[str]) -> str | None:
    """Why a file is not listed; ``None`` for an image."""
    if any(part.startswith(".") for part in path.split(os.sep)):
        return "hidden"
    suffix = os.path.splitext(path)[1].lower()
    return None if suffix in known else suffix or "no extension"
