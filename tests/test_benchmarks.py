"""The benchmark scripts: the data that they read, and what they compute from their records."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
paper = pytest.importorskip("paper", reason="the benchmarks are not beside the tests")
table = pytest.importorskip("table", reason="the benchmarks are not beside the tests")
measure = pytest.importorskip("measure", reason="the benchmarks are not beside the tests")
robustness = pytest.importorskip("robustness", reason="the benchmarks are not beside the tests")
step = pytest.importorskip("step", reason="the benchmarks are not beside the tests")


@pytest.mark.parametrize("dataset", paper.DATASETS)
def test_layouts_of_the_papers_data_sets(dataset, tmp_path):
    paper.generate(dataset, tmp_path, n=2, side=8)
    data = paper.DATASETS[dataset](tmp_path)
    assert all(Path(path).is_file() for path in [*data.X, *data.X_test])
    assert not set(data.X) & set(data.X_test)
    assert set(data.y) == set(data.y_test)
    assert len(set(data.y)) == {"imagenet-100": 100, "imagenet-1k": 21, "waterbirds": 2, "spawrious": 4}[dataset]
    assert len(data.X) == len(data.y)
    assert len(data.X_test) == len(data.y_test)


def test_waterbirds_have_four_groups_and_no_validation_images(tmp_path):
    paper.generate("waterbirds", tmp_path, n=2, side=8)
    data = paper.waterbirds(tmp_path)
    assert (len(data.X), len(data.X_test)) == (8, 8)
    assert sorted(set(data.groups)) == [f"{bird} on {place}" for bird in ("landbird", "waterbird") for place in ("land", "water")]


def test_spawrious_has_other_backgrounds_in_its_test_set(tmp_path):
    paper.generate("spawrious", tmp_path, n=2, side=8)
    data = paper.spawrious(tmp_path)
    seen = [
        {(y, Path(path).parts[-3]) for path, y in zip(X, labels, strict=True)}
        for X, labels in ((data.X, data.y), (data.X_test, data.y_test))
    ]
    assert seen[0] == {(y, place) for y, (usual, _) in paper.SPAWRIOUS.items() for place in (usual, "beach")}
    assert seen[1] == {(y, other) for y, (_, other) in paper.SPAWRIOUS.items()}
    assert set(data.groups) == {f"{y} on {place}" for y, place in seen[1]}


def test_the_hundred_classes_are_those_of_lgm(tmp_path):
    from timm.data import ImageNetInfo

    assert len(set(paper.IMAGENET_100)) == 100
    names = ImageNetInfo()
    # The first and the last class of LGM's list, which consists of indices.
    assert [names.index_to_label_name(i) for i in (452, 64, 374, 570, 99, 169)] == paper.IMAGENET_100[:3] + paper.IMAGENET_100[
        -3:
    ]
    paper.generate("imagenet-1k", tmp_path, n=1, side=8)
    with pytest.raises(SystemExit, match="lacks 80 of the 100 classes"):
        paper.imagenet_100(tmp_path)


def _arguments(tmp_path, *options):
    parser = argparse.ArgumentParser()
    table.add_options(parser)
    return parser.parse_args(["--output", str(tmp_path), *options])


def test_runs_are_recognised_by_their_settings(tmp_path):
    every = ["--methods", *(name for name in table.METHODS if name not in table.PUBLISHED)]
    arguments = _arguments(tmp_path, "--seconds", "1", "2", "--seeds", "2", "--published", *every)
    runs = table.runs_of(arguments)
    assert len({run.name for run in runs}) == len(runs) == 10 * 2 * 2 + 5 * 2 + 3
    order = [run.method for run in runs]
    assert max(i for i, name in enumerate(order) if name == "clp-dsa") < order.index("nearest")
    (tmp_path / "runs").mkdir()
    data = table.Data(np.array(["a/train/x/1.png"]), np.array(["x"]), np.array(["a/val/x/1.png"]), np.array(["x"]))
    other = data._replace(X=np.array(["b/train/x/1.png"]))
    run, nearest = runs[0], runs[-1]
    assert nearest.method == "nearest"
    assert table.known(arguments, run, data) is None
    for one in (run, nearest):
        settings = table.json.dumps({"settings": table.settings_of(arguments, one, data)})
        table.file_of(arguments, one, ".json").write_text(settings)
        assert table.known(arguments, one, data) is not None
        assert table.known(arguments, one, other) is None
        assert table.known(_arguments(tmp_path, "--epochs", "7", *every), one, data) is None
    longer = _arguments(tmp_path, "--seconds", "1", "4", *every)
    assert table.known(longer, run, data) is not None
    assert table.known(longer, nearest, data) is None


def test_report_has_means_and_times(tmp_path):
    arguments = _arguments(tmp_path, "--seconds", "1", "4")

    def record(seconds, accuracy, memory=100.0):
        scores = {name: {"top1": [accuracy - i / 10, accuracy - i / 10 + 0.02]} for i, name in enumerate(table.PROTOCOLS)}
        return {"seconds": seconds, "memory": memory, "steps": 10, "n_images": 10, "scores": scores, "transfer": {}}

    records = [
        (table.Run("e", "lgm-dsa", 1.0, 0), record(1.0, 0.5)),
        (table.Run("e", "lgm-dsa", 4.0, 0), record(4.0, 0.7, 400.0)),
        (table.Run("e", "clp-dsa", 1.0, 0), record(1.0, 0.6)),
        (table.Run("e", "clp-dsa", 4.0, 0), record(4.0, 0.7)),
    ]
    page = table.Report(arguments, "e", records)
    (row,) = [line for line in page.main() if line.startswith("| `CLPDistiller()` |")]
    assert row == "| `CLPDistiller()` | 10 | 0.710 ± 0.010 | 0.610 ± 0.010 | 0.510 ± 0.010 | 4.0 | 10 | 100 |"
    rows = page.time_to()[2:]
    assert rows[0].startswith("| LGM, from noise | 1 | 0.510 | 1 s | 1.0 |")
    assert rows[1].startswith("| LGM, from noise | 4 | 0.710 | 4 s | 1.0 |")
    assert len(page.by_budget()) == 4
    np.testing.assert_allclose(table.values([record(1, 0.5)], "scores", "sgd", "top1"), [0.4, 0.42])


def test_steps_of_runs_that_differ_are_a_range():
    assert table.format_steps(np.array([96, 97, 95])) == "96"
    assert table.format_steps(np.array([108, 41, 100])) == "41 to 108"


def test_report_of_transfer_names_its_columns(tmp_path):
    arguments = _arguments(tmp_path, "--seconds", "1", "--transfer-to", "b", "--transfer-heads", "0", "--epochs", "7")
    moved = {"b": {"closed_form": {"top1": [0.5]}, "inherited": {"top1": [0.25]}}}
    record = {"n_images": 10, "scores": {name: {"top1": [0.1]} for name in table.PROTOCOLS}, "transfer": moved}
    page = table.Report(arguments, "a", [(table.Run("a", "clp-dsa", 1.0, 0), record)])
    assert page.transfer() == [
        "|  | closed-form probe, b | inherited probe, b |",
        "| --- | --- | --- |",
        "| `CLPDistiller()` | 0.500 | 0.250 |",
    ]
    assert "LGM's protocol, 7 epochs" in page.main()[0]
    assert page.main()[-1] == "| `CLPDistiller()` | 10 | 0.100 | 0.100 | 0.100 |  |  |  |"  # nothing was timed


def test_settings_of_a_method_and_of_a_head_are_apart(tmp_path, monkeypatch):
    """A changed head repeats the runs of all methods, whatever parameters these have of the same name."""
    arguments = _arguments(tmp_path)
    data = table.Data(np.array(["a/train/x/1.png"]), np.array(["x"]), np.array(["a/val/x/1.png"]), np.array(["x"]))
    runs = [table.Run("e", name, 1.0, 0) for name in ("dm", "clp", "lgm-published")]
    before = [table.settings_of(arguments, run, data) for run in runs]
    assert before[1]["parameters"] == {"augmentation": None}
    monkeypatch.setitem(table.ZERO_START, "learning_rate", 1.0)
    assert all(table.settings_of(arguments, run, data) != old for run, old in zip(runs, before, strict=True))


def test_a_recorded_run_is_not_repeated(tmp_path):
    done = []

    def work(value=1):
        done.append(value)
        return {"value": value}

    path = tmp_path / "results" / "records.json"
    for seed in (0, 1, 0):
        assert measure.recorded(path, {"seed": seed, "sizes": (1, 2)}, work)["value"] == 1
    assert len(done) == 2
    with pytest.raises(RuntimeError):
        measure.recorded(path, {"seed": 2}, lambda: (_ for _ in ()).throw(RuntimeError()))
    assert len(measure.json.loads(path.read_text())) == 2
    assert measure.recorded(path, {"seed": 0, "sizes": (1, 2)}, work, distilled=False)["value"] == 1
    assert len(done) == 3
    assert ["defaults" in record["settings"] for record in measure.json.loads(path.read_text())] == [True, True, False]


def test_corruptions_of_a_data_set(tmp_path):
    y = np.repeat(["a", "b", "c"], 500)
    X, rng = np.arange(1500), np.random.default_rng(0)
    rows, labels = robustness.long_tail(X, y, rng)
    assert np.unique(labels, return_counts=True)[1].tolist() == [500, 71, 10]
    assert (y[rows] == labels).all()
    wrong = robustness.wrong_labels(y, rng)
    assert 0.15 < (wrong != y).mean() < 0.25
    assert len(set(wrong[wrong != y])) == 3
    robustness.Image.fromarray(np.full((9, 9, 3), 50, np.uint8)).save(tmp_path / "grey.png")
    (image,) = robustness.framed([tmp_path / "grey.png"], np.array([[200, 0, 0]]), 20)
    assert (image[3:-3, 3:-3] == 50).all()
    frame = np.ones((20, 20), bool)
    frame[3:-3, 3:-3] = False
    assert (image[frame] == [200, 0, 0]).all()


def test_a_case_is_measured_in_its_own_process():
    seen = step.alone(rounds=1, classes=2, views=3, size=64, chunk=4)
    assert (seen["chunk"], seen["once"]) == (3, 3)
    assert seen["R"] == pytest.approx(2 * 4096 * 1280 * 4 / 1e6)
    assert not seen["peak"] < seen["R"]  # nan where there is no /proc
