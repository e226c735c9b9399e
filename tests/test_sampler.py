"""DistilledSampler in imbalanced-learn's pipelines."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from imblearn.pipeline import make_pipeline
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, DistilledSampler, FrozenEncoder
from sklearn_clpdd.baselines import ClassCentroids


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=16, device="cpu")


@pytest.fixture
def sampler(encoder):
    return DistilledSampler(CLPDistiller(encoder, augmentation=None, max_iter=10, random_state=0))


def test_later_steps_see_only_the_distilled_set(sampler, encoder, colors):
    X, y = colors
    seen = {}

    class Noting(ClosedFormProbe):
        def fit(self, X, y, sample_weight=None):
            seen["fit"] = X, y
            return super().fit(X, y, sample_weight)

    pipeline = make_pipeline(sampler, FrozenEncoder(encoder.model, image_size=12, device="cpu"), Noting(1.0, temperature=1.0))
    pipeline.fit(X, y)
    distilled = pipeline[0].distiller_
    np.testing.assert_array_equal(seen["fit"][0], pipeline[1].transform(distilled.X_synthetic_))
    assert seen["fit"][1].tolist() == ["blue", "green", "red"]
    np.testing.assert_array_equal(pipeline.predict(X), pipeline[2].predict(pipeline[1].transform(X)))  # real images, unchanged


def test_in_searches(sampler, encoder, colors):
    pipeline = make_pipeline(sampler, encoder, ClosedFormProbe(1.0))
    search = GridSearchCV(pipeline, {"distilledsampler__distiller__images_per_class": [1, 2]}, cv=2).fit(*colors)
    assert search.best_score_ >= 0.8
    assert cross_val_score(clone(pipeline), *colors, cv=2, n_jobs=2).mean() >= 0.6


def test_a_frozen_distiller_is_used_as_it_is(encoder, colors):
    fitted = ClassCentroids(encoder).fit(*colors)
    images, labels = DistilledSampler(FrozenEstimator(fitted)).fit_resample(*colors)
    np.testing.assert_array_equal(images, fitted.X_synthetic_)
    np.testing.assert_array_equal(labels, fitted.y_synthetic_)


def test_groups_reach_the_distiller(encoder, colors):
    X, y = colors
    groups = np.arange(len(y)) % 2
    sampler = DistilledSampler(CLPDistiller(encoder, max_iter=5, random_state=0))
    plain, grouped = sampler.fit_resample(X, y)[0], sampler.fit_resample(X, y, groups)[0]
    assert np.abs(plain - grouped).max() > 1e-4


def test_groups_are_routed_whoever_is_imported_first():
    code = """
import sklearn, numpy as np
from sklearn_clpdd import CLPDistiller, DistilledSampler, ClosedFormProbe
from imblearn.pipeline import make_pipeline
sklearn.set_config(enable_metadata_routing=True)
seen = []
class Noting(CLPDistiller):
    def fit(self, X, y, groups=None):
        seen.append(groups)
        return super().fit(X, y, groups)
sampler = DistilledSampler(Noting(None, max_iter=1)).set_fit_request(groups=True).set_fit_resample_request(groups=True)
X = np.random.default_rng(0).normal(size=(40, 3))
make_pipeline(sampler, ClosedFormProbe(1.0, temperature=1.0)).fit(X, np.arange(40) % 2, groups=np.arange(40) // 20)
assert seen[0] is not None and len(seen[0]) == 40
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_features_as_pandas_has_them():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(30, 3)), columns=list("abc"), index=range(5, 35))
    y = pd.Series(np.arange(30) % 2, name="kind", index=X.index)
    sampler = DistilledSampler(CLPDistiller(None, max_iter=3, random_state=0))
    few, labels = sampler.fit_resample(X, y)
    assert list(few.columns) == ["a", "b", "c"]
    assert (few.shape, labels.name, labels.tolist()) == ((2, 3), "kind", [0, 1])
    assert sampler.n_features_in_ == 3
    make_pipeline(sampler, LogisticRegression()).fit(X, y).predict(X)


def test_errors(colors):
    with pytest.raises(NotFittedError):
        _ = DistilledSampler().n_features_in_
    with pytest.raises(ValueError, match="'distiller' parameter"):
        DistilledSampler("a distiller").fit_resample(*colors)
    with pytest.raises(TypeError, match="a CLPDistiller or a baseline; got ClosedFormProbe"):
        DistilledSampler(ClosedFormProbe()).fit_resample(np.eye(4), [0, 0, 1, 1])
