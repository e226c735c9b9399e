"""A distilled set as a folder that other programs read: PNG files in class folders, a manifest, and a card."""

import io
import json
import os
import re
import shutil
import unicodedata
import uuid
import warnings
from collections.abc import Mapping
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from sklearn.utils import check_scalar

from ._display import check_both, images_of
from ._pictures import evenly, to_8_bit, to_png
from ._provenance import held_out_accuracy, in_words, manifest_of

_FORMAT = "sklearn-clpdd distilled set"
_VERSION = 1
_MANIFEST, _CARD = "manifest.json", "README.md"
# Images on the card, at most.
_ON_CARD = 50
# Bytes of a class in the name of its folder, at most; what no name may hold everywhere; names that mean something else.
_LONGEST = 200
_UNSAFE = re.compile(r'[\\/:*?"<>|%\x00-\x1f]')
_SPLITS = {"train", "val", "valid", "test"}
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def save_distilled(distiller, directory, X_test=None, y_test=None, *, accuracies=None, overwrite=False):
    """Write a distilled set as a folder of 8-bit PNG files that trains probes elsewhere as it did here.

    There is a folder for each class, ``manifest.json``, and ``README.md``, a card with the pictures. The folder appears when it
    is whole. ``torchvision.datasets.ImageFolder``, ``datasets.load_dataset`` of Hugging Face, and
    :func:`~sklearn_clpdd.datasets.load_image_folder` read it as it is, too.

    Parameters
    ----------
    distiller : CLPDistiller or a baseline
        Fitted to images.
    directory : str or path
        Folder that is to be made.
    X_test, y_test : images and labels, default=None
        Test samples; the accuracy of the distiller's probe on them is noted.
    accuracies : dict of str to float in [0, 1], default=None
        Other accuracies to note, by the protocol that they were measured with.
    overwrite : bool, default=False
        Whether a distilled set that is there is replaced. Only files that its manifest lists, as they were written, are: a
        folder that holds any other file, folder or link, or a file that was changed since, is refused and left as it is.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If something is there, and it is not to be replaced: what it is, and which files are none of the set's.
    NotFittedError, ValueError, TypeError
        If the distiller is not fitted, or was fitted to features; an accuracy out of its range.
    OSError
        If the folder cannot be written; what was there is there still.

    See Also
    --------
    load_distilled : Reads it.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_clpdd import CLPDistiller, FrozenEncoder, load_distilled, save_distilled
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> X, y = load_digit_images()
    >>> distiller = CLPDistiller(FrozenEncoder(image_size=32), max_iter=3, random_state=0).fit(X[:50], y[:50])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images, labels, manifest = load_distilled(save_distilled(distiller, f"{folder}/digits"))
    >>> images.shape, labels[:3].tolist(), manifest["encoders"][0]["model"]
    ((10, 36, 36, 3), [0, 1, 2], 'tf_efficientnet_lite0')
    """
    images = images_of(distiller)
    directory = Path(os.path.abspath(directory))
    _check_target(directory, overwrite)
    measured = _accuracies(distiller, X_test, y_test, accuracies)
    manifest = _manifest(distiller, images, measured)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}-{uuid.uuid4().hex}"
    old, listed = partial.with_name(f"{partial.name}-old"), {}
    partial.mkdir()
    try:
        for entry, image in zip(manifest["images"], to_8_bit(images), strict=True):
            content = to_png(image)
            entry["sha256"] = sha256(content).hexdigest()
            path = partial / entry["file"]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        card = _card(distiller, directory.name, manifest).encode("utf-8")
        (partial / _CARD).write_bytes(card)
        manifest["card"] = {"file": _CARD, "sha256": sha256(card).hexdigest()}
        manifest["sha256"] = _digest(manifest)
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if directory.exists():
            os.rename(directory, old)
            listed = _check_target(old, overwrite, directory)  # somebody may have put something there in the meantime
        os.rename(partial, directory)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not os.path.lexists(directory):
            os.rename(old, directory)
        elif old.exists():
            raise FileExistsError(
                f"{directory} has come into being while the set was saved, which is not there; what was there before is in {old}"
            ) from error
        raise
    if old.exists():
        _remove_set(old, listed)
    return directory


