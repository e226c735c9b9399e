"""Searches on several processes: what is sent, loaded and encoded, and with how many threads."""

import copy
import errno
import os
import pickle
import threading
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
import torch
from networks import tiny_encoder
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from torch import nn

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder
from sklearn_clpdd.encoder._extractor import FeatureExtractor
from sklearn_clpdd.encoder._feature_cache import feature_cache
from sklearn_clpdd.encoder._shared_module import pickle_once
from sklearn_clpdd.encoder.images._base import n_threads


class Noting(nn.Module):
    """A network that logs to a file in which process it was unpickled, and how many images it encoded in which."""

    def __init__(self, path, width=0):
        super().__init__()
        self.path = str(path)
        self.net = nn.Sequential(tiny_encoder(), nn.Linear(12, 12 + width), nn.Linear(12 + width, 12))

    def __setstate__(self, state):
        super().__setstate__(state)
        self.note("made", 1)

    def forward(self, images):
        self.note("encoded" if torch.is_inference_mode_enabled() else "learned", len(images))
        return self.net(images)

    def note(self, what, n):
        with Path(self.path).open("a") as file:
            file.write(f"{os.getpid()} {what} {n} {torch.get_num_threads()}\n")


class Unpicklable(nn.Sequential):
    """A network that can be copied, but not pickled."""

    def __deepcopy__(self, memo):
        return nn.Sequential(*copy.deepcopy(list(self), memo))

    def __reduce_ex__(self, protocol):
        raise TypeError("cannot pickle a connection")


def notes(path):
    return [line.split() for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


def distiller(encoder, **parameters):
    return CLPDistiller(encoder, **{"max_iter": 2, "random_state": 0, **parameters})


def test_clones_share_a_network_and_copies_do_not(module):
    encoder = FrozenEncoder(module, image_size=16)
    assert clone(encoder).model is module
    assert clone(distiller(module)).encoder is module
    several = clone(distiller([module, encoder])).encoder
    assert several[0] is module
    assert several[1] is not encoder
    assert several[1].model is module
    assert copy.copy(encoder).model is module
    assert copy.deepcopy(encoder).model is not module
    assert clone(make_pipeline(encoder, ClosedFormProbe()))[0].model is module


def test_the_repr_of_a_network_is_short(module):
    assert repr(FrozenEncoder(module, image_size=16)) == "FrozenEncoder(image_size=16, model=<Sequential>)"
    several = CLPDistiller([module, FrozenEncoder(module, image_size=16)], alpha=2.0)
    shown = repr(several).replace("\n", "").replace(" ", "")
    assert shown == "CLPDistiller(alpha=2.0,encoder=[<Sequential>,FrozenEncoder(image_size=16,model=<Sequential>)])"
    assert repr(FrozenEncoder()) == "FrozenEncoder()"


def test_a_clone_has_all_that_a_clone_has(module):
    encoder = FrozenEncoder(module, image_size=16).set_output(transform="pandas")
    assert clone(encoder).get_params() == encoder.get_params()
    assert clone(encoder)._sklearn_output_config == {"transform": "pandas"}
    with sklearn.config_context(enable_metadata_routing=True):
        asked = distiller(module).set_fit_request(groups=True)
    assert clone(asked).get_metadata_routing().fit.requests == {"groups": True}


def test_an_unpickled_network_is_prepared_once(module, colors):
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    content = pickle.dumps(encoder)
    one, other = pickle.loads(content), pickle.loads(content)
    assert one.model is other.model is not module
    np.testing.assert_array_equal(one.transform(colors[0]), encoder.transform(colors[0]))
    with torch.no_grad():
        one.model[0].weight.add_(1)
    again = pickle.loads(content)  # the pickle has the state before the change
    assert again.model is not one.model
    again.model[2] = nn.ReLU()
    assert isinstance(pickle.loads(content).model[2], nn.SiLU)
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.transform(colors[0]), encoder.transform(colors[0]))


def test_the_pickle_of_a_network_is_one_array_until_it_changes(module):
    before = pickle_once(module)
    assert pickle_once(module)[1] is before[1]
    assert pickle_once(copy.deepcopy(module))[0] == before[0]  # on any device
    module.note = "an attribute"
    changed = pickle_once(module)
    assert changed[0] != before[0]
    with torch.no_grad():
        module[0].weight.add_(1)
    assert pickle_once(module)[0] not in (before[0], changed[0])


def test_a_network_of_a_redefined_class_is_loaded_anew():
    """As in a notebook, where workers would otherwise use the old code."""
    digests = []
    for way in ("mean", "amax", "mean"):
        scope = {"nn": nn, "__name__": "__main__"}
        exec(f"class Pooled(nn.Module):\n    def forward(self, images):\n        return images.{way}((2, 3))", scope)
        digests.append(pickle_once(scope["Pooled"]())[0])
    assert digests[0] != digests[1]


