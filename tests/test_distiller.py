"""CLPDistiller: the contracts of the estimator, on images and on features."""

import pickle
import re
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import DSA, Checkpoint, ClosedFormProbe, CLPDistiller, FrozenEncoder, LinearSchedule, allocate_images
from sklearn_clpdd.distill import _adapters as adapters_module
from sklearn_clpdd.distill import _gradient as gradient_module
from sklearn_clpdd.distill._objectives import OBJECTIVES, WithNeighbors
from sklearn_clpdd.distill._parametrizations import PARAMETRIZATIONS, Pixels
from sklearn_clpdd.distill._real_features import BatchSampler, RealFeatures
from sklearn_clpdd.encoder._extractor import FeatureExtractor

ONLY_VIEWS = DSA(unaugmented_weight=0)


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=14, crop_pct=14 / 16, device="cpu")


def distiller(encoder, **parameters):
    return CLPDistiller(encoder, **{"max_iter": 40, "random_state": 0, **parameters})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_learns_images_that_a_probe_can_be_trained_on(encoder, colors, objective, parametrization):
    X, y = colors
    fitted = distiller(encoder, objective=objective, parametrization=parametrization, init="noise").fit(X[:40], y[:40])
    assert fitted.X_synthetic_.shape == (3, 16, 16, 3)
    assert fitted.X_synthetic_.dtype == np.float32
    assert 0 <= fitted.X_synthetic_.min() < fitted.X_synthetic_.max() <= 1
    assert fitted.y_synthetic_.tolist() == ["blue", "green", "red"]
    assert fitted.n_iter_ == len(fitted.history_) == 40
    losses = [record["loss"] for record in fitted.history_]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert fitted.score(X[40:], y[40:]) >= 0.8
    probe = ClosedFormProbe(fitted.alpha_, fit_intercept=False, temperature=1.0).fit(
        encoder.transform(fitted.X_synthetic_), fitted.y_synthetic_
    )
    np.testing.assert_allclose(probe.decision_function(encoder.transform(X)), fitted.decision_function(X), atol=1e-5)


def test_transform_without_X_is_the_synthetic_set(encoder, colors):
    X, y = colors
    fitted = distiller(encoder, max_iter=2).fit(X, y)
    assert fitted.transform() is fitted.X_synthetic_


@pytest.mark.parametrize("kind", ["images", "features"])
def test_fit_transform_is_fit_then_transform(encoder, colors, kind):
    X, y = colors
    if kind == "features":
        X, encoder = X.reshape(60, -1)[:, ::50] / 255, None
    scores = distiller(encoder, max_iter=3).fit_transform(X, y)
    np.testing.assert_array_equal(scores, distiller(encoder, max_iter=3).fit(X, y).transform(X))
    assert scores.shape == (60, 3)


