import os

import numpy as np
import pytest
import torch
from networks import tiny_encoder

from sklearn_clpdd.encoder import _precision as precision
from sklearn_clpdd.encoder._extractor import FeatureExtractor
from sklearn_clpdd.probe import _logistic as logistic

# No test may need the internet.
os.environ["HF_HUB_OFFLINE"] = "1"
# Under `pytest -n`, each process computes with its share of the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


@pytest.fixture(autouse=True)
def no_fast_bfloat16(monkeypatch):
    """In this process no CPU is fast in bfloat16, so that the same code computes on all machines."""
    for module in (precision, logistic):
        monkeypatch.setattr(module, "has_fast_bfloat16", lambda n_threads: False)


@pytest.fixture
def module():
    return tiny_encoder()


@pytest.fixture
def forbid_encoding(monkeypatch):
    """Function; once it is called, encoding images fails the test, because errors have to be raised before."""
    return lambda: monkeypatch.setattr(FeatureExtractor, "_encode", lambda *args: pytest.fail("images were encoded"))


@pytest.fixture
def no_encoding(forbid_encoding):
    """Encoding images fails the test."""
    forbid_encoding()


@pytest.fixture(scope="session")
def colors():
    """60 uint8 images of 16 × 16 px in three classes of different colours and sizes (30, 20, 10), with string labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["blue", "green", "red"], [30, 20, 10])
    images = rng.integers(0, 100, (60, 16, 16, 3))
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        images[labels == name, :, :, channel] += 120
    order = rng.permutation(60)
    return images.astype(np.uint8)[order], labels[order]
