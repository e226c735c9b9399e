"""Image folders as people have them: splits, links, other files."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from sklearn_clpdd import FrozenEncoder
from sklearn_clpdd.datasets import load_image_folder


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes with one image each."""
    for name in ("cat", "dog"):
        image(tmp_path / "root" / name / "0.png")
    return tmp_path / "root"


@pytest.fixture
def silent():
    """Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SPLITS = [
    ("train", "val", "test"),
    ("train", "valid"),
    ("TRAIN", "Validation", "test"),
    ("training", "testing"),
    ("Train", "Test"),
    ("train", "dev"),
    ("train", "eval"),
    ("test",),
    ("train", "val", "annotations"),
]


@pytest.mark.parametrize("names", SPLITS)
def test_splits_are_refused_and_read(tmp_path, names, silent):
    for i, name in enumerate(names):
        for label in ("cat", "dog"):
            for j in range(i + 1):
                image(tmp_path / name / label / f"{j}.png")
    one = next((name for name in names if name.casefold().startswith("train")), names[0])
    with pytest.raises(ValueError, match=f"contains the splits .* such as '{one}'"):
        load_image_folder(tmp_path)
    for i, name in enumerate(names):
        for asked in (name, name.upper()):
            paths, labels = load_image_folder(tmp_path, split=asked)
            assert labels.tolist() == ["cat"] * (i + 1) + ["dog"] * (i + 1)
            assert all(path.startswith(str(tmp_path / name)) for path in paths)


@pytest.mark.parametrize(
    ("asked", "found"), [("train", "Training"), ("val", "dev"), ("validation", None), ("test", "testing"), ("holdout", None)]
)
def test_the_usual_names_find_other_usual_names(tmp_path, asked, found):
    for name in ("Training", "dev", "testing"):
        image(tmp_path / name / "cat" / "0.png")
    if found is None:
        with pytest.raises(ValueError, match=rf"split='{asked}' is no folder .*\['Training', 'dev', 'testing'\]"):
            load_image_folder(tmp_path, split=asked)
    else:
        assert f"/{found}/" in load_image_folder(tmp_path, split=asked)[0][0]


def test_an_ambiguous_split(tmp_path):
    for name in ("dev", "valid"):
        image(tmp_path / name / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"split='val' is ambiguous .*'dev', 'valid'"):
        load_image_folder(tmp_path, split="val")
    assert len(load_image_folder(tmp_path, split="valid")[0]) == 1


def test_a_class_may_be_called_train(tmp_path, silent):
    for name in ("train", "bus", "test"):
        image(tmp_path / name / "0.png")
    assert load_image_folder(tmp_path)[1].tolist() == ["bus", "test", "train"]


def test_links_are_followed_and_loops_are_not(root, tmp_path):
    for i in range(5):
        image(tmp_path / "store" / "session" / f"{i}.png")
    image(tmp_path / "store" / "bird" / "0.png")
    (root / "cat" / "session").symlink_to(tmp_path / "store" / "session")
    (root / "cat" / "again").symlink_to(tmp_path / "store" / "session")
    (root / "bird").symlink_to(tmp_path / "store" / "bird")
    (root / "cat" / "up").symlink_to(root)
    (tmp_path / "store" / "session" / "self").symlink_to(tmp_path / "store" / "session")
    with pytest.warns(UserWarning, match="link to a folder above it"):
        paths, labels = load_image_folder(root)
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    assert counts["bird"] == 1
    assert counts["dog"] == 1
    assert sum("/cat/session/" in path for path in paths) == sum("/cat/again/" in path for path in paths) == 5


def test_a_dangling_link_is_a_missing_file(root, tmp_path, silent):
    (root / "dog" / "7.png").symlink_to(tmp_path / "not-mounted" / "7.png")
    paths, labels = load_image_folder(root)
    assert labels.tolist() == ["cat", "dog", "dog"]
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images[^\n]*\n.*dog/7.png: no such file"):
        FrozenEncoder(weights=None, image_size=32).transform(paths)


def test_one_warning_counts_what_is_passed_over(root, tmp_path):
    for name in (
        "cat/notes.txt",
        "cat/more.txt",
        "dog/licence.pdf",
        "dog/.DS_Store",
        "dog/.hidden/0.png",
        "README",
        "dog/clip.mpg",
    ):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%PDF")
    image(root / "stray.png")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="9 entries of .* are not listed") as caught:
        paths, _ = load_image_folder(root)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    for words in (
        "2 × .txt",
        "2 × hidden",
        "1 × .pdf",
        "1 × .mpg",
        "1 × no extension",
        "outside of the class folders",
        "to nothing",
    ):
        assert words in text
    assert [os.path.basename(path) for path in paths] == ["0.png", "0.png"]


def test_nothing_is_said_about_a_plain_folder(root, silent):
    assert len(load_image_folder(root)[0]) == 2


def test_a_folder_that_cannot_be_read_is_an_error(root, monkeypatch):
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (root / "cat" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        load_image_folder(root)


def test_what_is_no_file_is_named_before_the_work(root):
    os.mkfifo(root / "cat" / "pipe.png")
    paths = [*map(str, sorted((root / "cat").iterdir())), str(root / "dog"), "zero\0byte.png"]
    with pytest.raises(
        ValueError, match=r"(?s)3 of 4 images.*pipe.png: a device or a pipe.*dog: a folder, not a file.*null (byte|character)"
    ):
        FrozenEncoder(weights=None, image_size=32).transform(paths)


def test_links_to_the_root_are_not_followed(root):
    (root / "cat" / "all").symlink_to(root)
    (root / "cat" / "self").symlink_to("self")
    with pytest.warns(UserWarning, match="link to a folder above it"):
        assert load_image_folder(root)[1].tolist() == ["cat", "dog"]
    (root / "everything").symlink_to(root)
    with pytest.raises(ValueError, match="no images in everything"):
        load_image_folder(root)


def test_splits_beside_other_files_and_folders(tmp_path):
    for name in ("train2017", "val2017", "misc"):
        image(tmp_path / name / "cat" / "0.png")
    (tmp_path / "train2017" / "README.txt").write_text("about")
    with pytest.raises(ValueError, match="contains the splits"):
        load_image_folder(tmp_path)
    assert len(load_image_folder(tmp_path, split="val")[0]) == 1
