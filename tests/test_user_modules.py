"""A user's module is copied, looked at, and refused with the reason, or computes exactly what it computes in plain torch."""

import contextlib
import copy
import threading

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from sklearn_clpdd import CLPDistiller, FrozenEncoder

SIDE = 32
X = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3)).astype(np.uint8)
T = torch.from_numpy(X).permute(0, 3, 1, 2).contiguous().float() / 255


def features(module, **settings):
    return FrozenEncoder(module, image_size=SIDE, l2_normalize=False, device="cpu", **settings).transform(X)


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def wanted(module):
    with torch.no_grad():
        return copy.deepcopy(module).eval()(T).numpy().copy()


class Hooked(nn.Module):
    """Features picked by a forward hook, which writes to the module through a closure."""

    def __init__(self):
        super().__init__()
        self.net, self.kept = convolutions(), {}
        self.net[3].register_forward_hook(lambda module, inputs, output: self.kept.__setitem__("features", output))

    def forward(self, x):
        self.net(x)
        return self.kept["features"]


def hooked():
    return Hooked().eval()


def hook_with_a_dict():
    """The same with a dictionary outside of the module."""
    net, kept = convolutions().eval(), {}
    net[3].register_forward_hook(lambda module, inputs, output: kept.__setitem__("features", output))
    whole = nn.Sequential(net)

    def forward(x):
        net(x)
        return kept["features"]

    whole.forward = forward
    return whole


def replaced_forward():
    """A forward method that is a function of the original, whose batch norms are in training mode."""
    net = torchvision.models.resnet18(weights=None)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)

    def pooled(x):
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return net.avgpool(net.layer4(net.layer3(net.layer2(net.layer1(x))))).flatten(1)

    net.forward = pooled
    return net


def scripted():
    return torch.jit.script(convolutions().eval())


def traced():
    return torch.jit.trace(convolutions().eval(), T[:1])


def with_a_script_inside():
    return nn.Sequential(torch.jit.script(convolutions()[:4].eval()), nn.Linear(8, 3)).eval()


def weight_norm():
    torch.manual_seed(0)
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def old_weight_norm():
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="weight_norm"):
        convolution = nn.utils.weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def spectral_norm():
    torch.manual_seed(0)
    convolution = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


class LeNet(nn.Module):
    """A module that views its activations, which only the contiguous layout allows."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.pool, self.fc = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Linear(400, 84)

    def forward(self, x):
        x = self.pool(torch.relu(self.second(self.pool(torch.relu(self.first(x))))))
        return self.fc(x.view(x.size(0), -1))


def views():
    torch.manual_seed(0)
    return LeNet().eval()


def tied():
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[4].weight = net[2].weight
    return net.eval()


class Folded(nn.Module):
    """Its batch norm does not follow its convolution alone, so that folding would be wrong; a constant would hide it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.norm.running_mean.normal_()

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x).relu().mean((2, 3)) + x.mean((2, 3)) + 100


def wrongly_folded():
    torch.manual_seed(0)
    return Folded().eval()


MODULES = [
    hooked,
    hook_with_a_dict,
    replaced_forward,
    scripted,
    traced,
    with_a_script_inside,
    weight_norm,
    old_weight_norm,
    spectral_norm,
    views,
    tied,
    wrongly_folded,
]


@pytest.mark.parametrize("make", MODULES)
def test_the_copy_computes_what_the_module_computes(make):
    module = make()
    is_training = module.training
    with torch.no_grad():
        expected = module.eval()(T).numpy().copy()
        module(T[:1])  # tried on one image, as everybody does
    module.train(is_training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    was_training, n_hooks = module.training, [len(one._forward_hooks) for one in module.modules()]
    for _ in range(2):
        np.testing.assert_allclose(features(module, batch_size=4), expected, atol=1e-4 * np.abs(expected).max())
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)
    assert module.training == was_training
    assert [len(one._forward_hooks) for one in module.modules()] == n_hooks


def test_a_tied_weight_stays_tied():
    module = tied()
    loaded = FrozenEncoder(module, image_size=SIDE, device="cpu").load().backbone.module
    assert loaded[4].weight is loaded[2].weight is not module[2].weight


