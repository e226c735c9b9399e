"""Leave-one-out predictions from one factorisation: equal to those of a refit without each sample."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import log_loss

from sklearn_clpdd import ClosedFormProbe
from sklearn_clpdd.probe import _calibration as calibration
from sklearn_clpdd.probe import _rows
from sklearn_clpdd.probe._rows import merge_duplicates

ALPHAS = [0.1, 1.0, 5.0]
ridge_probe = partial(ClosedFormProbe, loss="squared")


def _data(n, d, n_classes, dtype=np.float64):
    rng = np.random.default_rng(n * d)
    y = np.arange(n) % n_classes
    return (rng.standard_normal((n, d)) + 0.5 + np.eye(n_classes, d)[y]).astype(dtype), y, 0.1 + rng.random(n)


def _two_columns(scores):
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def _refits(X, y, weight, **parameters):
    """Scores ``(n, C)`` of each sample by a probe that is fitted without it."""
    scores = []
    for i in range(len(X)):
        others = np.arange(len(X)) != i
        probe = ridge_probe(temperature=1.0, **parameters)
        probe.fit(X[others], y[others], None if weight is None else weight[others])
        scores.append(_two_columns(probe.decision_function(X[i : i + 1]))[0])
    return np.array(scores)


@pytest.mark.parametrize(("n", "d"), [(18, 7), (12, 40)])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    ("kernel", "solver"),
    # Other kernels are always solved in the dual form: one case each of `solver="primal"`.
    [*product(["linear", "cosine"], ["primal", "dual"]), ("rbf", "primal"), ("poly", "dual"), ("callable", "primal")],
)
def test_equals_refits(n, d, n_classes, fit_intercept, weighted, kernel, solver):
    X, y, weight = _data(n, d, n_classes)
    weight = weight if weighted else None
    w = np.ones(n) if weight is None else weight
    kernel = (lambda A, B: 1 / (1 + np.square(A[:, None] - B).sum(2))) if kernel == "callable" else kernel
    parameters = {"kernel": kernel, "solver": solver, "fit_intercept": fit_intercept, "gamma": 0.05}
    refits = {alpha: _refits(X, y, weight, alpha=alpha, **parameters) for alpha in ALPHAS}
    wanted = {
        "accuracy": [np.average(refits[alpha].argmax(1) == y, weights=w) for alpha in ALPHAS],
        "neg_mean_squared_error": [
            -np.average(((refits[alpha] - 2 * np.eye(n_classes)[y] + 1) ** 2).mean(1), weights=w) for alpha in ALPHAS
        ],
        "neg_log_loss": [-log_loss(y, _softmax(refits[alpha] / 0.3), sample_weight=w) for alpha in ALPHAS],
    }
    for scoring, scores in wanted.items():
        probe = ridge_probe(ALPHAS, scoring=scoring, temperature=0.3, **parameters).fit(X, y, weight)
        np.testing.assert_allclose(probe.loo_scores_, scores, rtol=1e-8)
        assert probe.alpha_ == ALPHAS[np.argmax(probe.loo_scores_)]
        assert probe.loo_score_ == probe.loo_scores_.max()


def _softmax(scores):
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("chunk", [2**20, 64])
def test_temperature_has_the_least_log_loss_of_the_refits(n_classes, solver, chunk, monkeypatch):
    monkeypatch.setattr(calibration, "CHUNK", chunk)  # with the small size, there are more samples than the first estimate uses
    monkeypatch.setattr(_rows, "CHUNK", chunk)
    X, y, weight = _data(60, 5, n_classes)
    refits = _refits(X, y, weight, alpha=1.0)
    probe = ridge_probe(1.0, solver=solver).fit(X, y, weight)
    assert probe.compression_ == 0  # too few samples
    losses = [_smoothed_log_loss(y, refits / (f * probe.temperature_), weight) for f in (0.98, 1.0, 1.02)]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("n_classes", [8, 12])
@pytest.mark.parametrize("chunk", [2**20, 4000])
def test_compression_has_the_least_log_loss_of_the_refits(n_classes, chunk, monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(600) % n_classes
    X = rng.standard_normal((600, 3)) + 3 * rng.standard_normal((n_classes, 3))[y]
    refits = _refits(X, y, None, alpha=1.0)
    monkeypatch.setattr(calibration, "CHUNK", chunk)
    probe = ridge_probe(1.0).fit(X, y)
    compression = probe.compression_
    assert compression > 0.1

    def loss(scale, factor):
        c = compression * factor
        return _smoothed_log_loss(y, np.arcsinh(c * (1 + refits)) / (c * scale * probe.temperature_), np.ones(600))

    best, plain = loss(1, 1), ridge_probe(1.0, temperature=probe.temperature_).fit(X, y)
    assert best < min(loss(0.97, 1), loss(1.03, 1))
    if chunk == 2**20:  # otherwise the compression is that of a part of the samples
        assert best < min(loss(1 + 0.02 * i, factor) for i in range(-5, 6) for factor in (0.8, 1.25))
    np.testing.assert_array_equal(probe.predict(X), plain.predict(X))
    order = np.argsort(_two_columns(plain.decision_function(X)), axis=1)
    np.testing.assert_array_equal(np.argsort(probe.predict_proba(X), axis=1), order)
    assert log_loss(y, probe.predict_proba(X)) < log_loss(y, plain.predict_proba(X))
    far = ridge_probe(1.0).fit(X, y).predict_proba(1e6 * X)
    assert np.isfinite(far).all()


def test_predictions_that_are_all_right_are_not_certain():
    X, y = np.eye(4).repeat(5, axis=0) + 0.01 * np.random.default_rng(0).standard_normal((20, 4)), np.arange(20) // 5
    probe = ridge_probe().fit(X, y)
    assert probe.loo_score_ == 1
    assert 0.9 < probe.predict_proba(X).max(1).mean() < 0.999


def _smoothed_log_loss(y, logits, weight):
    """Log-loss with one more sample's share of the uniform distribution in the targets."""
    share = 1 / (len(y) + 1)
    targets = (1 - share) * np.eye(logits.shape[1])[y] + share / logits.shape[1]
    return -np.average((targets * np.log(_softmax(logits))).sum(1), weights=weight)


