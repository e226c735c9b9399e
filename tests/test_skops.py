"""All estimators through skops, which stores no code."""

import numpy as np
import pytest
import torch
from networks import tiny_encoder
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sklearn_clpdd
from sklearn_clpdd import (
    DSA,
    Checkpoint,
    ClosedFormProbe,
    CLPDistiller,
    DistilledSampler,
    FrozenEncoder,
    LinearSchedule,
    Snapshots,
    baselines,
)
from sklearn_clpdd.baselines import ClassCentroids, CoreSet, DMDistiller, LGMDistiller, NearestReals, RandomSubset, SFMDistiller
from sklearn_clpdd.io import TRUSTED_TYPES

io = pytest.importorskip("skops.io")

Z, CODES = (array[:120] for array in load_digits(return_X_y=True))
ENCODER = FrozenEncoder(weights=None, image_size=32, device="cpu")
FITTED_TO_FEATURES = {
    "logistic": ClosedFormProbe(),
    "squared": ClosedFormProbe(loss="squared"),
    "rbf": ClosedFormProbe(kernel="rbf"),
    "prior": ClosedFormProbe(coef_prior=torch.ones(10, 64)),
    "pipeline": make_pipeline(StandardScaler(), ClosedFormProbe()),
    "clp": CLPDistiller(None, max_iter=2, random_state=0),
    "random state": CLPDistiller(None, max_iter=2, random_state=np.random.RandomState(0)),
}
FITTED_TO_IMAGES = {
    "pipeline": make_pipeline(ENCODER, ClosedFormProbe(1.0)),
    "clp": CLPDistiller(ENCODER, max_iter=2, random_state=0, augmentation=DSA(), learning_rate=LinearSchedule()),
    "two encoders": CLPDistiller([ENCODER, clone(ENCODER).set_params(image_size=24)], max_iter=2, random_state=0),
    "snapshots": CLPDistiller(ENCODER, max_iter=2, random_state=0, callback=Snapshots()),
    "device": CLPDistiller(clone(ENCODER).set_params(device=torch.device("cpu")), max_iter=2, random_state=0),
    "lgm": LGMDistiller(ENCODER, max_iter=2, random_state=0),
    "sfm": SFMDistiller(ENCODER, max_iter=2, random_state=0),
    "dm": DMDistiller(ENCODER, max_iter=2, random_state=0),
    "random": RandomSubset(ENCODER, random_state=0),
    "centroids": ClassCentroids(ENCODER),
    "core-set": CoreSet(ENCODER),
    "nearest": NearestReals(CLPDistiller(ENCODER, max_iter=2, random_state=0)),
}


def through_skops(estimator):
    content = io.dumps(estimator)
    found = io.get_untrusted_types(data=content)
    assert set(found) <= {*TRUSTED_TYPES, "torch.device"}
    return io.loads(content, trusted=found)


@pytest.mark.parametrize("name", FITTED_TO_FEATURES)
def test_estimators_of_features(name):
    fitted = FITTED_TO_FEATURES[name].fit(Z, CODES)
    np.testing.assert_array_equal(through_skops(fitted).predict_proba(Z), fitted.predict_proba(Z))


@pytest.mark.parametrize("name", FITTED_TO_IMAGES)
def test_estimators_of_images(name, colors):
    images, labels = colors
    fitted = FITTED_TO_IMAGES[name].fit(images, labels)
    loaded = through_skops(fitted)
    np.testing.assert_array_equal(loaded.predict_proba(images), fitted.predict_proba(images))
    if hasattr(fitted, "X_synthetic_"):
        np.testing.assert_array_equal(loaded.transform(), fitted.transform())
        assert loaded.history_ == fitted.history_ if hasattr(fitted, "history_") else True


def test_a_sampler(colors):
    sampler = DistilledSampler(CLPDistiller(ENCODER, max_iter=2, random_state=0))
    wanted, labels = sampler.fit_resample(*colors)
    found, same = through_skops(sampler).fit_resample(*colors)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(same, labels)


def test_a_stream_goes_on():
    half = ClosedFormProbe(class_weight={0: 2.0, **dict.fromkeys(range(1, 10), 1.0)}).partial_fit(Z[:60], CODES[:60])
    loaded = through_skops(half)
    for probe in (half, loaded):
        probe.partial_fit(Z[60:], CODES[60:])
    np.testing.assert_array_equal(loaded.predict_proba(Z), half.predict_proba(Z))
    once_more = through_skops(through_skops(half))  # solved
    np.testing.assert_array_equal(once_more.predict_proba(Z), half.predict_proba(Z))


@pytest.mark.parametrize("estimator", [DSA(), LinearSchedule(), Checkpoint("run"), Snapshots(every=3)])
def test_parameters(estimator):
    loaded = through_skops(estimator)
    assert type(loaded) is type(estimator)
    assert str(vars(loaded)) == str(vars(estimator))


@pytest.mark.parametrize(
    "unfitted", [FrozenEncoder(tiny_encoder(), image_size=16), CLPDistiller([FrozenEncoder(tiny_encoder())])]
)
def test_networks_are_refused_with_the_reason(unfitted):
    with pytest.raises(TypeError, match="without its code"):
        io.dumps(unfitted)


def test_every_public_estimator_is_trusted():
    public = [getattr(module, name) for module in (sklearn_clpdd, baselines) for name in module.__all__]
    kinds = [one for one in public if isinstance(one, type) and hasattr(one, "get_params")]
    abstract = {sklearn_clpdd.Augmentation}
    assert {f"{kind.__module__}.{kind.__name__}" for kind in kinds if kind not in abstract} <= set(TRUSTED_TYPES)


def test_nothing_else_is_trusted():
    encoder = FrozenEncoder(device=torch.device("cpu"))
    with pytest.raises(io.exceptions.UntrustedTypesFoundException, match=r"torch\.device"):
        io.loads(io.dumps(encoder), trusted=TRUSTED_TYPES)
    assert io.loads(io.dumps(encoder), trusted=[*TRUSTED_TYPES, "torch.device"]).device == torch.device("cpu")