@pytest.mark.parametrize("make", [scripted, traced])
def test_scripted_modules_have_gradients_and_digests(make, tmp_path):
    module = make()
    fitted = CLPDistiller(FrozenEncoder(module, image_size=SIDE, memory=tmp_path), max_iter=2).fit(X, [0, 1] * 3)
    assert fitted.X_synthetic_.shape[0] == 2
    assert list(tmp_path.rglob("*.npy"))


class Batchwise(nn.Module):
    def forward(self, x):
        pixels = x.flatten(1)[:, :9]
        return pixels - pixels.mean(0)


class BatchwiseWithOffset(nn.Module):
    """A constant hides neither that features depend on the batch, nor that they were folded wrongly."""

    def forward(self, x):
        pixels = x.flatten(1)[:, :9]
        return 0.3 * pixels.mean(0) + pixels + 1000


class OfTheLast(nn.Module):
    def forward(self, x):
        pixels = x.flatten(1)[:, :9]
        return pixels + 0.2 * pixels[-1:]


class OfTheFirst(nn.Module):
    def forward(self, x):
        pixels = x.flatten(1)[:, :9]
        return pixels + 0.2 * pixels[:1]


class Integers(nn.Module):
    def forward(self, x):
        return (255 * x).flatten(1)[:, :9].long()


class Random(nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x.flatten(1)[:, :9], 0.5, training=True)


class FirstOnly(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:1, :9]


class Squeezed(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).squeeze()


class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 4)


class Infinite(nn.Module):
    def forward(self, x):
        return x.flatten(1) / 0


def batch_norm_without_statistics():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.AdaptiveMaxPool2d(1), nn.Flatten())


def one_image_only():
    return torch.jit.trace(nn.Sequential(nn.AdaptiveAvgPool2d(2), Reshaped()), T[:1])


class Reshaped(nn.Module):
    def forward(self, x):
        return x.reshape(1, 12)


GLOBAL = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


class CallsAnother(nn.Module):
    """Its method uses a module that is global in an importable file, which is not copied."""

    def __init__(self):
        super().__init__()
        self.net = GLOBAL

    def forward(self, x):
        return GLOBAL(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Batchwise, "depend on the other images of the batch"),
        (BatchwiseWithOffset, "depend on the other images of the batch"),
        (OfTheFirst, "depend on the other images of the batch"),
        (OfTheLast, "depend on the other images of the batch"),
        (Integers, "features of torch.int64"),
        (Random, "or on chance"),
        (batch_norm_without_statistics, r"other images of the batch.*: 1 normalise by the statistics of the batch"),
        (FirstOnly, r"returned \(1, 9\) for 2 images"),
        (Squeezed, r"returned \(3,\) for 1 image"),
        (Constant, "same features for two images"),
        (Infinite, "not finite"),
        (one_image_only, "fails on 2 images"),
        (CallsAnother, "still computes with the module that it was copied from"),
    ],
)
def test_modules_that_are_refused(make, words):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=words):
        features(make())


class RowsOfOtherBatches(nn.Module):
    """Right for one and two images, and not for more."""

    def forward(self, x):
        return x.flatten(1)[:2, :9]


def test_every_batch_has_as_many_rows_as_images():
    with pytest.raises(ValueError, match=r"returned features of shape \(2, 9\) for 6 images"):
        features(RowsOfOtherBatches())


SIZES: list[int] = []


class Counted(nn.Sequential):
    def forward(self, x):
        SIZES.append(len(x))
        return super().forward(x)


def test_a_module_is_looked_at_once_with_three_passes_at_most():
    for layers in (convolutions(), views()):
        SIZES.clear()
        module = Counted(layers)
        features(module)
        assert len(SIZES) - 1 <= 3
        assert max(SIZES[:-1]) <= 2
        assert SIZES[-1] == 6
        SIZES.clear()
        features(module)
        FrozenEncoder(module, image_size=SIDE, mean=(0.5,) * 3, device="cpu").transform(X)
        assert SIZES == [6, 6]


