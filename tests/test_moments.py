"""Training in batches: equal to one fit on all samples, for any order and split."""

import os
import pickle
import subprocess
import sys
import warnings
from functools import partial, reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from sklearn_clpdd import ClosedFormProbe
from sklearn_clpdd.probe import _reservoir as reservoir

ridge_probe = partial(ClosedFormProbe, loss="squared")

CLASSES = np.array(["a", "b", "c", "d"])
PARAMETERS = [{}, {"alpha": 0.5, "temperature": 0.3}, {"kernel": "cosine"}, {"fit_intercept": False}, {"class_weight": {"b": 3}}]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 300)
    X = rng.standard_normal((300, 25)) + 2 * np.eye(4, 25)[codes] + 100
    return X, CLASSES[codes], rng.random(300)


def _assert_same(probe, other):
    np.testing.assert_allclose(probe.coef_, other.coef_, rtol=1e-9, atol=1e-9 * np.abs(other.coef_).max())
    np.testing.assert_allclose(probe.intercept_, other.intercept_, rtol=1e-9)
    assert probe.alpha_ == other.alpha_
    np.testing.assert_allclose(probe.temperature_, other.temperature_, rtol=1e-5)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("order", ["as given", "by class", "shuffled"])
@pytest.mark.parametrize("n_batches", [1, 7, 300])
def test_partial_fit_is_fit(data, parameters, order, n_batches):
    X, y, weight = data
    rows = {
        "as given": np.arange(300),
        "by class": np.argsort(y, kind="stable"),
        "shuffled": np.random.default_rng(1).permutation(300),
    }[order]
    probe = ridge_probe(**parameters)
    for batch in np.array_split(rows, n_batches):
        probe.partial_fit(X[batch], y[batch], classes=CLASSES, sample_weight=weight[batch])
    _assert_same(probe, ridge_probe(**parameters).fit(X, y, weight))


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_merge_is_fit(data, parameters):
    X, y, weight = data

    def part(rows):
        return ridge_probe(**parameters).partial_fit(X[rows], y[rows], classes=CLASSES, sample_weight=weight[rows])

    splits = np.array_split(np.argsort(y), 5)
    parts = pickle.loads(pickle.dumps([part(rows) for rows in splits]))  # as joblib sends them
    whole = reduce(lambda one, other: one.merge(other), parts)
    _assert_same(whole, ridge_probe(**parameters).fit(X, y, weight))
    np.testing.assert_array_equal(parts[1].coef_, part(splits[1]).coef_)  # the operands are not changed


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_batch_can_be_repeated(data, monkeypatch, error):
    X, y, _ = data
    probe = ridge_probe(1.0).partial_fit(X[:100], y[:100], classes=CLASSES)
    other = ridge_probe(1.0).partial_fit(X[200:], y[200:], classes=CLASSES)

    def interrupted(*args):
        raise error

    with monkeypatch.context() as patch:  # the reservoir is updated after the moments
        patch.setattr(reservoir.Reservoir, "_take", interrupted)
        with pytest.raises(error):
            probe.partial_fit(X[100:200], y[100:200])
        with pytest.raises(error):
            probe.merge(other)
    _assert_same(probe.partial_fit(X[100:200], y[100:200]).merge(other), ridge_probe(1.0).fit(X, y))


def test_training_continues_after_a_result_was_read(data):
    X, y, _ = data
    probe = ridge_probe().partial_fit(X[:150], y[:150], classes=CLASSES)
    early = probe.coef_
    probe.partial_fit(X[150:], y[150:])
    assert not np.allclose(early, probe.coef_)
    _assert_same(probe, ridge_probe().fit(X, y))


def test_a_large_offset_does_not_cost_accuracy(data):
    X, y, _ = data
    probe = ridge_probe(1.0)
    for batch in np.array_split(np.arange(300), 6):
        probe.partial_fit(X[batch] + 1e6, y[batch], classes=CLASSES)
    np.testing.assert_allclose(probe.coef_, ridge_probe(1.0).fit(X, y).coef_, rtol=1e-6, atol=1e-9)


def test_state_does_not_grow(data):
    X, y, _ = data
    probe = ridge_probe()
    for _ in range(10):
        probe.partial_fit(X, y, classes=CLASSES)
    size = len(pickle.dumps(probe))
    for _ in range(20):
        probe.partial_fit(X, y)
    assert len(pickle.dumps(probe)) < size + 100


