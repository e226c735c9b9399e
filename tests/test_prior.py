"""Coefficients towards which the ridge penalty pulls, beside solutions of the normal equations and of scipy."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from sklearn_clpdd import ClosedFormProbe


def _data(n, d, n_classes):
    rng = np.random.default_rng(n + d)
    y = np.arange(n) % n_classes
    X = rng.standard_normal((n, d)) + rng.standard_normal((n_classes, d))[y] + 1
    return X, y, rng.standard_normal((n_classes, d)), 0.2 + rng.random(n)


def _solution(X, Y, P, weight, alpha, fit_intercept):
    """Coefficients ``(C, d)`` and intercepts of ``Σ weight · (y − Wx − b)² + alpha · ‖W − P‖²``."""
    mean, prior = (np.average(values, axis=0, weights=weight) * fit_intercept for values in (X, Y))
    A = (X - mean).T @ (weight[:, None] * (X - mean)) + alpha * np.eye(X.shape[1])
    W = np.linalg.solve(A, (X - mean).T @ (weight[:, None] * (Y - prior)) + alpha * P.T).T
    return W, prior - W @ mean


@pytest.mark.parametrize(("n", "d"), [(40, 6), (9, 20)])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("temperature", ["loo", 1.0])
def test_equals_the_normal_equations(n, d, n_classes, solver, fit_intercept, temperature):
    X, y, P, weight = _data(n, d, n_classes)
    probe = ClosedFormProbe(0.7, coef_prior=P, solver=solver, fit_intercept=fit_intercept, temperature=temperature)
    probe.fit(X, y, weight)
    Y = 2.0 * (y[:, None] == np.arange(n_classes)) - 1
    if n_classes == 2:
        Y, P = Y[:, 1:], (P[1:] - P[:1]) / 2
    W, b = _solution(X, Y, P, weight, 0.7, fit_intercept)
    np.testing.assert_allclose(probe.coef_, W, atol=1e-7)
    np.testing.assert_allclose(probe.intercept_, b, atol=1e-7)
    stream = ClosedFormProbe(**probe.get_params()).partial_fit(X[:5], y[:5], classes=np.unique(y), sample_weight=weight[:5])
    if n > d:  # the stream solves in feature space
        stream.partial_fit(X[5:], y[5:], sample_weight=weight[5:])
        np.testing.assert_allclose(stream.coef_, W, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (9, 20)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_leave_one_out_is_that_of_refits(n, d, n_classes):
    X, y, P, _ = _data(n, d, n_classes)
    alphas = [0.3, 3.0, 30.0]
    probe = ClosedFormProbe(alphas, coef_prior=P, scoring="neg_mean_squared_error").fit(X, y)
    Y = 2.0 * (y[:, None] == np.arange(n_classes)) - 1
    own = P if n_classes > 2 else np.stack([P[0] - P[1], P[1] - P[0]]) / 2
    for alpha, score in zip(alphas, probe.loo_scores_, strict=True):
        errors = []
        for i in range(n):
            rest = np.arange(n) != i
            W, b = _solution(X[rest], Y[rest], own, np.ones(n - 1), alpha, True)
            errors.append(np.mean((X[i] @ W.T + b - Y[i]) ** 2))
        np.testing.assert_allclose(-score, np.mean(errors), rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (8, 15)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_loss(n, d, n_classes):
    X, y, P, weight = _data(n, d, n_classes)
    probe = ClosedFormProbe(0.8, loss="logistic", coef_prior=P, temperature=1.0).fit(X, y, weight)

    def loss(parameters):
        W, b = parameters[:-n_classes].reshape(n_classes, d), parameters[-n_classes:]
        z = log_softmax(X @ W.T + b, axis=1)
        # One column of two classes, so that the penalty of both columns is twice as large.
        return -weight @ z[np.arange(n), y] + (2 if n_classes == 2 else 1) * 0.4 * np.sum((W - P) ** 2)

    found = minimize(loss, np.zeros(n_classes * (d + 1)), options={"maxiter": 5000, "gtol": 1e-8}).x
    W, b = found[:-n_classes].reshape(n_classes, d), found[-n_classes:]
    scores = X @ W.T + b
    scores = scores[:, 1] - scores[:, 0] if n_classes == 2 else scores - scores.mean(1, keepdims=True)
    ours = probe.decision_function(X)
    np.testing.assert_allclose(ours if n_classes == 2 else ours - ours.mean(1, keepdims=True), scores, atol=2e-3)
    if n_classes == 3:
        np.testing.assert_allclose(probe.coef_, W, atol=2e-3)


def test_the_limits():
    X, y, P, _ = _data(60, 6, 3)
    strong = ClosedFormProbe(1e12, coef_prior=P, fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(strong.coef_, P, atol=1e-6)
    zero = ClosedFormProbe(coef_prior=np.zeros_like(P)).fit(X, y)
    np.testing.assert_allclose(zero.coef_, ClosedFormProbe(loss="squared").fit(X, y).coef_, atol=1e-10)
    assert zero.loss_ == "squared"


@pytest.mark.parametrize("n_classes", [2, 3])
def test_before_the_first_sample_it_is_the_prior(n_classes):
    X, y, P, _ = _data(60, 6, n_classes)
    probe = ClosedFormProbe(coef_prior=P).partial_fit(X[:0], y[:0], classes=np.arange(n_classes))
    np.testing.assert_array_equal(probe.predict(X), (X @ P.T).argmax(axis=1))
    np.testing.assert_array_equal(probe.to_sklearn().predict(X), probe.predict(X))
    assert np.isfinite(probe.predict_proba(X)).all()
    probe.partial_fit(X, y)
    np.testing.assert_allclose(probe.coef_, ClosedFormProbe(coef_prior=P).fit(X, y).coef_, atol=1e-8)
    with pytest.raises(ValueError, match="0 sample"):
        ClosedFormProbe(coef_prior=P).fit(X[:0], y[:0])


def test_several_labels():
    X, _, P, weight = _data(60, 6, 3)
    Y = (X[:, :3] > 1).astype(int)
    for solver in ("primal", "dual"):
        probe = ClosedFormProbe(0.7, coef_prior=P, solver=solver).fit(X, Y, weight)
        W, b = _solution(X, 2.0 * Y - 1, P, weight, 0.7, True)
        np.testing.assert_allclose(probe.coef_, W, atol=1e-9)
        np.testing.assert_allclose(probe.intercept_, b, atol=1e-9)


def test_a_good_prior_helps_with_few_samples():
    rng = np.random.default_rng(0)
    names = rng.standard_normal((8, 60))
    y = np.arange(408) % 8
    X = names[y] + 2.5 * rng.standard_normal((408, 60))
    few, rest = slice(0, 16), slice(16, None)
    prior = (names + 1.5 * rng.standard_normal(names.shape)) / 60
    scores = {
        "both": ClosedFormProbe(coef_prior=prior).fit(X[few], y[few]).score(X[rest], y[rest]),
        "samples": ClosedFormProbe().fit(X[few], y[few]).score(X[rest], y[rest]),
        "prior": np.mean((X[rest] @ prior.T).argmax(axis=1) == y[rest]),
    }
    assert scores["both"] > max(scores["samples"], scores["prior"]) + 0.02


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (np.ones((3, 5)), r"shape \(3, 5\); it has to be \(3, 6\)"),
        (np.ones((2, 6)), r"shape \(2, 6\)"),
        (np.ones(6), r"shape \(6,\)"),
        (np.full((3, 6), np.nan), "18 numbers that are NaN or infinite"),
    ],
)
def test_bad_priors_are_errors(prior, message):
    X, y, _, _ = _data(60, 6, 3)
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=message):
            getattr(ClosedFormProbe(coef_prior=prior), method)(X, y)
    with pytest.raises(ValueError, match="needs kernel='linear' or 'cosine'"):
        ClosedFormProbe(coef_prior=np.ones((3, 6)), kernel="rbf").fit(X, y)
