"""Saving a distilled set to a folder, and loading it."""

import json
import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import tiny_encoder
from PIL import Image
from sklearn.exceptions import NotFittedError

from sklearn_clpdd import CLPDistiller, FrozenEncoder, load_distilled, save_distilled
from sklearn_clpdd.baselines import NearestReals
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.io import _distilled_set
from sklearn_clpdd.io._manifest import class_folders, manifest_digest


@pytest.fixture(scope="module")
def fitted(request):
    colors = request.getfixturevalue("colors")
    folder = request.getfixturevalue("tmp_path_factory").mktemp("private")
    encoder = FrozenEncoder(tiny_encoder(), image_size=16, device="cpu", memory=folder)
    return CLPDistiller(encoder, images_per_class=2, max_iter=5, random_state=0, checkpoint=folder / "run").fit(*colors)


@pytest.fixture
def saved(fitted, tmp_path):
    return save_distilled(fitted, tmp_path / "set")


def test_round_trip_is_exact_in_8_bits(fitted, saved, colors):
    images, labels, manifest = load_distilled(saved)
    np.testing.assert_array_equal(images, np.rint(255 * fitted.X_synthetic_).astype(np.uint8))
    np.testing.assert_array_equal(labels, fitted.y_synthetic_)
    assert labels.dtype == fitted.y_synthetic_.dtype
    assert manifest == json.loads((saved / "manifest.json").read_text())


def test_the_manifest_has_the_provenance(fitted, saved, colors, tmp_path):
    manifest = load_distilled(saved)[2]
    assert manifest["method"] == "CLPDistiller"
    assert (manifest["parameters"]["random_state"], manifest["parameters"]["images_per_class"]) == (0, 2)
    assert manifest["fitted"]["n_iter"] == 5
    (encoder,) = manifest["encoders"]
    assert (encoder["model"], encoder["image_size"]) == ("Sequential", 16)
    assert encoder["weights_sha256"] == FrozenEncoder(tiny_encoder(), image_size=12).load().backbone.weights_sha256
    assert manifest["data"]["class_counts"] == [30, 20, 10]
    assert manifest["versions"].keys() == {"python", "sklearn-clpdd", "torch", "timm", "scikit-learn", "numpy"}
    text = (saved / "manifest.json").read_text()
    assert not {"memory", "checkpoint", "device", "encoder", "callback"} & manifest["parameters"].keys()
    assert str(tmp_path.parent) not in text  # nothing specific to this machine; cache and checkpoint are in this folder
    assert "private" not in text


def test_nearest_reals_refer_to_their_distiller(colors, module, tmp_path):
    encoder = FrozenEncoder(module, image_size=16, device="cpu", memory=tmp_path / "private")
    nearest = NearestReals(CLPDistiller(encoder, max_iter=3, random_state=0)).fit(*colors)
    folder = save_distilled(nearest, tmp_path / "set")
    own = load_distilled(folder)[2]["parameters"]["distiller"]
    assert (own["method"], own["max_iter"], "encoder" in own) == ("CLPDistiller", 3, False)
    assert "private" not in (folder / "manifest.json").read_text()


def test_accuracies_by_protocol(fitted, colors, tmp_path):
    X, y = colors
    folder = save_distilled(fitted, tmp_path / "set", X[:30], y[:30], accuracies={"LGM's protocol": 0.5})
    own, held_out, other = load_distilled(folder)[2]["accuracies"]
    assert own == {"protocol": "closed-form probe, test samples", "accuracy": fitted.score(X[:30], y[:30]), "n_samples": 30}
    assert held_out["accuracy"] == fitted.val_accuracy_
    assert other == {"protocol": "LGM's protocol", "accuracy": 0.5}
    card = (folder / "README.md").read_text()
    assert "| LGM's protocol | 0.500 |" in card
    assert card.count("](blue/0000") == 2


def test_learned_targets_are_kept(colors, module, tmp_path):
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    fitted = CLPDistiller(encoder, learn_targets=True, max_iter=3, random_state=0).fit(*colors)
    manifest = load_distilled(save_distilled(fitted, tmp_path / "set"))[2]
    np.testing.assert_allclose(manifest["targets"], fitted.targets_)


def test_digests_are_those_of_the_weights_and_of_the_data(module, colors):
    encoder = FrozenEncoder(module, image_size=16)
    before = encoder.load().backbone.weights_sha256
    assert FrozenEncoder(tiny_encoder(), image_size=12).load().backbone.weights_sha256 == before
    module[0].weight.data[0, 0, 0, 0] += 1
    assert encoder.load().backbone.weights_sha256 != before
    assert (
        FrozenEncoder(image_size=64).load().backbone.weights_sha256 == FrozenEncoder(image_size=80).load().backbone.weights_sha256
    )
    X, y = colors
    one, same, other = (
        CLPDistiller(FrozenEncoder(tiny_encoder(), image_size=16), max_iter=1).fit(*data).data_digest_
        for data in ((X, y), (X.copy(), y), (X[::-1], y))
    )
    assert one == same != other