def test_reservoir_is_a_uniform_sample_of_bounded_size(monkeypatch):
    kept = np.zeros(1000)
    for repetition in range(200):
        sample = reservoir.Reservoir(100)
        sample.n_seen = repetition  # other keys
        other = reservoir.Reservoir(100)
        for batch in np.array_split(np.arange(1000), 2 + repetition % 9):
            (sample if batch[0] < 500 else other).add(batch[:, None], batch, batch)
        sample.merge(other)
        rows, codes, weight = sample.rows
        assert len(rows) == 100
        assert (rows[:, 0] == codes).all()
        assert (weight == codes).all()
        kept[codes] += 1
    halves = kept.reshape(2, 500).sum(1)
    np.testing.assert_allclose(halves, 10_000, rtol=0.05)


def test_a_long_stream_chooses_nearly_what_fit_chooses(data, monkeypatch):
    X, y, _ = data
    monkeypatch.setattr("sklearn_clpdd.probe._partial_fit._RESERVOIR", 150)
    probe = ridge_probe()
    for batch in np.array_split(np.arange(300), 6):
        probe.partial_fit(X[batch], y[batch], classes=CLASSES)
    whole = ridge_probe().fit(X, y)
    assert abs(probe.loo_score_ - whole.loo_score_) < 0.1
    assert abs(np.log(probe.temperature_ / whole.temperature_)) < 0.5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memmap_on_disk(data, dtype, tmp_path):
    X, y, _ = data
    X = ((X - 100) / 8).astype(dtype)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    probe = ridge_probe().fit(mapped, y)
    assert probe.coef_.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(probe.coef_, ridge_probe().fit(X.astype(np.float64), y).coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probe.decision_function(mapped), probe.decision_function(X.astype(probe.coef_.dtype)), atol=1e-5)