def test_scores_are_cosines_to_the_anchors(encoder, colors):
    X, y = colors
    fitted = distiller(encoder).fit(X, y)
    np.testing.assert_allclose(np.linalg.norm(fitted.anchors_, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(fitted.transform(X), encoder.transform(X) @ fitted.anchors_.T, atol=1e-6)
    frame = fitted.set_output(transform="pandas").transform(X)
    assert frame.columns.tolist() == ["clpdistiller0", "clpdistiller1", "clpdistiller2"]
    assert fitted.transform() is fitted.X_synthetic_


@pytest.mark.parametrize("images_per_class", [1, 3])
@pytest.mark.parametrize("encoder_batch_size", [2, 64])
def test_same_seed_same_images(encoder, colors, images_per_class, encoder_batch_size):
    X, y = colors
    parameters = {"max_iter": 5, "images_per_class": images_per_class, "encoder_batch_size": encoder_batch_size}
    first, second = (distiller(encoder, **parameters).fit(X, y) for _ in range(2))
    np.testing.assert_array_equal(first.X_synthetic_, second.X_synthetic_)
    assert len(first.X_synthetic_) == 3 * images_per_class
    other = distiller(encoder, **parameters, random_state=None).set_params(random_state=1).fit(X, y)
    assert np.abs(first.X_synthetic_ - other.X_synthetic_).max() > 1e-3


def test_chunks_do_not_matter(encoder, colors):
    X, y = colors
    one, many = (
        distiller(encoder, max_iter=5, augmentation=DSA(n_views=3), encoder_batch_size=size).fit(X, y) for size in (64, 3)
    )
    np.testing.assert_allclose(one.X_synthetic_, many.X_synthetic_, atol=1e-4)


@pytest.mark.parametrize("y", ["strings", "integers", "two classes"])
def test_labels_are_the_users_own(encoder, colors, y):
    X, labels = colors
    codes = np.unique(labels, return_inverse=True)[1]
    y = {"strings": labels, "integers": codes * 10 - 5, "two classes": labels == "red"}[y]
    fitted = distiller(encoder).fit(X, y)
    assert fitted.y_synthetic_.dtype == y.dtype
    assert set(fitted.predict(X)) <= set(y)
    proba = fitted.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert (fitted.classes_[proba.argmax(axis=1)] == fitted.predict(X)).all()
    assert fitted.transform(X).shape == proba.shape == (60, len(fitted.classes_))
    assert fitted.decision_function(X).shape == ((60,) if len(fitted.classes_) == 2 else (60, 3))


def test_starts_from_real_images_of_the_class(encoder, colors):
    X, y = colors
    for parametrization in PARAMETRIZATIONS:
        start = distiller(
            encoder, init="real", images_per_class=2, parametrization=parametrization, max_iter=1, learning_rate=1e-9
        ).fit(X, y)
        for image, label in zip(start.X_synthetic_, start.y_synthetic_, strict=True):
            assert np.abs(X[y == label] / 255 - image).max(axis=(1, 2, 3)).min() < 1 / 255
        assert len(np.unique(start.X_synthetic_, axis=0)) == 6


@pytest.mark.parametrize("init", ["noise", "kmeans"])
def test_images_start_differently(encoder, colors, init):
    start = distiller(encoder, images_per_class=2, max_iter=1, init=init).fit(*colors)
    assert len(np.unique(start.X_synthetic_, axis=0)) == 6


def test_starts_from_the_most_central_real_images(encoder, colors):
    X, y = colors
    still = {"max_iter": 1, "learning_rate": 1e-9, "validation_fraction": None}
    start = distiller(encoder, images_per_class=2, **still).fit(X, y)
    for label in np.unique(y):
        R = encoder.transform(X[y == label])
        centers = KMeans(2, n_init=20, random_state=0).fit(R).cluster_centers_
        of_start, of_centers = (
            cdist(points, R).min(0).mean()
            for points in (encoder.transform(start.X_synthetic_[start.y_synthetic_ == label]), centers)
        )
        random = np.mean([cdist(R[[i, j]], R).min(0).mean() for i in range(len(R)) for j in range(i)])
        assert of_centers <= of_start < random


def test_fewer_real_samples_than_synthetic_ones(encoder, colors):
    """Real samples are used several times, with noise that distinguishes the copies even without random views."""
    X, y = colors
    rows = np.r_[np.flatnonzero(y == "red")[:2], np.flatnonzero(y != "red")]
    for kind in ("images", "features"):
        data = X[rows] if kind == "images" else X[rows].reshape(len(rows), -1)[:, ::50] / 255
        fitted = distiller(encoder if kind == "images" else None, images_per_class=5, augmentation=None, max_iter=30).fit(
            data, y[rows]
        )
        assert len(np.unique(fitted.X_synthetic_, axis=0)) == 15
        assert fitted.score(data, y[rows]) >= 0.8


# ---- how many images of each class ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8), st.integers(0, 60))
def test_allocated_images_are_integers_monotone_and_nearly_equal(counts, more):
    counts = np.array(counts)
    total = len(counts) + more
    y = np.arange(len(counts)).repeat(counts)
    allocated = [allocate_images(y, n) for n in (total, total + 1)]
    assert all(list(own) == list(range(len(counts))) for own in allocated)
    budget, larger = (np.array(list(own.values())) for own in allocated)
    assert budget.sum() == total
    assert budget.min() >= 1
    assert (larger >= budget).all()
    assert (np.diff(budget[np.argsort(-counts, kind="stable")]) <= 0).all()
    if total > counts.sum():
        assert np.ptp(budget - counts) <= 1
    else:
        assert (budget <= counts).all()
        assert (budget[budget < counts] >= budget.max() - 1).all()


def test_unequal_budgets(encoder, colors):
    X, y = colors  # classes of 30, 20 and 10
    numbers = {"red": 1, "green": 3, "blue": 2}
    by_class = distiller(encoder, images_per_class=numbers, max_iter=3).fit(X, y)
    assert by_class.y_synthetic_.tolist() == ["blue"] * 2 + ["green"] * 3 + ["red"]
    in_all = distiller(encoder, images_per_class=allocate_images(y, 10), max_iter=3).fit(X, y)
    assert np.unique(in_all.y_synthetic_, return_counts=True)[1].tolist() == [4, 3, 3]
    assert allocate_images(np.repeat(["a", "b", "c"], [2, 30, 20]), 10) == {"a": 2, "b": 4, "c": 4}
    with pytest.raises(ValueError, match="total=2 is less than one image for each of 3 classes"):
        allocate_images(y, 2)
    with pytest.raises(ValueError, match=r"'green': 1, 'red': 3.*warm_start=False"):
        by_class.set_params(warm_start=True, images_per_class={"red": 3, "green": 1, "blue": 2}).fit(X, y)
    equal = distiller(encoder, images_per_class=allocate_images(y, 3), max_iter=3).fit(X, y)
    np.testing.assert_array_equal(equal.X_synthetic_, distiller(encoder, max_iter=3).fit(X, y).X_synthetic_)
    for fitted in (by_class, in_all):
        assert len(fitted.X_synthetic_) == len(fitted.y_synthetic_) == len(fitted.targets_)
        assert fitted.n_views_ == -(-20 // len(fitted.y_synthetic_))


# ---- several encoders ----------------------------------------------------------------------------------------------------


def test_a_list_of_one_encoder_is_that_encoder(encoder, colors):
    X, y = colors
    alone, listed = (distiller(given, max_iter=3).fit(X, y) for given in (encoder, [encoder]))
    np.testing.assert_array_equal(alone.X_synthetic_, listed.X_synthetic_)
    np.testing.assert_array_equal(alone.predict_proba(X), listed.predict_proba(X))
    assert isinstance(listed.encoder_, list)


def test_several_encoders(encoder, module, colors, tmp_path):
    X, y = colors
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    larger = FrozenEncoder(module, image_size=20, crop_pct=20 / 24, device="cpu")
    fitted = distiller([encoder, larger]).fit(X[:40], y[:40])
    assert fitted.X_synthetic_.shape == (3, 24, 24, 3)
    assert fitted.score(X[40:], y[40:]) >= 0.8
    features = np.concatenate([encoder.transform(X), larger.transform(X)], axis=1) / 2**0.5
    np.testing.assert_allclose(fitted.features(X), features, atol=1e-6)
    np.testing.assert_allclose(fitted.transform(X), features @ fitted.anchors_.T, atol=1e-5)
    assert [type(own) for own in clone(fitted).encoder] == [FrozenEncoder] * 2
    parameters = {"checkpoint": Checkpoint(str(tmp_path / "run"), every=5), "callback": _stop_at(13)}
    distiller([encoder, larger], **parameters).fit(X[:40], y[:40])
    resumed = distiller([encoder, larger], checkpoint=str(tmp_path / "run")).fit(X[:40], y[:40])
    np.testing.assert_array_equal(resumed.X_synthetic_, fitted.X_synthetic_)


def _stop_at(step):
    def stop(distiller, record):
        if record["step"] == step:
            raise StopIteration

    return stop


def test_every_objective_is_documented():
    listed = re.search(r"objective : \{(.*?)\}", CLPDistiller.__doc__)[1]
    assert sorted(re.findall(r'"(\w+)"', listed)) == sorted(OBJECTIVES)
    assert all(f'``"{name}"``' in CLPDistiller.__doc__ for name in OBJECTIVES)


# ---- learned targets, groups, temperature, unaugmented images ------------------------------------------------------------


def test_learned_targets(encoder, colors, tmp_path):
    X, y = colors
    parameters = {"objective": "cross_entropy", "max_iter": 60}
    hard, soft = (distiller(encoder, learn_targets=learn, **parameters).fit(X, y) for learn in (False, True))
    np.testing.assert_array_equal(hard.targets_, np.eye(3))
    assert 0.01 < np.abs(soft.targets_ - np.eye(3)).max() < 1
    Z = encoder.transform(soft.X_synthetic_).astype(float)
    # As the probe, which fits targets of -1 and 1.
    W = Z.T @ np.linalg.solve(Z @ Z.T + np.square(Z).sum() / 3 * np.eye(3), 2 * soft.targets_ - 1)
    np.testing.assert_allclose(soft.decision_function(X), encoder.transform(X) @ W, atol=1e-5)
    assert min(record.get("val_loss", 9) for record in soft.history_) < min(record.get("val_loss", 9) for record in hard.history_)
    checkpoint = {"checkpoint": str(tmp_path / "run"), "learn_targets": True, **parameters}
    distiller(encoder, **checkpoint, callback=_stop_at(31)).fit(X, y)
    resumed = distiller(encoder, **checkpoint).fit(X, y)
    np.testing.assert_array_equal(resumed.X_synthetic_, soft.X_synthetic_)
    np.testing.assert_array_equal(resumed.targets_, soft.targets_)
    targets = soft.targets_
    soft.set_params(warm_start=True, max_iter=1, learning_rate=1e-9).fit(X, y)
    np.testing.assert_allclose(soft.targets_, targets, atol=1e-6)


def test_learned_targets_follow_their_own_gradient(encoder, colors, monkeypatch):
    fit = distiller(encoder, learn_targets=True, images_per_class=2, max_iter=5, init="noise", random_state=0).fit
    fused = fit(*colors).targets_
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda groups, fused: adam(groups, fused=False))
    unfused = fit(*colors).targets_
    assert np.abs(unfused - np.repeat(np.eye(3), 2, axis=0)).min() > 1e-4
    np.testing.assert_allclose(fused, unfused, atol=1e-4)


def test_learned_targets_of_two_classes(encoder, colors):
    X, y = colors
    fitted = distiller(encoder, learn_targets=True).fit(X, y == "red")
    scores = (encoder.transform(X) @ fitted.anchors_.T * 1.0).argmax(1) == 1
    assert fitted.decision_function(X).shape == (60,)
    assert (fitted.predict(X) == scores).mean() > 0.8


def test_classes_as_groups_are_balanced_classes(encoder, colors):
    X, y = colors
    balanced = distiller(encoder, sampling="balanced", max_iter=5, validation_fraction=None).fit(X, y)
    np.testing.assert_array_equal(
        distiller(encoder, max_iter=5, validation_fraction=None).fit(X, y, groups=y).X_synthetic_, balanced.X_synthetic_
    )
    uniform = distiller(encoder, sampling="uniform", max_iter=5, validation_fraction=None).fit(X, y)
    assert np.abs(uniform.X_synthetic_ - balanced.X_synthetic_).max() > 1e-4
    # 30 samples of the largest class are more than twice the 10 of the smallest, so "auto" balances; 20 are not.
    parameters = {"max_iter": 5, "validation_fraction": None}
    np.testing.assert_array_equal(distiller(encoder, **parameters).fit(X, y).X_synthetic_, balanced.X_synthetic_)
    rows = np.delete(np.arange(60), np.flatnonzero(y == "blue")[:10])
    auto, given = (distiller(encoder, sampling=own, **parameters).fit(X[rows], y[rows]) for own in ("auto", "uniform"))
    np.testing.assert_array_equal(auto.X_synthetic_, given.X_synthetic_)


def test_classes_have_the_same_weight_however_many_groups_they_have():
    r, groups = np.repeat([0, 1, 2], [60, 30, 10]), np.r_[np.repeat([0, 1, 2], 20), np.repeat(3, 30), np.repeat([4, 5], [8, 2])]
    R = np.arange(100.0)[:, None]
    real = RealFeatures(R, r, np.arange(100), strata=groups)
    rows, codes = BatchSampler(real, 30_000, torch.device("cpu"), torch.float64).sample(torch.Generator().manual_seed(0))
    rows = rows[:, 0].long().numpy()
    np.testing.assert_array_equal(r[rows], codes)
    np.testing.assert_allclose(np.bincount(codes) / 30_000, 1 / 3, atol=0.02)
    np.testing.assert_allclose(np.bincount(groups[rows]) / 30_000, np.array([1, 1, 1, 3, 1.5, 1.5]) / 9, atol=0.02)


def test_a_checkpoint_belongs_to_its_groups(tmp_path):
    X, y = load_digits(return_X_y=True)
    groups = np.arange(len(y)) % 2
    parameters = {"encoder": None, "max_iter": 5, "random_state": 0, "checkpoint": str(tmp_path / "run")}
    CLPDistiller(**parameters).fit(X, y, groups)
    assert len(CLPDistiller(**parameters).fit(X, y, groups).history_) == 5
    for other in (None, 1 - groups[::-1]):
        with pytest.raises(ValueError, match="groups changed"):
            CLPDistiller(**parameters).fit(X, y, other)


def test_groups_suppress_a_spurious_feature():
    """Two features: one that equals the class in 19 of 20 samples and is uninformative in the others, and a noisier one."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=2000)
    background = np.where(rng.random(2000) < 0.95, y, 1 - y)
    X = np.stack([2.0 * background - 1, 2 * y - 1 + rng.normal(size=2000)], axis=1) + 0.1 * rng.normal(size=(2000, 2))
    worst = {}
    for name, groups in (("without", None), ("with", background)):
        fitted = CLPDistiller(encoder=None, max_iter=200, random_state=0).fit(X, y, groups)
        right = fitted.predict(X) == y
        worst[name] = min(right[(y == c) & (background == b)].mean() for c in (0, 1) for b in (0, 1))
    assert worst["with"] > worst["without"] + 0.2


def test_nothing_is_held_out_if_a_group_would_be_missing(colors):
    X, y = colors
    X = X.reshape(60, -1)[:, ::50] / 255
    for groups, scored in ((np.zeros(60), True), (np.arange(60) == 0, False)):
        fitted = CLPDistiller(None, max_iter=3, random_state=0).fit(X, y, groups)
        assert ("val_loss" in fitted.history_[-1]) == scored


def test_temperature_by_the_rule(colors):
    X, y = load_digits(return_X_y=True)
    parameters = {"encoder": None, "max_iter": 3, "random_state": 0}
    fitted = CLPDistiller(**parameters).fit(X, y)
    scaled = CLPDistiller(**parameters).fit(10 * X, y)
    assert scaled.temperature_ == pytest.approx(fitted.temperature_, rel=1e-4)
    assert scaled.neighbor_temperature_ == pytest.approx(fitted.neighbor_temperature_, rel=1e-4)
    given = CLPDistiller(**parameters, temperature=fitted.temperature_).fit(X, y)
    np.testing.assert_array_equal(given.X_synthetic_, fitted.X_synthetic_)
    assert given.set_params(objective="cross_entropy").fit(X, y).neighbor_temperature_ is None
    four = CLPDistiller(**parameters, images_per_class=allocate_images(y, 40)).fit(X, y)
    assert four.temperature_ == pytest.approx(fitted.temperature_ / 2)
    assert four.neighbor_temperature_ == fitted.neighbor_temperature_


def test_the_loss_averages_random_views_and_unaugmented_images(encoder, colors):
    X, y = colors
    calls = []

    def objective(Z, Y, R, r):
        loss = OBJECTIVES["cross_entropy"](1.0, 0.1)(Z, Y, R, r)
        calls.append((Z.detach().numpy().copy(), Y.numpy(), loss.item()))
        return loss

    parameters = {"objective": objective, "max_iter": 1, "learning_rate": 1e-9, "validation_fraction": None}
    fitted = distiller(encoder, augmentation=DSA(n_views=4, unaugmented_weight=0.3), **parameters).fit(X, y)
    (views, Y, random), (whole, one_hot, own) = calls
    assert views.shape == (12, 12)
    np.testing.assert_array_equal(Y, np.eye(3).repeat(4, axis=0))
    np.testing.assert_array_equal(one_hot, np.eye(3))
    np.testing.assert_allclose(whole, encoder.transform(fitted.X_synthetic_), atol=1e-5)
    assert fitted.history_[0]["loss"] == pytest.approx(0.7 * random + 0.3 * own, rel=1e-5)
    calls.clear()
    distiller(encoder, augmentation=DSA(n_views=4, unaugmented_weight=0), **parameters).fit(X, y)
    assert len(calls) == 1


def test_neighbors_are_those_of_unaugmented_images(encoder, colors, monkeypatch):
    X, y = colors
    calls, call = [], WithNeighbors.__call__

    def watched(self, Z, *args):
        calls.append(len(Z))
        return call(self, Z, *args)

    monkeypatch.setattr(WithNeighbors, "__call__", watched)
    once = {"max_iter": 1, "validation_fraction": None, "images_per_class": 2}
    for count, encoders, parameters in (
        (1, encoder, {"augmentation": DSA(n_views=4)}),
        (1, encoder, {"augmentation": None}),  # there are only unaugmented images
        (2, [encoder, encoder], {"augmentation": DSA(n_views=4)}),
        (0, encoder, {"augmentation": ONLY_VIEWS}),
    ):
        calls.clear()
        distiller(encoders, **once, **parameters).fit(X, y)
        assert calls == [6] * count
    probe = distiller(encoder, objective="cross_entropy", augmentation=ONLY_VIEWS).fit(X, y)
    fitted = distiller(encoder, augmentation=ONLY_VIEWS).fit(X, y)
    np.testing.assert_array_equal(fitted.X_synthetic_, probe.X_synthetic_)
    assert [record.get("val_loss") for record in fitted.history_] == [record.get("val_loss") for record in probe.history_]


def test_each_of_several_samples_is_typical_of_its_class():
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

    def nearest(objective):
        own = CLPDistiller(encoder=None, objective=objective, images_per_class=5, max_iter=100, random_state=0).fit(
            X_train, y_train
        )
        return KNeighborsClassifier(1).fit(own.transform(), own.y_synthetic_).score(X_test, y_test)

    assert nearest("probe_and_neighbors") > nearest("cross_entropy") + 0.05


def test_images_per_class_may_depend_on_the_split(encoder, colors):
    X, y = colors
    grid = {"images_per_class": [1, partial(allocate_images, total=7)]}
    search = GridSearchCV(distiller(encoder, max_iter=3), grid, cv=2, refit=False).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    few = distiller(encoder, max_iter=1, images_per_class=partial(allocate_images, total=7)).fit(X[y != "red"], y[y != "red"])
    assert few.y_synthetic_.tolist() == ["blue"] * 4 + ["green"] * 3
    with pytest.raises(ValueError, match="images_per_class == 0"):
        distiller(encoder, images_per_class=lambda y: 0).fit(X, y)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [({"n_views": 0}, "n_views == 0"), ({"n_views": 2.5}, "n_views"), ({"unaugmented_weight": 1.5}, "unaugmented_weight == 1.5")],
)
def test_an_augmentation_of_the_users_is_validated(encoder, colors, attributes, words):
    own = type("Own", (DSA,), {"__init__": lambda self: DSA.__init__(self, **attributes), "_parameter_constraints": {}})
    with pytest.raises((ValueError, TypeError), match=words):
        distiller(encoder, augmentation=own()).fit(*colors)


def test_augmentations(encoder, colors):
    X, y = colors
    for augmentation in (None, "dsa", DSA(scale=(0.5, 1), flip=0, noise=0.05)):
        assert distiller(encoder, augmentation=augmentation).fit(X, y).score(X, y) >= 0.8


def test_without_views_the_objective_sees_the_probes_features(encoder, colors):
    """The last loss is recomputed by hand from the images before the last step."""
    X, y = colors
    seen = {}

    def objective(Z, Y, R, r):
        seen.update(Z=Z.detach().numpy().copy(), Y=Y.numpy())
        return OBJECTIVES["cross_entropy"](0.01, 0.1)(Z, Y, R, r)

    fitted = distiller(encoder, augmentation=None, objective=objective, max_iter=3, learning_rate=1e-9).fit(X, y)
    np.testing.assert_allclose(seen["Z"], encoder.transform(fitted.X_synthetic_), atol=1e-5)
    assert seen["Y"].tolist() == np.eye(3).tolist()


def test_images_larger_than_the_encoders_own(encoder, colors):
    X, y = colors
    fitted = distiller(encoder, image_size=30, max_iter=3).fit(X, y)
    assert fitted.X_synthetic_.shape == (3, 30, 30, 3)


def test_pickles_without_the_network_and_predicts_the_same(colors, tmp_path):
    X, y = colors
    fitted = CLPDistiller(FrozenEncoder(image_size=32, device="cpu"), max_iter=1).fit(X, y)
    path = tmp_path / "distiller.joblib"
    joblib.dump(fitted, path)
    assert path.stat().st_size < 200_000
    np.testing.assert_array_equal(joblib.load(path).predict_proba(X), fitted.predict_proba(X))
    assert not any(isinstance(value, torch.Tensor | torch.nn.Module) for value in vars(fitted).values())


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of images in each forward pass of an encoder, without those of distillation."""
    numbers = []
    original = FeatureExtractor.__call__

    def counted(self, views, dtype=None):
        if dtype is None:
            numbers.append(len(views))
        return original(self, views, dtype)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    return numbers


def test_real_images_are_encoded_once_and_never_when_cached(encoder, colors, tmp_path, encoded):
    X, y = colors
    encoder.set_params(memory=str(tmp_path))
    first = distiller(encoder, max_iter=3, validation_fraction=None).fit(X, y)
    assert encoded == [60, 3]  # the real images, and the synthetic images for the probe
    encoded.clear()
    second = distiller(encoder, max_iter=3, temperature=1.0, validation_fraction=None).fit(X, y)
    assert encoded == [3]
    assert np.abs(second.X_synthetic_ - first.X_synthetic_).max() > 1e-4


def test_a_grid_search_encodes_the_real_images_of_a_split_once(encoder, colors, tmp_path, encoded):
    X, y = colors
    encoder.set_params(memory=str(tmp_path))
    split = [(np.arange(40), np.arange(40, 60))]
    grid = {"temperature": [0.1, 0.2, 1.0]}
    GridSearchCV(distiller(encoder, max_iter=2), grid, cv=split, refit=False).fit(X, y)
    assert sorted(encoded) == [3, 3, 3, 20, 40]


def test_features_on_disk_are_used_as_those_in_memory(encoder, colors, monkeypatch):
    X, y = colors
    in_memory = distiller(encoder, max_iter=20).fit(X, y)
    monkeypatch.setattr(adapters_module, "_IN_MEMORY", 0)
    kinds = []
    original = adapters_module._on_disk
    monkeypatch.setattr(adapters_module, "_on_disk", lambda *args, **kw: kinds.append(original(*args, **kw)) or kinds[-1])
    on_disk = distiller(encoder, max_iter=20, real_batch_size=16).fit(X, y)
    assert [(type(R), R.dtype, R.shape) for R in kinds] == [(np.memmap, np.float16, (60, 12))]
    assert on_disk.score(X, y) >= in_memory.score(X, y) - 0.1
    np.testing.assert_allclose(np.linalg.norm(kinds[0].astype(np.float32), axis=1), 1, atol=1e-3)


def test_grid_search_needs_nothing_else(encoder, colors):
    X, y = colors
    search = GridSearchCV(distiller(encoder, max_iter=10), {"temperature": [0.1, 1.0]}, cv=2).fit(X, y)
    assert search.best_score_ >= 0.8
    assert search.best_estimator_.transform().shape == (3, 16, 16, 3)
    assert clone(distiller(None)).set_params(alpha=0.5).alpha == 0.5


def test_encoder_parameters_are_reached_by_name(encoder):
    assert distiller(encoder).set_params(encoder__image_size=12).encoder.image_size == 12


# ---- features ------------------------------------------------------------------------------------------------------------


def test_features_without_an_encoder():
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    fitted = CLPDistiller(encoder=None, max_iter=200, random_state=0).fit(X_train, y_train)
    assert fitted.X_synthetic_.shape == (10, 64)
    assert fitted.n_features_in_ == 64
    assert fitted.score(X_test, y_test) >= 0.9
    with pytest.raises(ValueError, match=r"3 features.*64 features"):
        fitted.predict(X_test[:, :3])


def test_features_may_be_shifted_and_scaled():
    """The points have the shift and scale of the features."""
    X, y = load_digits(return_X_y=True)
    plain = CLPDistiller(encoder=None, max_iter=20, random_state=0).fit(X, y)
    moved = CLPDistiller(encoder=None, max_iter=20, random_state=0).fit(1000 * X + 50, y)
    np.testing.assert_allclose(moved.X_synthetic_, 1000 * plain.X_synthetic_ + 50, rtol=1e-4, atol=1)
    assert (moved.predict(1000 * X + 50) == plain.predict(X)).mean() > 0.99


def test_pipeline_of_encoder_and_distiller_is_the_same_method(encoder, colors):
    X, y = colors
    pipeline = make_pipeline(encoder, CLPDistiller(encoder=None, max_iter=50, random_state=0)).fit(X[:40], y[:40])
    assert pipeline.score(X[40:], y[40:]) >= 0.8


# ---- errors --------------------------------------------------------------------------------------------------------------


def test_nonfinite_loss_names_the_step_and_keeps_the_last_images(encoder, colors):
    X, y = colors
    steps = iter(range(100))

    def objective(Z, Y, R, r):
        loss = OBJECTIVES["cross_entropy"](0.01, 0.1)(Z, Y, R, r)
        return loss * torch.nan if next(steps) >= 13 else loss

    failing = distiller(encoder, objective=objective, validation_fraction=None, augmentation=ONLY_VIEWS)
    with pytest.raises(FloatingPointError, match="step 13 is nan"):
        failing.fit(X, y)
    assert failing.n_iter_ == len(failing.history_) == 13
    assert failing.predict(X).shape == (60,)
    # The images of step 12, which had the last finite loss, are the result of 12 updates of the same run.
    snapshots = []

    def watching(Z, Y, R, r):
        snapshots.append(Z.detach().numpy().copy())
        return OBJECTIVES["cross_entropy"](0.01, 0.1)(Z, Y, R, r)

    plain = {"augmentation": None, "parametrization": "pixels", "validation_fraction": None}
    distiller(encoder, objective=watching, **plain).fit(X, y)
    steps = iter(range(100))
    failing = distiller(encoder, objective=objective, **plain)
    with pytest.raises(FloatingPointError):
        failing.fit(X, y)
    np.testing.assert_allclose(encoder.transform(failing.X_synthetic_), snapshots[12], atol=1e-5)


def test_interrupt_keeps_the_images_so_far(encoder, colors):
    X, y = colors
    steps = iter(range(100))

    def objective(Z, Y, R, r):
        if next(steps) == 7:
            raise KeyboardInterrupt
        return OBJECTIVES["cross_entropy"](0.01, 0.1)(Z, Y, R, r)

    with pytest.warns(UserWarning, match="interrupted after 7 of 40 steps"):
        fitted = distiller(encoder, objective=objective, validation_fraction=None, augmentation=ONLY_VIEWS).fit(X, y)
    np.testing.assert_array_equal(fitted.X_synthetic_.shape, (3, 16, 16, 3))
    assert fitted.n_iter_ == 7


def _state(estimator):
    """All attributes except the parameters, by content."""
    return {name: joblib.hash(value) for name, value in vars(estimator).items() if name not in estimator.get_params(deep=False)}


@pytest.mark.parametrize("where", ["real features", "first step", "fitted attributes"])
@pytest.mark.parametrize("error", [TypeError, KeyboardInterrupt])
def test_a_fit_that_fails_early_keeps_the_last_fit(encoder, colors, monkeypatch, where, error):
    X, y = colors
    fitted = distiller(encoder, max_iter=2, objective="cross_entropy").fit(X, y)
    before, predicted = _state(fitted), fitted.predict(X)

    def fail(*args, **kwargs):
        raise error

    place = {
        "real features": "sklearn_clpdd.distill._adapters.ImageAdapter.real_features",
        "first step": "sklearn_clpdd.distill._objectives.CrossEntropy.columns",
        "fitted attributes": "sklearn_clpdd.distill._base.solved_probe",
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        fitted.set_params(images_per_class=2, image_size=20)
        if (where, error) == ("first step", KeyboardInterrupt):  # there are images to start from
            fitted.set_params(validation_fraction=None)
            with pytest.warns(UserWarning, match="interrupted after 0"):
                fitted.fit(X, y == "red")
            assert fitted.classes_.tolist() == [False, True]
            assert fitted.X_synthetic_.shape == (4, 20, 20, 3)
            return
        with pytest.raises(error):
            fitted.fit(X, y == "red")
    assert _state(fitted) == before
    np.testing.assert_array_equal(fitted.predict(X), predicted)
    unfitted = distiller(encoder, objective=lambda Z: Z.sum())
    with pytest.raises(TypeError):
        unfitted.fit(X, y)
    assert not _state(unfitted)
    with pytest.raises(NotFittedError):
        unfitted.predict(X)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_fit_that_fails_midway_is_consistent(encoder, colors, error):
    """All attributes belong to the new fit, which differs in classes, shape and kind of data."""
    X, y = colors
    fitted = distiller(None, max_iter=2).fit(X.reshape(60, -1)[:, ::50] / 255, y)

    def stop(moment, record):
        if record["step"] == 3:
            assert fitted.X_synthetic_.shape[1] == fitted.n_features_in_ == 16  # still
            raise error

    fitted.set_params(encoder=encoder, images_per_class=2, max_iter=10, callback=stop)
    with pytest.raises(OSError) if error is OSError else pytest.warns(UserWarning, match="interrupted after 3"):  # noqa: PT011
        fitted.fit(X, y == "red")
    assert fitted.classes_.tolist() == fitted.probe_.classes_.tolist() == [False, True]
    assert fitted.y_synthetic_.tolist() == [False, False, True, True]
    assert fitted.X_synthetic_.shape == (4, 16, 16, 3)
    assert (fitted.n_iter_, len(fitted.history_)) == (4, 4)
    assert not hasattr(fitted, "n_features_in_")
    assert fitted.class_count_.tolist() == [50, 10]
    np.testing.assert_array_equal(fitted.predict(X), fitted.classes_[(fitted.decision_function(X) > 0).astype(int)])


def test_features_that_come_after_images_and_images_that_come_after_features(encoder, colors):
    X, y = colors
    fitted = distiller(None, max_iter=1).fit(pd.DataFrame(X.reshape(60, -1)[:, ::50] / 255).add_prefix("x"), y)
    assert (fitted.n_features_in_, len(fitted.feature_names_in_)) == (16, 16)
    fitted.set_params(encoder=encoder).fit(X, y)
    assert not {"n_features_in_", "feature_names_in_"} & vars(fitted).keys()
    fitted.set_params(encoder=None).fit(np.eye(6)[np.arange(60) % 6], y)
    assert fitted.n_features_in_ == 6


def test_the_probe_keeps_no_sums_in_other_units(encoder, colors):
    """`partial_fit` starts anew, with a warning."""
    X, y = colors
    for fitted, data in ((distiller(None), X.reshape(60, -1)[:, ::50] / 255), (distiller(encoder), X)):
        fitted.fit(data, y)
        solution = {"coef_", "intercept_", "alpha_", "temperature_", "compression_", "loss_", "classes_", "n_features_in_"}
        solution |= {"multilabel_"}
        assert set(vars(fitted.probe_)) - set(fitted.probe_.get_params()) == solution
        with pytest.warns(UserWarning, match="are discarded"):
            fitted.probe_.partial_fit(fitted.features(data), y)
        wanted = clone(fitted.probe_).fit(fitted.features(data), y)
        np.testing.assert_allclose(fitted.probe_.coef_, wanted.coef_, rtol=1e-3, atol=1e-4 * np.abs(wanted.coef_).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_of_many_rows_far_from_zero(dtype):
    """In float32, the mean of a million numbers is too inaccurate: the scale was 17.9 here."""
    X = np.random.default_rng(0).standard_normal((1_000_000, 4)).astype(dtype) + dtype(1000)
    space = adapters_module.FeatureAdapter(X, torch.device("cpu"))
    assert space.scale == pytest.approx(2.0, rel=1e-2)
    np.testing.assert_allclose(space.center, X.mean(axis=0, dtype=np.longdouble), rtol=1e-9)
    R = space.real_features(np.arange(len(X)))
    assert R.dtype == dtype
    np.testing.assert_allclose(R.mean(axis=0, dtype=float), 0, atol=1e-4)
    assert np.square(R, dtype=float).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-4)


def test_no_start_from_held_out_images(encoder, colors):
    """Of the ten samples of a class, two are held out, and eight are left."""
    X, y = colors
    rows = np.concatenate([np.flatnonzero(y == label)[:10] for label in np.unique(y)])
    X, y, seen = X[rows], y[rows], []

    def objective(Z, Y, R, r):
        seen.append((Z.requires_grad, R.numpy().copy()))
        return OBJECTIVES["cross_entropy"](0.01, 0.1)(Z, Y, R, r)

    parameters = {"init": "real", "validation_fraction": 0.2, "max_iter": 1, "learning_rate": 1e-9, "objective": objective}
    fitted = distiller(encoder, images_per_class=8, **parameters).fit(X, y)
    held_out = next(R for learns, R in seen if not learns)
    assert len(held_out) == 6
    start = encoder.transform(fitted.X_synthetic_)
    assert cdist(start, held_out).min() > 1e-3
    assert cdist(start, encoder.transform(X)).min(axis=1).max() < 1e-3
    with pytest.raises(ValueError, match=r"does not use held-out samples.*'blue' \(8 of 9\)"):
        distiller(encoder, images_per_class=9, **parameters).fit(X, y)


def test_refused_input_keeps_the_last_fit():
    X, y = load_digits(return_X_y=True)
    fitted = CLPDistiller(encoder=None, max_iter=3, random_state=0).fit(X, y)
    before = fitted.transform(X)
    with pytest.raises(ValueError, match="one class"):
        fitted.fit(X + 100, np.zeros(len(y)))
    np.testing.assert_array_equal(fitted.transform(X), before)


def test_named_columns_give_no_warning(recwarn):
    X, y = load_digits(return_X_y=True, as_frame=True)
    CLPDistiller(encoder=None, max_iter=2).fit(X, y).predict(X)
    assert not [str(warning.message) for warning in recwarn]


def test_nonfinite_features_are_an_error(colors):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) / (x.mean((1, 2, 3))[:, None] > 0)

    X, y = colors
    X = X.copy()
    X[5] = 0
    with pytest.raises(ValueError, match=r"non-finite features for 1 of 60 samples, first for X\[5\]"):
        distiller(FrozenEncoder(Broken(), image_size=14, crop_pct=14 / 16)).fit(X, y)


@pytest.fixture
def no_long_work(no_encoding, monkeypatch):
    monkeypatch.setattr(gradient_module, "optimize", lambda *args, **kwargs: pytest.fail("steps were made"))


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize(
    ("parameters", "change", "words"),
    [
        ({}, lambda X, y: (X[:50], y), r"inconsistent numbers of samples: \[50, 60\]"),
        ({}, lambda X, y: (X, np.full(60, "one")), "one class"),
        ({}, lambda X, y: (X, np.linspace(0, 1, 60)), "[Uu]nknown label type: continuous"),
        ({}, lambda X, y: (X, np.where(y == "red", np.nan, 1.0)), "NaN"),
        ({}, lambda X, y: (X[0], y), r"one image\? Pass X\[None\]"),
        ({"init": "real", "images_per_class": 15}, lambda X, y: (X, y), r"'red' \(9 of 15\)"),
        ({"objective": "hinge"}, lambda X, y: (X, y), "cross_entropy.*mse|mse.*cross_entropy"),
        ({"augmentation": "mixup"}, lambda X, y: (X, y), "dsa"),
        ({"parametrization": "fourier"}, lambda X, y: (X, y), "pixels.*pyramid|pyramid.*pixels"),
        ({"images_per_class": 0}, lambda X, y: (X, y), "images_per_class"),
        ({"alpha": 0.0}, lambda X, y: (X, y), "alpha"),
        ({"temperature": -1.0}, lambda X, y: (X, y), "temperature"),
        ({"learning_rate": LinearSchedule(warmup_steps=-1)}, lambda X, y: (X, y), "warmup_steps"),
        ({"learning_rate": LinearSchedule(warmup_steps=2.5)}, lambda X, y: (X, y), "warmup_steps"),
        ({"learning_rate": LinearSchedule(0)}, lambda X, y: (X, y), "peak"),
        ({"augmentation": DSA(flip=2)}, lambda X, y: (X, y), "flip"),
        ({"checkpoint": Checkpoint("run", every=0)}, lambda X, y: (X, y), "every"),
        ({"image_size": 10}, lambda X, y: (X, y), "image_size=10 is smaller than the input of the encoder, 14 px"),
        ({"encoder": "nonsense"}, lambda X, y: (X, y), "unknown encoder 'nonsense'.*tf_efficientnet_lite0"),
        ({"encoder": 7}, lambda X, y: (X, y), "encoder"),
        ({"encoder": []}, lambda X, y: (X, y), "empty list"),
        ({"encoder": ["nonsense"]}, lambda X, y: (X, y), "unknown encoder 'nonsense'"),
        ({"images_per_class": {"red": 1, "blue": 2}}, lambda X, y: (X, y), r"Missing from the dict: \['green'\]"),
        ({"images_per_class": {"red": 0, "blue": 2, "green": 1}}, lambda X, y: (X, y), r"images_per_class\['red'\] == 0"),
        ({}, lambda X, y: (X, y, np.zeros(50)), r"inconsistent numbers of samples: \[60, 50\]"),
        ({}, lambda X, y: (X, y, np.full(60, np.nan)), "groups"),
        ({"encoder": FrozenEncoder(device="cuda:9")}, lambda X, y: (X, y), "cuda:9.*not available on this machine"),
    ],
)
def test_bad_input_is_refused_before_any_long_work(encoder, colors, parameters, change, words):
    with pytest.raises(ValueError, match=words):
        distiller(**{"encoder": encoder, **parameters}).fit(*change(*colors))


@pytest.mark.usefixtures("no_long_work")
def test_classes_that_are_not_parametrizations(encoder, colors):
    with pytest.raises(TypeError, match="Parametrization class"):
        distiller(encoder, parametrization=dict).fit(*colors)


def test_own_parametrization(encoder, colors):
    class Dark(Pixels):
        def decode(self, theta):
            return 0.5 * super().decode(theta)

    assert distiller(encoder, parametrization=Dark, max_iter=2).fit(*colors).X_synthetic_.max() <= 0.5


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "transform"])
def test_images_before_fit(colors, method):
    with pytest.raises(NotFittedError):
        getattr(CLPDistiller(), method)(colors[0])


def test_pickled_while_unfitted():
    assert pickle.loads(pickle.dumps(CLPDistiller())).get_params()["max_iter"] == CLPDistiller().max_iter


def test_an_encoder_without_gradients_is_refused_early(module, colors, encoded):
    class Closed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    closed = FrozenEncoder(Closed(), image_size=16)
    with pytest.raises(ValueError, match="Closed returns features without a gradient"):
        distiller(closed).fit(*colors)
    assert not encoded
    assert closed.transform(colors[0]).shape == (60, 12)


@pytest.mark.parametrize("mode", ["default dtype", "autocast", "low matmul precision"])
def test_fit_works_whatever_the_callers_precision(encoder, colors, mode):
    X, y = colors
    parameters = {"max_iter": 3, "augmentation": DSA(noise=0.01)}
    wanted = distiller(encoder, **parameters).fit(X, y)
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        if mode == "default dtype":
            torch.set_default_dtype(torch.float64)
        elif mode == "low matmul precision":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            seen = distiller(encoder, **parameters).fit(X, y)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
    assert seen.X_synthetic_.dtype == np.float32
    np.testing.assert_allclose(seen.X_synthetic_, wanted.X_synthetic_, atol=1e-2)
