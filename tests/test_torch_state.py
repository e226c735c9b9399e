"""Every public method and function gives the same results whatever torch's state is, and leaves it as it was."""

import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from networks import tiny_encoder
from sklearn.pipeline import make_pipeline

import sklearn_clpdd
from sklearn_clpdd import (
    DSA,
    ClosedFormProbe,
    CLPDistiller,
    DistilledSampler,
    FeatureMapDisplay,
    FrozenEncoder,
    HistoryDisplay,
    LinearSchedule,
    Snapshots,
    SyntheticImagesDisplay,
    allocate_images,
    baselines,
    distillation_report,
    evaluation,
    load_distilled,
    load_probe,
    save_distilled,
    save_probe,
)
from sklearn_clpdd.baselines import ClassCentroids, CoreSet, DMDistiller, LGMDistiller, NearestReals, RandomSubset, SFMDistiller
from sklearn_clpdd.utils._torch_modes import float32_products

plt = pytest.importorskip("matplotlib.pyplot")
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (24, 16, 16, 3)).astype(np.uint8)
LABELS = np.arange(24) % 3
FEATURES = (rng.normal(size=(24, 40)) + 3 * np.eye(40)[LABELS] + 100).astype(np.float32)
PIXELS = IMAGES[:2, :12, :12].transpose(0, 3, 1, 2) / 255
MODULE = tiny_encoder()


def encoder(**settings):
    return FrozenEncoder(MODULE, image_size=12, device="cpu", **settings)


def _distilled(distiller):
    fitted = distiller.fit(IMAGES, LABELS)
    predictions = [getattr(fitted, name)(IMAGES[:5]) for name in ("predict", "predict_proba", "decision_function", "features")]
    return [fitted.X_synthetic_, fitted.transform(), fitted.transform(IMAGES[:5]), fitted.score(IMAGES, LABELS), *predictions]


def _distiller(**settings):
    return CLPDistiller(encoder(), max_iter=3, real_batch_size=9, random_state=0, **settings)


def _probed(**settings):
    probe = ClosedFormProbe(**{"alpha": 1.0, "temperature": 0.2} | settings).fit(FEATURES, LABELS)
    return [
        probe.decision_function(FEATURES),
        probe.predict(FEATURES),
        probe.predict_proba(FEATURES),
        probe.score(FEATURES, LABELS),
    ]


def _streamed():
    one = ClosedFormProbe(1.0, temperature=0.2).partial_fit(FEATURES[:10], LABELS[:10], classes=[0, 1, 2])
    other = ClosedFormProbe(1.0, temperature=0.2).partial_fit(FEATURES[10:], LABELS[10:], classes=[0, 1, 2])
    return [one.merge(other).coef_, one.intercept_]


def _saved(folder):
    fitted = RandomSubset(encoder(), random_state=0).fit(IMAGES, LABELS)
    images, labels, manifest = load_distilled(save_distilled(fitted, folder / "set", IMAGES, LABELS, overwrite=True))
    page = distillation_report(
        fitted, IMAGES, LABELS, folder / "r.html", X=IMAGES, y=LABELS, n_draws=2, random_state=0, overwrite=True
    )
    confusion = page.read_text(encoding="utf-8").partition("onfusion")[2].partition("manifest")[0]
    return [images, labels, [entry["accuracy"] for entry in manifest["accuracies"]], confusion]


def _saved_probe(folder):
    pipeline = make_pipeline(FrozenEncoder("resnet10t", weights=None, image_size=32, device="cpu"), ClosedFormProbe(1.0))
    path = save_probe(pipeline.fit(IMAGES, LABELS), folder / "probe", IMAGES, LABELS, overwrite=True)
    return [load_probe(path).predict_proba(IMAGES)]


def _shown(folder):
    snapshots = Snapshots(2)
    fitted = CLPDistiller(encoder(), max_iter=4, random_state=0, callback=snapshots).fit(IMAGES, LABELS)
    shown = FeatureMapDisplay.from_estimator(fitted, IMAGES, LABELS)
    SyntheticImagesDisplay.from_estimator(fitted, IMAGES, LABELS)
    HistoryDisplay.from_estimator(fitted)
    plt.close("all")
    snapshots.save_gif(folder / "snapshots.gif")
    return [shown.real, shown.synthetic, (folder / "snapshots.gif").stat().st_size > 0]