@pytest.mark.parametrize(("n", "d"), [(400, 30), (60, 200)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scoring", ["accuracy", "neg_mean_squared_error"])
@pytest.mark.parametrize("n_classes", [3, 12])
def test_chooses_what_ridge_classifier_cv_chooses(n, d, dtype, scoring, n_classes):
    X, y, _ = _data(n, d, n_classes, dtype)
    alphas = np.logspace(-2, 4, 25)
    ours = ridge_probe(alphas, scoring=scoring).fit(X, y)
    theirs = RidgeClassifierCV(alphas, scoring="accuracy" if scoring == "accuracy" else None).fit(X, y)
    assert ours.alpha_ == theirs.alpha_
    np.testing.assert_allclose(ours.loo_score_, theirs.best_score_, rtol=1e-5)
    assert (ours.predict(X) == theirs.predict(X)).all()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5 * np.abs(theirs.coef_).max())


def test_chunks_do_not_change_the_result(monkeypatch):
    X, y, weight = _data(300, 20, 5, np.float32)
    whole = ridge_probe(ALPHAS, scoring="neg_mean_squared_error").fit(X, y, weight)
    monkeypatch.setattr(_rows, "CHUNK", 256)
    parts = ridge_probe(ALPHAS, scoring="neg_mean_squared_error").fit(X, y, weight)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parts.loo_scores_, whole.loo_scores_, rtol=1e-5)
    np.testing.assert_allclose(parts.temperature_, whole.temperature_, rtol=1e-4)


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1.0])
def test_float32_rows_are_as_exact_as_float64_ones(alpha):
    """Nearly collinear features with leverages close to one, where float32 would not suffice."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 4)) @ rng.standard_normal((4, 100)) + 1e-3 * rng.standard_normal((120, 100))
    X = X.astype(np.float32)
    y = rng.integers(0, 3, 120)
    scores = [
        ridge_probe([alpha, 2 * alpha], scoring="neg_mean_squared_error", dtype=dtype).fit(X, y).loo_scores_
        for dtype in ("float32", "float64")
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)


def test_ties_in_accuracy_are_broken_by_log_loss():
    X, y, _ = _data(60, 40, 3)
    X += 5 * np.eye(3, 40)[y]  # every candidate classifies everything correctly
    probe = ridge_probe().fit(X, y)
    flat = probe.loo_scores_ == probe.loo_scores_.max()
    assert flat.sum() > 3
    losses = ridge_probe(probe.alphas_, scoring="neg_log_loss").fit(X, y).loo_scores_
    assert probe.alpha_ == probe.alphas_[flat][np.argmax(losses[flat])]


def test_copies_of_a_sample_are_left_out_together():
    X, y, _ = _data(20, 6, 2)
    counts = np.arange(20) % 3
    weighted = ridge_probe().fit(X, y, counts)
    repeated = ridge_probe().fit(X.repeat(counts, axis=0), y.repeat(counts))
    np.testing.assert_allclose(weighted.loo_scores_, repeated.loo_scores_)
    np.testing.assert_allclose(weighted.temperature_, repeated.temperature_)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_)


def test_near_copies_are_left_out_one_by_one():
    X = np.tile(np.arange(64.0), (4, 1))
    X[1, 7] = np.nextafter(7.0, 8)  # differs in a column that the hash does not read
    kept, weight = merge_duplicates(X, np.array([0, 0, 0, 1]), np.array([1.0, 2.0, 4.0, 8.0]))
    assert kept.tolist() == [0, 1, 3]  # the last copy has another class
    assert weight.tolist() == [5.0, 2.0, 8.0]


def test_one_sample_per_class_is_fitted_with_a_warning():
    with pytest.warns(UserWarning, match="no class has two samples"):
        probe = ridge_probe().fit(np.eye(5), np.arange(5))
    assert np.isnan(probe.loo_score_)
    assert probe.score(np.eye(5), np.arange(5)) == 1
    assert (probe.predict_proba(np.eye(5)).argmax(1) == np.arange(5)).all()


def test_the_only_sample_of_a_class_is_not_scored():
    X, y, _ = _data(30, 7, 3)
    y[y == 2] = 1
    y[0] = 2
    probe = ridge_probe([1.0, 2.0], solver="primal").fit(X, y)
    hits = []
    for i in range(1, 30):
        others = np.arange(30) != i
        hits.append(ridge_probe(1.0).fit(X[others], y[others]).predict(X[i : i + 1])[0] == y[i])
    assert probe.loo_scores_[0] == np.mean(hits)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_single_precision_features_far_from_zero(solver):
    """Features with a large mean, in both forms of the system."""
    rng = np.random.default_rng(0)
    y = np.arange(3000) % 3
    X = (rng.standard_normal((3000, 5)) + 2 * np.eye(3, 5)[y] + 4096).astype(np.float32)
    probe = ridge_probe(1.0, solver=solver, temperature=1.0).fit(X, y)
    exact = RidgeClassifier(1.0, solver="cholesky").fit(X.astype(np.float64) - 4096, y)
    np.testing.assert_allclose(probe.coef_, exact.coef_, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
@pytest.mark.parametrize("exponent", range(-12, 13, 3))
def test_primal_and_dual_agree_at_every_scale(exponent, shape, dtype):
    """Signals in volts or in picofarads: the scores, their intercepts and the labels, against numpy's solution."""
    (n, d), rng = shape, np.random.default_rng(0)
    codes = np.arange(n) % 2
    X = ((rng.normal(size=(n, d)) + 3 * np.eye(2, d)[codes] + rng.normal(size=d)) * 10.0**exponent).astype(dtype)
    alphas = [10.0 ** (2 * exponent) * 30] + [1.0] * (n < d or exponent < 6)  # with d < n and a tiny alpha the dual is singular
    for alpha in alphas:
        Z = X.astype(np.float64)
        centered, Y = Z - Z.mean(0), 2.0 * codes - 1
        U, s, Vt = np.linalg.svd(centered, full_matrices=False)
        coefficients = Vt.T @ (s / (s**2 + alpha) * (U.T @ Y))
        scores = Z @ coefficients - Z.mean(0) @ coefficients
        for solver in ("primal", "dual", "auto"):
            probe = ridge_probe(alpha, temperature=0.2, solver=solver).fit(X, codes)
            error = np.abs(probe.decision_function(X) - scores).max() / np.abs(scores).max()
            assert error < (1e-3 if dtype == np.float32 else 1e-6), (alpha, solver)
            np.testing.assert_array_equal(probe.predict(X), (scores > 0).astype(int))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [-12, -6, 0, 6, 12])