def test_other_readers(saved):
    paths, labels = load_image_folder(saved)
    images, wanted, _ = load_distilled(saved)
    np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in paths], images)
    assert labels.tolist() == wanted.tolist()
    datasets = pytest.importorskip("torchvision.datasets")
    folder = datasets.ImageFolder(saved)
    assert folder.classes == ["blue", "green", "red"]
    np.testing.assert_array_equal([np.asarray(image) for image, _ in folder], images)
    assert [code for _, code in folder] == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_hugging_face_reads_it(saved, tmp_path):
    pytest.importorskip("datasets", reason="pip install sklearn-clpdd[slow]")
    code = f"""
import datasets, numpy as np
for loaded in (datasets.load_dataset({str(saved)!r}), datasets.load_dataset("imagefolder", data_dir={str(saved)!r})):
    rows = loaded["train"]
    assert rows.features["label"].names == ["blue", "green", "red"], rows.features
    assert rows["label"][:] == [0, 0, 1, 1, 2, 2], rows["label"]
    np.save({str(tmp_path / "images.npy")!r}, np.stack([np.asarray(image) for image in rows["image"]]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"})
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), load_distilled(saved)[0])


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 10],
        [-1, 1, 2],
        [0.0, 1.0, 20.0],
        [False, True],
        ["a/b", "a\\b", "c:d"],
        ["..", ".hidden", "nul"],
        ["Cat", "cat"],
        ["train", "test"],
        ["", " "],
        ["été", "e", "日本"],
        ["x" * 300, "x" * 301],
        np.array(["red", "blue"], dtype=object),
    ],
    ids=str,
)
def test_any_labels(labels, tmp_path, module):
    rng = np.random.default_rng(0)
    y = np.resize(np.asarray(labels), 12)
    X = rng.random((12, 16, 16, 3))
    fitted = CLPDistiller(FrozenEncoder(module, image_size=16, device="cpu"), max_iter=1, random_state=0).fit(X, y)
    images, loaded, _ = load_distilled(save_distilled(fitted, tmp_path / "set"))
    np.testing.assert_array_equal(loaded, fitted.y_synthetic_)
    assert loaded.dtype == fitted.y_synthetic_.dtype
    assert len(images) == len(np.unique(y))
    assert len(load_image_folder(tmp_path / "set")[0]) == len(images)


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["con", "..", "a/b", "_x", "A", "a"]), min_size=2, max_size=8, unique=True)
)
@settings(max_examples=300, deadline=None)
def test_folders_are_safe_different_and_in_the_order_of_the_classes(labels):
    folders = class_folders(np.array(sorted(labels), dtype=object))
    assert folders == sorted(folders)
    assert len({folder.casefold() for folder in folders}) == len(labels)
    for folder in folders:
        assert folder not in ("", ".", "..")
        assert not set(folder) & set('/\\:*?"<>|\0')
        assert folder[0] not in "._"
        assert folder[-1] not in ". "
        assert len(folder.encode(errors="surrogatepass")) < 250


def damage_pixels(folder):
    file = next(folder.glob("red/*.png"))
    Image.new("RGB", (16, 16)).save(file)
    return f"red/{file.name}: changed"


def damage_missing(folder):
    file = next(folder.glob("green/*.png"))
    file.unlink()
    return f"green/{file.name}: missing"


def damage_more(folder):
    shutil.copy(next(folder.glob("blue/*.png")), folder / "blue" / "more.png")
    return "blue/more.png: not in the manifest"


def rewrite(folder, old, new):
    """Change a manifest with care: its digest fits."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text().replace(old, new, 1))
    path.write_text(json.dumps(manifest | {"sha256": manifest_digest(manifest)}))


def damage_outside(folder):
    rewrite(folder, "red/", "../")
    return "not a valid image name"