def _remove_set(directory: Path, listed: dict[str, str]) -> None:
    """Remove the files of a distilled set as they were listed, and its folders as far as nothing else is in them."""
    try:
        for name, digest in listed.items():
            path = directory / name
            if path.is_file() and _digest_of_file(path) == digest:
                path.unlink()
        folders = {(directory / name).parent for name in listed if "/" in name}
        for folder in [*filter(Path.exists, folders), directory]:
            folder.rmdir()
    except OSError as error:
        warnings.warn(f"the new set is in its place; of the one before something is left in {directory}: {error}", stacklevel=3)


def _digest_of_file(path: Path) -> str:
    """Of a manifest that which it has of itself, as far as it is right."""
    content = path.read_bytes()
    if path.name != _MANIFEST:
        return sha256(content).hexdigest()
    return _digest(json.loads(content))


def _digest(manifest: dict[str, Any]) -> str:
    """Of all that a manifest says, but for this."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def load_distilled(directory):
    """Read a distilled set that `save_distilled` wrote, and check its images against its manifest.

    Parameters
    ----------
    directory : str or path
        The folder.

    Returns
    -------
    images : ndarray of shape (n_synthetic, height, width, 3), uint8
        The images, in the order in which they were learned.
    labels : ndarray of shape (n_synthetic,)
        Their classes, as the user had them.
    manifest : dict
        Where they come from: encoders and the digests of their weights, parameters, data, accuracies, versions.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no manifest in it.
    ValueError
        If the manifest is none of `save_distilled`; or its files are missing, changed, or more than it names.

    Notes
    -----
    Only JSON and PNG files are read, by the names that the manifest has, none of which leads out of the folder (links that it
    holds are followed). Nothing is unpickled.

    See Also
    --------
    save_distilled : Writes it; with an example.
    """
    directory = Path(directory)
    path = directory / _MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {_MANIFEST}; give a folder that save_distilled has written")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise KeyError("format")
        if manifest["format_version"] > _VERSION:
            raise ValueError(f"{path} has format {manifest['format_version']}, and this version knows {_VERSION}: upgrade it")
        entries = [(entry["file"], entry["sha256"], entry["class"]) for entry in manifest["images"]]
        if not entries:
            raise KeyError("images")
        classes = np.array([entry["label"] for entry in manifest["classes"]], dtype=manifest["label_dtype"])
        labels = classes[[index for _, _, index in entries]]
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no manifest of save_distilled ({type(error).__name__}: {error})") from error
    pictures = [Image.open(io.BytesIO(content), formats=["PNG"]) for content in _checked(directory, entries)]
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]), labels, manifest


def _checked(directory: Path, entries: list[tuple[str, str, int]]) -> list[bytes]:
    """Contents of a manifest's files, once all of them are what they were, and there are no others."""
    faults, contents = [], []
    for name, digest, _ in entries:
        file = directory / name
        if not _is_image_name(name):
            faults.append(f"{name}: no name of an image of a class")
        elif not file.is_file():
            faults.append(f"{name}: missing")
        else:
            contents.append(file.read_bytes())
            if sha256(contents[-1]).hexdigest() != digest:
                faults.append(f"{name}: changed")
    known = {name for name, _, _ in entries}
    there = {path.relative_to(directory).as_posix() for path in directory.glob("*/*") if path.is_file()}
    visible = (name for name in sorted(there - known) if not any(part.startswith(".") for part in Path(name).parts))
    faults += [f"{name}: not in the manifest" for name in visible]
    if faults:
        more = [f"… and {len(faults) - 10} more"] if len(faults) > 10 else []
        shown = "".join(f"\n  {line}" for line in [*faults[:10], *more])
        raise ValueError(
            f"{len(faults)} files of {directory} are not those of its {_MANIFEST}:{shown}\n"
            "Get the folder anew; or, to use its images as they are, read it with load_image_folder"
        )
    return contents


