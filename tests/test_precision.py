"""The precision of the network: which one is chosen, what it does to features, gradients, caches and provenance."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from sklearn.base import clone
from torch import nn

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.encoder import _precision as precision
from sklearn_clpdd.encoder._precision import Precisions, cosines, photo_crops, with_weights_of
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.utils import _device as device

CPU = torch.device("cpu")
SMALL = Preprocessing(16)


def network(n_hidden=1100):
    """More than a million parameters, in two linear layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, n_hidden), nn.GELU(), nn.Linear(n_hidden, 800))
    return module.eval().requires_grad_(False)


@pytest.fixture
def fast_bfloat16(monkeypatch):
    """A CPU that has instructions for bfloat16, and takes half the time."""
    monkeypatch.setattr(precision, "candidates", lambda device: ["bfloat16"])
    seconds = {"float32": 1.0, "bfloat16": 0.5}
    monkeypatch.setattr(Precisions, "_seconds", lambda self, seen, run, images, one: seconds[one])
    return seconds


def chosen(module, gradient, run=None):
    one = Precisions(module, CPU)
    return one.fastest(run or one.run, SMALL, gradient=gradient)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_fastest_that_agrees(gradient, fast_bfloat16):
    assert chosen(network(), gradient) == "bfloat16"
    fast_bfloat16["bfloat16"] = 0.95  # not worth the rounding
    assert chosen(network(), gradient) == "float32"


@pytest.mark.parametrize("gradient", [False, True])
def test_one_that_does_not_agree_is_not_taken(gradient, fast_bfloat16):
    module = network()

    def noisy(images, one):
        output = module(images)
        return output if one == "float32" else output.roll(1, 1)

    assert chosen(module, gradient, noisy) == "float32"

    def failing(images, one):
        if one != "float32":
            raise RuntimeError("not implemented for 'BFloat16'")
        return module(images)

    def overflowing(images, one):
        return module(images) * (float("nan") if one != "float32" else 1)

    assert chosen(module, gradient, failing) == chosen(module, gradient, overflowing) == "float32"


def test_small_networks_and_plain_cpus_are_not_measured(fast_bfloat16, monkeypatch):
    monkeypatch.setattr(precision, "photo_crops", lambda *seen: pytest.fail("it was measured"))
    assert chosen(network(100), False) == "float32"
    monkeypatch.setattr(precision, "candidates", lambda device: [])
    assert chosen(network(), False) == "float32"


@pytest.fixture
def cpu(monkeypatch):
    """Seconds of a product on a CPU, by the type of the matrices, and what torch knows about it."""
    clock, seconds, about = [0.0], {torch.float32: 1.0, torch.bfloat16: 1.0}, {}

    def multiply(one, other):
        clock[0] += seconds[one.dtype]

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(precision, "has_fast_bfloat16", device.has_fast_bfloat16)
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: about, raising=False)
    device.has_fast_bfloat16.cache_clear()
    yield seconds, about
    device.has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("bfloat16", "about", "expected"),
    [
        (0.5, {}, ["bfloat16"]),
        (0.95, {}, []),
        (37.0, {}, []),
        (0.5, {"architecture": "x86_64", "avx512_bf16": True}, ["bfloat16"]),
        (0.5, {"architecture": "x86_64", "amx_bf16": True}, ["bfloat16"]),
        (0.5, {"architecture": "x86_64", "avx512_bf16": False}, []),
        (0.5, {"architecture": "aarch64"}, ["bfloat16"]),
    ],
)
def test_candidates_of_a_cpu(bfloat16, about, expected, cpu):
    cpu[0][torch.bfloat16] = bfloat16
    cpu[1].update(about)
    assert precision.candidates(CPU) == expected


def test_candidates_of_apples_gpus():
    assert precision.candidates(torch.device("mps")) == []