def damage_label(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"label": "red"', '"label": "reb"', 1))
    return "no longer has its digest"


def damage_twice(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["images"] += manifest["images"][:1]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": manifest_digest(manifest)}))
    return "lists a file twice"


def damage_width(folder):
    """A tiny manifest that asks for gigabytes."""
    rewrite(folder, '"label_dtype": "<U5"', '"label_dtype": "<U500000000"')
    return "is not one of labels"


def damage_negative(folder):
    rewrite(folder, '"class": 2', '"class": -1')
    return "class -1 of"


def damage_size(folder):
    """An image of another size, which is not decoded."""
    file = next(folder.glob("red/*.png"))
    before = sha256(file.read_bytes()).hexdigest()
    Image.new("RGB", (4000, 4000)).save(file)
    rewrite(folder, before, sha256(file.read_bytes()).hexdigest())
    return "its size is 4000 × 4000 px"


def damage_nesting(folder):
    (folder / "manifest.json").write_text("[" * 100_000)
    return "is not a manifest of save_distilled"


def damage_link(folder):
    """A link to a file outside of the set, which has another digest."""
    file = next(folder.glob("red/*.png"))
    (folder.parent / "secret.txt").write_text("secret")
    file.unlink()
    file.symlink_to(folder.parent / "secret.txt")
    return "changed"


def damage_pipe(folder):
    file = next(folder.glob("red/*.png"))
    file.unlink()
    os.mkfifo(file)
    return "missing"


def damage_kind(folder):
    """A file of another format with a correct digest."""
    file = next(folder.glob("red/*.png"))
    before = sha256(file.read_bytes()).hexdigest()
    Image.new("RGB", (16, 16)).save(file, format="ppm")
    rewrite(folder, before, sha256(file.read_bytes()).hexdigest())
    return "cannot identify"


def damage_json(folder):
    (folder / "manifest.json").write_text("{")
    return "is not a manifest of save_distilled"


def damage_format(folder):
    (folder / "manifest.json").write_text('{"format": "other"}')
    return "is not a manifest of save_distilled"


def damage_class(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"class": 2', '"class": 7', 1))
    return "is not a manifest of save_distilled"


def damage_version(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    return "upgrade"


@pytest.mark.parametrize(
    "damage",
    [
        damage_pixels,
        damage_missing,
        damage_more,
        damage_outside,
        damage_label,
        damage_twice,
        damage_width,
        damage_negative,
        damage_size,
        damage_nesting,
        damage_link,
        damage_pipe,
        damage_kind,
        damage_json,
        damage_format,
        damage_class,
        damage_version,
    ],
)
def test_damaged_folders_are_refused(saved, damage):
    words = damage(saved)
    with pytest.raises(ValueError, match=r"manifest") as caught:
        load_distilled(saved)
    assert words in str(caught.value)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"contains no manifest\.json"):
        load_distilled(tmp_path)


def test_existing_files_are_not_touched(fitted, saved, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_distilled(fitted, saved)
    save_distilled(fitted, saved, overwrite=True)
    (saved / ".git").mkdir()
    (saved / ".git" / "HEAD").write_text("ref")
    load_distilled(saved)  # a git clone contains the distilled set
    with pytest.raises(FileExistsError, match=r"do not match its manifest: \.git \(a folder\), \.git/HEAD"):
        save_distilled(fitted, saved, overwrite=True)
    shutil.rmtree(saved / ".git")
    save_distilled(fitted, saved, overwrite=True)
    load_distilled(saved)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all I have")
    with pytest.raises(FileExistsError, match="not a distilled set"):
        save_distilled(fitted, mine, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        save_distilled(fitted, tmp_path / "file", overwrite=True)
    assert (mine / "thesis.txt").read_text() == "all I have"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "set"]


def _mine(folder):
    (folder / "blue" / "mine.png").write_bytes(b"all I have")
    return "blue/mine.png"


def _hidden(folder):
    (folder / "blue" / ".DS_Store").write_bytes(b"all I have")
    return r"blue/\.DS_Store"


def _deep(folder):
    (folder / "blue" / "deep").mkdir()
    return r"blue/deep \(a folder\)"


def _link(folder):
    (folder / "red" / "link").symlink_to(folder.parent)
    return r"red/link \(a link\)"


def _image(folder):
    next(folder.glob("green/*.png")).write_bytes(b"all I have")
    return r"green/\d+\.png \(changed\)"


def _card(folder):
    path = folder / "README.md"
    path.write_text(path.read_text() + "My notes.")
    return r"README\.md \(changed\)"


def _manifest(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "notes": "mine"}))
    return r"manifest\.json \(changed\)"


def _listed_outside(folder):
    """A manifest that lists a file outside the folder."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["images"].append({"file": "../mine.txt", "class": 0, "sha256": sha256(b"all I have").hexdigest()})
    path.write_text(json.dumps(manifest))
    (folder.parent / "mine.txt").write_bytes(b"all I have")
    return "not a distilled set"


@pytest.mark.parametrize("change", [_mine, _hidden, _deep, _link, _image, _card, _manifest, _listed_outside])
@pytest.mark.parametrize("when", ["before", "while it is saved"])
def test_no_file_of_the_users_is_replaced(fitted, saved, change, when, monkeypatch):
    """Only files that the manifest lists are replaced, and only if they have the listed digests."""
    words, make_card = [], _distilled_set.card_of

    def meanwhile(*args):
        words.append(change(saved))
        return make_card(*args)

    if when == "before":
        words.append(change(saved))
    else:
        monkeypatch.setattr(_distilled_set, "card_of", meanwhile)

    def files():
        return {path: path.read_bytes() for path in saved.parent.rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(FileExistsError) as caught:
        save_distilled(fitted, saved, overwrite=True)
    assert re.search(words[0], str(caught.value))
    assert str(saved) in str(caught.value)
    if when == "before":
        assert files() == before
    after = files()
    assert before.keys() <= after.keys()
    if change in (_mine, _hidden, _image, _listed_outside):
        assert b"all I have" in after.values()
    assert {path.name for path in saved.parent.iterdir()} <= {"set", "mine.txt"}


def test_links_and_incomplete_manifests_are_refused(fitted, saved, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("link", "elsewhere"), ("to set", "set"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError, match=f"is a link to .*{target}"):
            save_distilled(fitted, tmp_path / name, overwrite=True)
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"], manifest["card"]
    path.write_text(json.dumps(manifest))
    load_distilled(saved)
    with pytest.raises(FileExistsError, match="is not a distilled set"):
        save_distilled(fitted, saved, overwrite=True)


def test_files_changed_at_the_last_moment_are_kept_and_named(fitted, saved, monkeypatch):
    rename, image = os.rename, next(saved.glob("red/*.png")).name

    def and_write(source, target):
        rename(source, target)
        if target == saved:  # the new set is in place, and a file of the old one is still open
            (old,) = (path for path in saved.parent.iterdir() if path.name.endswith("-old"))
            (old / "red" / image).write_bytes(b"all I have")

    monkeypatch.setattr("os.rename", and_write)
    with pytest.warns(UserWarning, match=r"could not be removed completely from .*-old"):
        save_distilled(fitted, saved, overwrite=True)
    load_distilled(saved)
    (old,) = (path for path in saved.parent.iterdir() if path.name.endswith("-old"))
    assert [path.read_bytes() for path in old.rglob("*") if path.is_file()] == [b"all I have"]


def test_a_folder_that_appears_meanwhile(fitted, saved, monkeypatch):
    rename = os.rename

    def and_make(source, target):
        rename(source, target)
        if source == saved:
            saved.mkdir()
            (saved / "mine").write_bytes(b"all I have")

    monkeypatch.setattr("os.rename", and_make)
    with pytest.raises(FileExistsError, match=r"was created by another process .* previous folder is now (.*-old)$") as caught:
        save_distilled(fitted, saved, overwrite=True)
    assert (saved / "mine").read_bytes() == b"all I have"
    load_distilled(str(caught.value).rpartition(" is now ")[2])


def test_a_set_with_missing_images_may_be_replaced(fitted, saved):
    next(saved.glob("red/*.png")).unlink()
    shutil.rmtree(saved / "blue")
    save_distilled(fitted, saved, overwrite=True)
    load_distilled(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["set"]


def test_an_error_leaves_nothing_half_written(fitted, saved, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for target, overwrite in ((tmp_path / "new", False), (saved, True)):
        with monkeypatch.context() as patch:
            patch.setattr("sklearn_clpdd.io._distilled_set.card_of", full)
            with pytest.raises(OSError, match="No space"):
                save_distilled(fitted, target, overwrite=overwrite)
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            full()
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", second_fails)
        with pytest.raises(OSError, match="No space"):
            save_distilled(fitted, saved, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    load_distilled(saved)


def test_sets_that_cannot_be_saved(fitted, colors, tmp_path):
    points = CLPDistiller(None, max_iter=1).fit(np.eye(4), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="not images"):
        save_distilled(points, tmp_path / "set")
    with pytest.raises(NotFittedError):
        save_distilled(CLPDistiller(), tmp_path / "set")
    with pytest.raises(ValueError, match=r"accuracies\['x'\]"):
        save_distilled(fitted, tmp_path / "set", accuracies={"x": 93})
    with pytest.raises(TypeError, match="accuracies has to be a dict"):
        save_distilled(fitted, tmp_path / "set", accuracies=0.93)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        save_distilled(fitted, tmp_path / "set", colors[0], colors[1][:3])
    with pytest.raises(ValueError, match="pass both, or neither"):
        save_distilled(fitted, tmp_path / "set", y_test=colors[1])
    assert not list(tmp_path.iterdir())
