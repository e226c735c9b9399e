"""Peers: correctness of each method, and the interface that they share with the distiller."""

import inspect
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.datasets import load_iris

from sklearn_clpdd import Checkpoint, ClosedFormProbe, CLPDistiller, FrozenEncoder, LinearSchedule
from sklearn_clpdd.baselines import (
    LGM_PUBLISHED,
    SFM_PUBLISHED,
    ClassCentroids,
    CoreSet,
    DMDistiller,
    LGMDistiller,
    NearestReals,
    RandomSubset,
    SFMDistiller,
)
from sklearn_clpdd.baselines._flow_matching import FlowMatching
from sklearn_clpdd.baselines._matching import FeatureMatching, GradientMatching
from sklearn_clpdd.distill._parametrizations import LGMPyramid

ITERATIVE = [LGMDistiller, DMDistiller, SFMDistiller]
SUBSETS = [RandomSubset, ClassCentroids, CoreSet, NearestReals]


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=14, crop_pct=14 / 16, device="cpu")


def peer(kind, encoder, **parameters):
    """An estimator that is fast to fit."""
    if kind is NearestReals:
        return NearestReals(CLPDistiller(encoder, max_iter=3, random_state=0, **parameters))
    steps = {"max_iter": 3} if kind in ITERATIVE else {}
    seed = {} if kind is CoreSet else {"random_state": 0}
    return kind(encoder, **seed, **steps, **parameters)


