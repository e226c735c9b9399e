"""A probe as scikit-learn's own model, and as an ONNX graph beside the runtime's answers."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_clpdd import ClosedFormProbe

CASES = {
    "logistic": ({"loss": "logistic"}, 4),
    "two classes, logistic": ({"loss": "logistic"}, 2),
    "squared": ({"loss": "squared"}, 8),
    "two classes, squared": ({"loss": "squared"}, 2),
    "a temperature": ({"loss": "squared", "temperature": 0.3}, 3),
    "cosine": ({"kernel": "cosine"}, 4),
    "several labels": ({}, "labels"),
}


def _fitted(case, dtype, kind="U"):
    parameters, n_classes = CASES[case]
    rng = np.random.default_rng(0)
    codes = np.arange(400) % (4 if n_classes == "labels" else n_classes)
    X = (rng.standard_normal((400, 6)) + 2 * rng.standard_normal((8, 6))[codes]).astype(dtype)
    names = np.array(list("hgfedcba"))[codes] if kind == "U" else 3 - 2 * codes
    y = (X[:, :3] > [0, 1, -1]).astype(int) if n_classes == "labels" else names
    return ClosedFormProbe(**parameters).fit(X, y), X


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["U", "i"])
def test_to_sklearn(case, kind):
    probe, X = _fitted(case, np.float64, kind)
    model = probe.to_sklearn()
    assert is_classifier(model)
    np.testing.assert_array_equal(model.predict(X), probe.predict(X))
    np.testing.assert_array_equal(model.classes_, probe.classes_)
    if probe.loss_ == "logistic":
        assert isinstance(model[-1] if probe.kernel == "cosine" else model, LogisticRegression)
        np.testing.assert_allclose(model.predict_proba(X), probe.predict_proba(X), atol=1e-12)
    else:
        assert isinstance(model, RidgeClassifier)
        np.testing.assert_allclose(model.decision_function(X), probe.decision_function(X), atol=1e-12)


def test_to_sklearn_keeps_names_and_knows_the_features():
    probe, X = _fitted("logistic", np.float64)
    frame = pd.DataFrame(X, columns=list("uvwxyz"))
    model = ClosedFormProbe(loss="logistic").fit(frame, probe.predict(X)).to_sklearn()
    assert model.feature_names_in_.tolist() == list("uvwxyz")
    with pytest.raises(ValueError, match="expecting 6 features"):
        probe.to_sklearn().predict(X[:, :5])
    with pytest.raises(ValueError, match="kernel='rbf' has no coefficients"):
        ClosedFormProbe(kernel="rbf").fit(X, probe.predict(X)).to_sklearn()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["U", "i"])
def test_onnx(case, dtype, kind):
    skl2onnx, runtime = pytest.importorskip("skl2onnx"), pytest.importorskip("onnxruntime")
    probe, X = _fitted(case, dtype, kind)
    X[0] = 0
    graph = skl2onnx.to_onnx(probe, X[:1])
    labels, proba = runtime.InferenceSession(graph.SerializeToString()).run(None, {"X": X})
    np.testing.assert_array_equal(labels, probe.predict(X))
    np.testing.assert_allclose(proba, probe.predict_proba(X), atol=1e-5)
    assert (labels.shape, proba.dtype) == (probe.predict(X).shape, dtype)


def test_onnx_of_a_pipeline():
    skl2onnx, runtime = pytest.importorskip("skl2onnx"), pytest.importorskip("onnxruntime")
    probe, X = _fitted("squared", np.float32)
    pipeline = make_pipeline(StandardScaler(), ClosedFormProbe()).fit(X, probe.predict(X))
    graph = skl2onnx.to_onnx(pipeline, X[:1])
    labels, proba = runtime.InferenceSession(graph.SerializeToString()).run(None, {"X": X})
    np.testing.assert_array_equal(labels, pipeline.predict(X))
    np.testing.assert_allclose(proba, pipeline.predict_proba(X), atol=1e-5)
    model = skl2onnx.to_onnx(pipeline[-1].to_sklearn(), X[:1])
    assert len(model.graph.output) == 2


def test_onnx_of_what_it_cannot_hold():
    skl2onnx = pytest.importorskip("skl2onnx")
    probe, X = _fitted("logistic", np.float32)
    with pytest.raises(ValueError, match="kernel='rbf' has no coefficients"):
        skl2onnx.to_onnx(ClosedFormProbe(kernel="rbf").fit(X, probe.predict(X)), X[:1])
    dates = np.datetime64("2026-01-01") + np.arange(400) % 3
    with pytest.raises(ValueError, match="have no type in ONNX"):
        skl2onnx.to_onnx(ClosedFormProbe().fit(X, dates), X[:1])
