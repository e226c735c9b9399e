"""Image folders, and the protocols that evaluate distilled sets."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.utils import check_random_state

from sklearn_clpdd import DSA, ClosedFormProbe, CLPDistiller, FrozenEncoder
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.encoder._encoder import as_encoder
from sklearn_clpdd.evaluation import (
    _head,
    _inheritance,
    _probes,
    _scores,
    closed_form_probe_scores,
    compare_with_real,
    inherited_probe_scores,
    probe_scores,
    sgd_probe_scores,
    transfer_scores,
)


@pytest.fixture
def encoder(module):
    return FrozenEncoder(module, image_size=14, crop_pct=14 / 16, device="cpu")


def test_image_folder_to_fitted_distiller(encoder, colors, tmp_path):
    X, y = colors
    for i, (image, label) in enumerate(zip(X, y, strict=True)):
        folder = tmp_path / label / ("deep" if i % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.PNG")
    (tmp_path / "red" / "notes.txt").write_text("passed over")
    (tmp_path / "README").write_text("passed over")
    paths, labels = load_image_folder(tmp_path)
    assert sorted(labels) == sorted(y)
    fitted = CLPDistiller(encoder, max_iter=2, random_state=0, init="real").fit(paths, labels)
    assert fitted.y_synthetic_.tolist() == ["blue", "green", "red"]
    order = [int(path[-6:-4]) for path in paths]
    same = CLPDistiller(encoder, max_iter=2, random_state=0, init="real").fit(X[order], y[order])
    np.testing.assert_allclose(fitted.X_synthetic_, same.X_synthetic_, atol=1e-5)


def test_image_folder_errors(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no folders in it"):
        load_image_folder(tmp_path)
    (tmp_path / "splits" / "train").mkdir(parents=True)
    (tmp_path / "splits" / "test").mkdir()
    with pytest.raises(ValueError, match=r"contains the splits.*such as 'train'$"):
        load_image_folder(tmp_path / "splits")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in empty, splits"):
        load_image_folder(tmp_path)


def test_only_pictures_are_listed(tmp_path):
    """Pillow also registers extensions of files that it cannot read."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for suffix in ("png", "jpg", "JPEG", "webp", "tif"):
            Image.new("RGB", (4, 4)).save(tmp_path / label / f"0.{suffix}", format="png")
        for suffix in ("pdf", "h5", "hdf", "grib", "bufr", "mpg", "wmf", "eps", "txt", "npy"):
            (tmp_path / label / f"1.{suffix}").write_bytes(b"something else")
    paths, labels = load_image_folder(tmp_path)
    assert labels.tolist() == ["cat"] * 5 + ["dog"] * 5
    assert not [path for path in paths if "/1." in path]
    FrozenEncoder(weights=None, image_size=32).transform(paths)


def test_comparison_is_that_of_the_probes(encoder, colors):
    X, y = colors
    fitted = CLPDistiller(encoder, max_iter=30, random_state=0).fit(X[:40], y[:40])
    rows = compare_with_real(fitted, X[:40], y[:40], X[40:], y[40:], n_draws=3, random_state=0)
    assert [n for n, _ in rows.values()] == [40, 3, 3]
    assert rows["distilled"][1] == fitted.score(X[40:], y[40:])
    assert rows == compare_with_real(fitted, X[:40], y[:40], X[40:], y[40:], n_draws=3, random_state=0)


def test_sgd_head_learns_and_repeats_itself(module, colors):
    X, y = colors
    for parameter in (module[4].weight, module[4].bias):
        parameter.data *= 20  # large enough for a rate of 1e-3 · 40 / 256 to have an effect
    encoder = FrozenEncoder(module, image_size=14, crop_pct=14 / 16, device="cpu")
    arguments = {"encoder": encoder, "n_epochs": 400, "n_repeats": 2, "random_state": 0}
    scores = sgd_probe_scores(X[:40], y[:40], X[40:], y[40:], **arguments)["top1"]
    assert scores.shape == (2,)
    np.testing.assert_array_equal(scores, sgd_probe_scores(X[:40], y[:40], X[40:], y[40:], **arguments)["top1"])
    untrained = sgd_probe_scores(X[:40], y[:40], X[40:], y[40:], **{**arguments, "n_epochs": 1})["top1"]
    assert scores.min() >= 0.8
    assert scores.mean() > untrained.mean()
    with torch.inference_mode():  # whatever the caller's grad mode is
        np.testing.assert_array_equal(scores, sgd_probe_scores(X[:40], y[:40], X[40:], y[40:], **arguments)["top1"])