def _flat(scores):
    if isinstance(scores, dict):
        return [value for name in sorted(scores) for value in _flat(scores[name])]
    return [np.asarray(scores, dtype=float)]


def _evaluated(function, **settings):
    return _flat(function(IMAGES[:6], LABELS[:6], IMAGES, LABELS, random_state=0, **settings))


def _inherited():
    probe = ClosedFormProbe().fit(encoder().transform(IMAGES), LABELS)
    known = {"probe": probe, "probe_encoder": encoder(), "n_views": 2, "random_state": 0}
    return _flat(evaluation.inherited_probe_scores(IMAGES[:6], IMAGES, LABELS, encoder=encoder(), **known))


CALLS = {
    "FrozenEncoder": lambda _: [
        encoder().fit(IMAGES).transform(IMAGES),
        encoder().encode(IMAGES),
        encoder().fit_transform(IMAGES),
    ],
    "FrozenEncoder of floats": lambda _: [encoder(batch_size=5, n_jobs=2).transform(IMAGES / 255)],
    "FrozenEncoder untrained": lambda _: [
        FrozenEncoder("resnet10t", weights=None, image_size=32, device="cpu").transform(IMAGES)
    ],
    "FrozenEncoder with bfloat16": lambda _: [encoder(dtype="bfloat16").transform(IMAGES)],
    "FrozenEncoder.load": lambda _: [encoder().load()(torch.from_numpy(PIXELS)).detach().numpy()],
    "CLPDistiller": lambda _: _distilled(_distiller()),
    "CLPDistiller with noise": lambda _: _distilled(_distiller(augmentation=DSA(noise=0.01))),
    "CLPDistiller of features": lambda _: [CLPDistiller(None, max_iter=3, random_state=0).fit(FEATURES, LABELS).X_synthetic_],
    **{
        kind.__name__: lambda _, kind=kind: _distilled(kind(encoder(), max_iter=2, random_state=0))
        for kind in (DMDistiller, LGMDistiller, SFMDistiller)
    },
    **{
        kind.__name__: lambda _, kind=kind: _distilled(kind(encoder(), random_state=0)) for kind in (RandomSubset, ClassCentroids)
    },
    "CoreSet": lambda _: _distilled(CoreSet(encoder(), strategy="k_center")),
    "NearestReals": lambda _: _distilled(NearestReals(_distiller())),
    "DistilledSampler": lambda _: [*DistilledSampler(_distiller()).fit_resample(IMAGES, LABELS)],
    "ClosedFormProbe": lambda _: _probed(),
    "ClosedFormProbe, leave-one-out": lambda _: _probed(alpha="loo", temperature="loo"),
    "ClosedFormProbe, primal": lambda _: _probed(solver="primal"),
    "ClosedFormProbe, cosine": lambda _: _probed(kernel="cosine"),
    "ClosedFormProbe, rbf": lambda _: _probed(kernel="rbf"),
    "ClosedFormProbe, poly": lambda _: _probed(kernel="poly", degree=2),
    "ClosedFormProbe.partial_fit": lambda _: _streamed(),
    "files": _saved,
    "probe files": _saved_probe,
    "displays": _shown,
    "closed_form_probe_scores": lambda _: _evaluated(evaluation.closed_form_probe_scores, encoder=encoder(), n_views=2),
    "probe_scores": lambda _: _evaluated(evaluation.probe_scores, encoder=encoder(), n_epochs=2),
    "sgd_probe_scores": lambda _: _evaluated(evaluation.sgd_probe_scores, encoder=encoder(), n_epochs=2),
    "sgd_probe_scores from zero": lambda _: _evaluated(
        evaluation.sgd_probe_scores, encoder=encoder(), n_epochs=2, initial_std=0, augmentation=None
    ),
    "inherited_probe_scores": lambda _: _inherited(),
    "transfer_scores": lambda _: _evaluated(evaluation.transfer_scores, encoders={"a": encoder()}, n_epochs=2),
    "compare_with_real": lambda _: _flat(
        evaluation.compare_with_real(
            RandomSubset(encoder(), random_state=0).fit(IMAGES, LABELS),
            IMAGES,
            LABELS,
            IMAGES,
            LABELS,
            n_draws=2,
            random_state=0,
        )
    ),
    "allocate_images": lambda _: [json.dumps({str(label): n for label, n in allocate_images(LABELS, 7).items()})],
    "LinearSchedule": lambda _: [LinearSchedule().rate(3, 10)],
}
# Public names without computations of their own, or that are bases of others.
NOT_CALLED = {
    "Augmentation",
    "Checkpoint",
    "LostProcessError",
    "Parametrization",
    "LGM_PUBLISHED",
    "SFM_PUBLISHED",
    "push_to_hub",
}


