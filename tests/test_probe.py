"""ClosedFormProbe: equality with scikit-learn's ridge classifier and kernel ridge, probabilities, and validation of input."""

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.datasets import load_digits, make_classification
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import ClosedFormProbe


def _data(n, d, n_classes, dtype=np.float64):
    X, y = make_classification(
        n, d, n_informative=min(d, 6), n_redundant=0, n_classes=n_classes, n_clusters_per_class=1, random_state=0
    )
    return X.astype(dtype), np.array(["a", "b", "c", "d"])[y]


@pytest.mark.parametrize(("n", "d"), [(200, 20), (20, 200)])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("solver", ["auto", "primal", "dual"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighting", ["none", "balanced", "samples"])
def test_equals_ridge_classifier(n, d, n_classes, solver, fit_intercept, weighting):
    X, y = _data(n, d, n_classes)
    keep = np.r_[np.flatnonzero(y == "a")[::3], np.flatnonzero(y != "a")]  # unbalanced
    X, y = X[keep], y[keep]
    class_weight = "balanced" if weighting == "balanced" else None
    sample_weight = np.random.default_rng(0).random(len(y)) if weighting == "samples" else None
    ours = ClosedFormProbe(0.7, fit_intercept=fit_intercept, solver=solver, class_weight=class_weight)
    theirs = RidgeClassifier(0.7, fit_intercept=fit_intercept, solver="cholesky", class_weight=class_weight)
    ours.fit(X, y, sample_weight)
    theirs.fit(X, y, sample_weight)
    np.testing.assert_allclose(ours.coef_, np.atleast_2d(theirs.coef_), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.intercept_, np.broadcast_to(theirs.intercept_, ours.intercept_.shape), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), rtol=1e-6, atol=1e-8)
    assert (ours.predict(X) == theirs.predict(X)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [1e-6, 1.0])
def test_dtype_is_kept_and_float32_is_accurate(dtype, alpha):
    """Even for 300 nearly collinear features and a tiny ridge, where float32 arithmetic alone would not suffice."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((400, 3)) @ rng.standard_normal((3, 300)) + 0.01 * rng.standard_normal((400, 300))).astype(dtype)
    y = rng.integers(0, 3, 400)
    probe = ClosedFormProbe(alpha).fit(X, y)
    exact = RidgeClassifier(alpha, solver="cholesky").fit(X.astype(np.float64), y)
    assert probe.coef_.dtype == probe.intercept_.dtype == probe.decision_function(X).dtype == dtype
    np.testing.assert_allclose(probe.coef_, exact.coef_, rtol=0, atol=1e-4 * np.abs(exact.coef_).max())


@pytest.mark.parametrize("n_classes", [2, 4])
def test_probabilities(n_classes):
    X, y = _data(200, 20, n_classes)
    probe = ClosedFormProbe(loss="squared", temperature=0.2).fit(X, y)
    proba = probe.predict_proba(X)
    assert proba.shape == (200, n_classes)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (probe.classes_[proba.argmax(axis=1)] == probe.predict(X)).all()
    hot = ClosedFormProbe(loss="squared", temperature=100).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(hot, 1 / n_classes, atol=0.02)


def test_probabilities_are_calibrated_without_held_out_data():
    X, y = load_digits(return_X_y=True)
    X, y = X + 20 * np.random.default_rng(0).standard_normal(X.shape), y % 5  # hard enough for errors
    probe = ClosedFormProbe().fit(X[::2], y[::2])
    loss = log_loss(y[1::2], probe.predict_proba(X[1::2]))
    for factor in (0.5, 2):
        other = ClosedFormProbe(probe.alpha_, temperature=factor * probe.temperature_).fit(X[::2], y[::2])
        assert loss < log_loss(y[1::2], other.predict_proba(X[1::2])) - 0.01


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e5])
def test_float32_is_accurate_whatever_the_weights(weight):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((300, 3)) @ rng.standard_normal((3, 100)) + 0.01 * rng.standard_normal((300, 100))).astype(
        np.float32
    )
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y, weights = rng.integers(0, 3, 300), np.full(300, weight)
    probe = ClosedFormProbe(1.0).fit(X, y, weights)
    exact = RidgeClassifier(1.0, solver="cholesky").fit(X.astype(np.float64), y, weights)
    np.testing.assert_allclose(probe.coef_, exact.coef_, rtol=0, atol=1e-3 * np.abs(exact.coef_).max())


def test_singular_system_is_an_error():
    X = np.ones((10, 3))
    X += np.arange(10)[:, None]
    for temperature in (1.0, "loo"):
        with pytest.raises(ValueError, match=r"singular.*larger alpha"):
            ClosedFormProbe(alpha=0, solver="primal", temperature=temperature).fit(X, np.arange(10) % 2)


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="one class, 'a'"):
        ClosedFormProbe().fit(np.eye(3), ["a"] * 3)


def test_absent_device_is_an_error():
    with pytest.raises(ValueError, match=r"cuda:7.*'cpu'"):
        ClosedFormProbe(device="cuda:7").fit(np.eye(4), [0, 1, 0, 1])


@pytest.mark.parametrize("kernel", ["rbf", "poly", "cosine", "callable"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_equals_kernel_ridge(kernel, n_classes):
    X, y = _data(150, 20, n_classes)
    own = RBF(3.0) if kernel == "callable" else kernel
    ours = ClosedFormProbe(0.7, kernel=own, gamma=0.03, degree=2, coef0=0.5, fit_intercept=False).fit(X[:100], y[:100])
    Y = 2.0 * (y[:100, None] == ours.classes_) - 1
    theirs = KernelRidge(alpha=0.7, kernel="rbf" if kernel == "callable" else kernel, gamma=1 / 18, degree=2, coef0=0.5)
    if kernel != "callable":
        theirs.set_params(gamma=0.03)
    scores = theirs.fit(X[:100], Y).predict(X[100:])
    scores = scores[:, 1] if n_classes == 2 else scores
    np.testing.assert_allclose(ours.decision_function(X[100:]), scores, atol=1e-9)


def test_an_intercept_cancels_a_constant_offset_of_the_kernel():
    X, y = _data(60, 5, 3)
    scores = [
        ClosedFormProbe(0.5, kernel=lambda A, B, offset=offset: A @ B.T + offset).fit(X, y).decision_function(X)
        for offset in (0, 100)
    ]
    np.testing.assert_allclose(*scores, atol=1e-8)
    np.testing.assert_allclose(scores[0], ClosedFormProbe(0.5).fit(X, y).decision_function(X), atol=1e-8)


@pytest.mark.parametrize("kernel", ["linear", "cosine", "rbf", "poly"])
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_weights_are_repetitions(kernel, solver):
    X, y = _data(60, 8, 3)
    counts = np.arange(60) % 4
    weighted = ClosedFormProbe(kernel=kernel, solver=solver).fit(X, y, counts)
    repeated = ClosedFormProbe(kernel=kernel, solver=solver).fit(X.repeat(counts, axis=0), y.repeat(counts))
    assert weighted.alpha_ == repeated.alpha_
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_scaling_laws(solver):
    X, y = _data(60, 8, 3)
    probe = ClosedFormProbe(0.5, solver=solver).fit(X, y)
    larger = ClosedFormProbe(0.5 * 9, solver=solver).fit(3 * X, y)
    heavier = ClosedFormProbe(0.5 * 7, solver=solver).fit(X, y, np.full(60, 7.0))
    for other in (larger, heavier):
        np.testing.assert_allclose(other.decision_function(3 * X if other is larger else X), probe.decision_function(X))
        np.testing.assert_allclose(other.temperature_, probe.temperature_, rtol=1e-6)
    # The default candidates scale with features and weights, in powers of ten.
    chosen = [ClosedFormProbe(solver=solver).fit(scale * X, y, np.full(60, w)) for scale, w in ((1, 1.0), (10, 1.0), (1, 100.0))]
    np.testing.assert_allclose([one.alpha_ / chosen[0].alpha_ for one in chosen], [1, 100, 100])


@pytest.mark.parametrize("alpha", [1e-12, 1e12])
@pytest.mark.parametrize("design", ["duplicates", "constant columns", "wide", "tall", "lone class", "condition 1e12"])
def test_degenerate_designs_give_finite_answers_or_a_clear_error(design, alpha):
    rng = np.random.default_rng(0)
    n, d = {"wide": (12, 300), "tall": (300, 3)}.get(design, (40, 10))
    X, y = rng.standard_normal((n, d)), np.arange(n) % 3
    if design == "duplicates":
        X[10:] = X[rng.integers(0, 10, 30)]
    if design == "constant columns":
        X[:, 4:] = 7.0
    if design == "lone class":
        y = np.r_[np.arange(n - 1) % 2, 2]
    if design == "condition 1e12":
        X = X * np.logspace(0, -12, d)
    for solver in ("primal", "dual"):
        for wanted in (alpha, [alpha, 1.0]):
            try:
                probe = ClosedFormProbe(wanted, solver=solver).fit(X, y)
            except ValueError as error:
                assert "singular" in str(error)  # noqa: PT017
                assert wanted == 1e-12
                continue
            scores = probe.decision_function(X)
            assert np.isfinite(scores).all()
            assert 0 <= probe.loo_score_ <= 1
            centred = X - X.mean(axis=0)
            Y = 2.0 * (y[:, None] == np.arange(3)) - 1
            U, s, _ = np.linalg.svd(centred, full_matrices=False)
            exact = U @ (s**2 / (s**2 + probe.alpha_) * (U.T @ Y).T).T + Y.mean(axis=0)
            np.testing.assert_allclose(scores, exact, atol=1e-3)


def test_alpha_zero_is_least_squares_where_that_is_unique():
    X, y = _data(100, 10, 3)
    Y = 2.0 * (y[:, None] == np.unique(y)) - 1
    exact = np.linalg.lstsq(np.c_[X, np.ones(100)], Y, rcond=None)[0]
    for temperature in (1.0, "loo"):
        np.testing.assert_allclose(ClosedFormProbe(0, temperature=temperature).fit(X, y).coef_, exact[:-1].T, atol=1e-10)
    X, y = _data(20, 200, 3)  # more features than samples: the minimum-norm interpolation
    Y = 2.0 * (y[:, None] == np.unique(y)) - 1
    for temperature in (1.0, "loo"):
        probe = ClosedFormProbe(0, temperature=temperature).fit(X, y)
        np.testing.assert_allclose(probe.decision_function(X), Y, atol=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(4, 40),
    d=st.integers(1, 30),
    n_classes=st.integers(2, 5),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8]),
    kernel=st.sampled_from(["linear", "cosine", "rbf", "poly"]),
    data=st.data(),
)
def test_any_shape_and_dtype(n, d, n_classes, dtype, kernel, data):
    elements = st.integers(0, 9) if np.dtype(dtype).kind in "iu" else st.floats(-8, 8, width=16)
    X = data.draw(hnp.arrays(dtype, (n, d), elements=elements))
    y = np.arange(n) % min(n_classes, n // 2)
    probe = ClosedFormProbe(kernel=kernel).fit(X, y)
    scores, proba = probe.decision_function(X), probe.predict_proba(X)
    wanted = np.float32 if dtype in (np.float16, np.float32) else np.float64
    assert scores.dtype == wanted
    assert np.isfinite(scores).all()
    assert proba.shape == (n, len(probe.classes_))
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    same = ClosedFormProbe(probe.alpha_, kernel=kernel, temperature=1.0).fit(X.astype(np.float64), y).decision_function(X)
    # The intercept removes the constant part of a kernel, which costs accuracy in single precision.
    largest = (probe.gamma_ * np.square(X.astype(float)).sum(1).max() + 1) ** 3 if kernel == "poly" else 1.0
    np.testing.assert_allclose(scores, same, atol=2e-3 + 3e-6 * largest)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["linear", "cosine", "rbf", "poly"])
def test_dtypes(dtype, kernel):
    X, y = _data(100, 10, 3, dtype)
    probe = ClosedFormProbe(kernel=kernel).fit(X, y)
    wanted = np.float64 if dtype == np.float64 else np.float32
    weights = probe.coef_ if kernel in ("linear", "cosine") else probe.dual_coef_
    assert weights.dtype == probe.intercept_.dtype == probe.decision_function(X).dtype == wanted
    assert ClosedFormProbe(kernel=kernel, dtype="float64").fit(X, y).intercept_.dtype == np.float64


def test_tensors_in_numpy_out():
    X, y = _data(100, 10, 3, np.float32)
    codes = np.unique(y, return_inverse=True)[1]
    probe = ClosedFormProbe().fit(torch.from_numpy(X).requires_grad_(), torch.from_numpy(codes))
    np.testing.assert_array_equal(probe.coef_, ClosedFormProbe().fit(X, codes).coef_)
    assert isinstance(probe.predict_proba(torch.from_numpy(X).bfloat16()), np.ndarray)


def test_class_weights():
    X, y = _data(90, 10, 3)
    by_dict = ClosedFormProbe(1.0, class_weight={"b": 3.0}).fit(X, y)
    by_sample = ClosedFormProbe(1.0).fit(X, y, np.where(y == "b", 3.0, 1.0))
    np.testing.assert_allclose(by_dict.coef_, by_sample.coef_)
    np.testing.assert_allclose(by_dict.temperature_, by_sample.temperature_)


def test_in_pipelines_searches_and_with_routed_weights():
    X, y = _data(120, 10, 3)
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(10)])
    probe = ClosedFormProbe().fit(frame, y)
    assert probe.feature_names_in_.tolist() == list(frame.columns)
    search = GridSearchCV(ClosedFormProbe(), {"kernel": ["linear", "rbf"], "alpha": ["loo", 1.0]}, cv=3, error_score="raise")
    assert search.fit(X, y).best_score_ > 0.5
    pipeline = make_pipeline(Nystroem(n_components=60, random_state=0), ClosedFormProbe()).set_output(transform="pandas")
    assert pipeline.fit(X, y).score(X, y) > 0.8
    with sklearn.config_context(enable_metadata_routing=True):
        routed = ClosedFormProbe().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scores = cross_validate(routed, X, y, params={"sample_weight": np.arange(120) % 2}, return_estimator=True)
    halves = ClosedFormProbe().fit(X[1::2], y[1::2])
    assert abs(scores["test_score"].mean() - halves.loo_score_) < 0.15


def test_nystroem_comes_close_to_the_exact_kernel():
    X, y = load_digits(return_X_y=True)
    X = X / 16
    exact = ClosedFormProbe(kernel="rbf", gamma=0.3).fit(X[::2], y[::2])
    approximate = make_pipeline(Nystroem(gamma=0.3, n_components=500, random_state=0), ClosedFormProbe()).fit(X[::2], y[::2])
    assert exact.score(X[1::2], y[1::2]) > 0.98
    assert approximate.score(X[1::2], y[1::2]) > exact.score(X[1::2], y[1::2]) - 0.02


def test_a_kernel_larger_than_memory_is_refused_before_allocation():
    X = np.zeros((2_000_000, 1), np.float32)
    X[1::2] = 1
    with pytest.raises(MemoryError, match=r"2000000 × 2000000, 1490\d\d.\d GiB.*Nystroem"):
        ClosedFormProbe(1.0, kernel="rbf", temperature=1.0).fit(X, np.arange(2_000_000) % 2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": []}, "non-empty list"),
        ({"alpha": [1.0, -1.0]}, "number ≥ 0"),
        ({"alpha": [1.0, np.inf]}, "finite"),
        ({"alpha": "gcv"}, "'alpha' parameter"),
        ({"kernel": "sigmoid"}, "'kernel' parameter"),
        ({"kernel": lambda A, B: np.ones(3)}, r"shape \(3,\) for 30 and 30 samples"),
        ({"kernel": lambda A, B: np.full((len(A), len(B)), np.nan)}, "900 numbers that are not finite"),
        ({"kernel": "poly", "degree": 2.5}, "polynomial kernel is not finite"),
        ({"kernel": lambda A, B: np.tanh(A @ B.T - 1)}, "not positive semi-definite"),
        ({"class_weight": {"a": -1.0}}, "class weights have to be ≥ 0"),
        ({"scoring": "f1"}, "'scoring' parameter"),
        ({"temperature": 0}, "'temperature' parameter"),
        ({"dtype": "float16"}, "'dtype' parameter"),
    ],
)
def test_bad_parameters_are_errors(parameters, message):
    X, y = _data(30, 8, 3)
    with pytest.raises(ValueError, match=message):
        ClosedFormProbe(**parameters).fit(X, y)


def test_bad_input_is_an_error():
    X, y = _data(30, 8, 3)
    with pytest.raises(TypeError, match="dense data is required"):
        ClosedFormProbe().fit(sparse.csr_array(X), y)
    for zeros in ({"sample_weight": np.zeros(30)}, {}):
        with pytest.raises(ValueError, match="zero"):
            ClosedFormProbe(class_weight=dict.fromkeys("abcd", 0.0)).fit(X, y, **zeros)
    with pytest.raises(ValueError, match="Negative"):
        ClosedFormProbe().fit(X, y, -np.ones(30))
    half = X.astype(np.float16)
    half[3, 2] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        ClosedFormProbe().fit(half, y)
    with pytest.raises(ValueError, match="Unknown label type"):
        ClosedFormProbe().fit(X, np.linspace(0, 1, 30))


def test_a_failed_fit_keeps_the_last_result():
    X, y = _data(30, 8, 3)
    probe = ClosedFormProbe().fit(X, y)
    before = probe.coef_
    with pytest.raises(ValueError, match="NaN"):
        probe.fit(np.full((30, 3), np.nan), y)
    with pytest.raises(ValueError, match="one class"):
        probe.fit(X[:, :5], np.zeros(30))
    assert probe.coef_ is before
    assert probe.predict(X).shape == (30,)


@pytest.mark.parametrize("offset", [0, 1000])
def test_rbf_is_invariant_to_an_offset(offset):
    X, y = _data(100, 8, 3, np.float32)
    shifted = (X + offset).astype(np.float32)
    wanted = (
        ClosedFormProbe(0.1, kernel="rbf")
        .fit(shifted.astype(np.float64) - offset, y)
        .decision_function(shifted.astype(np.float64) - offset)
    )
    seen = ClosedFormProbe(0.1, kernel="rbf").fit(shifted, y).decision_function(shifted)
    np.testing.assert_allclose(seen, wanted, atol=2e-3)


@pytest.mark.parametrize("temperature", [1.0, "loo"])
def test_columns_of_different_scales(temperature):
    X, y = _data(150, 8, 3)
    X[:, :3] *= 1e6
    ours = ClosedFormProbe(1.0, temperature=temperature).fit(X, y)
    np.testing.assert_allclose(ours.coef_, RidgeClassifier(1.0, solver="svd").fit(X, y).coef_, rtol=1e-5, atol=1e-9)
