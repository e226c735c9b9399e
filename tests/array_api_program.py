"""What `test_array_api.py` runs with SCIPY_ARRAY_API set: `python array_api_program.py DEVICE`."""

import sys

import numpy as np
import pytest
import sklearn
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_clpdd import ClosedFormProbe


def main(device):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    y[:2] = 0
    X = (rng.standard_normal((4, 12))[y] + rng.standard_normal((300, 12))).astype(np.float32)
    X[:2] = X[2]  # duplicates
    y[2] = 0
    X_, y_ = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    weight = rng.random(300)

    squared = {"loss": "squared"}
    for parameters in (
        {},
        squared,
        squared | {"kernel": "cosine"},
        {"kernel": "rbf"},
        {"alpha": 1.0},
        squared | {"solver": "dual"},
    ):
        expected = ClosedFormProbe(**parameters, device="cpu").fit(X, y, weight)
        with sklearn.config_context(array_api_dispatch=True):
            probe = ClosedFormProbe(**parameters).fit(X_, y_, torch.from_numpy(weight).to(device))
            for name, value in vars(probe).items():
                assert not isinstance(value, torch.Tensor), name
            scores, proba, labels = probe.decision_function(X_), probe.predict_proba(X_), probe.predict(X_)
            for one in (scores, proba, labels):
                assert isinstance(one, torch.Tensor)
                assert one.device == X_.device
            assert abs(accuracy_score(y_, labels) - probe.score(X_, y_)) < 1e-6
            assert isinstance(probe.decision_function(X), np.ndarray)  # an array in, an array out
            named = ClosedFormProbe(**parameters).fit(X_, np.array(list("abcd"))[y])
            assert named.predict(X_).dtype.kind == "U"
        assert probe.alpha_ == expected.alpha_
        np.testing.assert_allclose(scores.cpu(), expected.decision_function(X), atol=5e-3)
        np.testing.assert_allclose(proba.cpu(), expected.predict_proba(X), atol=5e-3)

    binary = y_ % 2
    with sklearn.config_context(array_api_dispatch=True):
        probe = ClosedFormProbe().fit(X_, binary)
        assert probe.decision_function(X_).shape == (300,)
        assert probe.predict_proba(X_).shape == (300, 2)
        assert (probe.predict(X_) == probe.predict_proba(X_).argmax(1)).all()
        pipeline = make_pipeline(StandardScaler(), ClosedFormProbe()).fit(X_, y_)
        assert isinstance(pipeline.predict_proba(X_), torch.Tensor)
        GridSearchCV(ClosedFormProbe(), {"alpha": [0.1, 10.0]}, cv=3, error_score="raise").fit(X_, y_)
        stream = ClosedFormProbe(1.0).partial_fit(X_[:100], y_[:100], classes=[0, 1, 2, 3]).partial_fit(X_[100:], y_[100:])
        np.testing.assert_allclose(stream.coef_, ClosedFormProbe(1.0).fit(X_, y_).coef_, atol=1e-4)
        half = ClosedFormProbe(1.0).fit(X_.bfloat16(), y_)
        assert half.decision_function(X_.half()).dtype == torch.float32
        theirs = RidgeClassifierCV([0.1, 1.0, 10.0]).fit(X_, y_)
        ours = ClosedFormProbe([0.1, 1.0, 10.0], scoring="neg_mean_squared_error").fit(X_, y_)
        assert ours.alpha_ == float(theirs.alpha_)
        for bad, message in ((X_[0], "shape"), (X_[:, :0], "shape"), (torch.full_like(X_, torch.nan), "NaN")):
            with pytest.raises(ValueError, match=message):
                ClosedFormProbe().fit(bad, y_[: len(bad)])
        with pytest.raises(ValueError, match="5 features"):
            probe.decision_function(X_[:, :5])
        if device == "cuda":
            with pytest.raises(ValueError, match="X is on cuda:0, and device='cpu'"):
                ClosedFormProbe(device="cpu").fit(X_, y_)
            ClosedFormProbe(device="cuda").fit(X_, y)
        try:
            import array_api_strict as xp
        except ImportError:
            pass
        else:
            probe = ClosedFormProbe().fit(xp.asarray(X), xp.asarray(y))
            expected = ClosedFormProbe().fit(X, y).predict_proba(X)
            np.testing.assert_allclose(np.asarray(probe.predict_proba(xp.asarray(X))), expected, atol=1e-5)
            assert type(probe.predict(xp.asarray(X))) is type(xp.asarray(X))
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
