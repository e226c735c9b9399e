"""Runs of a distillation: checkpoints, stopping, held-out scores, callbacks."""

import gc
import itertools
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext, suppress
from itertools import product
from threading import Lock

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.fixes import parse_version

from sklearn_clpdd import (
    DSA,
    Checkpoint,
    CLPDistiller,
    FrozenEncoder,
    SyntheticImagesDisplay,
    load_distilled,
    save_distilled,
)
from sklearn_clpdd.distill import _checkpoint as checkpoint_module
from sklearn_clpdd.distill import _trainer as trainer_module
from sklearn_clpdd.distill._checkpoint import read_checkpoint
from sklearn_clpdd.distill._held_out import balanced_weights
from sklearn_clpdd.distill._objectives import CrossEntropy
from sklearn_clpdd.utils._fingerprint import fingerprint

ONLY_VIEWS = DSA(unaugmented_weight=0)


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=14, crop_pct=14 / 16, device="cpu")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600]


def distiller(encoder, **parameters):
    return CLPDistiller(encoder, **{"max_iter": 45, "random_state": 0, **parameters})


def _stop_at(step, error=KeyboardInterrupt):
    def callback(distiller, record):
        if record["step"] == step:
            raise error

    return callback


# ---- checkpoints ---------------------------------------------------------------------------------------------------------


STOPS = {
    "default": ({}, [0, 1, 19, 20, 30, 44]),
    "no seed": ({"random_state": None, "init": "real", "augmentation": DSA(noise=0.02), "real_batch_size": 16}, [1, 20, 44]),
    "chunks": (
        {"images_per_class": 2, "parametrization": "pixels", "sampling": "balanced", "encoder_batch_size": 5},
        [0, 19, 30],
    ),
    "nothing held out": ({"validation_fraction": None, "objective": "mse", "augmentation": None}, [1, 20, 44]),
}


@pytest.mark.parametrize(
    ("parameters", "stop"),
    [pytest.param(own, stop, id=f"{name}-{stop}") for name, (own, stops) in STOPS.items() for stop in stops],
)
def test_resumed_run_equals_an_uninterrupted_one(encoder, colors, tmp_path, stop, parameters):
    X, y = colors
    path = tmp_path / "run"
    run = distiller(encoder, **parameters, checkpoint=Checkpoint(path, every=1))
    with pytest.warns(UserWarning, match=f"interrupted after {stop} of 45 steps"):
        run.set_params(callback=_stop_at(stop)).fit(X, y)
    assert run.n_iter_ == stop + 1
    assert read_checkpoint(path)[1]["step"] == stop
    resumed = clone(run).set_params(callback=None).fit(X, y)
    assert [record["step"] for record in resumed.history_] == list(range(45))
    if run.random_state is None:  # the same run, from a copy of its first checkpoint
        shutil.copy(path, tmp_path / "copy")
        whole = clone(run).set_params(callback=None, checkpoint=tmp_path / "copy").fit(X, y)
    else:
        whole = uninterrupted("images", encoder, colors, **parameters)
    np.testing.assert_array_equal(resumed.X_synthetic_, whole.X_synthetic_)
    without_time = [[{**record, "seconds": 0} for record in one.history_] for one in (resumed, whole)]
    assert without_time[0] == without_time[1]


_WHOLE = {}


def uninterrupted(data, encoder, sets, **parameters):
    """The uninterrupted run, computed once for the same data and parameters."""
    key = data, repr(sorted(parameters.items(), key=str))
    if key not in _WHOLE:
        _WHOLE[key] = distiller(encoder, **parameters).fit(*sets)
    return _WHOLE[key]


@pytest.fixture(scope="module")
def noisy(digits):
    """Half of the labels are wrong, so the held-out loss rises while the training loss falls."""
    X, y = digits
    rng = np.random.RandomState(0)
    return X[:150], np.where(rng.rand(150) < 0.5, rng.permutation(y[:150]), y[:150])


