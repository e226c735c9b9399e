"""Devices, traced without a GPU: torch's `FakeTensorMode` makes CUDA tensors of shapes only, and refuses to mix devices.

Every fake operation checks the devices of its operands, as a GPU would. Numbers do not exist, so that what is read from a
tensor here is 1; the backward pass would need a driver, so that gradients are zeros. What is computed is in ``test_cuda.py``.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sklearn_clpdd import DSA
from sklearn_clpdd.baselines._matching import FeatureMatching, GradientMatching
from sklearn_clpdd.distill import _augmentations as augmentations
from sklearn_clpdd.distill._loop import ChunkPlan, ViewPlan, optimize
from sklearn_clpdd.distill._objectives import OBJECTIVES, MeanOverEncoders, WithNeighbors
from sklearn_clpdd.distill._parametrizations import PARAMETRIZATIONS, LGMPyramid
from sklearn_clpdd.distill._real_features import BatchSampler, RealFeatures
from sklearn_clpdd.distill._state import State
from sklearn_clpdd.encoder._backbone import Backbone
from sklearn_clpdd.encoder._extractor import FeatureExtractor
from sklearn_clpdd.encoder._frozen_layers import save_less_for_backward
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.probe import _solver
from sklearn_clpdd.probe._rows import Rows

CUDA = torch.device("cuda")


def _needs_a_driver():
    """Whether this version of torch, built for CUDA, asks for a driver even where tensors are fake."""
    try:
        with FakeTensorMode():
            F.linear(torch.zeros(2, 2, device=CUDA), torch.zeros(2, 2, device=CUDA).T.contiguous())
    except RuntimeError as error:
        return "driver" in str(error)
    return False


pytestmark = pytest.mark.skipif(_needs_a_driver(), reason="this version of torch needs a driver for fake CUDA tensors")
# Classes, synthetic samples, features, real samples.
C, M, D, N = 3, 6, 12, 40


@pytest.fixture
def fake(monkeypatch):
    """Fake CUDA tensors; numbers that are read from them are 1."""
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 1.0 if self.is_floating_point() else 1)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 1.0)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: 1)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True)
    # Shapes that depend on the data: every class is there.
    monkeypatch.setattr(torch, "bincount", lambda codes, minlength: torch.ones(minlength, dtype=torch.int64, device=codes.device))
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: torch.arange(len(self), device=self.device)[:, None])
    monkeypatch.setattr(torch.Tensor, "unique", lambda self, return_inverse: (torch.arange(C, device=self.device), self))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


class Mean(nn.Module):
    """Of the tokens."""

    def forward(self, x):
        return x.mean(1)


def features(n):
    return F.normalize(torch.randn(n, D, device=CUDA), dim=1)


def losses():
    classes = torch.arange(M, device=CUDA) % C
    kinds = {name: kind(1.0, 0.1) for name, kind in OBJECTIVES.items()}
    kinds |= {"neighbours": WithNeighbors(kinds["cross_entropy"], classes, 0.1)}
    kinds |= {"two encoders": MeanOverEncoders(kinds["mse"], [5, 7])}
    return kinds | {"LGM": GradientMatching(torch.Generator()), "DM": FeatureMatching()}


@pytest.mark.parametrize("name", [*OBJECTIVES, "neighbours", "two encoders", "LGM", "DM"])
@pytest.mark.parametrize("alpha", [1.0, 1e-4], ids=["float32", "float64"])
def test_objectives_stay_on_the_device(name, alpha, fake):
    loss = losses()[name]
    if hasattr(loss, "alpha"):
        loss.alpha = alpha
    Z = features(M)
    Y = F.one_hot(torch.arange(M, device=CUDA) % C, C).float()
    assert loss(Z, Y, features(N), torch.arange(N, device=CUDA) % C).device.type == "cuda"


def network():
    with CUDA:
        layers = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6(), nn.Flatten(2), nn.Linear(36, D), nn.LayerNorm(D))
        module = nn.Sequential(*layers, Mean()).eval()
    save_less_for_backward(module)
    backbone = Backbone(module, Preprocessing(14, 14 / 16, (0.5,) * 3, (0.2,) * 3), D, CUDA)
    return FeatureExtractor(backbone, dtype="float32")


@pytest.mark.parametrize("precision", ["float32", "tf32"])  # autocast disables itself without a GPU
def test_features_in_each_precision(precision, fake):
    Z = network()(torch.rand(4, 3, 14, 14, device=CUDA, requires_grad=True), precision)
    assert (Z.device.type, Z.dtype) == ("cuda", torch.float32)


AUGMENTATIONS = {
    "dsa": DSA(),
    "zeros": DSA(outside="zeros"),
    "probe": augmentations.LGM_PROBE_VIEWS,
    "none": augmentations.Augmentation(),
}


# Each augmentation, each parametrisation, and each way to draw batches, with the first of the others.
STEPS = [(name, "pyramid", "uniform") for name in AUGMENTATIONS]
STEPS += [("dsa", kind, "uniform") for kind in ("pixels", "LGM's")] + [
    ("dsa", "pyramid", way) for way in ("balanced", "in memory")
]


@pytest.mark.parametrize(("augmentation", "kind", "sampling"), STEPS)
def test_a_step_stays_on_the_device(augmentation, kind, sampling, fake, monkeypatch):
    augmentation, kind = AUGMENTATIONS[augmentation], (PARAMETRIZATIONS | {"LGM's": LGMPyramid})[kind]
    with torch.device("cpu"):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
    parametrization = kind((M, 3, 16, 16), generators[0], device=CUDA)
    parametrization.set_samples(torch.rand(M, 3, 16, 16, device=CUDA))
    targets = F.one_hot(torch.arange(M, device=CUDA) % C, C).float().requires_grad_()
    state = State(parametrization, targets, {"views": generators[1], "batches": generators[2]})
    codes = np.arange(N) % C
    values = np.zeros((N, D), dtype=np.float32)
    real = RealFeatures(values, codes, np.arange(N), strata=codes if sampling == "balanced" else None)
    batches = BatchSampler(real, N if sampling == "in memory" else 10, CUDA, torch.float32)
    loss = WithNeighbors(OBJECTIVES["cross_entropy"](1.0, 0.1), torch.arange(M, device=CUDA) % C, 0.1)
    weight = 0.5 if augmentation.is_random else 0.0
    plan = ViewPlan(augmentation, 2 if augmentation.is_random else 1, weight)
    # The backward pass alone would need a driver.
    monkeypatch.setattr(torch.autograd, "grad", lambda output, inputs, *more, **options: [*map(torch.zeros_like, inputs)])
    steps = optimize(
        state,
        batches,
        encode=network(),
        preprocess=Preprocessing(14, 14 / 16),
        views=plan,
        objective=OBJECTIVES["cross_entropy"](1.0, 0.1),
        unaugmented_objective=loss,
        learning_rate=lambda step, progress: 0.05,
        progress=lambda: 0.5,
        chunk_plan=ChunkPlan(4),
    )
    assert next(steps).device.type == "cuda"
    gradients = [theta.grad for theta in state.parameters if theta.grad is not None]
    assert {gradient.device.type for gradient in gradients} == {"cuda"}


@pytest.mark.parametrize("kernel", ["linear", "cosine", "rbf", "poly"])
@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("alpha", ["loo", 1.0])
def test_solves_of_the_probe_stay_on_the_device(kernel, solver, alpha, fake, monkeypatch):
    if solver == "primal" and kernel not in _solver.LINEAR_KERNELS:
        pytest.skip("kernels have no primal form")
    own = {"gamma": None, "degree": 3, "coef0": 1.0, "fit_intercept": True, "temperature": "loo", "scoring": "accuracy"}
    one = _solver.ProbeSolver(alpha=alpha, kernel=kernel, solver=solver, loss="squared", **own)
    rows = Rows(
        np.ones((N, D), dtype=np.float32),
        None,
        torch.arange(N, device=CUDA) % C,
        torch.ones(N, device=CUDA, dtype=torch.float64),
        kernel == "cosine",
        CUDA,
    )
    devices = set()

    def predict(self, space):
        for _, _, predictions in space.leave_one_out(range(len(space.penalties))):
            devices.add(predictions.device.type)
        return 0, {}

    monkeypatch.setattr(_solver.ProbeSolver, "_choose", predict)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: np.ones(self.shape, float if self.is_floating_point() else int))
    one.solve(rows, C, torch.float32)
    assert devices == {"cuda"}