def features(n, d, dtype, seed):
    return F.normalize(torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("std", [0.01, 3.0])
def test_gradient_matching_is_second_order_autodiff(dtype, tolerance, std, monkeypatch):
    """The closed form has the loss and the gradient that autodiff finds through the gradient of an `nn.Linear`."""
    monkeypatch.setattr(GradientMatching, "std", std)
    C, d = 4, 7
    Z, R = features(8, d, dtype, 0).requires_grad_(), features(50, d, dtype, 1)
    y, r = torch.arange(8) % C, torch.arange(50) % C
    ours = GradientMatching(torch.Generator().manual_seed(2))(Z, F.one_hot(y, C).to(dtype), R, r)
    head = torch.nn.Linear(d, C, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(std * torch.randn(C, d, generator=torch.Generator().manual_seed(2)))
        head.bias.zero_()
    of_real = torch.autograd.grad(F.cross_entropy(head(R), r), list(head.parameters()))
    of_ours = torch.autograd.grad(F.cross_entropy(head(Z), y), list(head.parameters()), create_graph=True)
    vectors = [torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (of_ours, of_real)]
    theirs = 1 - F.cosine_similarity(*vectors, dim=0)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    (gradient,), (wanted,) = (torch.autograd.grad(loss, Z) for loss in (ours, theirs))
    assert (gradient - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_gradient_matching_draws_a_head_each_time_and_the_same_ones_again():
    Z, R, y, r = features(8, 7, torch.float32, 0), features(50, 7, torch.float32, 1), torch.arange(8) % 4, torch.arange(50) % 4
    random = torch.Generator().manual_seed(0)
    losses = [GradientMatching(random)(Z, F.one_hot(y, 4).float(), R, r) for _ in range(2)]
    assert losses[0] != losses[1]
    random.manual_seed(0)
    assert GradientMatching(random)(Z, F.one_hot(y, 4).float(), R, r) == losses[0]


def test_gradient_matching_is_zero_for_the_real_features_themselves():
    R, r = features(50, 7, torch.float64, 1), torch.arange(50) % 4
    loss = GradientMatching(torch.Generator().manual_seed(0))(R, F.one_hot(r, 4).double(), R, r)
    torch.testing.assert_close(loss, torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


def test_feature_matching_by_brute_force_passes_over_classes_that_are_not_in_the_batch():
    Z, R = features(8, 7, torch.float64, 0), features(30, 7, torch.float64, 1)
    y, r = torch.arange(8) % 4, torch.arange(30) % 3
    wanted = sum((Z[y == c].mean(0) - R[r == c].mean(0)).square().sum() for c in range(3))
    torch.testing.assert_close(FeatureMatching()(Z, F.one_hot(y, 4).double(), R, r), wanted)


def test_lgm_pyramid_adds_up_to_the_noise_of_the_published_code():
    """When a level is added, the earlier ones are scaled down, and the new one gets noise of the same scale."""
    pyramid = LGMPyramid((2, 3, 16, 16), torch.Generator().manual_seed(0))
    start = [level.detach().clone() for level in pyramid.parameters]
    for step in range(5000):
        pyramid.grow(step / 5000)
        assert pyramid.stage == min(5, 1 + step // 200)
    for level, drawn in zip(pyramid.parameters, start, strict=True):
        torch.testing.assert_close(level.detach(), drawn / 5)
    total = sum(torch.nn.functional.interpolate(level, (16, 16), mode="bilinear") for level in pyramid.parameters)
    color = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    color = color / color.norm(dim=0).max()
    torch.testing.assert_close(pyramid(), torch.sigmoid(2 * torch.einsum("ij,njhw->nihw", color, total)))
    images = torch.rand(2, 3, 16, 16)
    pyramid.set_samples(images)
    torch.testing.assert_close(pyramid(), images.clamp(1 / 512, 1 - 1 / 512), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [*ITERATIVE, *SUBSETS])
def test_peers_have_the_distillers_interface(kind, encoder, colors):
    X, y = colors
    fitted = peer(kind, encoder, images_per_class=2).fit(X[:40], y[:40])
    assert fitted.transform().shape == (6, 16, 16, 3)
    assert fitted.transform().dtype == np.float32
    assert 0 <= fitted.transform().min() <= fitted.transform().max() <= 1
    assert fitted.y_synthetic_.tolist() == ["blue", "blue", "green", "green", "red", "red"]
    probe = ClosedFormProbe(1.0, fit_intercept=False, temperature=1.0).fit(
        encoder.encode(fitted.transform()), fitted.y_synthetic_
    )
    np.testing.assert_allclose(fitted.decision_function(X[40:]), probe.decision_function(encoder.encode(X[40:])), atol=1e-4)
    assert fitted.score(X[40:], y[40:]) > 0.4
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1, rtol=1e-5)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    same = clone(fitted).fit(X[:40], y[:40])
    np.testing.assert_array_equal(same.X_synthetic_, fitted.X_synthetic_)


@pytest.mark.parametrize("kind", SUBSETS)
def test_real_subsets_are_images_of_their_class_none_twice(kind, encoder, colors):
    X, y = colors
    fitted = peer(kind, encoder, images_per_class=3).fit(X, y)
    assert len(set(fitted.indices_)) == 9
    assert y[fitted.indices_].tolist() == fitted.y_synthetic_.tolist()
    np.testing.assert_allclose(fitted.transform(), X[fitted.indices_] / 255, atol=1e-6)


@pytest.mark.parametrize("n_per_class", [1, 3])
def test_flow_matching_is_its_definition(n_per_class):
    C, d = 4, 7
    y, r = torch.arange(C).repeat(n_per_class), torch.randint(C, (50,), generator=torch.Generator().manual_seed(3))
    r = torch.where(r == 2, 1, r)  # a class that the batch does not have
    Z, R = features(len(y), d, torch.float64, 0).requires_grad_(), features(50, d, torch.float64, 1)
    seen = [0, 1, 3]
    vectors = []
    for values, labels in ((Z, y), (R, r)):
        means = {c: values[labels == c].mean(0) for c in seen}
        vectors.append(torch.cat([torch.stack([means[o] for o in seen if o != c]).mean(0) - means[c] for c in seen]))
    wanted = 1 - torch.dot(*vectors) / (vectors[0].norm() * vectors[1].norm())
    ours = FlowMatching()(Z, F.one_hot(y, C).double(), R, r)
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, Z)[0] for loss in (ours, wanted)))
    alone = FlowMatching()(Z, F.one_hot(y, C).double(), R, torch.zeros_like(r))
    assert torch.isfinite(torch.autograd.grad(alone, Z)[0]).all()


def test_published_settings_of_flow_matching(encoder, colors):
    fitted = SFMDistiller(encoder, **{**SFM_PUBLISHED, "max_iter": 2}, random_state=0).fit(*colors)
    assert fitted.n_views_ == 1
    assert fitted.history_[1]["loss"] < 2
    assert SFM_PUBLISHED["learning_rate"].peak == LGM_PUBLISHED["learning_rate"].peak == 2e-3


def test_random_subsets_differ_by_seed(encoder, colors):
    chosen = [RandomSubset(encoder, random_state=seed).fit(*colors).indices_.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_centroids_are_nearest_to_the_class_means():
    X, y = load_iris(return_X_y=True)
    fitted = ClassCentroids(encoder=None).fit(X, y)
    for c, row in enumerate(fitted.indices_):
        distances = cdist(X, X[y == c].mean(axis=0, keepdims=True))[:, 0]
        assert distances[row] == distances[y == c].min()


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("images_per_class", [1, 2, 7])
def test_core_sets_are_greedy(copies, images_per_class):
    """Each choice is compared with all others."""
    X, y = load_iris(return_X_y=True)
    X = X.round() if copies else X + np.random.default_rng(0).normal(0, 0.01, X.shape)
    chosen = {
        strategy: CoreSet(None, strategy=strategy, images_per_class=images_per_class).fit(X, y).indices_.reshape(3, -1)
        for strategy in ("herding", "k_center")
    }
    for c in range(3):
        mean = X[y == c].mean(axis=0)
        for strategy, rows in chosen.items():
            own = rows[c]
            assert len(set(own)) == images_per_class
            assert (y[own] == c).all()
            for k in range(images_per_class):
                others = np.setdiff1d(np.flatnonzero(y == c), own[:k])
                if strategy == "herding" or k == 0:
                    cost = {i: np.linalg.norm(mean - X[[*own[:k], i]].mean(axis=0)) for i in others}
                else:
                    cost = {i: -cdist(X[[i]], X[own[:k]]).min() for i in others}
                assert cost[own[k]] <= min(cost.values()) + 1e-9


def test_core_sets_without_enough_images(encoder, colors):
    with pytest.raises(ValueError, match="CoreSet"):
        CoreSet(encoder, images_per_class=11).fit(*colors)
    everything = CoreSet(encoder, strategy="k_center", images_per_class=10).fit(*colors)
    assert len(set(everything.indices_)) == 30
    with pytest.raises(ValueError, match="strategy"):
        CoreSet(encoder, strategy="random").fit(*colors)


def test_nearest_reals_are_those_of_the_set_given(encoder, colors):
    X, y = colors
    distiller = CLPDistiller(encoder, max_iter=3, random_state=0).fit(X, y)
    images = distiller.X_synthetic_.copy()
    fitted = NearestReals(distiller).fit(X, y)
    assert fitted.distiller_ is distiller
    np.testing.assert_array_equal(distiller.X_synthetic_, images)
    distances = cdist(distiller.features(images), distiller.features(X))
    for label, row, own in zip(fitted.y_synthetic_, fitted.indices_, distances, strict=True):
        np.testing.assert_allclose(own[row], own[y == label].min(), rtol=1e-6)
    unfitted = NearestReals(clone(distiller)).fit(X, y)
    assert not hasattr(unfitted.distiller, "probe_")
    np.testing.assert_array_equal(unfitted.indices_, fitted.indices_)


def test_subsets_need_no_gradient(colors):
    class Stepped(torch.nn.Module):
        def forward(self, images):
            return (images.detach().mean((2, 3)) * 10).round()

    with torch.no_grad():
        fitted = RandomSubset(FrozenEncoder(Stepped(), image_size=16, device="cpu"), random_state=0).fit(*colors)
    assert fitted.transform().shape == (3, 16, 16, 3)


def test_bad_input_is_refused_before_any_long_work(encoder, colors, forbid_encoding):
    X, y = colors
    fitted = CLPDistiller(encoder, max_iter=1).fit(X, y)
    large = CLPDistiller(encoder, images_per_class=9, max_iter=1).fit(X, y)
    rows = np.r_[np.flatnonzero(y == "red")[:5], np.flatnonzero(y != "red")]
    forbid_encoding()
    for kind in SUBSETS:
        with pytest.raises(ValueError, match=r"'red' \(10 of 11\)"):
            peer(kind, encoder, images_per_class=11).fit(X, y)
    with pytest.raises(ValueError, match=r"classes \['blue', 'green', 'red'\] and y contains \['blue', 'red'\]"):
        NearestReals(fitted).fit(X[y != "green"], y[y != "green"])
    with pytest.raises(ValueError, match="up to 9 images of a class, and y as few as 5"):
        NearestReals(large).fit(X[rows], y[rows])
    with pytest.raises(ValueError, match="distiller"):
        NearestReals("clp").fit(X, y)
    with pytest.raises(ValueError, match="learning_rate"):
        NearestReals(CLPDistiller(encoder, learning_rate=-1)).fit(X, y)
    with pytest.raises(ValueError, match="learning_rate"):
        LGMDistiller(encoder, learning_rate=0).fit(X, y)


@pytest.mark.parametrize("kind", ITERATIVE)
@pytest.mark.parametrize("validation_fraction", [None, 0.2])
def test_resumed_run_equals_an_uninterrupted_one(kind, encoder, colors, tmp_path, validation_fraction):
    """The same heads are drawn in training and for the held-out score."""
    X, y = colors
    parameters = {"max_iter": 45, "random_state": 0, "validation_fraction": validation_fraction}
    wanted = kind(encoder, **parameters).fit(X, y)

    def stop(distiller, record):
        if record["step"] == 24:
            raise StopIteration

    path = tmp_path / "run"
    kind(encoder, **parameters, checkpoint=Checkpoint(path, every=1), callback=stop).fit(X, y)
    resumed = kind(encoder, **parameters, checkpoint=Checkpoint(path, every=1)).fit(X, y)
    np.testing.assert_array_equal(resumed.X_synthetic_, wanted.X_synthetic_)
    assert [r["loss"] for r in resumed.history_] == [r["loss"] for r in wanted.history_]


def test_a_checkpoint_belongs_to_one_method(encoder, colors, tmp_path):
    path = tmp_path / "run"
    LGMDistiller(encoder, max_iter=2, checkpoint=path).fit(*colors)
    with pytest.raises(ValueError, match=r"method was .*LGMDistiller and is .*DMDistiller"):
        DMDistiller(encoder, max_iter=2, checkpoint=path).fit(*colors)


@pytest.mark.parametrize("parametrization", ["pyramid", LGMPyramid])
def test_kept_images_are_those_with_the_best_score(parametrization, encoder, colors):
    """Even if finer levels were added later; the held-out loss is made to rise from score to score."""
    X, y = colors
    seen = []

    def objective(Z, Y, R, r):
        if not Z.requires_grad:
            seen.append(float(len(seen)))
            return torch.tensor(seen[-1])
        return Z.square().sum() * 0 + (Z @ R.T).mean()

    moments = []
    watch = lambda distiller, record: moments.append(distiller.transform().copy())  # noqa: E731
    parameters = {"parametrization": parametrization, "max_iter": 100, "random_state": 0, "callback": watch}
    fitted = CLPDistiller(encoder, objective=objective, **parameters).fit(X, y)
    np.testing.assert_allclose(fitted.X_synthetic_, moments[0], atol=1e-6)


@pytest.mark.parametrize("kind", ITERATIVE)
def test_the_loss_decreases(kind, encoder, colors):
    losses = [record["loss"] for record in kind(encoder, max_iter=60, init="noise", random_state=0).fit(*colors).history_]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_published_settings_are_parameters(encoder, colors):
    fitted = LGMDistiller(encoder, **{**LGM_PUBLISHED, "max_iter": 3}).fit(*colors)
    assert fitted.n_iter_ == 3
    fitted.set_params(augmentation__n_views=3, learning_rate__peak=9.0)  # specific to this estimator
    assert LGM_PUBLISHED.__doc__.startswith("Settings of LGM's released code")
    assert (LGM_PUBLISHED["augmentation"].n_views, LGM_PUBLISHED["learning_rate"].peak) == (10, 2e-3)


def _movements(encoder, data, **parameters):
    """How far the images move in each step except the last; Adam's first steps have the length of the rate."""
    seen = []
    watch = lambda distiller, record: seen.append(distiller.transform().copy())  # noqa: E731
    CLPDistiller(encoder, random_state=0, callback=watch, validation_fraction=None, **parameters).fit(*data)
    return np.abs(np.diff(seen, axis=0)).mean(axis=(1, 2, 3, 4))


def test_rate_is_constant_without_decay_and_falls_with_it(encoder, colors):
    constant, falling = (
        _movements(encoder, colors, max_iter=40, learning_rate=LinearSchedule(warmup_steps=0, decay_fraction=fraction))
        for fraction in (0.0, 1.0)
    )
    assert falling[-1] / falling[0] < 0.5 * constant[-1] / constant[0]


def test_rate_of_the_first_step_of_a_warm_up(encoder, colors):
    warm, small = (
        _movements(encoder, colors, max_iter=2, learning_rate=LinearSchedule(rate, warmup_steps=steps))
        for rate, steps in ((0.1, 9), (0.01, 0))
    )
    assert warm == pytest.approx(small, rel=1e-3)


@pytest.mark.parametrize("kind", [CLPDistiller, *ITERATIVE, *SUBSETS])
def test_every_parameter_is_documented_with_its_default(kind):
    doc = inspect.cleandoc(kind.__doc__)
    sections = dict(re.findall(r"(?ms)^(Parameters|Attributes)\n-+\n(.*?)(?=\n\n[A-Z][A-Za-z ]+\n-+\n|\Z)", doc))
    stated = {}
    for names, default in re.findall(r"(?m)^([\w, ]+) : (?:.*?default=(.*))?.*$", sections["Parameters"]):
        stated |= dict.fromkeys(names.split(", "), default)
    parameters = inspect.signature(kind).parameters
    assert sorted(stated) == sorted(parameters)
    for name, parameter in parameters.items():
        assert stated[name].strip('"').rstrip(".") == str(parameter.default) or float(stated[name]) == parameter.default
    fitted = peer(kind, None).fit(*load_iris(return_X_y=True)) if kind is not CLPDistiller else None
    attributes = {name for names in re.findall(r"(?m)^([\w, ]+) :", sections["Attributes"]) for name in names.split(", ")}
    if fitted is not None:
        assert attributes >= {name for name in vars(fitted) if name.endswith("_") and not name.startswith("_")}


def _entries(kind):
    """Texts of the parameter and attribute entries, by name."""
    entries = {}
    for section in re.findall(
        r"(?ms)^(?:Parameters|Attributes)\n-+\n(.*?)(?=\n\n[A-Z][A-Za-z ]+\n-+\n|\Z)", inspect.cleandoc(kind.__doc__)
    ):
        for entry in re.split(r"\n(?=\S)", section):
            entries |= dict.fromkeys(entry.partition(" :")[0].split(", "), entry)
    return entries


# Entries that differ from those of `CLPDistiller`.
OWN_ENTRIES = {
    LGMDistiller: {"alpha", "alpha_", "checkpoint", "targets_", "probe_"},
    DMDistiller: {"alpha", "alpha_", "checkpoint", "targets_", "probe_"},
    SFMDistiller: {"alpha", "alpha_", "checkpoint", "targets_", "probe_"},
    RandomSubset: {
        "encoder",
        "images_per_class",
        "image_size",
        "alpha",
        "random_state",
        "X_synthetic_",
        "targets_",
        "probe_",
        "alpha_",
    },
    ClassCentroids: {
        "encoder",
        "images_per_class",
        "image_size",
        "alpha",
        "random_state",
        "X_synthetic_",
        "targets_",
        "probe_",
        "alpha_",
    },
    CoreSet: {"encoder", "images_per_class", "image_size", "alpha", "X_synthetic_", "targets_", "probe_", "alpha_"},
    NearestReals: {"X_synthetic_", "targets_", "probe_", "alpha_"},
}


@pytest.mark.parametrize("kind", OWN_ENTRIES)
def test_shared_parameters_and_attributes_have_one_text(kind):
    own, shared = _entries(kind), _entries(CLPDistiller)
    assert {name for name in own.keys() & shared.keys() if own[name] != shared[name]} == OWN_ENTRIES[kind]


@pytest.mark.usefixtures("no_encoding")
def test_distiller_of_nearest_reals_is_validated_first(encoder, colors):
    with pytest.raises(ValueError, match="needs held-out real samples"):
        NearestReals(CLPDistiller(encoder, n_iter_no_change=5, validation_fraction=None)).fit(*colors)


def test_an_unsolvable_probe_is_an_error():
    X = np.repeat(np.eye(3), 4, axis=0) + 1.0
    with pytest.raises(ValueError, match="probe of the synthetic samples is singular"):
        RandomSubset(encoder=None, alpha=1e-300, images_per_class=4, random_state=0).fit(X, np.arange(12) // 4)
