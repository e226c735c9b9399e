"""The command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import ClosedFormProbe, FrozenEncoder, __version__, load_distilled, load_probe
from sklearn_clpdd.cli import _commands, main
from sklearn_clpdd.datasets import load_image_folder

SMALL = ["--image-size", "32", "--device", "cpu", "--quiet"]


def write_images(folder, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / label / f"{i:03}.png")


@pytest.fixture
def folder(tmp_path, colors, monkeypatch):
    """60 photos in three folders of classes."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", *colors)
    return "photos"


@pytest.fixture
def split_folder(tmp_path, colors, monkeypatch):
    """40 photos for training, and 20 for the test."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "sets" / "training", colors[0][:40], colors[1][:40])
    write_images(tmp_path / "sets" / "val", colors[0][40:], colors[1][40:])
    return "sets"


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_a_probe_and_its_predictions(split_folder, tmp_path, capsys):
    code, out, _ = run(capsys, "probe", split_folder, "--out", "probe.safetensors", "--json", *SMALL)
    assert code == 0
    result = json.loads(out)
    X, y = load_image_folder(split_folder, "train")
    X_test, y_test = load_image_folder(split_folder, "val")
    wanted = make_pipeline(FrozenEncoder(image_size=32, device="cpu"), ClosedFormProbe()).fit(X, y)
    assert result["test_accuracy"] == wanted.score(X_test, y_test)
    assert (result["images"], result["classes"], result["test_images"]) == (40, 3, 20)
    assert np.mean([result["test_accuracy_by_class"][label] for label in y_test]) == pytest.approx(result["test_accuracy"])
    np.testing.assert_array_equal(load_probe("probe.safetensors").predict_proba(X_test), wanted.predict_proba(X_test))

    code, out, _ = run(capsys, "predict", "probe.safetensors", X_test[0], "sets/val/green", "--top", 2, "--json", "--quiet")
    found = json.loads(out)["predictions"]
    assert code == 0
    assert [one["file"] for one in found] == [X_test[0], *X_test[y_test == "green"]]
    probabilities = wanted.predict_proba([one["file"] for one in found])
    for one, row in zip(found, probabilities, strict=True):
        assert [own["label"] for own in one["classes"]] == wanted.classes_[np.argsort(-row)[:2]].tolist()
        assert [own["probability"] for own in one["classes"]] == pytest.approx(np.sort(row)[:-3:-1], abs=1e-6)

    code, out, _ = run(capsys, "predict", "probe.safetensors", X_test[0], "--quiet")
    assert out.split("\t")[:2] == [X_test[0], wanted.predict(X_test[:1])[0]]


def test_the_summary_of_a_probe(folder, capsys):
    code, out, err = run(capsys, "probe", folder, "--image-size", "32", "--device", "cpu")
    assert code == 0
    assert "60 images of 3 classes from photos" in out
    assert "accuracy on held-out training images: " in out
    assert "--out probe.safetensors saves it" in out
    assert "encoding" in err
    assert "encoding" not in out


def test_a_set_and_its_reports(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = ["--steps", 2, "--images-per-class", 2, "--no-views", *SMALL]
    code, out, _ = run(capsys, "distill", folder, "--out", "set", "--report", "first.html", "--json", *options)
    assert code == 0
    result = json.loads(out)
    images, labels, manifest = load_distilled("set")
    assert (len(images), labels.tolist()) == (6, ["blue"] * 2 + ["green"] * 2 + ["red"] * 2)
    assert (result["steps"], manifest["fitted"]["n_iter"]) == (2, 2)
    assert result["accuracy"]["distilled"]["accuracy"] == manifest["accuracies"][0]["accuracy"]
    assert result["accuracy"]["all real"]["images"] == 45
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.html", "photos", "set"]  # no cache is left

    code, out, _ = run(capsys, "report", "set", folder, "--out", "second.html", "--quiet")
    assert (code, out) == (0, "report: second.html\n")
    first, second = ((tmp_path / name).read_text() for name in ("first.html", "second.html"))
    assert "CLPDistiller, tf_efficientnet_lite0 at 32 px, 6 images, 2 steps" in second
    for page in (first, second):
        assert page.count("<img") == 6
        assert "random real (mean of 10 draws)" in page
    assert manifest["data"]["digest"] in second


def test_an_interval_of_time_and_no_test(folder, capsys):
    code, out, _ = run(capsys, "distill", folder, "--out", "set", "--seconds", "0.5", "--test-size", 0, "--init", "noise", *SMALL)
    assert code == 0
    assert "steps in" in out
    assert "test accuracy" not in out
    code, _, err = run(capsys, "report", "set", folder, "--test-size", 0)
    assert code == 1
    assert "--test" in err


def test_what_exists_is_replaced_only_if_asked(folder, tmp_path, capsys, forbid_encoding):
    assert run(capsys, "distill", folder, "--out", "set", "--steps", 1, *SMALL)[0] == 0
    assert run(capsys, "distill", folder, "--out", "set", "--steps", 1, "--overwrite", *SMALL)[0] == 0
    assert run(capsys, "probe", folder, "--out", "probe", *SMALL)[0] == 0
    (tmp_path / "mine").write_text("mine")
    forbid_encoding()  # errors come before any work
    for arguments in (
        ["distill", folder, "--out", "set"],
        ["distill", folder, "--out", "photos", "--overwrite"],
        ["distill", folder, "--out", "new", "--report", "mine"],
        ["probe", folder, "--out", "probe"],
        ["probe", folder, "--out", "mine", "--overwrite"],
        ["report", "set", folder, "--out", "mine"],
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert "exists" in err
        assert "overwrite=True" not in err
        assert err.startswith("error: ")
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_cannot_be_used(folder, tmp_path, capsys, no_encoding):
    (tmp_path / "broken").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "other", np.zeros((2, 4, 4, 3), np.uint8), ["red", "pink"])
    cases = {
        ("probe", "nowhere"): "not a folder",
        ("probe", "empty"): "no folders in it",
        ("probe", folder, "--test", "other"): "pink",
        ("probe", folder, "--encoder", "no_such_net"): "unknown encoder",
        ("probe", folder, "--weights", "no.pt"): "not a file",
        ("predict", "broken", "x.png"): "get a fresh copy",
        ("predict", "nowhere", "x.png"): "save_probe",
        ("predict", "broken", "empty"): "contains no images",
        ("distill", folder, "--out", "set", "--images-per-class", 99, "--init", "real"): "fewer",
        ("report", "nowhere", folder): "manifest",
    }
    for arguments, message in cases.items():
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["probes"],
        ["distill", "photos"],
        ["distill", "photos", "--out", "x", "--steps", "0"],
        ["distill", "photos", "--out", "x", "--steps", "1", "--seconds", "1"],
        ["distill", "photos", "--out", "x", "--test-size", "1"],
        ["distill", "photos", "--out", "x", "--seconds", "-1"],
        ["predict", "probe", "x.png", "--top", "1.5"],
    ],
)
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m sklearn_clpdd" in capsys.readouterr().err


def test_a_probe_without_an_encoder_predicts_no_images(folder, capsys):
    from sklearn_clpdd import save_probe

    save_probe(ClosedFormProbe(1.0).fit(np.eye(4), [0, 0, 1, 1]), "bare")
    code, _, err = run(capsys, "predict", "bare", folder)
    assert code == 1
    assert "features" in err


def test_weights_of_a_file_are_passed_again(folder, tmp_path, capsys):
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict(), "own.pt")
    code, out, _ = run(capsys, "probe", folder, "--weights", "own.pt", "--out", "probe", *SMALL)
    assert code == 0
    assert out.rstrip().endswith("predict probe photo.jpg --encoder tf_efficientnet_lite0 --weights own.pt")
    code, _, err = run(capsys, "predict", "probe", folder)
    assert code == 1
    assert "pass encoder=" in err
    code, out, _ = run(capsys, "predict", "probe", folder, "--weights", "own.pt", "--device", "cpu", "--quiet")
    assert code == 0
    assert len(out.splitlines()) == 60


def test_an_unreadable_test_image_costs_nothing(split_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "sets" / "val" / "red" / "broken.png").write_bytes(b"no image")
    code, _, err = run(capsys, "distill", "sets", "--out", "set", "--steps", 1, *SMALL)
    assert code == 1
    assert "broken.png" in err
    assert "was saved all the same" in err
    assert len(load_distilled("set")[0]) == 3
    monkeypatch.setattr(ClosedFormProbe, "fit", lambda *_: pytest.fail("fitted"))
    code, _, err = run(capsys, "probe", "sets", "--out", "x", *SMALL)
    assert code == 1
    assert "broken.png" in err


def test_splits_without_labels_and_without_training(split_folder, tmp_path, capsys):
    (tmp_path / "sets" / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "sets" / "test" / "0.png")
    code, out, _ = run(capsys, "probe", "sets", "--json", *SMALL)
    assert code == 0
    assert json.loads(out)["test_images"] == 20  # those of val
    (tmp_path / "sets" / "train2").symlink_to(tmp_path / "sets" / "training")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "val").symlink_to(tmp_path / "sets" / "val")
    for name, message in (("only", "none of them is for training"), ("sets/training", "")):
        code, _, err = run(capsys, "probe", name, *SMALL)
        assert message in err
        assert code == (1 if message else 0)


def test_a_few_images(tmp_path, capsys, monkeypatch):
    """Too few to hold any out for the choice of the best step, or for the test."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "few", np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3)).astype(np.uint8), list("aaaabbbb"))
    code, out, _ = run(capsys, "distill", "few", "--out", "set", "--steps", 1, "--test-size", 0, *SMALL)
    assert code == 0
    assert out == "1 steps in 0 s; saved: " + str(tmp_path / "set") + "\n"
    write_images(tmp_path / "one", np.zeros((5, 16, 16, 3), np.uint8), list("aaaab"))
    code, _, err = run(capsys, "distill", "one", "--out", "new", *SMALL)
    assert code == 1
    assert "b of one has one image only" in err
    assert "--test-size 0" in err