def _is_image_name(name: str) -> bool:
    """Whether it is that of an image of a class, in the folder of the set."""
    return bool(re.fullmatch(r"[^/\\]+/\d+\.png", name)) and not name.startswith("..") and ":" not in name


def _check_target(directory: Path, overwrite: bool, name: Path | None = None) -> dict[str, str]:
    """Raise unless there is nothing at a place, or a distilled set, whole and alone, that is to be replaced; its files."""
    if not os.path.lexists(directory) or (directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir())):
        return {}
    listed = _listed(directory)
    if directory.is_symlink():
        what = f"is a link to {os.readlink(directory)}; give the folder itself, or a path"
    elif listed is None:
        what = "is there, and no distilled set. Give a folder"
    elif not overwrite:
        what = "is there; overwrite=True replaces it. Give a folder"
    elif not listed[_MANIFEST]:
        what = "is there, a distilled set of an older version, which does not list all of its files. Remove it, or give a folder"
    elif faults := _faults(directory, listed):
        more = f" … and {len(faults) - 10} more" if len(faults) > 10 else ""
        shown = ", ".join(faults[:10])
        what = f"is there, and holds what is not as save_distilled wrote it: {shown}{more}. Give a folder"
    else:
        return listed
    raise FileExistsError(f"{name or directory} {what} that is not there yet")


def _faults(directory: Path, listed: dict[str, str]) -> list[str]:
    """What in the folder of a distilled set is none of it, or was changed."""
    faults, folders = [], {str(Path(name).parent) for name in listed}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            faults.append(f"{name} (a link)")
        elif path.is_dir():
            faults += [] if name in folders else [f"{name} (a folder)"]
        elif name not in listed:
            faults.append(name)
        elif _digest_of_file(path) != listed[name]:
            faults.append(f"{name} (changed)")
    return faults