@pytest.mark.parametrize(("generation", "expected"), [(9, ["tf32", "bfloat16", "float16"]), (7, ["float16"]), (6, [])])
def test_candidates_of_a_gpu(generation, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    assert precision.candidates(torch.device("cuda")) == expected


def test_the_choice_is_made_once(fast_bfloat16, monkeypatch):
    seen = []
    measured = Precisions._measured
    monkeypatch.setattr(Precisions, "_measured", lambda self, *given: seen.append(given[-1]) or measured(self, *given))
    encoder = FrozenEncoder(network(), image_size=16)
    for one in (encoder, clone(encoder), clone(encoder).set_params(crop_pct=0.5)):
        assert (one.dtype_, one.load().gradient_dtype_) == ("bfloat16", "bfloat16")
    assert seen == [False, True]


def test_features_are_those_of_the_precision(fast_bfloat16, tmp_path):
    X = photo_crops(SMALL, 4).permute(0, 2, 3, 1).numpy()
    module = network()
    auto = FrozenEncoder(module, image_size=16, memory=tmp_path)
    exact, half = (clone(auto).set_params(dtype=one) for one in ("float32", "bfloat16"))
    Z = {one.dtype: one.transform(X) for one in (auto, exact, half)}
    np.testing.assert_array_equal(Z["auto"], Z["bfloat16"])
    assert Z["auto"].dtype == np.float32
    assert not np.array_equal(Z["auto"], Z["float32"])
    assert (Z["auto"] * Z["float32"]).sum(1).min() > 0.9995
    identities = {one.dtype: one.load().identity() for one in (auto, exact, half)}
    assert identities["auto"] == identities["bfloat16"] != identities["float32"]  # keys of the cache
    assert [one.load().provenance()["dtype"] for one in (auto, exact, half)] == ["bfloat16", "float32", "bfloat16"]
    auto.load().backbone.precisions._chosen.clear()
    fast_bfloat16["bfloat16"] = 2.0
    assert auto.load().identity() == identities["float32"]  # another machine does not take these features for its own


def test_half_weights_are_what_autocast_computes_with():
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).eval().requires_grad_(False)
    images = torch.rand(2, 3, 32, 32)
    half = with_weights_of(module, torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half(images), module(images))
    assert {layer.weight.dtype for layer in half.modules() if isinstance(layer, nn.Linear)} == {torch.bfloat16}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_gradients_in_float16_are_scaled(monkeypatch):
    """Gradients of a loss as small as those of many real samples, which float16 cannot represent."""
    module = network()
    images = photo_crops(SMALL, 3)
    small = torch.randn(3, 800, generator=torch.Generator().manual_seed(0))
    small *= torch.tensor([1e-9, 1e-5, 1.0])[:, None]  # each image has its own scale
    one = Precisions(module, CPU)

    def gradient(kind):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(one.run(leaf, kind), leaf, small)[0].flatten(1)

    wanted = gradient("float32")
    assert cosines(gradient("float16"), wanted).min() > 0.999
    np.testing.assert_allclose(gradient("float16").norm(dim=1), wanted.norm(dim=1), rtol=1e-2)

    def unscaled(self, gradient):
        self.factor = torch.ones(1, 1)
        return gradient

    monkeypatch.setattr(precision._GradientScale, "scale", unscaled)
    assert gradient("float16")[0].norm() < 0.5 * wanted[0].norm()


def test_features_that_overflow_float16_are_computed_in_float32():
    module = network()
    module[4].weight.data *= 1e6
    extractor = FrozenEncoder(module, image_size=16, l2_normalize=False, dtype="float32").load()
    half = replace(extractor, dtype="float16")
    images = photo_crops(SMALL, 3)
    assert np.isfinite(half._features(images)).all()
    np.testing.assert_array_equal(half._features(images), extractor._features(images))


@pytest.mark.parametrize("dtype", ["tf32", "float16"])
def test_precisions_of_gpus_are_refused_on_cpus(dtype, no_encoding, colors):
    with pytest.raises(ValueError, match=f"dtype='{dtype}' is a precision of GPUs, and the network is on 'cpu'; choose 'auto'"):
        FrozenEncoder(dtype=dtype, device="cpu").transform(colors[0])


def test_crops_of_photos_differ_and_are_the_same_each_time():
    crops = photo_crops(Preprocessing(32), 6)
    assert crops.shape == (6, 3, 32, 32)
    assert torch.equal(crops, photo_crops(Preprocessing(32), 6))
    assert len({tuple(crop.mean((1, 2)).tolist()) for crop in crops}) == 6


@pytest.mark.parametrize("n_views", ["one pass", "two passes"])
def test_distillation_in_the_chosen_precision(n_views, fast_bfloat16, colors):
    """θ, Adam, the solve and the loss stay float32; the losses are close to float32's."""
    encoder = FrozenEncoder(network(), image_size=16)
    chunk = "auto" if n_views == "one pass" else 2
    losses = {}
    for dtype in ("auto", "float32"):
        distiller = CLPDistiller(clone(encoder).set_params(dtype=dtype), max_iter=4, encoder_batch_size=chunk, random_state=0)
        losses[dtype] = [record["loss"] for record in distiller.fit(*colors).history_]
        assert distiller.transform().dtype == np.float32
    np.testing.assert_allclose(losses["auto"], losses["float32"], rtol=0.02)
    assert losses["auto"] != losses["float32"]


def test_a_run_is_resumed_on_a_machine_with_another_precision(fast_bfloat16, colors, tmp_path):
    def stop(distiller, record):
        if record["step"] >= 20:
            raise StopIteration

    encoder = FrozenEncoder(network(), image_size=16)
    run = CLPDistiller(encoder, max_iter=24, random_state=0, checkpoint=tmp_path / "run")
    clone(run).set_params(callback=stop).fit(*colors)
    encoder.load().backbone.precisions._chosen.clear()
    fast_bfloat16["bfloat16"] = 2.0
    assert len(run.fit(*colors).history_) == 24
