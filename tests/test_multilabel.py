"""Several labels a sample: each is a problem of two classes of its own, from one factorisation."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, cross_val_score

from sklearn_clpdd import ClosedFormProbe
from sklearn_clpdd.probe import _inverse as inverse


def _data(n, d, dtype=np.float64):
    rng = np.random.default_rng(n)
    X = rng.standard_normal((n, d))
    Y = (X[:, :4] + 0.7 * rng.standard_normal((n, 4)) > [0, 0.5, -0.5, 1]).astype(int)
    return (X + 2).astype(dtype), Y, 0.2 + rng.random(n)


@pytest.mark.parametrize(("n", "d"), [(260, 12), (30, 60)])
@pytest.mark.parametrize("parameters", [{}, {"alpha": 1.0}, {"kernel": "rbf"}, {"kernel": "cosine"}, {"solver": "dual"}])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_label_is_a_problem_of_its_own(n, d, parameters, fit_intercept, dtype, monkeypatch):
    X, Y, weight = _data(n, d, dtype)
    factorisations, own = [], inverse.RidgedInverse.__init__
    monkeypatch.setattr(inverse.RidgedInverse, "__init__", lambda *args: factorisations.append(1) or own(*args))
    probe = ClosedFormProbe(**parameters, fit_intercept=fit_intercept).fit(X, Y, weight)
    assert len(factorisations) == 1
    assert probe.classes_.tolist() == [0, 1, 2, 3]
    singles = [ClosedFormProbe(loss="squared", **parameters, fit_intercept=fit_intercept).fit(X, y, weight) for y in Y.T]
    atol = 1e-9 if dtype == np.float64 else 2e-4
    for name in ("decision_function", "predict"):
        np.testing.assert_allclose(getattr(probe, name)(X), np.stack([getattr(one, name)(X) for one in singles], 1), atol=atol)
    proba = np.stack([one.predict_proba(X)[:, 1] for one in singles], 1)
    np.testing.assert_allclose(probe.predict_proba(X), proba, atol=max(atol, 1e-3))
    np.testing.assert_allclose(probe.alpha_, [one.alpha_ for one in singles])
    np.testing.assert_allclose(probe.temperature_, [one.temperature_ for one in singles], rtol=5e-3)
    np.testing.assert_allclose(probe.loo_scores_, np.stack([one.loo_scores_ for one in singles], 1), atol=1e-6)
    np.testing.assert_allclose(probe.loo_score_, np.mean([one.loo_score_ for one in singles]))
    assert probe.predict_proba(X).dtype == dtype


def test_forms_of_indicators():
    X, Y, _ = _data(60, 5)
    expected = ClosedFormProbe().fit(X, Y).decision_function(X)
    for form in (Y.tolist(), Y.astype(bool), Y.astype(float), sparse.csr_array(Y), sparse.coo_matrix(Y)):
        probe = ClosedFormProbe().fit(X, form)
        np.testing.assert_array_equal(probe.decision_function(X), expected)
        assert probe.score(X, form) == np.mean((probe.predict(X) == Y).all(axis=1))


def test_scorers_and_searches():
    X, Y, _ = _data(200, 8)
    search = GridSearchCV(ClosedFormProbe(), {"alpha": ["loo", 1.0]}, scoring="roc_auc", cv=3, error_score="raise").fit(X, Y)
    assert search.best_score_ > 0.8
    for scoring in ("average_precision", "f1_macro", "accuracy"):
        assert np.isfinite(cross_val_score(ClosedFormProbe(), X, Y, scoring=scoring, cv=3)).all()
    assert average_precision_score(Y, search.predict_proba(X)) > 0.8


def test_identical_samples_are_left_out_together():
    X, Y, _ = _data(40, 5)
    once, twice = ClosedFormProbe().fit(X, Y, np.full(40, 2.0)), ClosedFormProbe().fit(np.r_[X, X], np.r_[Y, Y])
    np.testing.assert_allclose(twice.coef_, once.coef_, atol=1e-10)
    np.testing.assert_allclose(twice.loo_scores_, once.loo_scores_)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_labels_that_are_constant(kernel):
    X, Y, _ = _data(50, 5)
    Y[:, 1], Y[:, 2] = 0, 1
    with pytest.warns(UserWarning, match=r"labels \[1, 2\] are the same for all samples"):
        probe = ClosedFormProbe(kernel=kernel).fit(X, Y)
    np.testing.assert_array_equal(probe.predict(X)[:, 1:3], Y[:, 1:3])
    assert (probe.predict_proba(X)[:, 1] < 0.01).all()
    given = ClosedFormProbe(kernel=kernel, temperature=0.5, scoring="neg_mean_squared_error")
    with pytest.warns(UserWarning, match="are the same"):
        given.fit(X, Y)
    np.testing.assert_allclose(given.temperature_, 0.5)
    np.testing.assert_allclose(given.loo_scores_[:, 1:3], 0, atol=1e-12)
    np.testing.assert_allclose(probe.predict(X)[:, [0, 3]], ClosedFormProbe(kernel=kernel).fit(X, Y[:, [0, 3]]).predict(X))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((50, 3), 2), r"matrix of shape \(50, 3\) with \[2\]"),
        (np.full((50, 3), -1), r"with \[-1\]"),
        (np.full((50, 3), 0.5), r"with \[0.5\]"),
        (np.full((50, 3), np.nan), "with"),
        (np.full((50, 3), "a"), "no indicator matrix"),
        (np.ones((50, 3, 2)), "y"),
        (np.ones((49, 3)), "inconsistent"),
    ],
)
def test_other_matrices_are_errors(labels, message):
    X, _, _ = _data(50, 5)
    with pytest.raises(ValueError, match=message):
        ClosedFormProbe().fit(X, labels)


def test_what_several_labels_exclude():
    X, Y, _ = _data(50, 5)
    with pytest.raises(ValueError, match="loss='logistic' has one label a sample"):
        ClosedFormProbe(loss="logistic").fit(X, Y)
    with pytest.raises(ValueError, match="class_weight is for classes"):
        ClosedFormProbe(class_weight="balanced").fit(X, Y)
