"""Saving a probe, alone or behind its encoder, to a file, and loading it."""

import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import tiny_encoder
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder, load_probe, save_probe
from sklearn_clpdd.io._probe_file import FORMAT
from sklearn_clpdd.utils._tensor_file import read_tensors, write_tensors

rng = np.random.default_rng(0)
X = rng.normal(size=(120, 7)).astype(np.float32)
CODES = np.arange(120) % 3
X += 2 * CODES[:, None]
NAMES = np.array(["cat", "dog", "emu"])

PROBES = {
    "logistic": (ClosedFormProbe(), CODES),
    "squared": (ClosedFormProbe(loss="squared"), CODES),
    "strings": (ClosedFormProbe(1.0, temperature=0.3), NAMES[CODES]),
    "objects": (ClosedFormProbe(), NAMES[CODES].astype(object)),
    "two classes": (ClosedFormProbe(), CODES == 1),
    "candidates": (ClosedFormProbe(np.array([0.1, 1.0]), scoring="neg_log_loss"), CODES),
    "weights": (ClosedFormProbe(class_weight={0: 1, 1: np.float32(2), 2: 0.5}), CODES),
    "dates": (ClosedFormProbe(), np.array(["2026-01-01", "2026-01-02", "2026-01-03"], dtype="M8[D]")[CODES]),
    "rbf": (ClosedFormProbe(kernel="rbf"), CODES),
    "poly": (ClosedFormProbe(kernel="poly", gamma=0.1, degree=2), CODES),
    "cosine": (ClosedFormProbe(kernel="cosine", device="cpu"), CODES),
    "prior": (ClosedFormProbe(coef_prior=torch.ones(3, 7)), CODES),
    "labels": (ClosedFormProbe(), np.eye(3, dtype=int)[CODES]),
    "float64": (ClosedFormProbe(dtype="float64", fit_intercept=False), CODES),
}


@pytest.mark.parametrize("name", PROBES)
def test_round_trip_is_exact(name, tmp_path):
    probe, y = PROBES[name]
    probe.fit(X, y)
    loaded = load_probe(save_probe(probe, tmp_path / "probe"))
    for method in ("predict", "predict_proba", "decision_function"):
        wanted, found = getattr(probe, method)(X), getattr(loaded, method)(X)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype
    assert vars(loaded).keys() == vars(probe).keys()
    for attribute in vars(probe):
        if attribute.endswith("_"):
            np.testing.assert_array_equal(getattr(loaded, attribute), getattr(probe, attribute))
    again = loaded.fit(X, y)  # the parameters have travelled, too
    np.testing.assert_array_equal(again.predict_proba(X), probe.fit(X, y).predict_proba(X))


def test_names_of_features_travel(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcdefg"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_probe(save_probe(ClosedFormProbe().fit(frame, CODES), tmp_path / "probe"))
    assert loaded.feature_names_in_.tolist() == list("abcdefg")
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame[list("bacdefg")])


def test_batches_are_solved_and_not_kept(tmp_path):
    probe = ClosedFormProbe(1.0)
    for part in np.split(np.arange(120), 4):
        probe.partial_fit(X[part], CODES[part], classes=range(3))
    loaded = load_probe(save_probe(probe, tmp_path / "probe"))
    np.testing.assert_array_equal(loaded.predict_proba(X), probe.predict_proba(X))
    with pytest.warns(UserWarning, match="earlier samples are discarded"):
        loaded.partial_fit(X, CODES)


@pytest.fixture
def pipeline(colors):
    images, labels = colors
    encoder = FrozenEncoder(weights=None, image_size=32, crop_pct=0.8, memory="cache", device="cpu", n_jobs=2)
    return Pipeline([("see", encoder), ("judge", ClosedFormProbe(1.0))]).fit(images[:, ::2, ::2], labels)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pipeline_has_its_encoder_and_nothing_of_the_machine(elsewhere, pipeline, colors):
    path = save_probe(pipeline, "probe", *colors, accuracies={"mine": 0.5})
    loaded = load_probe(path)
    assert [name for name, _ in loaded.steps] == ["see", "judge"]
    np.testing.assert_array_equal(loaded.predict_proba(colors[0]), pipeline.predict_proba(colors[0]))
    assert (loaded[0].memory, loaded[0].device, loaded[0].n_jobs) == (None, "auto", None)
    info = read_tensors(path)[1]
    assert [(one["protocol"], one["accuracy"]) for one in info["accuracies"]] == [
        ("closed-form probe, test samples", pipeline.score(*colors)),
        ("mine", 0.5),
    ]
    assert info["encoder"]["weights_sha256"] == pipeline[0].load().backbone.weights_sha256
    content = path.read_bytes()
    assert str(elsewhere).encode() not in content
    assert b"cache" not in content