def test_the_users_class_is_not_changed():
    """cloudpickle would replace the methods of a class that is defined in a function."""
    calls = []

    class Local(nn.Sequential):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    module = Local(convolutions())
    module.register_forward_hook(lambda module, inputs, output: None)
    method = Local.forward
    features(module)
    assert Local.forward is method
    calls.clear()
    module(T)
    assert calls == [6]


@pytest.mark.parametrize(
    ("make", "n_features"),
    [
        (lambda: torchvision.models.resnet18(weights=None), 512),
        (lambda: torchvision.models.efficientnet_b0(weights=None), 1280),
        (lambda: torchvision.models.resnet18(num_classes=37), 512),
        (lambda: timm.create_model("resnet18", num_classes=37), 512),
    ],
)
def test_a_librarys_classifier_loses_its_head_in_the_copy(make, n_features, recwarn):
    module = make()
    layers = repr(module)
    assert FrozenEncoder(module, image_size=64, device="cpu").load().n_features == n_features
    assert repr(module) == layers
    assert not recwarn.list


def test_the_head_of_a_users_classifier_is_told():
    net = nn.Sequential(torchvision.models.resnet18(weights=None))
    with pytest.warns(UserWarning, match="output of its layer '0.fc', which seems to be the head of a classifier"):
        FrozenEncoder(net, image_size=64, device="cpu").load()


def test_features_before_the_head_are_no_head(recwarn):
    net = torchvision.models.resnet18(weights=None)
    net.fc = nn.Identity()
    for module in (net, views(), convolutions()):
        FrozenEncoder(module, image_size=SIDE, device="cpu").load()
    assert not recwarn.list


