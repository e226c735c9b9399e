"""A distilled set as a folder that other programs can read: PNG files in class folders, a manifest, and a card."""

import glob
import io
import json
import os
import shutil
import uuid
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from ..distill._summary import synthetic_images_of
from ..utils._pictures import to_8_bit, to_png
from ._card import card_of
from ._download import downloaded_set
from ._manifest import CARD, MANIFEST, is_image_name, manifest_digest, manifest_of, read_manifest, recorded_accuracies
from ._replace import check_place, check_target, remove_set


def save_distilled(distiller, directory, X_test=None, y_test=None, *, accuracies=None, overwrite=False):
    """Write a distilled set as a folder of 8-bit PNG files, from which probes can be trained elsewhere.

    It contains a folder for each class, ``manifest.json``, and a card with the images, ``README.md``. The folder only appears
    when it is complete. ``torchvision.datasets.ImageFolder``, ``datasets.load_dataset`` of Hugging Face, and
    :func:`~sklearn_clpdd.datasets.load_image_folder` can read it, too.

    Parameters
    ----------
    distiller : CLPDistiller or a baseline
        Fitted to images.
    directory : str or path
        Folder to create.
    X_test, y_test : images and labels, default=None
        Test samples; the accuracy of the distiller's probe on them is recorded.
    accuracies : dict of str to float in [0, 1], default=None
        Other accuracies to record, by the protocol with which they were measured.
    overwrite : bool, default=False
        Whether to replace an existing distilled set. Only a folder that contains exactly the unchanged files of its manifest is
        replaced. A folder with any other file, folder or link, or with a file that was changed, is refused and left unchanged.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder exists and is not replaced; the error names the files that do not belong to the set.
    NotFittedError, ValueError, TypeError
        If the distiller is not fitted, or was fitted to features; if an accuracy is not in [0, 1].
    OSError
        If the folder cannot be written; an existing one is then unchanged.

    See Also
    --------
    load_distilled : Reads the folder.

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
    images = synthetic_images_of(distiller)
    check_place(Path(directory))
    directory = Path(os.path.abspath(directory))
    check_target(directory, overwrite)
    measured = recorded_accuracies(distiller, X_test, y_test, accuracies)
    manifest = manifest_of(distiller, images, measured)
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
        card = card_of(directory.name, manifest).encode("utf-8")
        (partial / CARD).write_bytes(card)
        manifest["card"] = {"file": CARD, "sha256": sha256(card).hexdigest()}
        manifest["sha256"] = manifest_digest(manifest)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if directory.exists():
            os.rename(directory, old)
            listed = check_target(old, overwrite, directory)  # something may have been added in the meantime
        os.rename(partial, directory)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not os.path.lexists(directory):
            os.rename(old, directory)
        elif old.exists():
            raise FileExistsError(
                f"{directory} was created by another process while the set was being saved. The set was not saved, and the "
                f"previous folder is now {old}"
            ) from error
        raise
    if old.exists():
        remove_set(old, listed)
    return directory


def load_distilled(directory):
    """Read a distilled set that `save_distilled` has written, and check its images against its manifest.

    Parameters
    ----------
    directory : str or path
        Folder of the set; ``"hf:OWNER/NAME"`` or ``"hf:OWNER/NAME@REVISION"`` for one on the Hugging Face hub.

    Returns
    -------
    images : ndarray of shape (n_synthetic, height, width, 3), uint8
        The images, in the order in which they were learned.
    labels : ndarray of shape (n_synthetic,)
        Their classes, with the user's labels.
    manifest : dict
        Provenance: encoders and the digests of their weights, parameters, data, accuracies, versions.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, or contains no manifest.
    ValueError
        If the manifest was not written by `save_distilled`, or if images are missing or changed, or class folders contain other
        files.
    OSError
        If a set on the hub cannot be downloaded.

    Notes
    -----
    Only JSON and PNG files are read, by the names in the manifest, none of which leads out of the folder; but links inside it
    are followed, as those of the Hugging Face hub's cache. Nothing is unpickled.

    See Also
    --------
    save_distilled : Writes the folder; with an example.
    push_to_hub : Uploads it.
    """
    directory = downloaded_set(directory)
    if not (directory / MANIFEST).is_file():
        old = [str(path) for path in directory.parent.glob(f".{glob.escape(directory.name)}-*-old")]
        hint = f". A save that was killed has left the previous set in {', '.join(old)}; rename it" if old else ""
        raise FileNotFoundError(f"{directory} contains no {MANIFEST}; pass a folder that save_distilled has written{hint}")
    manifest, classes = read_manifest(directory / MANIFEST)
    entries = [(entry["file"], entry["sha256"], entry["class"]) for entry in manifest["images"]]
    contents = _checked_contents(directory, entries)
    images = [_decoded(content, manifest["image_shape"], entry[0]) for content, entry in zip(contents, entries, strict=True)]
    return np.stack(images), classes[[index for _, _, index in entries]], manifest


def _decoded(content: bytes, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An image, if it has the shape that the manifest says; otherwise it is not decoded."""
    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
        if picture.size != (shape[1], shape[0]):
            raise ValueError(f"its size is {picture.size[0]} × {picture.size[1]} px")
        return np.asarray(picture.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise ValueError(
            f"{name} is not a PNG file of {shape[1]} × {shape[0]} px, as the {MANIFEST} says ({type(error).__name__}: {error}); "
            "get a fresh copy of the folder"
        ) from error


def _checked_contents(directory: Path, entries: list[tuple[str, str, int]]) -> list[bytes]:
    """Contents of the files of a manifest, if all of them are unchanged and the class folders contain no others."""
    faults, contents = [], []
    for name, digest, _ in entries:
        file = directory / name
        if not is_image_name(name):
            faults.append(f"{name}: not a valid image name")
        elif len(os.fsencode(file.name)) > 255 or not file.is_file():
            faults.append(f"{name}: missing")
        else:
            contents.append(file.read_bytes())
            if sha256(contents[-1]).hexdigest() != digest:
                faults.append(f"{name}: changed")
    known = {name for name, _, _ in entries}
    present = {path.relative_to(directory).as_posix() for path in directory.glob("*/*") if path.is_file()}
    visible = (name for name in sorted(present - known) if not any(part.startswith(".") for part in Path(name).parts))
    faults += [f"{name}: not in the manifest" for name in visible]
    if faults:
        more = [f"… and {len(faults) - 10} more"] if len(faults) > 10 else []
        shown = "".join(f"\n  {line}" for line in [*faults[:10], *more])
        raise ValueError(
            f"{len(faults)} files of {directory} do not match its {MANIFEST}:{shown}\n"
            "Get a fresh copy of the folder; or, to use its images as they are, read it with load_image_folder"
        )
    return contents