def test_each_worker_loads_a_network_once_and_threads_match_cores(colors, tmp_path):
    X, y = colors
    encoder = FrozenEncoder(Noting(tmp_path / "notes", width=30_000), image_size=16, device="cpu")  # 3 MB
    grid = {"alpha": [0.1, 1.0, 10.0, 100.0]}
    GridSearchCV(distiller(encoder), grid, cv=2, n_jobs=2, refit=False).fit(X, y)
    lines = [line for line in notes(tmp_path / "notes") if int(line[0]) != os.getpid()]
    made = [pid for pid, what, *_ in lines if what == "made"]
    assert 1 <= len(set(made)) <= 2
    assert set(Counter(made).values()) == {3}  # unpickled once, and copied twice, for freezing and for folding
    assert {int(threads) for *_, threads in lines} == {max(1, joblib.cpu_count() // 2)}


def test_workers_share_features_through_the_cache(colors, tmp_path):
    X, y = colors
    encoder = FrozenEncoder(Noting(tmp_path / "notes"), image_size=16, device="cpu", memory=tmp_path / "cache")
    encoder.transform(X)
    seen = len(notes(tmp_path / "notes"))
    grid = {"temperature": [0.1, 0.5], "images_per_class": [1, 2]}
    GridSearchCV(distiller(encoder), grid, cv=3, n_jobs=2).fit(X, y)
    encoded = [int(n) for _, what, n, _ in notes(tmp_path / "notes")[seen:] if what == "encoded"]
    assert encoded
    assert set(encoded) <= {1, 3, 6}  # synthetic images for the probe, and the one for loading; no real ones


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_any_backend_gives_the_same(colors, module, backend):
    X, y = colors
    model = make_pipeline(FrozenEncoder(module, image_size=16, device="cpu"), distiller(None))
    wanted = cross_val_score(model, X, y, cv=2)
    with joblib.parallel_config(backend):
        np.testing.assert_allclose(cross_val_score(model, X, y, cv=2, n_jobs=2), wanted)


def test_a_search_encodes_each_image_once(module, colors, tmp_path, monkeypatch):
    """Whatever the splits are: the first fit encodes its own images, and later ones only the rest."""
    X, y = colors
    encoded = []
    original = FeatureExtractor._encode
    monkeypatch.setattr(
        FeatureExtractor,
        "_encode",
        lambda self, images, indices, *args: encoded.append(len(indices)) or original(self, images, indices, *args),
    )
    encoder = FrozenEncoder(module, image_size=16, device="cpu", memory=tmp_path)
    search = GridSearchCV(make_pipeline(encoder, ClosedFormProbe()), {"closedformprobe__alpha": [0.1, 1.0]}, cv=3)
    search.fit(X, y)
    assert encoded == [40, 20]
    search.fit(X[::-1], y[::-1])
    assert encoded == [40, 20]


def test_a_read_only_disk_is_a_warning(module, colors, tmp_path, monkeypatch):
    X, _ = colors

    def read_only(*args, **kwargs):  # Linux says this even of a file that does not exist
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    monkeypatch.setattr("pathlib.Path.unlink", read_only)
    encoder = FrozenEncoder(module, image_size=16, device="cpu", memory=joblib.Memory(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="could not be cached .* Read-only"):
        encoder.transform(X)


def test_a_full_disk_is_a_warning(module, colors, tmp_path, monkeypatch):
    X, _ = colors
    wanted = FrozenEncoder(module, image_size=16, device="cpu").transform(X)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.warns(UserWarning, match="could not be cached .* No space left"):
        features = FrozenEncoder(module, image_size=16, device="cpu", memory=tmp_path).transform(X)
    np.testing.assert_array_equal(features, wanted)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".gitignore"]  # no leftovers


@pytest.mark.parametrize("lost", ["*.keys.npy", "*[0-9a-f].npy"])
@pytest.mark.parametrize("how", ["cut off", "gone"])
def test_a_damaged_cache_counts_as_empty(module, colors, tmp_path, lost, how):
    X, _ = colors
    encoder = FrozenEncoder(module, image_size=16, device="cpu", memory=tmp_path)
    wanted = encoder.transform(X)
    for path in tmp_path.rglob(lost):
        if not (lost != "*.keys.npy" and path.name.endswith(".keys.npy")):
            path.write_bytes(b"") if how == "cut off" else path.unlink()
    np.testing.assert_array_equal(encoder.transform(X), wanted)  # this process knows that they exist
    feature_cache.cache_clear()
    np.testing.assert_array_equal(encoder.transform(X), wanted)


def test_cache_distinguishes_palettes_and_names(module, tmp_path):
    encoder = FrozenEncoder(module, image_size=16, device="cpu", memory=tmp_path / "cache")
    indexed = [Image.new("P", (16, 16), 1) for _ in range(2)]
    for picture, color in zip(indexed, ((255, 0, 0), (0, 0, 255)), strict=True):
        picture.putpalette([0, 0, 0, *color])
    one, other = (encoder.transform([picture]) for picture in indexed)
    assert np.abs(one - other).max() > 1e-3
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")  # not UTF-8
    Image.new("RGB", (16, 16), (255, 0, 0)).save(odd)
    np.testing.assert_allclose(encoder.transform([odd]), one, atol=1e-6)


def test_a_network_that_cannot_be_pickled_is_an_error(module, colors):
    model = distiller(FrozenEncoder(Unpicklable(*module), image_size=16, device="cpu"))
    with pytest.raises(pickle.PicklingError) as caught:
        cross_val_score(model, *colors, cv=2, n_jobs=2)
    told = f"{caught.value}{caught.value.__cause__}"
    assert "a Unpicklable cannot be saved or sent to another process" in told
    assert "n_jobs=1" in told
    with pytest.raises(pickle.PicklingError, match="Remove from the module"):
        pickle.dumps(model)
    with joblib.parallel_config("threading"):  # what the error suggests
        assert cross_val_score(model, *colors, cv=2, n_jobs=2).shape == (2,)


def test_a_module_that_cannot_be_copied_is_an_error(module, colors):
    module.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"a Sequential cannot be copied.*lock"):
        FrozenEncoder(module, image_size=16).transform(colors[0])


@pytest.mark.parametrize(("variable", "wanted"), [("1", 1), ("", joblib.cpu_count()), ("many", joblib.cpu_count())])
def test_decoding_respects_the_thread_limit_of_a_process(monkeypatch, variable, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    threads = n_threads(-1)
    assert joblib.effective_n_jobs(threads) == wanted
    assert n_threads(5) == 5  # as set by the user
    assert n_threads(None) is None
