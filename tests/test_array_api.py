"""Tensors in, tensors out, under scikit-learn's array API dispatch: on the CPU here, and on a GPU in `test_cuda.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn
from sklearn.utils.fixes import parse_version

PROGRAM = Path(__file__).parent / "array_api_program.py"


def run(device):
    environment = os.environ | {"SCIPY_ARRAY_API": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, PROGRAM, device], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.skipif(parse_version(sklearn.__version__) < parse_version("1.8"), reason="scikit-learn dispatches torch from 1.8 on")
def test_tensors_in_tensors_out():
    run("cpu")