def test_training_images_are_no_test_images(split_folder, capsys, no_encoding):
    for command in (["probe", "sets"], ["distill", "sets", "--out", "x"]):
        code, _, err = run(capsys, *command, "--test", "sets/training")
        assert code == 1
        assert "40 of the 40 images of sets/training are training images" in err


def test_a_report_is_of_the_same_images(folder, capsys, forbid_encoding):
    assert run(capsys, "distill", folder, "--out", "set", "--steps", 1, "--test-size", 0, *SMALL)[0] == 0
    forbid_encoding()
    code, _, err = run(capsys, "report", "set", folder, "--quiet")
    assert code == 1
    assert "the set was made from 60 images" in err
    code, _, err = run(capsys, "distill", folder, "--out", "new", "--report", "r.html", "--test-size", 0)
    assert code == 1
    assert "a report needs test images" in err


def test_names_that_a_terminal_does_not_have(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "photos" / "blue").rename(tmp_path / "photos" / "日本\tx")
    assert run(capsys, "probe", folder, "--out", "probe", *SMALL)[0] == 0
    done = subprocess.run(
        [sys.executable, "-m", "sklearn_clpdd", "predict", "probe", "photos", "--quiet"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("cp1252").splitlines()
    assert len(lines) == 60
    assert all(len(line.split("\t")) == 3 for line in lines)
    assert any("\\u65e5\\u672c\\tx" in line for line in lines)


def test_a_picture_of_ones_own_is_kept(tmp_path, capsys, no_encoding):
    (tmp_path / "digits.png").write_bytes(b"mine")
    code, _, err = run(capsys, "demo", "--out", tmp_path)
    assert code == 1
    assert "not a picture of the demo" in err
    assert (tmp_path / "digits.png").read_bytes() == b"mine"
    assert run(capsys, "demo", "--out", tmp_path / "digits.png")[0] == 1


def test_an_interrupt_and_a_bug(folder, capsys, monkeypatch):
    def fails(error):
        def read(*arguments):
            raise error

        return read

    monkeypatch.setattr(_commands, "read_folder", fails(KeyboardInterrupt()))
    assert run(capsys, "probe", folder) == (130, "", "interrupted\n")
    monkeypatch.setattr(_commands, "read_folder", fails(KeyError("bug")))
    with pytest.raises(KeyError):
        main(["probe", folder])


def test_warnings_are_short_and_filters_stay(folder, tmp_path, capsys):
    (tmp_path / "photos" / "notes.txt").write_text("")
    _, _, err = run(capsys, "probe", folder, *SMALL)
    assert err.startswith("warning: 1 entries of photos are not listed")
    assert "_folders.py" not in err


def test_from_outside_of_the_checkout(tmp_path):
    def module(*arguments):
        return subprocess.run([sys.executable, "-m", "sklearn_clpdd", *arguments], cwd=tmp_path, capture_output=True, text=True)

    assert module("--version").stdout.strip() == __version__
    for _ in range(2):  # the second time over its own picture
        done = module("demo", "--steps", "3", "--quiet", "--json")
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"].keys() == {"all real", "random real", "distilled"}
    assert (tmp_path / "output" / "digits.png").stat().st_size > 10_000
    assert module("probe", "nowhere").returncode == 1
