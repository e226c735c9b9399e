"""Structure of the package: import direction, file length, and absence of side effects."""

import ast
import random
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch

import sklearn_clpdd
from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.utils import _device as devices

ROOT = Path(sklearn_clpdd.__file__).parent
# A package, or module at the top, imports only from those before it.
PACKAGES = [
    "_version",
    "utils",
    "probe",
    "encoder",
    "distill",
    "plot",
    "baselines",
    "evaluation",
    "datasets",
    "io",
    "__init__",
    "cli",
    "__main__",
]
# Files whose only direct third-party import is torch.
MATHS = [
    "utils/_ridge",
    "probe/_leave_one_out",
    "probe/_moments",
    "encoder/_folding",
    "encoder/_frozen_layers",
    "distill/_loop",
    "distill/_objectives",
    "distill/_parametrizations",
]
FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


def _imports(name):
    """Files of the package, and dotted names of other packages, that a file imports anywhere."""
    inside, outside = set(), set()
    folder = name.split("/")[:-1]
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            target = "/".join([*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]).strip("/")
            inside.add(target if target in FILES else f"{target}/__init__")
    return inside, outside


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    inside, outside = _imports(name)
    own = name.split("/")[0]
    before = PACKAGES[: PACKAGES.index(own)]
    assert {other.split("/")[0] for other in inside} <= {own, *before}
    assert not [other for other in outside if other.startswith("sklearn_clpdd")], "an absolute import"


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in FILES])
def test_no_import_cycles(package):
    graph = {name: _imports(name)[0] for name in FILES if name.startswith(f"{package}/")}
    assert graph
    TopologicalSorter(graph).prepare()  # raises for a cycle


@pytest.mark.parametrize("name", MATHS)
def test_numerical_files_import_only_torch(name):
    borrowed = {other.split(".")[0] for other in _imports(name)[1]} - sys.stdlib_module_names
    assert borrowed == {"torch"}


@pytest.mark.parametrize("name", [name for name in FILES if name != "utils/_sklearn_compat"])
def test_private_parts_of_scikit_learn_are_used_in_one_place(name):
    dotted = [other.split(".") for other in _imports(name)[1] if other.startswith("sklearn.")]
    assert not [parts for parts in dotted if any(part.startswith("_") for part in parts)]


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short(name):
    source = FILES[name].read_text()
    assert source.count("\n") <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            documentation = node.body[0] if ast.get_docstring(node) else None
            lines = node.end_lineno - node.lineno + 1
            if documentation is not None:
                lines -= documentation.end_lineno - documentation.lineno + 1
            assert lines <= 50 or node.name == "__init__", f"{node.name} has {lines} lines"


def test_import_loads_neither_timm_nor_matplotlib():
    code = "import sys, sklearn_clpdd; sys.exit(' '.join({'timm', 'torchvision', 'matplotlib'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MEMINFO = "MemTotal: 99 kB\nMemAvailable: 1000000 kB\n"
MB = 10**6
# Files of control groups, and the memory that a process can still allocate in all of them.
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
def test_available_memory_is_that_of_the_container(groups, tmp_path, monkeypatch):
    own, files, wanted = GROUPS[groups]
    for name, content in {"meminfo": MEMINFO, "own": own, **{f"groups/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for name, place in {"_MEMINFO": "meminfo", "_OWN_CGROUPS": "own", "_CGROUPS": "groups"}.items():
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