def test_leave_one_out_chooses_the_same_at_every_scale(exponent, dtype):
    rng = np.random.default_rng(0)
    codes = np.arange(40) % 2
    base = rng.normal(size=(40, 90)) + 1.5 * np.eye(2, 90)[codes] + rng.normal(size=90)
    one = ridge_probe().fit(base.astype(dtype), codes)
    for solver in ("primal", "dual"):
        other = ridge_probe(solver=solver).fit((base * 10.0**exponent).astype(dtype), codes)
        assert other.alpha_ == pytest.approx(one.alpha_ * 10.0 ** (2 * exponent), rel=1e-6)
        assert other.temperature_ == pytest.approx(one.temperature_, rel=1e-3)
        np.testing.assert_array_equal(other.predict((base * 10.0**exponent).astype(dtype)), one.predict(base.astype(dtype)))


def test_the_other_space_is_used_where_the_chosen_one_is_singular():
    """With more samples than features the dual is singular for a penalty that the primal can still use."""
    X, codes = np.random.default_rng(0).normal(size=(200, 5)) * 1e12, np.arange(200) % 2
    one, other = (ridge_probe(1.0, temperature=0.2, solver=solver).fit(X, codes) for solver in ("primal", "dual"))
    np.testing.assert_array_equal(one.coef_, other.coef_)