@pytest.mark.parametrize("batch_size", [4, 100])
def test_sgd_head_is_that_of_the_released_code(encoder, colors, monkeypatch, batch_size):
    """Start, rate and schedule are recomputed batch by batch in plain torch; where pixels are read from does not matter."""
    X, y = colors
    X, y = X[:9], y[:9]
    monkeypatch.setattr(_head, "BATCH_SIZE", batch_size)  # with batches of 4, the last one of an epoch has one image
    weight, bias = _head_of(encoder, X, y, monkeypatch)
    monkeypatch.setattr(_probes, "_IN_MEMORY", 0)
    for same, wanted in zip(_head_of(encoder, X, y, monkeypatch), (weight, bias), strict=True):
        np.testing.assert_array_equal(same, wanted)
    head = torch.nn.Linear(12, len(set(y)))
    generator = torch.Generator().manual_seed(int(check_random_state(0).randint(2**31 - 1, size=1)[0]))
    with torch.no_grad():
        head.weight.copy_(0.01 * torch.randn(head.weight.shape, generator=generator))
        head.bias.zero_()
    images, r = torch.from_numpy(X).permute(0, 3, 1, 2) / 255, torch.from_numpy(np.unique(y, return_inverse=True)[1])
    adam = torch.optim.Adam(head.parameters(), lr=0.001 * min(batch_size, 9) / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 50, eta_min=0)
    backbone, views = encoder.load().backbone, DSA(outside="zeros")
    for _ in range(50):
        for rows in torch.randperm(9, generator=generator).split(batch_size):
            with torch.no_grad():
                Z = backbone(views(images[rows], views.draw(len(rows), generator), backbone.preprocessing))
            adam.zero_grad()
            torch.nn.functional.cross_entropy(head(Z), r[rows]).backward()
            adam.step()
        schedule.step()
    np.testing.assert_allclose(weight, head.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(bias, head.bias.detach().numpy(), atol=1e-6)


def test_sgd_head_starts_as_the_released_code_does(colors, monkeypatch):
    """Normal weights with a standard deviation of 0.01 and a zero bias (LGM, commit 1d84ffd, src/models/linear_classifier.py)."""
    X, y = colors
    wide = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 4000))
    monkeypatch.setattr(_head, "_LEARNING_RATE", 0.0)
    weight, bias = _head_of(FrozenEncoder(wide, image_size=16), X[:10], y[:10], monkeypatch)
    assert not bias.any()
    assert abs(weight.mean()) < 5e-4
    assert weight.std() == pytest.approx(0.01, rel=0.03)
    assert (weight**4).mean() / weight.var() ** 2 == pytest.approx(3, abs=0.3)  # a uniform distribution has a kurtosis of 1.8


