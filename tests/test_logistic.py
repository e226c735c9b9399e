"""The logistic loss: equal to scikit-learn's logistic regression, and its strength to that of folds fitted one by one."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from sklearn_clpdd import ClosedFormProbe
from sklearn_clpdd.probe import _logistic as logistic
from sklearn_clpdd.probe import _rows as rows
from sklearn_clpdd.probe import _solver as solver
from sklearn_clpdd.probe._lbfgs import LogisticProblems


def _data(n, d, n_classes, dtype=np.float64):
    rng = np.random.default_rng(n + d)
    y = rng.permutation(np.arange(n) % n_classes)
    X = rng.standard_normal((n, d)) + rng.standard_normal((n_classes, d))[y] + 1
    return X.astype(dtype), np.array(list("abcdefghijkl"))[y], 0.2 + rng.random(n)


def _reference(alpha, **parameters):
    return LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10_000, **parameters)


@pytest.mark.parametrize(("n", "d"), [(120, 8), (30, 70)])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighting", ["none", "balanced", "samples"])
@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_equals_logistic_regression(n, d, n_classes, fit_intercept, weighting, alpha):
    X, y, weight = _data(n, d, n_classes)
    keep = np.r_[np.flatnonzero(y == "a")[::2], np.flatnonzero(y != "a")]  # unbalanced
    X, y, weight = X[keep], y[keep], weight[keep] if weighting == "samples" else None
    parameters = {"fit_intercept": fit_intercept, "class_weight": "balanced" if weighting == "balanced" else None}
    ours = ClosedFormProbe(alpha, loss="logistic", temperature=1.0, **parameters).fit(X, y, weight)
    theirs = _reference(alpha, **parameters).fit(X, y, weight)
    scale = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3 * scale)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-3)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=5e-3 * scale * d**0.5)
    assert (ours.loss_, ours.alpha_, ours.temperature_) == ("logistic", alpha, 1.0)
    assert not hasattr(ours, "loo_scores_")


def test_float32_and_unit_norm():
    X, y, _ = _data(200, 10, 3, np.float32)
    ours = ClosedFormProbe(0.5, loss="logistic", kernel="cosine", temperature=1.0).fit(X, y)
    unit = X.astype(float) / np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    np.testing.assert_allclose(ours.predict_proba(X), _reference(0.5).fit(unit, y).predict_proba(unit), atol=5e-3)
    assert ours.coef_.dtype == ours.predict_proba(X).dtype == np.float32


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_strength_and_temperature_are_those_of_folds(n_classes, weighted, monkeypatch):
    monkeypatch.setattr(logistic, "_COARSE", 1e-9)  # as precise as what they are compared with
    X, y, weight = _data(150, 6, n_classes)
    X *= 0.3
    weight = weight if weighted else np.ones(150)
    alphas = [0.01, 1.0, 30.0]
    probe = ClosedFormProbe(alphas, loss="logistic", scoring="neg_log_loss").fit(X, y, weight)
    order = np.argsort(y, kind="stable")
    folds = np.empty(150, int)
    folds[order] = np.arange(150) % logistic.N_FOLDS
    codes = np.unique(y, return_inverse=True)[1]
    share = 1 / 151
    best = {}
    for alpha in alphas:
        proba = cross_val_predict(
            _reference(alpha), X, y, cv=PredefinedSplit(folds), params={"sample_weight": weight}, method="predict_proba"
        )
        targets = (1 - share) * np.eye(n_classes)[codes] + share / n_classes
        losses = {}
        for temperature in np.geomspace(0.02, 5, 800):
            logits = np.log(proba) / temperature
            logits -= np.log(np.exp(logits).sum(1, keepdims=True))
            losses[temperature] = (
                -np.average((targets * logits).sum(1), weights=weight),
                -np.average(logits[np.arange(150), codes], weights=weight),
            )
        temperature = min(losses, key=losses.__getitem__)
        best[alpha] = losses[temperature][1], temperature
    chosen = min(best, key=best.__getitem__)
    assert probe.alpha_ == chosen
    np.testing.assert_allclose(-probe.loo_scores_, [best[alpha][0] for alpha in alphas], rtol=5e-3)
    np.testing.assert_allclose(probe.temperature_, best[chosen][1], rtol=0.02)
    final = _reference(chosen).fit(X, y, weight)
    np.testing.assert_allclose(probe.decision_function(X), final.decision_function(X), atol=0.01)
    np.testing.assert_allclose(probe.alphas_, alphas)


@pytest.mark.parametrize("alpha", [1e-2, 10.0])
def test_first_steps_in_bfloat16(alpha, monkeypatch):
    X, y, weight = _data(2000, 40, 5, np.float32)
    Y = y[:, None] == np.unique(y)

    def objective(probe):
        logits = probe.decision_function(X).astype(float)
        losses = np.log(np.exp(logits).sum(1)) - logits[Y]
        return weight @ losses + alpha / 2 * (probe.coef_.astype(float) ** 2).sum()

    monkeypatch.setattr(logistic, "_LARGE", 0)
    objectives = []
    for is_fast in (False, True):
        monkeypatch.setattr(logistic, "has_fast_bfloat16", lambda n_threads, is_fast=is_fast: is_fast)
        probe = ClosedFormProbe(alpha, loss="logistic", temperature=1.0).fit(X, y, weight)
        objectives.append(objective(probe))
    exact = _reference(alpha).fit(X.astype(float), y, weight)
    assert len(set(objectives)) == 2
    rounding = weight.sum() * np.finfo(np.float32).eps
    np.testing.assert_allclose(objectives, objective(exact), rtol=5e-4, atol=2 * rounding)


def test_strengths_are_compared_in_bfloat16(monkeypatch):
    X, y, _ = _data(3000, 60, 5, np.float32)
    X *= 0.2
    monkeypatch.setattr(logistic, "_LARGE", 0)
    exact = ClosedFormProbe(scoring="neg_log_loss").fit(X.astype(float), y)
    monkeypatch.setattr(logistic, "has_fast_bfloat16", lambda n_threads: True)
    in_full, evaluate = [], LogisticProblems._evaluate

    def counted(self, x, alpha, Z, *preconditioner):
        in_full.append(Z.dtype == x.dtype and len(x) > 1)
        return evaluate(self, x, alpha, Z, *preconditioner)

    monkeypatch.setattr(LogisticProblems, "_evaluate", counted)
    probe = ClosedFormProbe(scoring="neg_log_loss").fit(X, y)
    assert probe.loss_ == exact.loss_ == "logistic"
    assert not any(in_full)
    assert len(in_full) < 150
    np.testing.assert_allclose(probe.loo_score_, exact.loo_score_, rtol=3e-3)
    both = ~np.isnan(probe.loo_scores_) & ~np.isnan(exact.loo_scores_)
    assert both.sum() >= 2
    np.testing.assert_allclose(probe.loo_scores_[both], exact.loo_scores_[both], rtol=1e-2)
    np.testing.assert_allclose(probe.temperature_, exact.temperature_, rtol=0.1)


@pytest.mark.parametrize("is_fast", [False, True])
def test_separable_classes_with_almost_no_penalty(is_fast, monkeypatch):
    monkeypatch.setattr(logistic, "_LARGE", 0)
    monkeypatch.setattr(logistic, "has_fast_bfloat16", lambda n_threads: is_fast)
    X, y, _ = _data(600, 30, 3, np.float32)
    X += 8 * (y[:, None] == np.unique(y)[np.arange(30) % 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = ClosedFormProbe(1e-4, loss="logistic", temperature=1.0).fit(X, y)
    logits = probe.decision_function(X).astype(float)
    losses = np.log(np.exp(logits).sum(1)) - logits[y[:, None] == probe.classes_]
    theirs = _reference(1e-4).fit(X.astype(float), y)
    best = 1e-4 / 2 * (theirs.coef_**2).sum() - theirs.predict_log_proba(X.astype(float))[y[:, None] == theirs.classes_].sum()
    assert losses.sum() + 1e-4 / 2 * (probe.coef_.astype(float) ** 2).sum() < best + 600 * np.finfo(np.float32).eps


def test_the_search_stops_where_the_loss_rises():
    X, y, _ = _data(400, 20, 4)
    probe = ClosedFormProbe().fit(X, y)
    assert probe.loss_ == "logistic"
    tried = ~np.isnan(probe.loo_scores_)
    assert 2 <= tried.sum() < len(probe.alphas_)
    assert tried[probe.alphas_ == probe.alpha_].all()
    searched = ClosedFormProbe(scoring="neg_log_loss").fit(X, y)
    every = ClosedFormProbe(probe.alphas_, scoring="neg_log_loss", loss="logistic").fit(X, y)
    assert searched.alpha_ == every.alpha_
    np.testing.assert_allclose(searched.loo_score_, every.loo_score_, rtol=0.1)  # from other starts


def test_which_loss_is_chosen():
    X, y, _ = _data(80, 5, 4)
    assert ClosedFormProbe().fit(X, y).loss_ == "logistic"
    assert ClosedFormProbe().fit(X[:79], y[:79]).loss_ == "squared"
    for parameters in ({"alpha": 1.0}, {"alpha": [1.0]}, {"kernel": "rbf"}, {"scoring": "neg_mean_squared_error"}):
        assert ClosedFormProbe(**parameters).fit(X, y).loss_ == "squared"
    assert ClosedFormProbe().partial_fit(X, y, classes=np.unique(y)).loss_ == "squared"
    squared = ClosedFormProbe(loss="squared").fit(X, y)
    np.testing.assert_allclose(ClosedFormProbe().partial_fit(X, y, classes=np.unique(y)).coef_, squared.coef_)


def test_weights_are_repetitions():
    X, y, _ = _data(90, 6, 3)
    counts = np.arange(90) % 3
    parameters = {"loss": "logistic", "alpha": [0.1, 1.0, 10.0]}
    weighted = ClosedFormProbe(**parameters).fit(X, y, counts)
    repeated = ClosedFormProbe(**parameters).fit(X.repeat(counts, axis=0), y.repeat(counts))
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(weighted.loo_scores_, repeated.loo_scores_)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_scale_of_the_features_does_not_matter(scale, dtype):
    X, y, _ = _data(200, 10, 4, dtype)
    probe, scaled = (ClosedFormProbe().fit(values, y) for values in (X, (scale * X).astype(dtype)))
    np.testing.assert_allclose(scaled.alpha_, scale**2 * probe.alpha_, rtol=1e-6)
    np.testing.assert_allclose(scaled.predict_proba((scale * X).astype(dtype)), probe.predict_proba(X), atol=5e-3)


def test_chunks_do_not_change_the_result(monkeypatch):
    X, y, _ = _data(200, 10, 4)
    whole = ClosedFormProbe().fit(X, y)
    monkeypatch.setattr(rows, "CHUNK", 300)
    parts = ClosedFormProbe().fit(X, y)
    assert (whole.loss_, parts.alpha_) == ("logistic", whole.alpha_)
    np.testing.assert_allclose(parts.predict_proba(X), whole.predict_proba(X), atol=1e-5)


def test_lone_samples():
    X, y, _ = _data(60, 5, 3)
    y[:] = np.where(np.arange(60) == 7, "z", y)
    probe = ClosedFormProbe(loss="logistic").fit(X, y)
    assert 0 <= probe.loo_score_ <= 1
    with pytest.warns(UserWarning, match="no class has two samples"):
        probe = ClosedFormProbe(loss="logistic").fit(X[:3], ["a", "b", "c"])
    assert probe.score(X[:3], ["a", "b", "c"]) == 1
    assert np.isnan(probe.loo_score_)


def test_without_the_memory_for_it(monkeypatch):
    X, y, _ = _data(200, 5, 3)
    for module in (logistic, solver):
        monkeypatch.setattr(module, "available_memory", lambda device: 1000)
    assert ClosedFormProbe().fit(X, y).loss_ == "squared"
    with pytest.raises(MemoryError, match="200 samples of 5 features and 3 classes"):
        ClosedFormProbe(loss="logistic").fit(X, y)


def test_an_offset_costs_no_precision():
    X, y, _ = _data(200, 5, 3)
    X = np.float32(X).astype(np.float64)
    near, far = (ClosedFormProbe(loss="logistic", dtype="float32").fit(values, y) for values in (X, X + 1e8))
    np.testing.assert_allclose(far.coef_, near.coef_, atol=1e-3 * np.abs(near.coef_).max())


@pytest.mark.parametrize("loss", ["logistic", "auto"])
def test_degenerate_features(loss):
    y = np.arange(60) % 3
    for X in (np.ones((60, 4)), np.zeros((60, 4)), np.c_[np.ones(60), y, y], 1e30 * np.eye(60)[:, :5]):
        probe = ClosedFormProbe(loss=loss).fit(X, y)
        assert np.isfinite(probe.predict_proba(X)).all()
    with pytest.raises(ValueError, match="overflow"):
        ClosedFormProbe(loss=loss).fit(1e200 * np.eye(60)[:, :5], y)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.integers(6, 60),
    d=st.integers(1, 30),
    n_classes=st.integers(2, 5),
    kernel=st.sampled_from(["linear", "cosine"]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    fit_intercept=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(n, d, n_classes, kernel, dtype, fit_intercept, seed):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((n, d)).astype(dtype), np.arange(n) % n_classes
    probe = ClosedFormProbe(loss="logistic", kernel=kernel, fit_intercept=fit_intercept).fit(X, y)
    proba = probe.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert (proba[np.arange(n), np.searchsorted(probe.classes_, probe.predict(X))] == proba.max(axis=1)).all()  # rounding may tie
    given = ClosedFormProbe(probe.alpha_, loss="logistic", kernel=kernel, fit_intercept=fit_intercept, temperature=1.0)
    scores = probe.decision_function(X)
    # Of probabilities: where few samples can be separated, scores of ±10 are only found to the tolerance of the loss.
    wanted = softmax(np.c_[np.zeros(n), scores] if scores.ndim == 1 else scores, axis=1)
    np.testing.assert_allclose(given.fit(X, y).predict_proba(X), wanted, atol=0.01)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kernel": "rbf"}, "needs kernel='linear' or 'cosine'; got 'rbf'"),
        ({"scoring": "neg_mean_squared_error"}, "needs scoring='accuracy' or 'neg_log_loss'"),
        ({"alpha": 0}, "needs alpha > 0"),
        ({"alpha": [0, 1.0]}, "needs alpha > 0"),
        ({"loss": "hinge"}, "'loss' parameter"),
    ],
)
def test_bad_parameters_are_errors(parameters, message):
    X, y, _ = _data(30, 5, 3)
    with pytest.raises(ValueError, match=message):
        ClosedFormProbe(**({"loss": "logistic"} | parameters)).fit(X, y)


def test_no_batches():
    X, y, _ = _data(30, 5, 3)
    assert not hasattr(ClosedFormProbe(loss="logistic"), "partial_fit")
    with pytest.raises(AttributeError, match="need loss='squared'"):
        ClosedFormProbe(loss="logistic").partial_fit(X, y)


def test_a_fit_is_silent():
    X, y, _ = _data(300, 10, 5, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClosedFormProbe().fit(X, y)
        ClosedFormProbe(1e-3, loss="logistic").fit(X, y)
