"""500 cases of ``benchmarks/fuzz.py``, and its own judgement: it finds faults that are put into the library."""

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import fuzz


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit of memory is read from Linux")
def test_generated_and_mutated_inputs():
    results = fuzz.supervise(1, 0, 500, 1, "", time.monotonic() + 240)
    assert [result["number"] for result in results] == list(range(500))
    assert not [result for result in results if result["outcome"] not in ("equal", "refused")]
    outcomes = Counter((result["kind"], result["outcome"]) for result in results)
    assert all(outcomes[kind, "equal"] for kind in fuzz.KINDS)
    assert all(outcomes[kind, "refused"] for kind in fuzz.KINDS if kind != "cached_features")


def _case(kind, seed, folder):
    number = list(fuzz.KINDS).index(kind)
    (folder / "root" / "case").mkdir(parents=True)
    return fuzz.run_case(seed, number, folder / "root" / "case")["outcome"]


@pytest.mark.parametrize(
    ("kind", "attribute", "wrong", "outcome"),
    [
        ("pictures", "encoder._resampling.Pixels.white", None, "WRONG"),
        ("pictures", "encoder.images._decoding._strip", lambda image: 1 / 0, "WRONG"),
        ("labels", "probe._input.as_labels", lambda y: {}["missing"], "UNDOCUMENTED"),
    ],
)
def test_faults_are_found(kind, attribute, wrong, outcome, tmp_path, monkeypatch):
    if wrong is None:
        monkeypatch.setattr("sklearn_clpdd.encoder.images._decoding._white", lambda image: 200.0)
    else:
        monkeypatch.setattr(f"sklearn_clpdd.{attribute}", wrong)
    outcomes = [_case(kind, seed, tmp_path / str(seed)) for seed in range(12)]
    assert outcome in outcomes