def test_head_from_zero_is_a_logistic_regression_of_the_images(module, encoder, colors, monkeypatch):
    """Adam, recomputed in plain torch on the images' features: the given rate, no random start, no views."""
    X, y = colors
    options = {"initial_std": 0, "learning_rate": 0.03, "augmentation": None}
    weight, bias = _head_of(encoder, X[:9], y[:9], monkeypatch, **options)
    raw = FrozenEncoder(module, image_size=14, crop_pct=14 / 16, device="cpu", l2_normalize=False)
    Z, r = torch.from_numpy(raw.encode(X[:9])), torch.from_numpy(np.unique(y[:9], return_inverse=True)[1])
    W, b = torch.zeros(len(set(y)), 12, requires_grad=True), torch.zeros(len(set(y)), requires_grad=True)
    adam = torch.optim.Adam([W, b], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 50)
    generator = torch.Generator().manual_seed(int(check_random_state(0).randint(2**31 - 1, size=1)[0]))
    torch.randn(W.shape, generator=generator)
    for _ in range(50):
        rows = torch.randperm(9, generator=generator)  # the order in which float32 sums are rounded
        adam.zero_grad()
        torch.nn.functional.cross_entropy(torch.nn.functional.linear(Z[rows], W, b), r[rows]).backward()
        adam.step()
        schedule.step()
    np.testing.assert_allclose(weight, W.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(bias, b.detach().numpy(), atol=1e-5)
    # Nothing is random but the order of the images.
    again = sgd_probe_scores(X[:9], y[:9], X, y, encoder=encoder, n_epochs=20, n_repeats=2, random_state=1, **options)["top1"]
    assert again[0] == again[1]


def test_views_of_a_head_are_those_given(encoder, colors, monkeypatch):
    X, y = colors
    common = _head_of(encoder, X[:9], y[:9], monkeypatch)
    for given in ("lgm", DSA(outside="zeros")):
        for one, other in zip(_head_of(encoder, X[:9], y[:9], monkeypatch, augmentation=given), common, strict=True):
            np.testing.assert_array_equal(one, other)
    small = _head_of(encoder, X[:9], y[:9], monkeypatch, augmentation=DSA(scale=(0.05, 0.1)))
    assert np.abs(small[0] - common[0]).max() > 0


def _head_of(encoder, X, y, monkeypatch, **options):
    """Weights and biases of the trained head."""
    seen = []
    train = _head._train_head

    def watched(*arguments):
        seen.append(train(*arguments))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(_head, "_train_head", watched)
        sgd_probe_scores(X, y, X, y, encoder=encoder, n_epochs=50, random_state=0, **options)
    return seen[0]


def test_closed_form_scores_are_those_of_the_distiller(encoder, colors):
    X, y = colors
    fitted = CLPDistiller(encoder, max_iter=10, random_state=0).fit(X[:40], y[:40])
    scores = closed_form_probe_scores(fitted.transform(), fitted.y_synthetic_, X[40:], y[40:], encoder=encoder)
    assert scores["top1"].tolist() == [fitted.score(X[40:], y[40:])]
    assert "top5" not in scores
    full = closed_form_probe_scores(X[:40], y[:40], X[40:], y[40:], encoder=encoder, alpha="loo")
    wanted = ClosedFormProbe().fit(encoder.encode(X[:40]), y[:40]).score(encoder.encode(X[40:]), y[40:])
    assert full["top1"] == wanted


def test_metrics_by_brute_force():
    rng = np.random.default_rng(0)
    scores, classes = rng.random((200, 8)), np.array(list("abcdefgh"))
    y, groups = classes[rng.integers(8, size=200)], rng.choice(["sea", "land", "sky"], 200)
    metrics = _probes.metrics_of(scores, classes, y, groups)
    order = classes[np.argsort(-scores, axis=1)]
    assert metrics["top1"] == np.mean(order[:, 0] == y)
    assert metrics["top5"] == np.mean([label in five for label, five in zip(y, order[:, :5], strict=True)])
    assert metrics["worst_group"] == min(np.mean((order[:, 0] == y)[groups == name]) for name in ("sea", "land", "sky"))
    assert "top5" not in _probes.metrics_of(scores[:, :5], classes[:5], y, None)


def test_two_classes_and_groups(encoder, colors):
    X, y = colors
    two = y != "red"
    scores = closed_form_probe_scores(X[two], y[two], X[two], y[two], encoder=encoder, groups=y[two])
    assert scores["worst_group"] <= scores["top1"]
    assert scores["top1"] > 0.9


def test_transfer_is_the_two_protocols_under_each_encoder(encoder, module, colors):
    X, y = colors
    other = FrozenEncoder(module, image_size=12, device="cpu")
    sets = (X[:20], y[:20], X[20:], y[20:])
    table = transfer_scores(*sets, {"one": encoder, "other": other}, n_epochs=3, random_state=0)
    assert list(table) == ["one", "other"]
    assert table["other"]["closed_form"] == closed_form_probe_scores(*sets, encoder=other)
    seed = check_random_state(0).randint(2**31 - 1)
    assert table["other"]["sgd"] == sgd_probe_scores(*sets, encoder=other, n_epochs=3, random_state=seed)
    assert list(transfer_scores(*sets, {"one": encoder}, n_repeats=0)["one"]) == ["closed_form"]


@pytest.mark.parametrize("protocol", [sgd_probe_scores, closed_form_probe_scores])
@pytest.mark.usefixtures("no_encoding")
def test_inconsistent_sets_are_refused(encoder, colors, protocol):
    X, y = colors
    with pytest.raises(ValueError, match="inconsistent"):
        protocol(X, y[:10], X, y, encoder=encoder)
    with pytest.raises(ValueError, match="inconsistent"):
        protocol(X, y, X, y, encoder=encoder, groups=y[:10])
    with pytest.raises(ValueError, match=r"classes without training images: .*red"):
        protocol(X[y != "red"], y[y != "red"], X, y, encoder=encoder)
    with pytest.raises(ValueError, match=r"at least two classes; labels contains \['red'\]"):
        protocol(X[y == "red"], y[y == "red"], X[y == "red"], y[y == "red"], encoder=encoder)


def test_meaningless_numbers_are_refused(encoder, colors):
    sets = (colors[0], colors[1]) * 2
    for name in ("n_epochs", "n_repeats"):
        with pytest.raises(ValueError, match=f"{name} == 0, must be >= 1"):
            sgd_probe_scores(*sets, encoder=encoder, **{name: 0})
    with pytest.raises(ValueError, match="initial_std == -1, must be >= 0"):
        sgd_probe_scores(*sets, encoder=encoder, initial_std=-1)
    with pytest.raises(ValueError, match="learning_rate == 0, must be > 0"):
        sgd_probe_scores(*sets, encoder=encoder, learning_rate=0)
    for name in ("initial_std", "learning_rate"):
        with pytest.raises(ValueError, match=f"{name} has to be a finite number; got nan"):
            sgd_probe_scores(*sets, encoder=encoder, **{name: float("nan")})
    with pytest.raises(TypeError, match=r'augmentation has to be "lgm", an augmentation such as DSA\(\), or None; got \'crop\''):
        sgd_probe_scores(*sets, encoder=encoder, augmentation="crop")
    with pytest.raises(ValueError, match="alpha"):
        closed_form_probe_scores(*sets, encoder=encoder, alpha=0)
    with pytest.raises(ValueError, match="n_repeats == -1, must be >= 0"):
        transfer_scores(*sets, {"one": encoder}, n_repeats=-1)
    with pytest.raises(ValueError, match=r"no such model"):
        transfer_scores(*sets, {"one": encoder, "other": "no such model"})


@pytest.mark.parametrize("protocol", [sgd_probe_scores, closed_form_probe_scores, probe_scores])
def test_encoders_by_module_and_what_is_none(module, colors, protocol, forbid_encoding):
    X, y = colors
    sets = X[:10], y[:10], X[:20], y[:20]
    module.pretrained_cfg = {"input_size": (3, 14, 14)}  # like timm's networks
    common = {"random_state": 0} if protocol is closed_form_probe_scores else {"random_state": 0, "n_epochs": 3}
    wanted = protocol(*sets, encoder=FrozenEncoder(module), **common)
    assert protocol(*sets, encoder=module, **common) == wanted
    forbid_encoding()
    for bad in (3, [module]):
        with pytest.raises(TypeError, match=r"an encoder is a FrozenEncoder, the name of a network, or a torch module; got"):
            protocol(*sets, encoder=bad)
    with pytest.raises(ValueError, match="no such model"):
        protocol(*sets, encoder="no such model")


def test_accepted_encoders(encoder, module):
    assert as_encoder(encoder) is encoder
    for given in ("resnet18", module):
        made = as_encoder(given, memory="cache")
        assert made.get_params() == FrozenEncoder(given, memory="cache").get_params()
    with pytest.raises(TypeError, match=r"an encoder is a FrozenEncoder, .* got 3"):
        CLPDistiller([encoder, 3]).fit(np.zeros((4, 20, 20, 3)), [0, 0, 1, 1])


def test_encoders_of_a_transfer_have_distinct_names(module, colors):
    X, y = colors
    sets = X[:10], y[:10], X[:20], y[:20]
    module.pretrained_cfg = {"input_size": (3, 14, 14)}
    own = transfer_scores(*sets, {"one": module}, n_repeats=0)
    assert own == transfer_scores(*sets, {"one": FrozenEncoder(module)}, n_repeats=0)
    with pytest.raises(TypeError, match="encoders has to be a dict of names to encoders; got \\["):
        transfer_scores(*sets, [module])


def test_columns_are_labels_too(encoder, colors):
    X, y = colors
    wanted = closed_form_probe_scores(X, y, X, y, encoder=encoder)
    with pytest.warns(match="column-vector"):
        assert closed_form_probe_scores(X, y[:, None], X, y[:, None], encoder=encoder) == wanted


def test_the_five_probes_are_scikit_learns(encoder, colors):
    X, y = colors
    sets = (X[:40], y[:40], X[40:], y[40:])
    common = {"encoder": encoder, "random_state": 0}
    scores = probe_scores(*sets, **common, n_epochs=20)
    assert list(scores) == ["closed_form", "closed_form_views", "logistic", "knn", "sgd"]
    assert scores["closed_form"] == closed_form_probe_scores(*sets, encoder=encoder)
    Z, test = encoder.transform(X[:40]), encoder.transform(X[40:])
    assert scores["logistic"]["top1"] == LogisticRegression(max_iter=1000).fit(Z, y[:40]).score(test, y[40:])
    assert scores["knn"]["top1"] == KNeighborsClassifier(1).fit(Z, y[:40]).score(test, y[40:])
    assert "sgd" not in probe_scores(*sets, **common, n_repeats=0)
    for bad in ({"alpha": "loo"}, {"alpha": -1.0}, {"n_epochs": 0}, {"n_repeats": -1}):
        with pytest.raises((ValueError, TypeError), match=next(iter(bad))):
            probe_scores(*sets, **{"encoder": None, **bad})  # before anything is encoded
    with pytest.raises(ValueError, match="leave out one view"):
        closed_form_probe_scores(*sets, alpha="loo", n_views=2)


def test_closed_form_probe_on_views_sees_random_views(encoder, colors, monkeypatch):
    X, y = colors
    sets = (X[:40], y[:40], X[40:], y[40:])
    seen = []
    original = _scores.closed_form_metrics
    monkeypatch.setattr(_scores, "closed_form_metrics", lambda Z, *rest: seen.append(Z) or original(Z, *rest))
    for seed in (0, 0, 1):
        closed_form_probe_scores(*sets, encoder=encoder, n_views=3, random_state=seed)
    Z, again, other = seen
    assert Z.shape == (120, 12)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(Z, again)
    assert np.abs(Z - other).max() > 1e-3
    assert np.abs(Z[:40] - Z[40:80]).max() > 1e-3


@pytest.fixture
def old(module):
    """Another encoder, whose features are not those of the first one."""
    weight = torch.randn(module[4].weight.shape, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(module)
    other[4].weight.data.copy_(weight)
    return FrozenEncoder(other, image_size=12, device="cpu")


@pytest.mark.parametrize("n_views", [0, 3])
@pytest.mark.parametrize("labels", [None, "two classes"])
def test_inherited_probe_by_linear_algebra(encoder, old, colors, monkeypatch, labels, n_views):
    """The map is the ridge regression of scikit-learn, on the images and the same views of them under both encoders."""
    X, y = colors
    y = y if labels is None else np.where(y == "red", "red", "other")
    probe = ClosedFormProbe().fit(old.encode(X), y)
    seen, views = [], {}
    monkeypatch.setattr(_inheritance, "_BLOCK", 50)  # of three views of 20 images, the last one is by itself
    decide, each_view = ClosedFormProbe.decision_function, _inheritance.each_view
    monkeypatch.setattr(ClosedFormProbe, "decision_function", lambda self, Z: seen.append(Z) or decide(self, Z))

    def recorded(images, extractor, n_views, seed):
        for Z in each_view(images, extractor, n_views, seed):
            views.setdefault(extractor.preprocessing.image_size, []).append(Z)
            yield Z

    monkeypatch.setattr(_inheritance, "each_view", recorded)
    given = {"probe": probe, "probe_encoder": old, "encoder": encoder, "n_views": n_views, "alpha": 0.1, "random_state": 0}
    scores = inherited_probe_scores(X[:20], X, y, **given)
    Z, targets = (np.concatenate([one.encode(X[:20]), *views.get(one.image_size, [])]) for one in (encoder, old))
    assert len(Z) == len(targets) == 20 * (1 + n_views)
    penalty = 0.1 * np.square(Z - Z.mean(0)).sum(1).mean()
    mapped = Ridge(penalty).fit(Z.astype(float), targets.astype(float)).predict(encoder.encode(X).astype(float))
    np.testing.assert_allclose(seen[-1], mapped, atol=1e-5)
    decided = decide(probe, mapped.astype(np.float32))
    wanted = probe.classes_[(decided > 0).astype(int) if decided.ndim == 1 else decided.argmax(1)]
    assert scores["top1"].tolist() == [np.mean(wanted == y)]


def test_views_of_a_map_are_pairs(encoder, colors):
    """A map from an encoder to itself is the identity, which it would not be if the two saw other views of an image."""
    X, y = colors
    for probe in (ClosedFormProbe(), LogisticRegression(C=100)):
        probe.fit(encoder.encode(X), y)
        own = {"probe": probe, "probe_encoder": encoder, "encoder": encoder}
        scores = inherited_probe_scores(X[:40], X, y, **own, n_views=10, alpha=1e-6, groups=y, random_state=0)
        assert scores["top1"].tolist() == [probe.score(encoder.encode(X), y)]
        worst = min(np.mean(probe.predict(encoder.encode(X[y == label])) == label) for label in np.unique(y))
        assert scores["worst_group"].tolist() == [worst]


def test_inheritance_is_refused_before_anything_is_encoded(encoder, old, colors, forbid_encoding):
    X, y = colors
    probe = ClosedFormProbe().fit(old.encode(X), y)
    common = {"probe": probe, "probe_encoder": old, "encoder": encoder}
    forbid_encoding()
    rows = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    with pytest.raises(ValueError, match=r"classes that the probe does not know: \['violet'\]$"):
        inherited_probe_scores(X, X, np.where(y == "red", "red", "violet"), **common)
    with pytest.raises(ValueError, match=r"y_test contains numbers, such as .*1.*, and the classes are text, such as .*'blue'"):
        inherited_probe_scores(X, X, np.ones(len(X), dtype=int), **common)
    with pytest.raises(ValueError, match="probe was fitted to 3 features, and probe_encoder has 12"):
        inherited_probe_scores(X, X, y, **{**common, "probe": ClosedFormProbe().fit(np.eye(3), np.unique(y))})
    several = ClosedFormProbe().fit(rows, np.eye(3, dtype=int)[np.arange(60) % 3])
    for bad in (KNeighborsClassifier().fit(rows, np.arange(60)), IsolationForest(n_estimators=2).fit(rows)):
        with pytest.raises(TypeError, match="has to be a classifier with a decision_function and one label"):
            inherited_probe_scores(X, X, y, **{**common, "probe": bad})
    pairwise = SVC(kernel="linear", decision_function_shape="ovo").fit(rows, np.arange(60) % 3)
    for bad in (pairwise, several):
        with pytest.raises(TypeError, match="has to predict the class with the largest value"):
            inherited_probe_scores(X, X, y, **{**common, "probe": bad})
    with pytest.raises(NotFittedError):
        inherited_probe_scores(X, X, y, **{**common, "probe": ClosedFormProbe()})
    with pytest.raises(TypeError, match="an encoder is a FrozenEncoder"):
        inherited_probe_scores(X, X, y, **{**common, "probe_encoder": None})
    for name, value in (("alpha", 0), ("n_views", -1)):
        with pytest.raises(ValueError, match=f"{name} == {value}"):
            inherited_probe_scores(X, X, y, **common, **{name: value})
    with pytest.raises(ValueError, match="alpha has to be a finite number; got nan"):
        inherited_probe_scores(X, X, y, **common, alpha=float("nan"))
    with pytest.raises(ValueError, match="inconsistent"):
        inherited_probe_scores(X, X, y[:10], **common)
    with pytest.raises(ValueError, match="two images at least, or random views of one"):
        inherited_probe_scores(X[:1], X, y, **common, n_views=0)


def test_a_map_needs_different_images(encoder, old, colors):
    X, y = colors
    probe = ClosedFormProbe().fit(old.encode(X), y)
    with pytest.raises(ValueError, match="all views of all images have the same features"):
        inherited_probe_scores(X[[0, 0]], X, y, probe=probe, probe_encoder=old, encoder=encoder, n_views=0)


@pytest.mark.parametrize("n_classes", [2, 30])
def test_labels_of_another_kind_are_refused(encoder, n_classes):
    """From about twenty classes on, numpy compares numbers and text as text."""
    X, y = np.zeros((2 * n_classes, 16, 16, 3), dtype=np.uint8), np.arange(2 * n_classes) % n_classes
    with pytest.raises(ValueError, match=r"y_test contains text, such as .*'0'.*, and the classes are numbers, such as .*0"):
        closed_form_probe_scores(X, y, X, y.astype(str), encoder=encoder)
