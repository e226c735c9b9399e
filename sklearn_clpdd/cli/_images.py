"""The images of a folder, for training and for the test."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from ..datasets import load_image_folder
from ..datasets._folders import splits_of


@dataclass(frozen=True)
class Images:
    """Paths and labels of image files."""

    X: np.ndarray
    y: np.ndarray
    source: str  # in words

    def __len__(self):
        return len(self.X)


def read_folder(folder: Path, test: Path | None, test_size: float, seed: int) -> tuple[Images, Images | None]:
    """Training and test images of a folder.

    Parameters
    ----------
    folder : Path
        Of classes, or of a train folder and a test or validation folder of classes.
    test : Path or None
        Another folder of test images.
    test_size : float
        Share of the images that is held out for the test if there is no folder of test images; 0: there is no test.
    seed : int
        Seed of what is held out.

    Raises
    ------
    ValueError, OSError
        If a folder is none of images, or the classes differ.
    """
    splits = splits_of(folder) if folder.is_dir() else {}
    names = [name for name, kind in splits.items() if kind == "train"]
    if splits and len(names) != 1:
        raise ValueError(
            f"{folder} has the folders {', '.join(splits)}, and {'none' if not names else 'more than one'} of them is for "
            "training; pass one of them, and another one as --test"
        )
    everything = _read(folder, names[0] if names else None)
    if test is not None:
        return everything, _checked(everything, _read(test, None))
    others = [name for kind in ("test", "val") for name, own in splits.items() if own == kind]
    if others:
        return everything, _checked(everything, _first_with_classes(folder, others))
    if not test_size:
        return everything, None
    few = [str(label) for label, n in zip(*np.unique(everything.y, return_counts=True), strict=True) if n < 2]
    if few:
        raise ValueError(
            f"{', '.join(few[:10])} of {everything.source} {'have' if len(few) > 1 else 'has'} one image only, so that none can "
            "be held out for the test; pass --test-size 0, or --test"
        )
    X, X_test, y, y_test = train_test_split(
        everything.X, everything.y, test_size=test_size, stratify=everything.y, random_state=seed
    )
    held_out = f"{test_size:.0%} of {everything.source}, held out"
    return Images(X, y, f"the rest of {everything.source}"), Images(X_test, y_test, held_out)


def _read(folder: Path, split: str | None) -> Images:
    X, y = load_image_folder(folder, split)
    return Images(X, y, str(folder if split is None else folder / split))


def _first_with_classes(folder: Path, names: list[str]) -> Images:
    """The images of the first of some splits that has class folders; often the images of a test folder have no labels."""
    *first, last = names
    for name in first:
        with suppress(ValueError):
            return _read(folder, name)
    return _read(folder, last)


def _checked(train: Images, test: Images) -> Images:
    """The test images, if they have no other classes than the training images, and are not these."""
    known = set(map(os.path.realpath, train.X))
    n_known = sum(os.path.realpath(path) in known for path in test.X)
    if n_known:
        raise ValueError(
            f"{n_known:,} of the {len(test):,} images of {test.source} are training images, too; pass others as --test"
        )
    others = np.setdiff1d(test.y, train.y)
    if len(others):
        raise ValueError(
            f"{test.source} has classes that {train.source} does not have: {', '.join(map(str, others[:10]))}; the class folders "
            "of both need the same names"
        )
    return test