def test_it_is_a_safetensors_file(tmp_path):
    probe = ClosedFormProbe().fit(X, CODES)
    path = save_probe(probe, tmp_path / "a" / "probe")
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode  # others may read it, if they may read new files
    with safe_open(path, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("coef_"), probe.coef_)
        assert json.loads(file.metadata()["sklearn_clpdd"])["probe"]["classes"] == [0, 1, 2]


def test_a_module_is_not_saved_but_recognised(elsewhere, colors):
    module = tiny_encoder()
    probe = make_pipeline(FrozenEncoder(module, image_size=16, mean=(0.5,) * 3), ClosedFormProbe(1.0)).fit(*colors)
    path = save_probe(probe, "probe")
    with pytest.raises(ValueError, match=r"was a module.*pass encoder="):
        load_probe(path)
    for encoder in (module, FrozenEncoder(module, image_size=16, mean=(0.5,) * 3, n_jobs=2)):
        loaded = load_probe(path, encoder=encoder)
        np.testing.assert_array_equal(loaded.predict_proba(colors[0]), probe.predict_proba(colors[0]))
    with pytest.raises(ValueError, match=r"other features than that of probe: mean is .* and was"):
        load_probe(path, encoder=FrozenEncoder(module, image_size=16))
    with torch.no_grad():
        next(module.parameters()).add_(1)
    with pytest.raises(ValueError, match="weights_sha256 is"):
        load_probe(path, encoder=module)


def test_weights_of_a_file_are_not_its_path(elsewhere, colors):
    import timm

    torch.save(timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict(), "own.pt")
    encoder = FrozenEncoder(weights="own.pt", image_size=32)
    path = save_probe(make_pipeline(encoder, ClosedFormProbe(1.0)).fit(*colors), "probe")
    assert b"own.pt" not in path.read_bytes()
    with pytest.raises(ValueError, match="weights of a local file"):
        load_probe(path)
    loaded = load_probe(path, encoder=encoder)
    assert loaded[0] is encoder


def test_names_of_local_folders_stay_here(elsewhere, colors):
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("tf_efficientnet_lite0", num_classes=0), "private/net")
    encoder = FrozenEncoder(f"local-dir:{elsewhere}/private/net", image_size=32)
    path = save_probe(make_pipeline(encoder, ClosedFormProbe(1.0)).fit(*colors), "probe")
    assert b"private" not in path.read_bytes()
    assert read_tensors(path)[1]["encoder"]["model"] == "local-dir:…/net"
    with pytest.raises(ValueError, match="pass encoder="):
        load_probe(path)
    assert load_probe(path, encoder=encoder)[0] is encoder


def test_other_weights_behind_a_name_are_found(elsewhere, pipeline):
    path = save_probe(pipeline, "probe")
    tensors, info, _ = read_tensors(path)
    info["encoder"]["weights_sha256"] = "0" * 64
    write_tensors(path, tensors, info)
    with pytest.raises(ValueError, match=r"weights_sha256 is '.*' and was '000"):
        load_probe(path)


def test_a_distillers_probe_travels_behind_its_encoder(elsewhere, colors):
    distiller = CLPDistiller(FrozenEncoder(weights=None, image_size=32), max_iter=2, random_state=0).fit(*colors)
    loaded = load_probe(save_probe(make_pipeline(distiller.encoder_, distiller.probe_), "probe"))
    np.testing.assert_array_equal(loaded.predict_proba(colors[0]), distiller.predict_proba(colors[0]))