def test_all_public_names_are_called():
    public = {*sklearn_clpdd.__all__, *evaluation.__all__, *baselines.__all__} - NOT_CALLED
    source = inspect.getsource(sys.modules[__name__])
    assert not [name for name in public if f"{name}(" not in source and f"{name}." not in source and name not in CALLS]


@contextmanager
def _default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)


@contextmanager
def _precision():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_float32_matmul_precision("highest")


@contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        assert torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)


@contextmanager
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        assert torch.get_num_threads() == 1
        torch.set_num_threads(before)


@contextmanager
def _autocast():
    with torch.autocast("cpu", torch.bfloat16):
        yield
        assert torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@contextmanager
def _no_grad():
    with torch.no_grad():
        yield
        assert not torch.is_grad_enabled()


@contextmanager
def _inference():
    with torch.inference_mode():
        yield
        assert torch.is_inference_mode_enabled()


@contextmanager
def _default_device():
    with torch.device("meta"):
        yield
        assert torch.ones(1).device.type == "meta"


STATES = {
    "autocast": _autocast,
    "default dtype": _default_dtype,
    "default device": _default_device,
    "no grad": _no_grad,
    "inference mode": _inference,
    "deterministic algorithms": _deterministic,
    "matmul precision": _precision,
    "one thread": _one_thread,
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Results in torch's usual state, computed once."""
    found = {}

    def compute(name):
        if name not in found:
            found[name] = CALLS[name](tmp_path_factory.mktemp("usual"))
        return found[name]

    return compute


@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_torchs_state(name, usual, tmp_path):
    wanted = usual(name)
    for state, context in STATES.items():
        generator = torch.random.get_rng_state()
        with context():
            found = CALLS[name](tmp_path)
        assert torch.equal(torch.random.get_rng_state(), generator), state
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            if isinstance(other, str):
                assert one == other, state
            else:
                assert np.asarray(one).dtype == np.asarray(other).dtype, state
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 if "Distiller" in name else 1e-5, err_msg=state)


def test_a_nested_or_concurrent_call_restores_the_state_of_the_first():
    from concurrent.futures import ThreadPoolExecutor

    with _default_dtype(), _precision(), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: _probed(kernel="rbf"), range(40)))


FORKED = """
    import multiprocessing, sys
    import numpy as np, torch
    sys.path.insert(0, {tests!r})
    import test_torch_state as t

    torch.set_num_threads(2)
    names = {names!r}
    import pathlib, tempfile
    wanted = {{name: t.CALLS[name](pathlib.Path(tempfile.mkdtemp())) for name in names}}
    X = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    t.ClosedFormProbe(1.0).fit(X, np.arange(300) % 3)  # torch's threads have started

    def child(queue):
        for name in names:
            found = t.CALLS[name](pathlib.Path(tempfile.mkdtemp()))
            for one, other in zip(found, wanted[name], strict=True):
                if not isinstance(other, str):
                    np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-3, err_msg=name)
        t.ClosedFormProbe(1.0).fit(X, np.arange(300) % 3)
        queue.put(torch.get_num_threads())

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print("threads", queue.get())
    process.join()
"""


def test_forked_processes_compute_the_same_and_end():
    """torch's pool of threads does not survive a fork; a search with joblib's multiprocessing backend would never end."""
    names = [name for name in CALLS if name != "displays"]
    code = textwrap.dedent(FORKED).format(tests=os.path.dirname(__file__), names=names)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 150
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.communicate()[0].decode().splitlines()[-1:] == ["threads 1"]


def test_wishes_of_two_threads_end_in_any_order():
    """The caller's precision is restored, whichever thread ends first."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    one, other = float32_products(tf32=True), float32_products(tf32=False)
    one.__enter__()
    other.__enter__()
    assert torch.get_float32_matmul_precision() == "highest"
    one.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "highest"
    other.__exit__(None, None, None)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