@pytest.mark.parametrize(
    ("where", "every", "stop"),
    [*product(["callback", "objective"], [1], [11, 23, 38, 61]), *product(["objective"], [10], [20, 60])],
)
def test_interrupts_leave_no_trace(noisy, tmp_path, monkeypatch, stop, where, every):
    """The score at an interrupt does not become one of the run, however often losses are read."""
    monkeypatch.setattr(trainer_module, "_READ_EVERY_CPU", every)
    parameters = {"max_iter": 121, "n_iter_no_change": 90, "tol": 0.0, "temperature": 0.1, "init": "noise"}
    parameters["objective"] = "cross_entropy"
    whole = uninterrupted(f"noisy, read every {every}", None, noisy, **parameters)
    table = pd.DataFrame(whole.history_)
    assert table.val_loss.idxmin() < 60 < whole.n_iter_ - 30
    calls = itertools.count()

    def objective(Z, Y, R, r):
        if Z.requires_grad and next(calls) == stop:
            raise KeyboardInterrupt
        return CrossEntropy(1.0, 0.1)(Z, Y, R, r)

    run = distiller(None, **parameters, checkpoint=Checkpoint(tmp_path / "run", every=1))
    if where == "callback":
        run.set_params(callback=_stop_at(stop))
    else:
        run.objective = objective
    with pytest.warns(UserWarning, match=f"interrupted after {stop} of 121"):
        run.fit(*noisy)
    resumed = clone(run).set_params(callback=None).fit(*noisy)  # the counter of the objective is past the interrupt now
    np.testing.assert_array_equal(resumed.X_synthetic_, whole.X_synthetic_)
    assert [{**record, "seconds": 0} for record in resumed.history_] == [{**record, "seconds": 0} for record in whole.history_]


@pytest.mark.parametrize("parameters", [{}, {"n_iter_no_change": 20, "max_iter": 500, "tol": 0.05}], ids=["steps", "patience"])
def test_a_finished_run_is_not_repeated(encoder, colors, tmp_path, parameters):
    X, y = colors
    one = distiller(encoder, **parameters, checkpoint=str(tmp_path / "run")).fit(X, y)
    assert (one.n_iter_ < one.max_iter) == bool(parameters)
    steps = []
    other = clone(one).set_params(callback=lambda distiller, record: steps.append(record)).fit(X, y)
    assert not steps
    assert other.history_ == one.history_
    np.testing.assert_array_equal(one.X_synthetic_, other.X_synthetic_)
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.2}, "temperature was 'auto' and is 0.2"),
        ({"max_iter": 46}, "max_iter was 45 and is 46"),
        ({"random_state": 1}, "random_state was 0 and is 1"),
        ({"augmentation": DSA(flip=0)}, r"augmentation was 'dsa' and is DSA\(.*flip=0"),
        ({"encoder__l2_normalize": False}, "encoder changed"),
        ({"objective": CrossEntropy(1.0, 0.1)}, "objective was 'probe_and_neighbors' and is <"),
        ({"X": lambda X: X[::-1]}, "images changed"),
        ({"y": lambda y: y[::-1]}, "y changed"),
    ],
)
def test_another_run_is_refused_and_says_what_differs(encoder, colors, tmp_path, forbid_encoding, change, words):
    X, y = colors
    run = distiller(encoder, checkpoint=tmp_path / "run", max_iter=45).fit(X, y)
    before = (tmp_path / "run").read_bytes()
    X, y = (change.pop(name, lambda values: values)(values) for name, values in (("X", X), ("y", y)))
    forbid_encoding()
    with pytest.raises(ValueError, match=f"(?s)belongs to another run: {words}"):
        clone(run).set_params(**change).fit(X, y)
    assert (tmp_path / "run").read_bytes() == before


def test_objectives_are_told_apart(digits, tmp_path):
    def squared(power):
        return lambda Z, Y, R, r: (Z**power).sum()

    class Loss:
        def __init__(self, power):
            self.power = power

        def run(self, Z, Y, R, r):
            return (Z**self.power).sum()

    def weighted(weights, *, power=2):
        return lambda Z, Y, R, r: (weights * Z**power).sum()

    def default(Z, Y, R, r, *, power=2):
        return (Z**power).sum()

    def other_default(Z, Y, R, r, *, power=4):
        return (Z**power).sum()

    objectives = [
        CrossEntropy(1.0, 0.1),
        CrossEntropy(1.0, 0.2),
        lambda Z, Y, R, r: Z.square().sum(),
        lambda Z, Y, R, r: Z.square().sum() * 2,
        lambda Z, Y, R, r: Z.abs().sum(),
        squared(2),
        squared(4),
        Loss(2).run,
        Loss(4).run,
        weighted(torch.ones(64)),
        weighted(torch.full((64,), 2.0)),
        weighted(torch.ones(64), power=4),
        default,
        other_default,
    ]
    for i, objective in enumerate(objectives):
        run = distiller(None, objective=objective, max_iter=2, checkpoint=tmp_path / str(i)).fit(*digits)
        assert run.fit(*digits).n_iter_ == 2
        for other in objectives[:i] + objectives[i + 1 :]:
            with pytest.raises(ValueError, match="objective was"):
                clone(run).set_params(objective=other).fit(*digits)