REFUSED = {
    "unfitted": (ClosedFormProbe(), NotFittedError, "not fitted"),
    "unfitted pipeline": (make_pipeline(FrozenEncoder(), ClosedFormProbe()), NotFittedError, "not fitted"),
    "a kernel of one's own": (ClosedFormProbe(1.0, kernel=np.inner).fit(X, CODES), TypeError, "function"),
    "another classifier": (LogisticRegression().fit(X, CODES), TypeError, "skops"),
    "other steps": (make_pipeline(StandardScaler(), ClosedFormProbe()).fit(X, CODES), TypeError, "pipeline of StandardScaler"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_saved(case, tmp_path):
    probe, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        save_probe(probe, tmp_path / "probe")
    assert not list(tmp_path.iterdir())


def test_only_probes_are_replaced(tmp_path):
    probe, path = ClosedFormProbe().fit(X, CODES), tmp_path / "probe"
    save_probe(probe, path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_probe(probe, path)
    other = ClosedFormProbe(1.0).fit(X, CODES)
    assert load_probe(save_probe(other, path, overwrite=True)).alpha == 1.0
    link = tmp_path / "link"
    link.symlink_to(path)
    mine = tmp_path / "mine.safetensors"
    save_file({"coef_": torch.zeros(3)}, mine)
    for name in (mine, tmp_path, link):
        with pytest.raises(FileExistsError, match="not a file of save_probe"):
            save_probe(probe, name, overwrite=True)
    text = tmp_path / "text"
    text.write_text("mine")
    with pytest.raises(FileExistsError):
        save_probe(probe, text, overwrite=True)
    assert text.read_text() == "mine"


def test_a_write_that_fails_leaves_the_previous_file(tmp_path, monkeypatch):
    path = save_probe(ClosedFormProbe().fit(X, CODES), tmp_path / "probe")
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save_probe(ClosedFormProbe(1.0).fit(X, CODES), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damage_is_found(tmp_path):
    path = save_probe(ClosedFormProbe().fit(X, CODES), tmp_path / "probe")
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(ValueError, match="get a fresh copy"):
            load_probe(path)
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match="get a fresh copy"):
        load_probe(path)


def _changes():
    """Descriptions that no probe has, with a right digest."""
    yield "alpha", lambda tensors, info: info["probe"]["parameters"].update(alpha="best")
    yield "unknown parameter", lambda tensors, info: info["probe"]["parameters"].update(callback="os.system")
    yield "missing parameters", lambda tensors, info: info["probe"].pop("parameters")
    yield "kernel", lambda tensors, info: info["probe"]["parameters"].update(kernel="rbf")
    yield "classes", lambda tensors, info: info["probe"].update(classes=[0, 1])
    yield "equal classes", lambda tensors, info: info["probe"].update(classes=[0, 1, 1])
    yield "pickled classes", lambda tensors, info: info["probe"].update(label_dtype="V8")
    yield "features", lambda tensors, info: info["probe"].update(n_features=8)
    yield "no number", lambda tensors, info: info["probe"].update(n_features="7")
    yield "temperature", lambda tensors, info: info["probe"].update(temperature=-1.0)
    yield "compression", lambda tensors, info: info["probe"].update(compression=float("nan"))
    yield "loss", lambda tensors, info: info["probe"].update(loss="hinge")
    yield "multilabel", lambda tensors, info: info["probe"].update(multilabel=1)
    yield "names", lambda tensors, info: info["probe"].update(feature_names=["a"])
    yield "steps", lambda tensors, info: info.update(steps=["a", "b"])
    yield "no coefficients", lambda tensors, info: tensors.pop("coef_")
    yield "shape", lambda tensors, info: tensors.update(coef_=torch.zeros(3, 6))
    yield "integers", lambda tensors, info: tensors.update(coef_=torch.zeros(3, 7, dtype=torch.int64))
    yield "half", lambda tensors, info: tensors.update(intercept_=torch.zeros(3, 1))
    yield "NaN", lambda tensors, info: tensors.update(coef_=torch.full((3, 7), float("nan")))


@pytest.mark.parametrize(("case", "change"), list(_changes()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_forged_file_is_an_error_and_nothing_else(case, change, tmp_path):
    path = save_probe(ClosedFormProbe().fit(X, CODES), tmp_path / "probe")
    tensors, info, _ = read_tensors(path)
    change(tensors, info)
    write_tensors(path, tensors, info)
    with pytest.raises(ValueError, match="get a fresh copy"):
        load_probe(path)


@pytest.mark.parametrize(
    "change",
    [
        {"model": 3},
        {"weights": ["auto"], "model": "nothing"},
        {"pool": "os.system"},
        {"image_size": "32"},
        {"mean": 3},
        {"model": "transformers:no/such", "model_kwargs": {"trust_remote_code": True}},
        None,
        "text",
    ],
    ids=str,
)
def test_a_forged_encoder_is_an_error_and_nothing_else(change, elsewhere, pipeline):
    path = save_probe(pipeline, "probe")
    tensors, info, _ = read_tensors(path)
    info["encoder"] = info["encoder"] | change if isinstance(change, dict) else change
    write_tensors(path, tensors, info)
    with pytest.raises((ValueError, OSError)):
        load_probe(path)


def test_code_of_a_repository_is_never_run(elsewhere, pipeline, monkeypatch):
    """Neither by an option that a file names, nor by one that was saved by skops."""
    (elsewhere / "evil").mkdir()
    (elsewhere / "evil" / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoModel": "code.Model"}}')
    (elsewhere / "evil" / "code.py").write_text("open('ran', 'w')")
    options = {"trust_remote_code": True}
    path = save_probe(pipeline, "probe")
    tensors, info, _ = read_tensors(path)
    info["encoder"] |= {"model": "transformers:evil", "model_kwargs": options}
    write_tensors(path, tensors, info)
    with pytest.raises((ValueError, OSError)):
        load_probe(path)
    for options in ({"trust_remote_code": True}, {"attn_implementation": "some/kernel"}, {"weights_only": False}):
        with pytest.raises(ValueError, match="may run code"):
            FrozenEncoder("transformers:evil", model_kwargs=options).load()
    assert not (elsewhere / "ran").exists()


def test_options_of_a_network_are_not_saved(elsewhere, colors):
    encoder = FrozenEncoder("resnet10t", weights=None, image_size=32, model_kwargs={"zero_init_last": False})
    path = save_probe(make_pipeline(encoder, ClosedFormProbe(1.0)).fit(*colors), "probe")
    assert b"zero_init_last" not in path.read_bytes()
    with pytest.raises(ValueError, match="options of its own"):
        load_probe(path)
    assert load_probe(path, encoder=encoder)[0] is encoder


def test_priors_of_any_kind(tmp_path):
    for prior in (torch.ones(3, 7, dtype=torch.bfloat16), np.ones((7, 3))[::-1].T, [[1.0] * 7] * 3):
        probe = ClosedFormProbe(coef_prior=prior).fit(X, CODES)
        loaded = load_probe(save_probe(probe, tmp_path / "probe", overwrite=True))
        np.testing.assert_array_equal(loaded.fit(X, CODES).coef_, probe.coef_)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(probe)).predict_proba(X), probe.predict_proba(X))


def test_a_subclass_is_not_taken_for_a_probe(tmp_path):
    class Mine(ClosedFormProbe):
        def predict(self, X):
            return np.zeros(len(X))

    with pytest.raises(TypeError, match="a Mine"):
        save_probe(Mine(1.0).fit(X, CODES), tmp_path / "probe")


def test_data_frames_on_the_way_leave_no_names(elsewhere, colors):
    encoder = FrozenEncoder(weights=None, image_size=32).set_output(transform="pandas")
    path = save_probe(make_pipeline(encoder, ClosedFormProbe(1.0)).fit(*colors), "probe")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_probe(path).predict(colors[0])


def test_places_that_cannot_be_written(tmp_path):
    probe = ClosedFormProbe().fit(X, CODES)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        save_probe(probe, tmp_path / "file" / "a" / "probe")
    (tmp_path / "probe.part").write_text("mine")
    save_probe(probe, tmp_path / "probe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "probe", "probe.part"]


def test_files_of_others(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_probe"):
        load_probe(tmp_path / "nothing")
    for number, content in enumerate([b"", b"text", b"\x80\x04N."]):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not an intact file of save_probe"):
            load_probe(path)
    path = save_probe(ClosedFormProbe().fit(X, CODES), tmp_path / "probe")
    with pytest.raises(ValueError, match="make_pipeline"):
        load_probe(path, encoder="tf_efficientnet_lite0")
    tensors, info, _ = read_tensors(path)
    write_tensors(path, tensors, info | {"format_version": 99})
    with pytest.raises(ValueError, match=r"format 99.*upgrade"):
        load_probe(path)
    write_tensors(path, tensors, info | {"format": "other"})
    with pytest.raises(ValueError, match=f"not '{FORMAT}'"):
        load_probe(Path(path))
