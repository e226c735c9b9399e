"""The manifest of a distilled set: where it comes from, and which files it has."""

import json
import re
import unicodedata
from collections.abc import Mapping
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_scalar

from ..datasets._folders import split_kind
from ..distill._summary import provenance_of
from ..utils._arrays import check_samples_and_labels
from ..utils._labels import label_text, labels_from_json, labels_to_json

FORMAT = "sklearn-clpdd distilled set"
VERSION = 1
MANIFEST, CARD = "manifest.json", "README.md"

# Longest part of a folder's name that comes from the class, in bytes.
_MAX_NAME_BYTES = 200
# Characters that some file systems do not allow.
_UNSAFE = re.compile(r'[\\/:*?"<>|%\x00-\x1f]')
# Names that Windows reserves for devices.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def manifest_of(distiller, images: np.ndarray, accuracies: list[dict[str, Any]]) -> dict[str, Any]:
    """Manifest of a distilled set, but for the digests of its files."""
    folders = class_folders(distiller.classes_)
    codes = np.searchsorted(distiller.classes_, distiller.y_synthetic_)
    width = max(5, len(str(len(images))))
    manifest = {
        "format": FORMAT,
        "format_version": VERSION,
        **provenance_of(distiller),
        "accuracies": accuracies,
        "image_shape": list(images.shape[1:]),
        "label_dtype": "object" if distiller.classes_.dtype == object else distiller.classes_.dtype.str,
        "classes": [
            {"label": label, "folder": folder} for label, folder in zip(labels_to_json(distiller.classes_), folders, strict=True)
        ],
        "images": [{"file": f"{folders[c]}/{i:0{width}}.png", "class": int(c)} for i, c in enumerate(codes)],
    }
    if not np.array_equal(distiller.targets_, np.eye(len(folders))[codes]):
        manifest["targets"] = distiller.targets_.tolist()
    return manifest


def read_manifest(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """A manifest whose images and image shape are valid, and the labels of its classes.

    Raises
    ------
    ValueError
        If they are not, or a later version of the library has written them.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise TypeError(f"its format is {manifest['format']!r}, not {FORMAT!r}")
        if type(manifest["format_version"]) is not int or manifest["format_version"] < 1:
            raise TypeError(f"its version is {manifest['format_version']!r}")
        if manifest["format_version"] <= VERSION:
            return manifest, _checked_classes(manifest)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} is not a manifest of save_distilled ({type(error).__name__}: {error}); pass a folder that it has written"
        ) from error
    raise ValueError(
        f"{path} has format {manifest['format_version']}, and this version of the library supports up to {VERSION}; "
        "upgrade the library"
    )


def _checked_classes(manifest: dict[str, Any]) -> np.ndarray:
    """Labels of the classes of a manifest whose images are valid."""
    shape, n_classes = manifest["image_shape"], len(manifest["classes"])
    if not (isinstance(shape, list) and len(shape) == 3 and shape[2] == 3 and all(type(one) is int and one > 0 for one in shape)):
        raise TypeError(f"image_shape is {shape!r}")
    if len({entry["file"] for entry in manifest["images"]}) < len(manifest["images"]):
        raise TypeError("it lists a file twice")
    if manifest.get("sha256", digest := manifest_digest(manifest)) != digest:
        raise ValueError("it was changed, and no longer has its digest")
    if not manifest["images"]:
        raise TypeError("it lists no images")
    for entry in manifest["images"]:
        if not (isinstance(entry["file"], str) and isinstance(entry["sha256"], str)):
            raise TypeError(f"{entry} is not an image and its digest")
        if not (type(entry["class"]) is int and 0 <= entry["class"] < n_classes):
            raise IndexError(f"class {entry['class']!r} of {entry['file']!r} is not one of the {n_classes} classes")
    return labels_from_json([entry["label"] for entry in manifest["classes"]], manifest["label_dtype"])


def recorded_accuracies(distiller, X_test, y_test, others) -> list[dict[str, Any]]:
    """Accuracies on test samples and on held-out samples, and those that the user passes."""
    if others is not None and not isinstance(others, Mapping):
        raise TypeError(f"accuracies has to be a dict from protocols to numbers; got {others!r}")
    others = {} if others is None else others
    for protocol, accuracy in others.items():
        check_scalar(accuracy, f"accuracies[{protocol!r}]", Real, min_val=0, max_val=1)
        if accuracy != accuracy:
            raise ValueError(f"accuracies[{protocol!r}] is NaN; pass a number in [0, 1]")
    recorded = []
    check_samples_and_labels("X_test and y_test", X_test, y_test)
    if X_test is not None:
        accuracy = distiller.score(X_test, y_test)
        recorded.append({"protocol": "closed-form probe, test samples", "accuracy": accuracy, "n_samples": np.shape(y_test)[0]})
    held_out = getattr(distiller, "val_accuracy_", None)
    if held_out is not None:
        recorded.append({"protocol": "closed-form probe, held-out training samples", "accuracy": held_out})
    return recorded + [{"protocol": str(protocol), "accuracy": float(accuracy)} for protocol, accuracy in others.items()]


def class_folders(classes: np.ndarray) -> list[str]:
    """Names of the class folders, which sort like the classes, because readers of image folders number them in that order."""
    if classes.dtype.kind in "iu" and classes.min() >= 0:
        width = len(str(classes.max()))
        return [f"{label:0{width}}" for label in classes.tolist()]
    names = [_UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", label_text(label)) for label in classes]
    unsafe = all(map(split_kind, names)) or any(
        name.casefold() in (CARD.casefold(), MANIFEST)
        or name[:1] in (".", "_", "")
        or name[-1:] in (".", " ")
        or _DEVICES.fullmatch(name)
        for name in names
    )
    alike = {unicodedata.normalize("NFC", name).casefold() for name in names}
    long = max(len(name.encode()) for name in names) > _MAX_NAME_BYTES
    if unsafe or long or len(alike) < len(names) or names != sorted(names):
        width = len(str(len(names) - 1))
        return [
            f"{i:0{width}} {name.encode()[:_MAX_NAME_BYTES].decode(errors='ignore')}".rstrip(". ") for i, name in enumerate(names)
        ]
    return names


def is_image_name(name: str) -> bool:
    """Whether a name in a manifest is that of an image of a class, inside the folder of the set."""
    return bool(re.fullmatch(r"[^/\\]+/[0-9]+\.png", name)) and not name.startswith("..") and ":" not in name


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own digest."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
