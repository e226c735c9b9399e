"""The shape of the package: who imports whom, and what importing and using it leaves untouched."""

import ast
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sklearn_clpdd
from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd._core import devices

ROOT = Path(sklearn_clpdd.__file__).parent
# From the bottom up: a module imports from the lines above its own, and from no other.
LAYERS = [
    {
        "_core.ridge",
        "_core.rows",
        "_core.reservoir",
        "_core.augmentations",
        "_core.parametrizations",
        "_core.devices",
        "_core.heap",
        "_core.checkpoints",
        "_core.weights",
        "_core.frozen",
    },
    {"_core.real_features", "_core.objectives", "_core.folding", "_core.moments", "_core.kernels"},
    {"_core.leave_one_out", "_core.stream", "_core.backbones"},
    {"_core.calibration"},
    {"_core.loop"},
    {"_store", "_modules", "_output", "_pictures", "_probe", "_run", "_reals"},
    {"_images"},
    {"_encoder"},
    {"_spaces"},
    {"_base"},
    {"_iterative"},
    {"_distiller"},
    {"datasets", "evaluation", "baselines", "_sampler", "_provenance"},
    {"_display"},
    {"io", "_report"},
    {""},
]


def _imports(path):
    """Modules of the package, and roots of other packages, that a file imports."""
    inside, outside = set(), set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            inside.add(".".join([*base, *(node.module or "").split(".")]).strip("."))
    return inside, outside


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip(".")
        if name != "_core":
            yield name, path


@pytest.mark.parametrize(("name", "path"), list(_modules()))
def test_imports_go_down_only(name, path):
    (level,) = (i for i, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[:level])
    inside, outside = _imports(path)
    assert inside <= below, f"{name} imports {inside - below}, which is not below it"
    if name.startswith("_core"):
        assert "sklearn" not in outside
    assert "sklearn_clpdd" not in outside, "an absolute import, which the layers do not see"


def test_import_brings_neither_timm_nor_matplotlib():
    code = "import sys, sklearn_clpdd; sys.exit(' '.join({'timm', 'torchvision', 'matplotlib'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MEMINFO = "MemTotal: 99 kB\nMemAvailable: 1000000 kB\n"
MB = 10**6
# Control groups: files, and what is left for a process in all of them.
GROUPS = {
    "no groups": ("", {}, 1024 * MB),
    "version 2": (
        "0::/app/worker\n",
        {
            "app/memory.max": "500000000",
            "app/memory.current": "300000000",
            "app/memory.stat": "anon 1\ninactive_file 100000000",
            "app/worker/memory.max": "max",
            "app/worker/memory.current": "300000000",
            "app/worker/memory.stat": "inactive_file 0",
        },
        300 * MB,
    ),
    "a container's own root": (
        "0::/somewhere/outside\n",
        {"memory.max": "200000000", "memory.current": "50000000", "memory.stat": ""},
        150 * MB,
    ),
    "version 1": (
        "5:cpu:/\n4:memory:/app\n0::/\n",
        {
            "memory/app/memory.limit_in_bytes": "400000000",
            "memory/app/memory.usage_in_bytes": "100000000",
            "memory/app/memory.stat": "total_inactive_file 50000000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "0",
            "memory/memory.stat": "",
        },
        350 * MB,
    ),
    "more is used than may be": (
        "0::/\n",
        {"memory.max": "100", "memory.current": "200", "memory.stat": ""},
        0,
    ),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_free_memory_is_that_of_the_container(groups, tmp_path, monkeypatch):
    own, files, wanted = GROUPS[groups]
    for name, content in {"meminfo": MEMINFO, "own": own, **{f"groups/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for name, place in {"_MEMINFO": "meminfo", "_OWN_GROUPS": "own", "_GROUPS": "groups"}.items():
        monkeypatch.setattr(devices, name, tmp_path / place)
    assert devices.available_memory(torch.device("cpu")) == wanted


def test_nothing_global_is_changed(module, colors):
    X, y = colors

    def state():
        return (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.random.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002
            random.getstate(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    FrozenEncoder("tf_efficientnet_lite0", weights=None, image_size=32).transform(X[:2])
    CLPDistiller(FrozenEncoder(module, image_size=16), max_iter=2, random_state=0).fit(X, y).predict_proba(X)
    assert state() == before


def test_fit_works_whatever_the_callers_grad_mode(module, colors):
    X, y = colors
    wanted = CLPDistiller(FrozenEncoder(module, image_size=16), max_iter=2, random_state=0).fit(X, y).X_synthetic_
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            distiller = CLPDistiller(FrozenEncoder(module, image_size=16), max_iter=2, random_state=0).fit(X, y)
        np.testing.assert_array_equal(distiller.X_synthetic_, wanted)