@pytest.mark.parametrize("change", ["permuted", "sign of two", "one bit", "through numpy", "a buffer"])
def test_every_change_of_weights_is_noticed(change):
    """Contents, not sums: also for weights of half precision, whose sums are exact."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module = module.half().float().eval()
    encoder = FrozenEncoder(module, image_size=SIDE, l2_normalize=False, device="cpu")
    encoder.transform(X)
    with torch.no_grad():
        weight = module[0].weight
        if change == "permuted":
            weight.copy_(weight.flip(1))
        elif change == "sign of two":
            weight.view(-1)[:2] *= -1
        elif change == "one bit":
            weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
        elif change == "through numpy":
            weight.numpy()[0] *= 2
        else:
            module[1].running_mean.copy_(torch.linspace(-1, 1, 16))
        expected = module(T).numpy()
    np.testing.assert_allclose(encoder.transform(X), expected, atol=1e-5)
    np.testing.assert_allclose(FrozenEncoder(module, image_size=SIDE, l2_normalize=False).transform(X), expected, atol=1e-5)


class Hidden(nn.Module):
    """Keeps its layers in a list, where torch does not look for them."""

    def __init__(self):
        super().__init__()
        self.parts = [convolutions().eval()]

    def forward(self, x):
        return self.parts[0](x)


def test_changes_of_layers_in_a_list_are_noticed():
    module = Hidden()
    before = features(module)
    with torch.no_grad():
        module.parts[0][0].weight.mul_(2)
        expected = module(T).numpy()
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(features(module), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"mean": (float("nan"), 0, 0)}, {"std": (0, 1, 1)}, {"mean": (123.7, 116.3, 103.5)}, {"std": (float("inf"), 1, 1)}],
)
def test_normalisation_that_cannot_be_meant_is_refused(settings):
    with pytest.raises(ValueError, match=r"has to be three numbers .* RGB in \[0, 1\]"):
        features(convolutions(), **settings)


def test_another_thread_may_use_the_module_meanwhile():
    module, errors = views(), []

    def use():
        for _ in range(300):
            try:
                module(T[:1])
            except Exception as error:  # noqa: PERF203
                errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    for size in (32, 33, 34, 35):
        with contextlib.suppress(ValueError):
            FrozenEncoder(module, image_size=size, device="cpu").load()
    thread.join()
    assert not errors


# Weights files


def test_averages_without_counters_and_names_of_other_libraries(tmp_path):
    state = dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict())
    averaged = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    few = {k: v for k, v in averaged.items() if "num_batches" not in k}
    for content in (
        {"state_dict": state, "state_dict_ema": few},
        {"online_model": state, "ema_model": few},
        {"model": state, "modelEMA": averaged},
    ):
        torch.save(content, tmp_path / "weights.pth")
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.warns(UserWarning, match="2 sets of weights that fit"):
            found = features(module, weights=tmp_path / "weights.pth")
        module.load_state_dict(averaged)
        np.testing.assert_allclose(found, wanted(module), atol=1e-5)


def test_quantised_weights_and_other_files(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.save({**ONE, "0.weight": ONE["0.weight"].to(torch.int8)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"are torch.int8 \(0.weight\); pass them as floats"):
        features(module, weights=tmp_path / "weights.pth")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be read as safetensors or as a torch checkpoint of tensors alone: \w+"):
        features(module, weights=tmp_path / "weights.pth")
    save_file(ONE, tmp_path / "model.bin")  # safetensors under another name
    module.load_state_dict(ONE)
    np.testing.assert_allclose(features(module, weights=tmp_path / "model.bin"), wanted(module), atol=1e-6)


def _state(seed):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return {f"{i}.{name}": value for i, layer in enumerate(module) for name, value in layer.state_dict().items()}


def _with(prefix, state):
    return {prefix + name: value for name, value in state.items()}


ONE, OTHER = _state(1), _state(2)


@pytest.mark.parametrize(
    ("content", "loaded", "other"),
    [
        ({"student": ONE, "teacher": OTHER}, "teacher", "student"),
        ({"teacher": OTHER, "student": ONE}, "teacher", "student"),
        (
            {"model": {**_with("student.backbone.", ONE), **_with("teacher.backbone.", OTHER)}},
            "model.teacher.backbone",
            "student",
        ),
        ({"state_dict": ONE, "state_dict_ema": OTHER, "epoch": 3}, "state_dict_ema", "state_dict"),
        ({"model": ONE, "model_ema": OTHER}, "model_ema", "model"),
        ({**ONE, **_with("ema.", OTHER)}, "ema", "file itself"),
        (
            {"encoder": _with("module.", ONE), "target_encoder": _with("module.", OTHER)},
            "target_encoder.module",
            "encoder.module",
        ),
        # What their authors evaluate: main_lincls.py of facebookresearch/moco and moco-v3.
        (
            {"state_dict": {**_with("module.encoder_k.", ONE), **_with("module.encoder_q.", OTHER)}},
            "state_dict.module.encoder_q",
            "encoder_k",
        ),
        (
            {"state_dict": {**_with("module.momentum_encoder.", ONE), **_with("module.base_encoder.", OTHER)}},
            "state_dict.module.base_encoder",
            "momentum_encoder",
        ),
        ({"online_network": OTHER, "target_network": ONE}, "online_network", "target_network"),
    ],
)
def test_of_two_networks_the_one_is_loaded_that_is_evaluated(tmp_path, content, loaded, other):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.save(content, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match=rf"2 sets of weights that fit, .*{other}.*; '{loaded}' is loaded"):
        found = features(module, weights=tmp_path / "weights.pth")
    module.load_state_dict(OTHER)
    np.testing.assert_allclose(found, wanted(module), atol=1e-6)


def test_of_two_networks_without_a_preference_none_is_loaded(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.save({"left": ONE, "right": OTHER}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="2 sets of weights that fit, 'left', 'right', and it is not known"):
        features(module, weights=tmp_path / "weights.pth")
    torch.save({"left": OTHER, "right": OTHER, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "weights.pth")
    module.load_state_dict(OTHER)
    np.testing.assert_allclose(features(module, weights=tmp_path / "weights.pth"), wanted(module), atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    broken = {**ONE, "0.bias": ONE["0.bias"] * value}
    torch.save(broken, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"contain NaN or infinity \(0.bias\)"):
        features(module, weights=tmp_path / "weights.pth")


def test_prefixes_are_whole_names(tmp_path):
    """``x0.weight`` is not ``0.weight`` with a prefix."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.save(_with("x", ONE), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="2 of 2 parameters are not in the file"):
        features(module, weights=tmp_path / "weights.pth")