MEMORY = """
import sys, threading, time
import numpy as np
from sklearn_clpdd import ClosedFormProbe

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

def growth(work):
    before, peak, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.wait(0.001):
            peak[0] = max(peak[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    result = work()
    peak[0] = max(peak[0], anonymous())
    done.set()
    thread.join()
    return result, max(0, peak[0] - before)

X = np.load(sys.argv[1], mmap_mode="r")
y = np.arange(len(X)) % 3
ClosedFormProbe([1.0, 10.0], temperature=0.2).fit(X[:30_000], y[:30_000])
probe, of_fit = growth(lambda: ClosedFormProbe([1.0, 10.0], temperature=0.2).fit(X, y))
copy, of_copy = growth(lambda: np.array(X))
mask, of_mask = growth(lambda: np.isfinite(X))
print(of_fit, of_copy, of_mask, probe.score(X[:1000], y[:1000]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux says what memory of a process belongs to no file")
def test_memmap_is_not_copied_whole(tmp_path):
    """Resident memory grows by less than the size of the features, unlike that of an explicit copy."""
    rng = np.random.default_rng(0)
    n, d = 400_000, 400  # chunks and their copies take 40 to 80 MB, a mask 160 MB
    X = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=np.float16, shape=(n, d))
    rows = 0.1 * rng.standard_normal((3000, d), dtype=np.float32) + np.eye(3, d, dtype=np.float32)[np.arange(3000) % 3]
    for start in range(0, n, 3000):
        X[start : start + 3000] = rows[: n - start] + 0.001 * (start % 7)
    X.flush()
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "X.npy"], capture_output=True, text=True, check=True)
    of_fit, of_copy, of_mask, score = map(float, done.stdout.split())
    assert score == 1
    assert min(of_copy / 2, of_mask) >= 0.9 * n * d
    assert of_fit < 0.75 * n * d


def test_errors_keep_what_was_learned(data):
    X, y, _ = data
    probe = ridge_probe(1.0).partial_fit(X, y, classes=CLASSES)
    before = probe.coef_
    with pytest.raises(ValueError, match=r"\['e'\].*not among the classes"):
        probe.partial_fit(X[:2], ["a", "e"])
    broken = X[:2].astype(np.float16)
    broken[1, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        probe.partial_fit(broken, y[:2])
    with pytest.raises(ValueError, match="25 features"):
        probe.partial_fit(X[:2, :5], y[:2])
    np.testing.assert_array_equal(probe.coef_, before)


def test_a_first_call_that_fails_leaves_no_state(data):
    X, y, _ = data
    probe = ridge_probe(1.0)
    with pytest.raises(ValueError, match="not among"):
        probe.partial_fit(X, y, classes=["a", "b"])
    probe.partial_fit(X, y, classes=CLASSES)
    assert probe.classes_.tolist() == CLASSES.tolist()


def test_parameters_that_do_not_work_in_batches(data):
    X, y, _ = data
    with pytest.raises(ValueError, match=r"balanced.*dict"):
        ridge_probe(class_weight="balanced").partial_fit(X, y, classes=CLASSES)
    assert not hasattr(ridge_probe(kernel="rbf"), "partial_fit")
    with pytest.raises(AttributeError, match="need kernel='linear' or 'cosine'"):
        ridge_probe(kernel="rbf").partial_fit(X, y, classes=CLASSES)
    with pytest.raises(ValueError, match="kernel='linear'; it is now 'cosine'"):
        ridge_probe().partial_fit(X, y, classes=CLASSES).set_params(kernel="cosine").partial_fit(X, y)
    with pytest.raises(ValueError, match="at least two classes"):
        ridge_probe().partial_fit(X, y, classes=["a"])
    one = ridge_probe().partial_fit(X, y, classes=CLASSES)
    with pytest.raises(ValueError, match="n_features_in_: 25 and 5"):
        one.merge(ridge_probe().partial_fit(X[:, :5], y, classes=CLASSES))
    with pytest.raises(ValueError, match="different classes"):
        one.merge(ridge_probe().partial_fit(X, y, classes=[*CLASSES, "e"]))
    with pytest.raises(NotFittedError):
        one.merge(ridge_probe())


def test_fit_begins_anew(data):
    X, y, _ = data
    probe = ridge_probe(1.0).partial_fit(X + 5, y, classes=CLASSES).fit(X, y)
    _assert_same(probe, clone(probe).fit(X, y))


@pytest.mark.parametrize("n", [12, 300])  # fewer and more samples than features
def test_after_fit_partial_fit_begins_anew_and_says_so(data, n):
    """`fit` keeps neither sums nor rows, before and after pickling."""
    X, y, _ = data
    rows = np.argsort(np.arange(300) % 75, kind="stable")[:n]
    probe = ridge_probe(1.0).fit(X[rows], y[rows])
    pickled = pickle.dumps(probe)
    assert len(pickled) < 2 * probe.coef_.nbytes + 3000
    for other in (ridge_probe().partial_fit(X, y, classes=CLASSES), ridge_probe().fit(X, y)):
        for one, two in ((probe, other), (other, probe)):
            with pytest.raises(ValueError, match="fitted by `fit` keeps no statistics"):
                one.merge(two)
    with pytest.raises(ValueError, match="NaN"):
        probe.partial_fit(np.nan * X, y)
    assert pickle.dumps(probe) == pickled
    wanted = ridge_probe(1.0).partial_fit(X, y, classes=CLASSES)
    for fitted in (probe, pickle.loads(pickled)):
        with pytest.warns(UserWarning, match="earlier samples are discarded"):
            fitted.partial_fit(X, y)
        _assert_same(fitted, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.partial_fit(X, y).merge(wanted)


def test_results_use_the_parameters_of_the_last_partial_fit(data):
    """Whether or not a result was read in between."""
    X, y, _ = data
    wanted = ridge_probe(0.5, temperature=0.3).fit(X, y)
    for look in (False, True):
        probe = ridge_probe(0.5, temperature=0.3).partial_fit(X, y, classes=CLASSES)
        if look:
            assert hasattr(probe, "coef_")
        probe.set_params(alpha=100.0, temperature=5.0, fit_intercept=False, dtype="float32")
        _assert_same(probe, wanted)
        np.testing.assert_allclose(probe.predict_proba(X), wanted.predict_proba(X), rtol=1e-6)
        probe.partial_fit(X[:1], y[:1])  # the new parameters apply
        assert probe.alpha_ == 100.0
    changed = np.array([0.5, 2.0])
    probe = ridge_probe(changed).partial_fit(X, y, classes=CLASSES)
    changed *= 100
    assert probe.alphas_.tolist() == [0.5, 2.0]


def test_shards_keep_other_positions():
    kept = []
    for offset in (0, 1000):
        sample = reservoir.Reservoir(20)
        sample.add(np.arange(offset, offset + 100)[:, None], np.zeros(100, int), np.ones(100))
        kept.append(set((sample.rows[0][:, 0] - offset).tolist()))
    assert len(kept[0] & kept[1]) < 12


def test_classes_that_are_rare_in_the_reservoir_still_count(monkeypatch):
    monkeypatch.setattr("sklearn_clpdd.probe._partial_fit._RESERVOIR", 6)
    rng = np.random.default_rng(0)
    y = np.arange(180) % 60
    X = rng.standard_normal((180, 8)) + 4 * rng.standard_normal((60, 8))[y]
    probe = ridge_probe().partial_fit(X, y, classes=np.arange(60))
    assert 0 <= probe.loo_score_ <= 1


def test_an_unsolvable_system_is_an_error_each_time(data):
    X, y, _ = data
    X[:, 1] = X[:, 0]
    probe = ridge_probe(0).partial_fit(X, y, classes=CLASSES)
    for _ in range(2):
        assert not hasattr(probe, "coef_")
        with pytest.raises(AttributeError, match=r"coef_ cannot be computed from the samples so far: .*singular"):
            probe.coef_  # noqa: B018
        with pytest.raises(NotFittedError):
            check_is_fitted(probe)
        with pytest.raises(ValueError, match="singular"):
            probe.predict(X)
    rng = np.random.default_rng(0)
    probe.partial_fit(rng.standard_normal(X.shape), y)
    check_is_fitted(probe)
    assert hasattr(probe, "coef_")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(40)), cuts=st.lists(st.integers(1, 39), max_size=6), weighted=st.booleans(), merged=st.booleans()
)
def test_new_classes_are_exact(order, cuts, weighted, merged):
    """Whatever the order in which classes appear, and whether batches come one after the other or from several probes."""
    rng = np.random.default_rng(0)
    y = np.array(list("deadbeef"))[np.arange(40) % 8]
    X, weight = rng.standard_normal((40, 5)), rng.random(40) + 0.1
    weight = weight if weighted else np.ones(40)
    parts = np.split(np.array(order), sorted(set(cuts)))
    probe = ridge_probe([0.1, 1.0])
    for i, rows in enumerate(parts):
        other = ridge_probe([0.1, 1.0]) if merged else probe
        other.partial_fit(X[rows], y[rows], sample_weight=weight[rows])
        if merged and i:
            probe.merge(other)
        elif merged:
            probe = other
    whole = ridge_probe([0.1, 1.0]).fit(X, y, weight)
    assert probe.classes_.tolist() == sorted(set("deadbeef"))
    np.testing.assert_allclose(probe.coef_, whole.coef_, atol=1e-10)
    np.testing.assert_allclose(probe.intercept_, whole.intercept_, atol=1e-10)
    np.testing.assert_allclose(probe.loo_scores_, whole.loo_scores_)
    np.testing.assert_allclose(probe.temperature_, whole.temperature_, rtol=1e-6)


def test_new_classes_where_they_are_not_expected(data):
    X, y, _ = data
    probe = ridge_probe(1.0).partial_fit(X[:10], np.full(10, "a"))
    assert not hasattr(probe, "coef_")
    with pytest.raises(ValueError, match="at least two classes, and all so far are of one"):
        probe.predict(X)
    probe.partial_fit(X, y)
    assert probe.classes_.tolist() == CLASSES.tolist()
    before = probe.coef_
    with pytest.raises(ValueError, match="of another type than before"):
        probe.partial_fit(X[:2], [1, 2])
    with pytest.raises(ValueError, match="one label a sample"):
        probe.partial_fit(X[:2], [[0, 1], [1, 1]])
    np.testing.assert_array_equal(probe.coef_, before)
    announced = ridge_probe(1.0).partial_fit(X, y, classes=CLASSES)
    with pytest.raises(ValueError, match=r"different classes.*without `classes`"):
        announced.merge(ridge_probe(1.0).partial_fit(X[:2], ["a", "e"]))
    assert announced.merge(ridge_probe(1.0).partial_fit(X[:2], ["a", "b"])).classes_.tolist() == CLASSES.tolist()


def test_announced_classes_without_a_sample(data):
    X, y, _ = data
    probe = ridge_probe(1.0).partial_fit(X, y, classes=[*CLASSES, "never"])
    with pytest.warns(UserWarning, match=r"\['never'\] were announced and have no sample yet"):
        predicted = probe.predict(X)
    assert "never" not in predicted
    scores = probe.decision_function(X)
    np.testing.assert_allclose(scores[:, probe.classes_ == "never"], -1)
    np.testing.assert_allclose(scores[:, probe.classes_ != "never"], ridge_probe(1.0).fit(X, y).decision_function(X), atol=1e-8)


def test_class_weights_of_classes_that_come_later(data):
    X, y, _ = data
    parameters = {"class_weight": {"c": 3.0}}
    order = np.argsort(y, kind="stable")
    probe = ridge_probe(1.0, **parameters)
    for rows in np.array_split(order, 3):
        probe.partial_fit(X[rows], y[rows])
    np.testing.assert_allclose(probe.coef_, ridge_probe(1.0, **parameters).fit(X, y).coef_, atol=1e-8)


def test_a_prior_is_that_of_the_last_batch(data):
    X, y, _ = data
    prior = np.ones((len(CLASSES), X.shape[1]))
    probe = ridge_probe(1.0, coef_prior=prior).partial_fit(X, y, classes=CLASSES)
    wanted = ridge_probe(1.0, coef_prior=prior.copy()).fit(X, y).coef_
    prior *= 100
    np.testing.assert_allclose(probe.set_params(coef_prior=None, loss="logistic").coef_, wanted, atol=1e-8)
    one = ridge_probe(1.0, coef_prior=prior[:2]).partial_fit(X[y < "c"], y[y < "c"])
    before = one.coef_
    with pytest.raises(ValueError, match=r"has to be \(\d, 25\)"):
        one.merge(ridge_probe(1.0).partial_fit(X, y))
    np.testing.assert_array_equal(one.coef_, before)
