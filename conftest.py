"""``python -m pytest docs README.md`` runs every Python block of the README and the docs, on small data and cut short.

The blocks of a page share their names. What takes minutes, or a network, is replaced: each distillation ends after two steps,
each head after two epochs, and weights that only the hub has are random.
"""

import os
import shutil
import tempfile
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image

try:
    from sybil import Sybil
    from sybil.parsers import markdown, rest
except ImportError:  # only the docs environment has it
    Sybil = None

collect_ignore = ["docs/conf.py"]

# What pages use without saying where it comes from.
PREAMBLE = """
import joblib, numpy as np, pandas, sklearn, torch
from sklearn.kernel_approximation import Nystroem
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn_clpdd import *
from sklearn_clpdd.datasets import load_image_folder

(X, y), (X_test, y_test) = load_image_folder("imagenette/train"), load_image_folder("imagenette/val")
X_new, background, weights = X_test, np.arange(len(y)) % 2, np.ones(len(y))
my_module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, stride=4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
encoder = FrozenEncoder(image_size=64)
distiller = CLPDistiller(encoder, random_state=0).fit(X, y)
"""


def _cut_short(patch):
    from distributed import deploy

    from sklearn_clpdd.distill import _gradient
    from sklearn_clpdd.encoder.sources import _timm
    from sklearn_clpdd.evaluation import _head, _inheritance

    create, optimize, train_head = _timm.create_module, _gradient.optimize, _head._train_head
    each_view = _inheritance.each_view

    def created(spec, weights, image_size, options):
        from_hub = weights == "auto" and _timm._packaged_weights(spec) is None
        return create(spec, None if from_hub else weights, image_size, options)

    patch.setattr(_timm, "create_module", created)
    patch.setattr(_gradient, "optimize", lambda *args, **kwargs: islice(optimize(*args, **kwargs), 2))
    # A process would need ten seconds to start.
    patch.setattr(deploy, "LocalCluster", partial(deploy.LocalCluster, processes=False))
    patch.setattr(
        _head, "_train_head", lambda task, encode, recipe, random: train_head(task, encode, recipe._replace(n_epochs=2), random)
    )
    patch.setattr(_inheritance, "each_view", lambda images, extractor, n_views, seed: each_view(images, extractor, 2, seed))


def _write_files():
    """Images, features and weights that pages read."""
    import timm
    from safetensors.torch import save_file

    rng = np.random.default_rng(0)
    for split, n in (("train", 4), ("val", 2)):
        for channel, name in enumerate(("cat", "dog", "owl")):
            folder = Path("imagenette", split, name)
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 128, (64, 64, 3), dtype=np.uint8)
                pixels[:, :, channel] += 100
                Image.fromarray(pixels).save(folder / f"{i}.png")
    for i in range(16):
        np.save(f"features-{i}.npy", rng.normal(size=(40, 6)).astype(np.float32))
        np.save(f"labels-{i}.npy", np.arange(40) % 4)
    save_file(timm.create_model("resnet18").state_dict(), "resnet18.safetensors")


def _begin(namespace):
    patch = namespace["_patch"] = pytest.MonkeyPatch()
    folder = namespace["_folder"] = tempfile.mkdtemp()
    patch.chdir(folder)
    patch.setenv("MPLBACKEND", "agg")
    patch.setenv("HF_HUB_OFFLINE", "1")
    _cut_short(patch)
    namespace["_backend"] = joblib.parallel_config("threading")  # other processes would not be cut short
    _write_files()
    exec(PREAMBLE, namespace)
    namespace["ray_is_missing"] = find_spec("ray") is None
    namespace["dispatch_is_off"] = os.environ.get("SCIPY_ARRAY_API") != "1"


def _end(namespace):
    namespace["_backend"].unregister()
    namespace["_patch"].undo()
    shutil.rmtree(namespace["_folder"])


if Sybil is not None:
    _rest = [rest.PythonCodeBlockParser(), rest.SkipParser()]
    _pages = Sybil(_rest, patterns=["docs/*.rst", "docs/guide/*.rst", "docs/howto/*.rst"], setup=_begin, teardown=_end)
    _readme = Sybil([markdown.PythonCodeBlockParser()], patterns=["README.md"], setup=_begin, teardown=_end)
    pytest_collect_file = (_pages + _readme).pytest()