SCRIPT = """
import torch
from sklearn_clpdd.utils._fingerprint import fingerprint

def own_loss(Z):
    return POWER * Z.square().sum()

POWER = {power}
NAMES = {{"red", "green", "blue"}}

class Loss:
    def __call__(self, Z, Y, R, r):
        return own_loss(Z)

class Child(Loss):
    scale = torch.ones({scale})

    def __call__(self, Z, Y, R, r):
        return super().__call__(Z, Y, R, r) if NAMES else self.scale

def outer():
    steps = iter([1, 2, 3])
    def inner(Z, Y, R, r):
        next(steps, None)
        return own_loss(Z)
    return inner
{comment}
objectives = [lambda Z, Y, R, r: own_loss(Z), Loss(), Child(), outer(), Child]
"""


def fingerprints(power=1.0, scale=2, comment=""):
    """Run a script, and return the fingerprints of its objectives."""
    namespace = {"__name__": "__main__"}
    exec(compile(SCRIPT.format(power=power, scale=scale, comment=comment), "elsewhere.py", "exec"), namespace)
    return list(map(fingerprint, namespace["objectives"]))


def test_objectives_of_a_script_are_recognised_by_what_they_read(tmp_path):
    """In another process, whatever the order of sets, lines and iterators; globals and class attributes make a difference."""
    (tmp_path / "script.py").write_text(
        SCRIPT.format(power=1.0, scale=2, comment="") + "print(*map(fingerprint, objectives), sep='\\n')"
    )
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True)
    first = done.stdout.splitlines()
    assert len(set(first)) == 5
    assert fingerprints(comment="# in another file, and at another line\n\n") == first
    assert [one != other for one, other in zip(first, fingerprints(power=2.0), strict=True)] == [True] * 5
    assert [one != other for one, other in zip(first, fingerprints(scale=3), strict=True)] == [False, False, True, False, True]


def test_fingerprints_ignore_transient_state_only():
    class Loss:
        def __init__(self, power, seed=0):
            self.power, self.lock, self.random = power, Lock(), np.random.default_rng(seed)

        def __call__(self, Z, Y, R, r):
            return (Z**self.power).sum()

    one, other = Loss(2), Loss(3)
    before = fingerprint(one)
    assert before != fingerprint(other)
    one.random.random(3)
    assert fingerprint(one) == before
    one.words = "sum", "sum"  # the same string twice, or two equal strings
    same = fingerprint(one)
    one.words = "sum", "".join(["s", "um"])
    assert fingerprint(one) == same
    one.socket = socket.socket()
    with one.socket, pytest.raises(ValueError, match="Give it a string attribute `fingerprint`"):
        fingerprint(one)


def test_an_objective_may_say_what_it_is(digits, tmp_path):
    def objective(Z, Y, R, r):
        return Z.square().sum()

    objective.fingerprint = "squares, version 1"
    run = distiller(None, objective=objective, max_iter=2, checkpoint=tmp_path / "run").fit(*digits)

    def other(Z, Y, R, r):
        return (Z * Z).sum()

    other.fingerprint = "squares, version 1"
    assert clone(run).set_params(objective=other).fit(*digits).n_iter_ == 2
    other.fingerprint = "squares, version 2"
    with pytest.raises(ValueError, match=r"objective was .*version 1 and is .*version 2"):
        clone(run).set_params(objective=other).fit(*digits)


def test_another_version_of_a_package_is_named(encoder, colors, tmp_path):
    run = distiller(encoder, max_iter=2, checkpoint=tmp_path / "run").fit(*colors)
    tensors, info = read_checkpoint(tmp_path / "run")
    now = info["versions"]["torch"]
    checkpoint_module.write_tensors(tmp_path / "run", tensors, {**info, "versions": {**info["versions"], "torch": "2.0.1"}})
    with pytest.raises(ValueError, match=rf"another run: torch was 2\.0\.1 and is {re.escape(now)}\. Continue") as caught:
        clone(run).fit(*colors)
    assert "changed" not in str(caught.value)


def test_irrelevant_parameters_may_differ(digits, tmp_path):
    X, y = digits
    run = distiller(None, checkpoint=tmp_path / "run", alpha=1).fit(X, y)
    again = clone(run).set_params(
        verbose=1, checkpoint=Checkpoint(tmp_path / "run", every=7), alpha=np.float64(1), callback=print
    )
    np.testing.assert_array_equal(run.X_synthetic_, again.fit(X, y).X_synthetic_)