@pytest.mark.parametrize("offset", [1e5, 1e6, 3e6])
def test_an_offset_does_not_make_features_constant(offset):
    """In float32 a step is 0.25 at 3e6, and the dual form reads differences of 3."""
    rng, codes = np.random.default_rng(0), np.arange(8) % 2
    X = (np.round(rng.normal(size=(8, 20)) + 3 * codes[:, None]) + offset).astype(np.float32)
    for solver in ("primal", "dual", "auto"):
        probe = ridge_probe(1.0, temperature=0.2, solver=solver).fit(X, codes)
        assert probe.score(X, codes) == 1
        np.testing.assert_allclose(probe.coef_, ridge_probe(1.0).fit(X.astype(float), codes).coef_, atol=1e-3)


def test_constant_features_have_no_weight():
    X, codes = np.full((8, 20), 0.1, np.float32), np.arange(8) % 2
    weight = np.random.default_rng(0).random(8) + 0.1
    for solver in ("primal", "dual"):
        assert not ridge_probe(1.0, temperature=0.2, solver=solver).fit(X, codes, sample_weight=weight).coef_.any()


@pytest.mark.parametrize("alpha", ["loo", 1.0])
def test_a_negative_kernel_is_refused(alpha):
    X, codes = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    with pytest.raises(ValueError, match=r"not positive semi-definite|singular to working precision"):
        ridge_probe(alpha, kernel=lambda a, b: -(a @ b.T)).fit(X, codes)


@pytest.mark.parametrize(("scale", "dtype"), [(1e160, np.float64), (1e25, np.float32)])
def test_features_whose_squares_overflow_are_refused(scale, dtype):
    X, codes = (np.random.default_rng(0).normal(size=(6, 9)) * scale).astype(dtype), np.arange(6) % 2
    with pytest.raises(ValueError, match="overflow"):
        ridge_probe(1.0, solver="dual").fit(X, codes)


@pytest.mark.parametrize("n_classes", [2, 10, 200])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("wrong", [0.005, 0.1])
@pytest.mark.parametrize("right", [0.05, 0.2, 0.4])
def test_temperature_is_found_from_far_away(n_classes, share, wrong, right):
    """Newton's method alone goes round in circles for many of these: some margins are wrong, and all others right."""
    codes, scores = np.zeros(400, int), np.full((400, n_classes), -right)
    scores[:, 0] = 0
    scores[: int(400 * share), 1] = wrong

    def loss(log_temperature):
        logits = scores / np.exp(log_temperature)
        return np.mean(np.logaddexp.reduce(logits, axis=1) - logits[:, 0])

    best = minimize_scalar(loss, bounds=(np.log(1e-4), np.log(100)), method="bounded", options={"xatol": 1e-6})
    found = calibration.best_temperature(torch.from_numpy(scores), torch.from_numpy(codes))
    np.testing.assert_allclose(loss(np.log(found)), best.fun, rtol=1e-5)
