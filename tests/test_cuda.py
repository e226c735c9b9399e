"""The same estimators on a GPU: close to the CPU's results, and nothing of the GPU in what is fitted."""

import os
import pickle
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_array_api
import timm
import torch
from sklearn.base import clone

from sklearn_clpdd import DSA, ClosedFormProbe, CLPDistiller, DistilledSampler, FrozenEncoder
from sklearn_clpdd.baselines import ClassCentroids, CoreSet, DMDistiller, LGMDistiller, NearestReals, RandomSubset, SFMDistiller
from sklearn_clpdd.distill import _adapters as adapters
from sklearn_clpdd.distill import _augmentations as augmentations
from sklearn_clpdd.encoder._precision import PRECISIONS
from sklearn_clpdd.evaluation import (
    closed_form_probe_scores,
    compare_with_real,
    inherited_probe_scores,
    probe_scores,
    sgd_probe_scores,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")

DISTILLERS = {
    "default": CLPDistiller(),
    "chunks pass twice": CLPDistiller(encoder_batch_size=2),
    "noise, mse": CLPDistiller(init="noise", objective="mse"),
    "learned targets": CLPDistiller(learn_targets=True),
    "noisy views": CLPDistiller(augmentation=DSA(noise=0.1, noise_mean=0.1, noise_probability=0.5, outside="zeros")),
    "no views": CLPDistiller(augmentation=None),
    "pixels": CLPDistiller(parametrization="pixels"),
    "balanced": CLPDistiller(sampling="balanced", images_per_class=2),
    "early stopping": CLPDistiller(n_iter_no_change=20, validation_fraction=0.2),
    "LGM": LGMDistiller(),
    "DM": DMDistiller(),
    "SFM": SFMDistiller(),
}


# Each kind of random views, and where they come from.
VIEWS = {
    "dsa": DSA(),
    "zeros outside": DSA(outside="zeros"),
    "noise": DSA(noise=0.1, noise_mean=0.1, noise_probability=0.5),
    "three views": DSA(n_views=3, unaugmented_weight=0.0),
    "LGM's": augmentations.LGM_DISTILLATION_VIEWS,
    "LGM's probe": augmentations.LGM_PROBE_VIEWS,
}


@pytest.fixture
def encoders(module):
    return {device: FrozenEncoder(module, image_size=14, device=device) for device in ("cpu", "cuda")}


@pytest.fixture
def transformers():
    """A vision transformer of more than a million parameters, on both devices."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=0)
    own = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "dtype": "float32"}
    return {device: FrozenEncoder(model, device=device, **own) for device in ("cpu", "cuda")}


@pytest.mark.parametrize("dtype", ["auto", *PRECISIONS])
def test_each_precision_follows_the_cpu(dtype, transformers, colors):
    X, y = colors
    encoder = clone(transformers["cuda"]).set_params(dtype=dtype)
    assert encoder.dtype_ in PRECISIONS
    expected = transformers["cpu"].transform(X)
    assert (encoder.transform(X) * expected).sum(axis=1).min() > 0.999
    losses = [
        [record["loss"] for record in CLPDistiller(one, max_iter=6, random_state=0).fit(X, y).history_]
        for one in (encoder, transformers["cpu"])
    ]
    np.testing.assert_allclose(*losses, rtol=0.05, atol=1e-3)


def test_tf32_is_set_in_the_network_only(transformers, colors):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    CLPDistiller(clone(transformers["cuda"]).set_params(dtype="tf32"), max_iter=3, random_state=0).fit(*colors)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("pool", ["token", "avg", "token+avg"])
@pytest.mark.parametrize("layers", [1, 2])
def test_pools_agree_with_the_cpu(pool, layers, transformers, colors):
    on = [clone(one).set_params(pool=pool, layers=layers).transform(colors[0]) for one in transformers.values()]
    np.testing.assert_allclose(on[1], on[0], atol=1e-3)


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("chunk", ["auto", 2], ids=["one pass", "two passes"])
def test_views_follow_the_cpu(views, chunk, encoders, colors):
    losses = []
    for encoder in encoders.values():
        distiller = CLPDistiller(encoder, augmentation=views, encoder_batch_size=chunk, max_iter=5, random_state=0)
        losses.append([record["loss"] for record in distiller.fit(*colors).history_])
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=0.3 if views.noise else 0.02)
    assert np.isfinite(losses[1]).all()


def test_graphs_keep_to_the_limits(transformers, colors, monkeypatch):
    """With a tenth of the memory for graphs, a step needs less, and its loss is the same."""
    peaks, losses = [], []
    encoder = transformers["cuda"]
    one = encoder.load().backbone.graph_bytes()
    CLPDistiller(encoder, max_iter=1, random_state=0).fit(*colors)  # cuBLAS keeps what it has allocated
    before = torch.cuda.memory_allocated()
    for limit in (40 * one, 4 * one):
        monkeypatch.setattr(adapters, "graph_memory_limits", lambda device, limit=limit: (limit, limit))
        torch.cuda.reset_peak_memory_stats()
        distiller = CLPDistiller(encoder, images_per_class=4, max_iter=3, random_state=0).fit(*colors)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        losses.append([record["loss"] for record in distiller.history_])
    assert peaks[1] < 0.7 * peaks[0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_features_agree_with_the_cpu(encoders, colors):
    X, _ = colors
    features = {device: encoder.transform(X) for device, encoder in encoders.items()}
    np.testing.assert_allclose(features["cuda"], features["cpu"], atol=1e-3)
    half = clone(encoders["cuda"]).set_params(dtype="bfloat16").transform(X)
    assert (half * features["cpu"]).sum(axis=1).min() > 0.99


@pytest.mark.parametrize("parameters", [{}, {"kernel": "rbf"}, {"kernel": "cosine"}, {"alpha": 1.0, "class_weight": "balanced"}])
@pytest.mark.parametrize("shape", [(300, 12), (40, 60)], ids=["n > d", "n < d"])
def test_probe_agrees_with_the_cpu(parameters, shape):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, shape[0])
    X = (rng.standard_normal((4, shape[1]))[y] + rng.standard_normal(shape)).astype(np.float32)
    on = {device: ClosedFormProbe(**parameters, device=device).fit(X, y) for device in ("cpu", "cuda")}
    assert on["cuda"].alpha_ == on["cpu"].alpha_
    np.testing.assert_allclose(on["cuda"].decision_function(X), on["cpu"].decision_function(X), atol=1e-3)
    np.testing.assert_allclose(on["cuda"].predict_proba(X), on["cpu"].predict_proba(X), atol=1e-3)


def test_partial_fit_agrees_with_the_cpu():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    X = rng.standard_normal((3, 8))[y] + rng.standard_normal((200, 8))
    for device in ("cpu", "cuda"):
        probe = ClosedFormProbe(loss="squared", device=device)
        stream = probe.partial_fit(X[:90], y[:90], classes=[0, 1, 2]).partial_fit(X[90:], y[90:])
        np.testing.assert_allclose(stream.coef_, ClosedFormProbe(loss="squared", device="cpu").fit(X, y).coef_, atol=1e-6)


@pytest.mark.parametrize("distiller", DISTILLERS.values(), ids=DISTILLERS)
def test_distillers_follow_the_cpu(distiller, encoders, colors):
    fitted = [
        clone(distiller).set_params(encoder=encoder, max_iter=22, random_state=0).fit(*colors) for encoder in encoders.values()
    ]
    on_cpu, on_gpu = ([record["loss"] for record in one.history_] for one in fitted)
    np.testing.assert_allclose(on_gpu[:5], on_cpu[:5], rtol=0.02, atol=1e-4)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0.2, atol=1e-2)
    assert not any(isinstance(value, torch.Tensor) for value in vars(fitted[1]).values())
    assert fitted[1].transform().shape == fitted[0].transform().shape


def test_distiller_of_features():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    X = rng.standard_normal((3, 8))[y] + 0.3 * rng.standard_normal((90, 8))
    assert CLPDistiller(None, max_iter=25, random_state=0).fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize("resumed_on", ["cpu", "cuda"])
def test_a_checkpoint_of_the_gpu_is_resumed(resumed_on, encoders, colors, tmp_path):
    def stop(distiller, record):
        if record["step"] >= 20:
            raise StopIteration

    run = CLPDistiller(encoders["cuda"], max_iter=40, random_state=0, checkpoint=tmp_path / "run")
    whole = clone(run).set_params(checkpoint=None).fit(*colors)
    clone(run).set_params(callback=stop).fit(*colors)
    resumed = clone(run).set_params(encoder=encoders[resumed_on]).fit(*colors)
    assert len(resumed.history_) == 40
    losses = [[record["loss"] for record in one.history_] for one in (resumed, whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.2, atol=1e-2)


SELECTIONS = {
    "centroids": lambda encoder: ClassCentroids(encoder, random_state=0),
    "herding": lambda encoder: CoreSet(encoder, images_per_class=2),
    "k-center": lambda encoder: CoreSet(encoder, images_per_class=2, strategy="k_center"),
    "nearest": lambda encoder: NearestReals(CLPDistiller(encoder, max_iter=3, random_state=0)),
    "random": lambda encoder: RandomSubset(encoder, random_state=0),
}


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_selections_are_the_cpus(select, encoders, colors):
    chosen = [select(encoder).fit(*colors).transform() for encoder in encoders.values()]
    np.testing.assert_allclose(chosen[1], chosen[0], atol=1e-3)


def test_evaluations_agree_with_the_cpu(encoders, colors):
    X, y = colors
    S, labels = X[[list(y).index(name) for name in np.unique(y)]], np.unique(y)
    from_zero = partial(sgd_probe_scores, n_epochs=5, initial_std=0, augmentation=None)
    for protocol in (closed_form_probe_scores, partial(sgd_probe_scores, n_epochs=5), from_zero):
        on_cpu, on_gpu = (protocol(S, labels, X, y, encoder=one, random_state=0)["top1"] for one in encoders.values())
        np.testing.assert_allclose(on_gpu, on_cpu, atol=0.05)
    assert len(probe_scores(S, labels, X, y, encoder=encoders["cuda"], n_epochs=2, random_state=0)) == 5
    probe = ClosedFormProbe().fit(encoders["cpu"].encode(X), y)
    inherited = inherited_probe_scores(
        S, X, y, probe=probe, probe_encoder=encoders["cpu"], encoder=encoders["cuda"], random_state=0
    )
    assert inherited["top1"] >= probe.score(encoders["cpu"].encode(X), y) - 0.1
    distiller = CLPDistiller(encoders["cuda"], max_iter=5, random_state=0).fit(X, y)
    assert len(compare_with_real(distiller, X, y, X, y, n_draws=1, random_state=0)) == 3


def test_pickles_load_without_a_gpu(encoders, colors, tmp_path):
    X, _ = colors
    distiller = CLPDistiller(encoders["cuda"].set_params(device="auto"), max_iter=5, random_state=0).fit(*colors)
    (tmp_path / "pickle").write_bytes(pickle.dumps((distiller, X, distiller.predict_proba(X))))
    script = (
        "import pickle, sys, numpy as np, torch; assert not torch.cuda.is_available()\n"
        "distiller, X, expected = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "np.testing.assert_allclose(distiller.predict_proba(X), expected, atol=1e-3)"
    )
    folders = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "pickle")], check=True, env=environment)


def test_a_sampler(encoders, colors):
    images, labels = DistilledSampler(CLPDistiller(encoders["cuda"], max_iter=3, random_state=0)).fit_resample(*colors)
    assert (images.shape, len(labels)) == ((3, 14, 14, 3), 3)


def test_two_processes_share_a_gpu(tmp_path):
    """Two ranks on one GPU exchange in main memory, and learn what one process learns."""
    script = (
        "import os, sys, numpy as np, ranks_program as program\n"
        "distiller = program.distiller(max_iter=10).set_params(encoder=program.encoder().set_params(device='cuda'))\n"
        "fitted = distiller.fit(*program.images())\n"
        "losses = [record['loss'] for record in fitted.history_]\n"
        "np.savez(sys.argv[1] + os.environ['RANK'], X=fitted.X_synthetic_, losses=losses)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    together = os.environ | {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": paths}
    ways = [together | {"MASTER_PORT": port, "RANK": rank} for rank in "01"], [os.environ | {"RANK": "2", "PYTHONPATH": paths}]
    for way in ways:
        started = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "of-")], env=one) for one in way]
        assert [process.wait(timeout=120) for process in started] == [0] * len(way)
    first, second, alone = (np.load(tmp_path / f"of-{rank}.npz") for rank in range(3))
    np.testing.assert_array_equal(second["X"], first["X"])
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=0.02, atol=1e-3)


def test_tensors_in_tensors_out():
    test_array_api.run("cuda")


def test_the_logistic_loss_agrees_with_the_cpu():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 400)
    X = (rng.standard_normal((5, 20))[y] + rng.standard_normal((400, 20))).astype(np.float32)
    on = {device: ClosedFormProbe(device=device).fit(X, y) for device in ("cpu", "cuda")}
    assert (on["cuda"].loss_, on["cuda"].alpha_) == ("logistic", on["cpu"].alpha_)
    np.testing.assert_allclose(on["cuda"].predict_proba(X), on["cpu"].predict_proba(X), atol=2e-3)
