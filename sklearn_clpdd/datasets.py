"""Image sets: a folder of class folders, and scikit-learn's digits as images."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

# Names of folders that readers of image folders take for splits.
SPLITS = {"train", "val", "valid", "test"}
# Formats that Pillow knows by name, but that are not images, or that need another program to be read.
_NOT_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


def load_image_folder(root):
    """List the image files of a folder that contains one folder per class.

    No file is read; estimators decode the files when they need them.

    Parameters
    ----------
    root : str or path
        ``root/<class name>/…/<image file>``; files without the extension of an image that Pillow can read are ignored.

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
        If it contains no class folders, or splits instead of classes, or if a class folder contains no image.

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
    extensions = Image.registered_extensions()
    known = {suffix for suffix, kind in extensions.items() if kind in Image.OPEN and kind not in _NOT_IMAGES}
    files: dict[str, list[str]] = {}
    for folder in sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")):
        inside = (path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
        visible = (path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts))
        files[folder.name] = sorted(map(str, visible))
    if files and set(files) <= SPLITS:
        one = "train" if "train" in files else min(files)
        raise ValueError(f"{root} contains the splits {sorted(files)}, not classes; pass one of them, such as {root / one}")
    empty = [name for name, paths in files.items() if not paths]
    if not files or empty:
        seen = f"no images in {', '.join(empty[:10])}" if empty else "no folders in it"
        raise ValueError(f"{root} has to contain a folder of images per class; found {seen}")
    paths = np.array([path for members in files.values() for path in members])
    return paths, np.repeat(list(files), [len(members) for members in files.values()])


def load_digit_images():
    """The 1,797 handwritten digits bundled with scikit-learn, as images.

    Returns
    -------
    images : ndarray of shape (1797, 8, 8), float32
        Grey values in [0, 1].
    labels : ndarray of shape (1797,), int
        Digits 0 to 9.

    Examples
    --------
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> images, labels = load_digit_images()
    >>> images.shape, float(images.max())
    ((1797, 8, 8), 1.0)
    """
    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target
