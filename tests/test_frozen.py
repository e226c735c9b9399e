"""Layers that save less for the backward pass: equal to torch's layers, and how much less they save."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from sklearn_clpdd import FrozenEncoder
from sklearn_clpdd.encoder._frozen_layers import FrozenConv2d, FrozenHardtanh, FrozenLayerNorm, save_less_for_backward

CONVOLUTIONS = {
    "plain": {},
    "padded, strided": {"stride": 2, "padding": (1, 2)},
    "depthwise, no bias": {"groups": 4, "padding": 1, "bias": False},
    "dilated groups": {"groups": 2, "dilation": 2},
}
RECTIFIERS = {
    "relu6": nn.ReLU6(),
    "relu6 in place": nn.ReLU6(inplace=True),
    "hardtanh": nn.Hardtanh(-1.5, 0.5),
}


def gradient(module, x, dy):
    x = x.detach().requires_grad_()
    y = module(x + 0)  # a tensor that the rectifier may overwrite
    return y.detach().clone(), torch.autograd.grad(y, x, dy)[0]


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def x(request):
    x = 4 * torch.randn((3, 4, 9, 11), generator=torch.Generator().manual_seed(0))
    x[0, 0, :2] = torch.tensor([0, 6, -1.5, 0.5, 7, -7, -0.0, float("inf"), -float("inf"), 3, 1])  # with the bounds
    return x.contiguous(memory_format=request.param)


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_are_torchs(settings, x):
    plain = nn.Conv2d(4, 8, 3, **settings).requires_grad_(False)
    x = x.nan_to_num(posinf=1, neginf=-1)
    ours = copy.deepcopy(plain)
    save_less_for_backward(ours)
    assert type(ours) is FrozenConv2d
    for own in (plain, ours):
        own.double()
    dy = torch.randn_like(plain(x.double()))
    for one, other in zip(gradient(ours, x.double(), dy), gradient(plain, x.double(), dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "shape"), [(4, (8, 12)), ((2, 3), (8, 12)), (5, (8, 12)), (1, (3, 5))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_convolutions_of_patches_are_torchs(kernel, shape, layout):
    plain = nn.Conv2d(3, 7, kernel, stride=kernel).requires_grad_(False).double()
    ours = copy.deepcopy(plain)
    save_less_for_backward(ours)
    images = torch.rand(2, 3, *shape, dtype=torch.float64).contiguous(memory_format=layout)
    dy = torch.randn_like(plain(images))
    for one, other in zip(gradient(ours, images, dy), gradient(plain, images, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("plain", [nn.LayerNorm(12), nn.LayerNorm((3, 12), bias=False), timm.layers.LayerNorm(12)])
def test_layer_norms_are_torchs(plain):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in plain.parameters():
            parameter.normal_()
        tokens = torch.randn(5, 3, 12) + 1
    plain.requires_grad_(False)
    ours = copy.deepcopy(plain)
    save_less_for_backward(ours)
    assert type(ours) is FrozenLayerNorm
    for one, other in zip(gradient(ours, tokens, tokens), gradient(plain, tokens, tokens), strict=True):
        assert torch.equal(one, other)
    saved = {}
    for module in (ours, plain):
        with torch.autocast("cpu", torch.bfloat16):
            saved[module] = kept(module, tokens.clone())
    assert saved[ours] < 0.7 * saved[plain]
    with torch.autocast("cpu", torch.bfloat16):
        results = [gradient(module, tokens, tokens) for module in (ours, plain)]
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0.02, atol=0.02)


def test_layer_norms_without_weights_stay():
    plain = nn.LayerNorm(12, elementwise_affine=False)
    save_less_for_backward(plain)
    assert type(plain) is nn.LayerNorm


def test_convolutions_under_autocast_are_torchs(x):
    plain = nn.Conv2d(4, 8, 3).requires_grad_(False)
    x, ours = x.nan_to_num(posinf=1, neginf=-1), copy.deepcopy(plain)
    save_less_for_backward(ours)
    results = []
    for module in (ours, plain):
        leaf = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(leaf)
        assert y.dtype == torch.bfloat16
        results.append((y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]))  # outside autocast, as in the library
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("plain", RECTIFIERS.values(), ids=RECTIFIERS)
def test_rectifiers_are_torchs(plain, x):
    ours = copy.deepcopy(plain)
    save_less_for_backward(ours)
    assert type(ours) is FrozenHardtanh
    tensors = [x, x.double(), x[:, :3], x[..., 0, 0], x.flatten(), x.transpose(0, 3)]
    for own in tensors:
        for dy in (torch.randn(own.shape, dtype=own.dtype), torch.ones((), dtype=own.dtype).expand_as(own)):
            for one, other in zip(gradient(ours, own, dy), gradient(plain, own, dy), strict=True):
                assert torch.equal(one, other)


def test_networks_are_torchs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = timm.create_model("resnet10t", num_classes=0).eval().requires_grad_(False)
        images, dy = torch.rand(2, 3, 64, 64), torch.randn(2, 512)
    ours = copy.deepcopy(plain)
    save_less_for_backward(ours)
    seen = gradient(ours, images, dy)
    for one, other in zip(seen, gradient(plain, images, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(images), seen[0])


def kept(module, x):
    """Bytes that a graph saves, without parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in module.parameters()}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module(x.requires_grad_())
    del y
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_saved_bytes():
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(inplace=True), nn.Conv2d(8, 8, 1), nn.ReLU6(inplace=True)).requires_grad_(
        False
    )
    ours = copy.deepcopy(plain)
    save_less_for_backward(ours)
    x = torch.rand(1, 3, 32, 32)
    number = 8 * 32 * 32
    assert kept(plain, x) == 4 * (3 * 32 * 32 + 3 * number)
    assert kept(ours, x) == 4 * 2 * number
    with torch.no_grad():
        assert kept(ours, x.detach()) == 0


def test_saved_bytes_of_the_default_encoder():
    backbone = FrozenEncoder(image_size=64, device="cpu").load().backbone
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval().requires_grad_(False)
    with torch.enable_grad():
        assert backbone.graph_bytes() <= 0.5 * kept(plain, torch.rand(1, 3, 64, 64))


def test_other_layers_are_not_replaced():
    class Own(nn.Conv2d):
        pass

    module = nn.Sequential(
        Own(3, 3, 1),
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
        nn.LeakyReLU(),
    )
    kinds = [type(child) for child in module]
    save_less_for_backward(module)
    assert [type(child) for child in module] == kinds
