import os

import numpy as np
import pytest
from networks import tiny_encoder

# Nothing here may need a network.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def module():
    return tiny_encoder()


@pytest.fixture(scope="session")
def colors():
    """60 images of 16 × 16 px in three classes by colour, uint8; string labels, unbalanced: 30, 20, 10."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["blue", "green", "red"], [30, 20, 10])
    images = rng.integers(0, 100, (60, 16, 16, 3))
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        images[labels == name, :, :, channel] += 120
    order = rng.permutation(60)
    return images.astype(np.uint8)[order], labels[order]