def _listed(directory: Path) -> dict[str, str] | None:
    """Files of a distilled set and their digests, by its manifest; None where there is none."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            return None
        files = {entry["file"]: entry["sha256"] for entry in manifest["images"]}
        card, digest = manifest.get("card", {}).get("sha256", ""), manifest.get("sha256", "")
        if not all(map(_is_image_name, files)):
            return None
        return files | {_CARD: card, _MANIFEST: digest}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _accuracies(distiller, X_test, y_test, others) -> list[dict[str, Any]]:
    if others is not None and not isinstance(others, Mapping):
        raise TypeError(f"accuracies is a dict, of protocols to numbers; got {others!r}")
    others = {} if others is None else others
    for protocol, accuracy in others.items():
        check_scalar(accuracy, f"accuracies[{protocol!r}]", Real, min_val=0, max_val=1)
    noted = []
    check_both("X_test and y_test", X_test, y_test)
    if X_test is not None:
        accuracy = distiller.score(X_test, y_test)
        noted.append({"protocol": "closed-form probe, test samples", "accuracy": accuracy, "n_samples": len(y_test)})
    held_out = held_out_accuracy(distiller)
    if held_out is not None:
        noted.append({"protocol": "closed-form probe, held-out training samples", "accuracy": held_out})
    return noted + [{"protocol": str(protocol), "accuracy": float(accuracy)} for protocol, accuracy in others.items()]


def _manifest(distiller, images: np.ndarray, accuracies: list[dict[str, Any]]) -> dict[str, Any]:
    folders = class_folders(distiller.classes_)
    codes = np.searchsorted(distiller.classes_, distiller.y_synthetic_)
    width = max(5, len(str(len(images))))
    manifest = {
        "format": _FORMAT,
        "format_version": _VERSION,
        **manifest_of(distiller),
        "accuracies": accuracies,
        "image_shape": list(images.shape[1:]),
        "label_dtype": "object" if distiller.classes_.dtype == object else distiller.classes_.dtype.str,
        "classes": [
            {"label": label, "folder": folder} for label, folder in zip(distiller.classes_.tolist(), folders, strict=True)
        ],
        "images": [{"file": f"{folders[c]}/{i:0{width}}.png", "class": int(c)} for i, c in enumerate(codes)],
    }
    if not np.array_equal(distiller.targets_, np.eye(len(folders))[codes]):
        manifest["targets"] = distiller.targets_.tolist()
    return manifest


def class_folders(classes: np.ndarray) -> list[str]:
    """A folder name for each class, in whose sorted order readers of image folders number the classes as they are here."""
    labels = classes.tolist()
    if all(isinstance(label, int) and not isinstance(label, bool) and label >= 0 for label in labels):
        width = len(str(max(labels)))
        return [f"{label:0{width}}" for label in labels]
    spelled = (str(label).encode("utf-8", "backslashreplace").decode() for label in labels)
    names = [_UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", label) for label in spelled]
    unsafe = {name.casefold() for name in names} <= _SPLITS or any(
        name[:1] in (".", "_", "") or name[-1:] in (".", " ") or _DEVICES.fullmatch(name) for name in names
    )
    alike = {unicodedata.normalize("NFC", name).casefold() for name in names}
    long = max(len(name.encode()) for name in names) > _LONGEST
    if unsafe or long or len(alike) < len(names) or names != sorted(names):
        width = len(str(len(names) - 1))
        return [f"{i:0{width}} {name.encode()[:_LONGEST].decode(errors='ignore')}".rstrip(". ") for i, name in enumerate(names)]
    return names


def _card(distiller, name: str, manifest: dict[str, Any]) -> str:
    """README.md: what the set is, with its pictures, and how it is read."""
    entries = manifest["images"]
    labels = [manifest["classes"][entry["class"]]["label"] for entry in entries]
    rows = evenly(len(entries), _ON_CARD)
    pictures = [f"![{_cell(labels[i])}]({quote(entries[i]['file'])})<br>{_cell(labels[i])}" for i in rows]
    lines = [pictures[i : i + 5] for i in range(0, len(pictures), 5)]
    width = len(lines[0])
    lines[-1] += [""] * (width - len(lines[-1]))
    table = "\n".join(f"| {' | '.join(line)} |" for line in [[""] * width, ["---"] * width, *lines])
    more = f"\n\n{len(rows)} of {len(entries)} images." if len(rows) < len(entries) else ""
    accuracies = "\n".join(f"| {_cell(a['protocol'])} | {a['accuracy']:.3f} |" for a in manifest["accuracies"])
    scores = f"\n\n| protocol | accuracy |\n| --- | --- |\n{accuracies}" if accuracies else ""
    encoders = ", ".join(f"`{e['model']}` at {e['image_size']} px" for e in manifest["encoders"])
    data = manifest["data"]
    height, side = manifest["image_shape"][:2]
    n_real, n_classes = data["n_samples"], len(data["class_counts"])
    return f"""---
task_categories:
- image-classification
tags:
- dataset-distillation
- sklearn-clpdd
configs:
- config_name: default
  drop_labels: false
  data_files:
  - split: train
    path: "*/*.png"
---

# {name}

{len(entries)} synthetic images of {side} × {height} px that stand for {n_real} real ones of {n_classes} classes: a probe of a
frozen encoder that is trained on them classifies real images. {in_words(distiller)}.

{table}{more}{scores}

They were learned for {encoders}; `{_MANIFEST}` has the parameters, the versions, and digests of the weights, of the
real images and of these files.

## How to read it

```python
from sklearn_clpdd import ClosedFormProbe, FrozenEncoder, load_distilled
from sklearn.pipeline import make_pipeline

images, labels, manifest = load_distilled({name!r})  # checked against the manifest
probe = make_pipeline(FrozenEncoder(...), ClosedFormProbe(1.0, temperature=0.2)).fit(images, labels)
```

It is an image folder for others, too: `torchvision.datasets.ImageFolder({name!r})`, `datasets.load_dataset({name!r})`.
"""


def _cell(text: Any) -> str:
    """Text in a cell of a Markdown table."""
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", " ".join(str(text).split()))