@pytest.mark.parametrize("path", ["nowhere/run", "."])
def test_a_checkpoint_needs_a_folder(encoder, colors, tmp_path, path):
    with pytest.raises(FileNotFoundError, match="a file in an existing folder"):
        distiller(encoder, checkpoint=tmp_path / path).fit(*colors)


def test_a_full_disk_does_not_end_the_run(digits, tmp_path, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_tensors", full)
    with pytest.warns(RuntimeWarning, match=r"could not be written, and the run continues: No space left"):
        fitted = distiller(None, checkpoint=tmp_path / "run").fit(*digits)
    assert fitted.n_iter_ == 45


@pytest.mark.parametrize("every", [10, 0.05])
def test_checkpoints_are_written_by_steps_or_seconds(digits, tmp_path, monkeypatch, every):
    written = []
    monkeypatch.setattr(checkpoint_module, "write_tensors", lambda path, tensors, info: written.append(info))

    def slow(distiller, record):
        time.sleep(0.01)

    distiller(None, checkpoint=Checkpoint(tmp_path / "run", every=every), callback=slow).fit(*digits)
    assert written[-1]["step"] == 45
    assert written[-1]["finished"]
    if every == 10:
        assert [info["step"] for info in written] == [10, 20, 30, 40, 45]
    else:
        assert 2 <= len(written) < 45
        assert np.diff([info["seconds"] for info in written[:-1]]).min() >= 0.05


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Read ten losses at a time, as on a GPU."""
    monkeypatch.setattr(trainer_module, "_READ_EVERY_CPU", trainer_module._READ_EVERY)


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt])
@pytest.mark.parametrize("step", [3, 13, 38, 44])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_reading_ten_losses_at_a_time_loses_none(encoder, colors, tmp_path, step, error):
    X, y = colors
    whole = uninterrupted("images", encoder, colors)
    run = distiller(encoder, checkpoint=Checkpoint(tmp_path / "run", every=1), callback=_stop_at(step, error))
    with nullcontext() if error is StopIteration else pytest.warns(UserWarning, match="interrupted after"):
        run.fit(X, y)
    assert [record["step"] for record in run.history_] == list(range(run.n_iter_))
    assert run.n_iter_ > step
    resumed = clone(run).set_params(callback=None).fit(X, y)
    assert [record["step"] for record in resumed.history_] == list(range(resumed.n_iter_))
    if resumed.n_iter_ == 45:
        np.testing.assert_array_equal(resumed.X_synthetic_, whole.X_synthetic_)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_run_of_a_multiple_of_ten_steps_ends(encoder, colors, tmp_path):
    distiller(encoder, max_iter=40, checkpoint=tmp_path / "run").fit(*colors)
    assert read_checkpoint(tmp_path / "run")[1]["finished"]


# ---- stopping ------------------------------------------------------------------------------------------------------------


def test_interrupt_keeps_the_best_images(encoder, colors):
    """The held-out loss was best at step 20, before the images were corrupted."""
    X, y = colors
    seen = {}

    def spoil(distiller, record):
        if record["step"] == 20:
            seen["best"] = distiller.transform().copy()
        if record["step"] == 30:
            raise KeyboardInterrupt

    calls = itertools.count()

    def objective(Z, Y, R, r):
        return CrossEntropy(0.01, 0.1)(Z, Y, R, r) * (-1 if next(calls) > 21 and Z.requires_grad else 1)

    with pytest.warns(UserWarning, match="interrupted after 30 of 45 steps") as caught:
        fitted = distiller(encoder, objective=objective, callback=spoil, augmentation=ONLY_VIEWS).fit(X, y)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(fitted.X_synthetic_, seen["best"])
    assert fitted.score(X, y) >= 0.8


@pytest.mark.parametrize("held_out", [0.1, None])
def test_errors_lose_nothing(encoder, colors, held_out):
    X, y = colors
    run = distiller(encoder, validation_fraction=held_out, callback=_stop_at(25, OSError("printer on fire")))
    with pytest.raises(OSError, match="printer on fire"):
        run.fit(X, y)
    assert run.n_iter_ == 26
    assert run.predict(X).shape == (60,)
    broken = distiller(encoder, callback=_stop_at(0, OSError), objective=lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.fit(X, y)
    with pytest.raises(NotFittedError):
        broken.predict(X)


def test_a_callback_may_end_the_run(encoder, colors, recwarn):
    fitted = distiller(encoder, callback=_stop_at(7, StopIteration)).fit(*colors)
    assert fitted.n_iter_ == len(fitted.history_) == 8
    assert not recwarn.list


def test_no_change_ends_the_run(digits):
    X, y = digits
    fitted = distiller(None, max_iter=5000, init="noise", n_iter_no_change=60, tol=1e-3).fit(X, y)
    assert 80 <= fitted.n_iter_ < 3000
    losses = pd.DataFrame(fitted.history_).val_loss.dropna()
    best = losses.cummin()
    last_improvement = best.index[best.shift() - losses > 1e-3][-1]
    assert fitted.n_iter_ - 1 - last_improvement >= 60
    patient = distiller(None, max_iter=5000, init="noise", n_iter_no_change=60, tol=0).fit(X, y)
    assert patient.n_iter_ > fitted.n_iter_


def test_time_budget(digits):
    fitted = distiller(None, max_iter=10**6, time_budget=0.5).fit(*digits)
    seconds = [record["seconds"] for record in fitted.history_]
    assert seconds[-2] < 0.5 < seconds[-1] + max(np.diff(seconds)) * 3
    assert fitted.n_iter_ < 10**5
    assert distiller(None, time_budget=1000).fit(*digits).n_iter_ == 45


# ---- held-out features ---------------------------------------------------------------------------------------------------


def test_history_is_a_table_with_scores_on_held_out_features(encoder, colors):
    X, y = colors
    fitted = distiller(encoder, validation_fraction=0.3).fit(X, y)
    table = pd.DataFrame(fitted.history_)
    assert table.columns.tolist() == ["step", "loss", "seconds", "val_loss", "val_accuracy"]
    assert table.step[table.val_loss.notna()].tolist() == [0, 20, 40, 44]
    assert table.seconds.is_monotonic_increasing
    alone = pd.DataFrame(distiller(encoder, validation_fraction=None).fit(X, y).history_)
    assert alone.columns.tolist() == ["step", "loss", "seconds"]


@pytest.mark.parametrize("kind", ["images", "features"])
def test_held_out_accuracy_is_that_of_all_of_them(encoder, colors, kind):
    """Classes of 20, 14 and 7 that are balanced in the loss: the mean of the accuracies on their 9, 6 and 3 held-out samples."""
    X, y = colors
    y = np.where(np.random.default_rng(1).random(60) < 0.5, np.random.default_rng(2).permutation(y), y)  # hard to classify
    rows = np.concatenate([np.flatnonzero(y == label)[:n] for label, n in (("blue", 20), ("green", 14), ("red", 7))])
    X, y = X[rows], y[rows]
    if kind == "features":
        X, encoder = X.reshape(len(X), -1)[:, ::50] / 255, None
    trained = set()

    def objective(Z, Y, R, r):
        if Z.requires_grad:  # thousands of balanced draws contain all training samples
            trained.update(row.tobytes() for row in R.numpy())
        return CrossEntropy(1.0, 0.1)(Z, Y, R, r)

    fitted = distiller(encoder, validation_fraction=0.45, objective=objective).fit(X, y)
    R = encoder.transform(X) if encoder is not None else (X - X.mean(0)) / np.sqrt(np.square(X - X.mean(0)).sum(1).mean())
    held_out = np.array([row.tobytes() not in trained for row in R])
    assert np.unique(y[held_out], return_counts=True)[1].tolist() == [9, 6, 3]
    wanted = balanced_accuracy_score(y[held_out], fitted.predict(X[held_out]))
    assert 0 < wanted < 1
    assert fitted.val_accuracy_ == pytest.approx(wanted, abs=1e-9)


def test_held_out_accuracy_weighs_groups_of_a_class_alike():
    codes, groups = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 2, 2])
    np.testing.assert_allclose(balanced_weights(codes, groups), [1 / 12] * 3 + [1 / 4] + [1 / 4] * 2)
    np.testing.assert_allclose(balanced_weights(codes, codes), [1 / 8] * 4 + [1 / 4] * 2)
    np.testing.assert_allclose(balanced_weights(codes, None), 1 / 6)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_resumed_and_ended_before_a_scored_step(noisy, tmp_path, error):
    """The checkpoint has the score of a step that is not repeated; it belongs to the last record."""
    parameters = {"max_iter": 61, "init": "noise", "temperature": 0.1, "checkpoint": Checkpoint(tmp_path / "run", every=1)}
    run = distiller(None, **parameters, callback=_stop_at(20)).set_params(objective="cross_entropy")
    with pytest.warns(UserWarning, match="interrupted after 20"):
        run.fit(*noisy)
    assert read_checkpoint(tmp_path / "run")[1]["best_iter"] == 20
    resumed = clone(run).set_params(callback=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn_clpdd.distill._loop.backpropagate", _raise(error))
        with pytest.warns(UserWarning) if error is KeyboardInterrupt else pytest.raises(OSError):  # noqa: PT011, PT030
            resumed.fit(*noisy)
    assert (resumed.n_iter_, resumed.best_iter_) == (20, 19)
    assert resumed.history_[19]["val_loss"] == resumed.val_loss_ == run.history_[20]["val_loss"]


def _raise(error):
    def work(*args, **kwargs):
        raise error

    return work


def test_a_nan_score_replaces_no_other(encoder, colors):
    run = distiller(encoder, max_iter=41, objective=HeldOut([3.0, 2.0, 1.0, float("nan")]), augmentation=ONLY_VIEWS)
    with pytest.raises(FloatingPointError, match="held-out samples at step 40 is nan"):
        run.fit(*colors)
    assert (run.best_iter_, run.val_loss_, run.history_[40]["val_loss"]) == (40, 1.0, 1.0)


def test_a_fit_that_fails_leaves_nothing_in_memory(digits):
    """The features are freed with the error."""
    seen = []

    def objective(Z, Y, R, r):
        seen.append(weakref.ref(R))
        if len(seen) > 9:
            raise OSError
        return CrossEntropy(1.0, 0.1)(Z, Y, R, r)

    gc.collect()
    gc.disable()
    try:
        for n in (0, 9):  # before the first step, and after some steps
            seen[:] = [None] * (9 - n)
            with suppress(OSError):
                distiller(None, objective=objective, validation_fraction=None).fit(*digits)
            assert seen
            assert not [ref for ref in seen if ref is not None and ref() is not None]
    finally:
        gc.enable()


class HeldOut:
    """An objective with given losses for held-out samples; the other losses are computed."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def __call__(self, Z, Y, R, r):
        return CrossEntropy(1.0, 0.1)(Z, Y, R, r) if Z.requires_grad else torch.tensor(next(self.losses)).to(Z)


@pytest.mark.parametrize(
    ("max_iter", "losses", "kept", "last"),
    [
        (41, [3.0, 2.0, 1.0, 5.0], 40, 1.0),  # at steps 0, 20 and 40, and after step 40: the images before it are kept
        (41, [3.0, 2.0, 1.0, 0.5], 40, 0.5),
        (41, [3.0, 1.0, 2.0, 5.0], 20, 2.0),
        (45, [3.0, 2.0, 1.0, 5.0], 40, 5.0),
        (45, [3.0, 2.0, 1.0, 0.5], 44, 0.5),
    ],
)
def test_the_score_of_what_is_kept_is_kept(encoder, colors, tmp_path, max_iter, losses, kept, last):
    seen, X, y = [], colors[0], colors[1]

    def watch(moment, record):
        seen.append(moment.transform().copy())

    run = distiller(encoder, max_iter=max_iter, objective=HeldOut(losses), callback=watch, augmentation=ONLY_VIEWS).fit(X, y)
    assert run.best_iter_ == kept
    assert (run.val_loss_, run.history_[kept]["val_loss"]) == (min(losses), min(losses))
    assert run.val_accuracy_ == run.history_[kept]["val_accuracy"]
    assert run.history_[-1]["val_loss"] == last
    if losses[-1] > min(losses):
        np.testing.assert_array_equal(run.X_synthetic_, seen[kept])
    title = SyntheticImagesDisplay.from_estimator(run).figure_.get_suptitle()
    assert f"held-out accuracy {run.val_accuracy_:.3f}" in title
    (noted,) = load_distilled(save_distilled(run, tmp_path / "set"))[2]["accuracies"]
    assert noted["accuracy"] == run.val_accuracy_


@pytest.mark.parametrize("stop", [22, 40, 43])
def test_a_continued_run_keeps_the_same_images(noisy, tmp_path, stop):
    parameters = {"max_iter": 61, "init": "noise", "temperature": 0.1}
    whole = uninterrupted("noisy", None, noisy, **parameters)
    run = distiller(None, **parameters, checkpoint=Checkpoint(tmp_path / "run", every=1), callback=_stop_at(stop, StopIteration))
    resumed = clone(run.fit(*noisy)).set_params(callback=None).fit(*noisy)
    for name in ("best_iter_", "val_loss_", "val_accuracy_"):
        assert getattr(resumed, name) == getattr(whole, name)


def test_the_best_state_is_kept(noisy):
    points = {}

    def watch(distiller, record):
        points[record["step"]] = distiller.transform()

    fitted = distiller(None, callback=watch, max_iter=121, init="noise", temperature=0.1).fit(*noisy)
    best = pd.DataFrame(fitted.history_).val_loss.idxmin()
    assert best < 100
    np.testing.assert_array_equal(fitted.X_synthetic_, points[best])


def test_a_nan_held_out_loss_is_an_error(digits):
    def objective(Z, Y, R, r):
        return Z.square().sum() * (1 if Z.requires_grad else float("nan"))

    with pytest.raises(FloatingPointError, match="loss of held-out samples at step 0 is nan"):
        distiller(None, objective=objective).fit(*digits)


def test_patience_needs_held_out_samples(digits):
    X, y = digits
    for fraction, advice in ((None, "set a fraction"), (0.01, "use a larger fraction")):
        with pytest.raises(
            ValueError, match=f"n_iter_no_change=5 needs held-out real samples.*={fraction} holds out none.*{advice}"
        ):
            distiller(None, n_iter_no_change=5, validation_fraction=fraction).fit(X, y)


def test_held_out_features_are_not_learned_from(digits):
    X, y = digits
    order = distiller(None)
    seen = []

    def objective(Z, Y, R, r):
        seen.append((Z.requires_grad, R.numpy().copy()))
        return CrossEntropy(1.0, 0.1)(Z, Y, R, r)

    order.set_params(objective=objective, max_iter=2, validation_fraction=0.2).fit(X, y)
    training, held_out = (next(R for learns, R in seen if learns == kind) for kind in (True, False))
    rows = {row.tobytes() for row in training}
    assert len(training) + len(held_out) == len(X)
    assert not any(row.tobytes() in rows for row in held_out)


# ---- continuing a fitted estimator ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "features"])
@pytest.mark.parametrize("parametrization", ["pyramid", "pixels"])
def test_warm_start(encoder, colors, digits, kind, parametrization):
    X, y = colors if kind == "images" else digits
    run = distiller(encoder if kind == "images" else None, parametrization=parametrization, warm_start=True).fit(X, y)
    before = run.transform()
    run.set_params(max_iter=1, learning_rate=1e-9).fit(X, y)
    np.testing.assert_allclose(run.transform(), before, atol=1 / 256 if kind == "images" else 1e-4)
    assert run.n_iter_ == len(run.history_) == 46
    assert [record["step"] for record in run.history_] == list(range(46))
    run.set_params(max_iter=40, learning_rate=0.05).fit(X, y)
    assert run.n_iter_ == 86
    assert run.history_[-1]["loss"] < np.mean([record["loss"] for record in run.history_[:20]])
    assert run.set_params(warm_start=False).fit(X, y).n_iter_ == 40


def test_warm_start_after_other_data_or_parameters(encoder, colors, tmp_path):
    X, y = colors
    run = distiller(encoder, warm_start=True, max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match=r"classes {'blue': 1, 'green': 1, 'red': 1}.*{False: 1, True: 1}"):
        run.fit(X, y == "red")
    with pytest.raises(ValueError, match=r"'red': 1}; .*shape \(16, 16, 3\) and .*'red': 2}"):
        run.set_params(images_per_class=2).fit(X, y)
    with pytest.raises(ValueError, match="one of the two"):
        run.set_params(images_per_class=1, checkpoint=tmp_path / "run").fit(X, y)
    assert run.predict(X).shape == (60,)


# ---- callbacks -----------------------------------------------------------------------------------------------------------


def test_callback_sees_each_record_and_the_images_of_the_moment(encoder, colors):
    X, y = colors
    seen = []

    def watch(moment, record):
        assert (moment.n_iter_, moment.history_[-1]) == (record["step"] + 1, record)
        assert not hasattr(run, "classes_")  # the distiller itself is fitted only at the end
        seen.append((record, moment.transform()))

    run = distiller(encoder, validation_fraction=None, callback=watch)
    run.fit(X, y)
    assert [record for record, _ in seen] == run.history_
    images = [present for _, present in seen]
    assert all(present.shape == (3, 16, 16, 3) for present in images)
    assert all(np.abs(one - other).max() > 0 for one, other in itertools.pairwise([*images, run.transform()]))


def _pickle_it(distiller, record):
    if record["step"] == 3:
        assert pickle.loads(pickle.dumps(distiller)).n_iter_ == 4
        raise StopIteration


def test_pickles_while_it_runs_and_afterwards(encoder, colors, tmp_path):
    run = distiller(encoder, callback=_pickle_it).fit(*colors)
    assert run.n_iter_ == 4
    assert not [name for name in vars(run) if "present" in name or "callback_fit" in name]
    joblib.dump(run.set_params(callback=None), tmp_path / "run")


@pytest.mark.skipif(parse_version(sklearn.__version__) < parse_version("1.9"), reason="callbacks came with scikit-learn 1.9")
def test_scikit_learns_callbacks(encoder, colors):
    from sklearn.callback import ScoringMonitor

    class Watcher:
        def __init__(self, stop=None):
            self.seen, self.stop = [], stop

        def setup(self, estimator, context):
            self.seen.append("setup")

        def teardown(self, estimator, context):
            self.seen.append("teardown")

        def on_fit_task_begin(self, estimator, context, *, X, y):
            self.seen.append(("begin", context.task_name, len(X)))

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            if context.task_name == "step":
                step = fitted_estimator.history_[-1]["step"]
                self.seen.append((step, fitted_estimator.predict(colors[0]).shape))
                return step == self.stop
            self.seen.append("end")

    X, y = colors
    watcher = Watcher(stop=2)
    run = distiller(encoder, max_iter=5).set_callbacks(watcher).fit(X, y)
    assert run.n_iter_ == 3
    steps = [one for step in range(3) for one in (("begin", "step", 60), (step, (60,)))]
    assert watcher.seen == ["setup", ("begin", "fit", 60), *steps, "end", "teardown"]
    failing = Watcher()
    with pytest.raises(ZeroDivisionError):
        distiller(encoder, objective=lambda *args: 1 / 0).set_callbacks(failing).fit(X, y)
    assert failing.seen[-1] == "teardown"
    monitor = ScoringMonitor(scoring="accuracy")
    run = distiller(encoder, max_iter=3).set_callbacks(monitor).fit(X, y)
    assert run.n_iter_ == 3


def test_progress_bar(encoder, colors, capfd):
    distiller(encoder, verbose=1, max_iter=21).fit(*colors)
    shown = capfd.readouterr().err
    assert "21/21" in shown
    assert all(word in shown for word in ("loss=", "held-out acc=", "img/s="))
    distiller(encoder, verbose=1, max_iter=10**6, time_budget=0.3).fit(*colors)
    assert "1000000" not in capfd.readouterr().err.split("\r")[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, info: tensors.update({"adam.0.exp_avg": torch.zeros(1)}), r"adam.0.exp_avg of torch.float32"),
        (lambda tensors, info: tensors.update({"theta.0": tensors["theta.0"][:1].clone()}), "theta.0 of"),
        (lambda tensors, info: tensors.update({"theta.0": tensors["theta.0"].long()}), "theta.0 of torch.int64"),
        (lambda tensors, info: tensors.update({"theta.0": tensors["theta.0"] * float("nan")}), "theta.0 of"),
        (lambda tensors, info: tensors.pop("theta.0"), "lacks theta.0"),
        (lambda tensors, info: tensors.update({"extra": torch.zeros(3)}), "extra of"),
        (lambda tensors, info: info.update(step=-1), "step cannot be used"),
        (lambda tensors, info: info.update(step="x"), "step cannot be used"),
        (lambda tensors, info: info.update(seconds=None), "seconds cannot be used"),
        (lambda tensors, info: info.pop("history"), "history cannot be used"),
        (lambda tensors, info: info.update(parameters=[]), "does not say"),
    ],
)
def test_checkpoints_with_other_content_are_refused(digits, tmp_path, change, words):
    """Also those whose digest fits: torch's fused Adam would read beyond moments of another shape, and crash."""
    run = distiller(None, max_iter=6, checkpoint=Checkpoint(tmp_path / "run", every=2))
    run.fit(*digits)
    tensors, info = read_checkpoint(tmp_path / "run")
    info["finished"] = False
    change(tensors, info)
    checkpoint_module.write_tensors(tmp_path / "run", tensors, info)
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(ValueError, match=words):
        run.fit(*digits)
    assert (tmp_path / "run").read_bytes() == before


def test_a_damaged_checkpoint_is_refused(digits, tmp_path):
    run = distiller(None, max_iter=6, checkpoint=tmp_path / "run")
    run.fit(*digits)
    content = bytearray((tmp_path / "run").read_bytes())
    content[-3] ^= 1  # one bit of a weight
    (tmp_path / "run").write_bytes(content)
    with pytest.raises(ValueError, match="was changed or damaged"):
        run.fit(*digits)
