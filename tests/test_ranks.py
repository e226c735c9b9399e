"""One fit on several processes of torch.distributed: the same result as on one, and what happens when one of them is lost."""

import os
import pickle
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import ranks_program as program
import torch
import torch.distributed as dist

from sklearn_clpdd import Checkpoint
from sklearn_clpdd.distill._identity import check_processes
from sklearn_clpdd.distill._loop import split_views
from sklearn_clpdd.utils._ranks import ALONE, Ranks, check_same

PROGRAM = program.__file__
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Outcomes of all scenarios in two processes that believe that torchrun has started them.

    torchrun's agent would end the first one, too, when the second one is killed.
    """
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_both = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen([sys.executable, PROGRAM, folder], env=ENVIRONMENT | of_both | {"RANK": str(rank)}) for rank in (0, 1)
    ]
    codes = [process.wait(timeout=300) for process in started]
    both = [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]
    return SimpleNamespace(folder=folder, both=both, codes=codes, outcomes=lambda name: [one[name][0] for one in both])


@pytest.fixture(autouse=True)
def one_thread():
    """The processes have one, and sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _same(one, other):
    for name in ("X", "coef", "targets"):
        np.testing.assert_array_equal(one[name], other[name])
    assert one["best"] == other["best"]
    assert _losses(one) == _losses(other)


def _losses(result):
    return [(record["loss"], record.get("val_loss")) for record in result["history"]]


ALONE_TOO = {
    "images": lambda X, y: program.distiller().fit(X, y),
    "cached": lambda X, y: program.distiller().fit(X, y),
    "points": lambda X, y: program.points().fit(*program.features()),
    "learned targets": lambda X, y: program.distiller(learn_targets=True).fit(X, y),
    "lgm": lambda X, y: program.distiller(program.LGMDistiller).fit(X, y),
    "noise, many chunks": lambda X, y: program.distiller(init="noise", encoder_batch_size=4).fit(X, y),
    "after all": lambda X, y: program.distiller().fit(X, y),
}


@pytest.mark.parametrize("name", ALONE_TOO)
def test_two_processes_learn_what_one_does(together, name):
    first, second = together.outcomes(name)
    _same(first, second)
    assert first["history"] == second["history"]
    _same(first, program.facts(ALONE_TOO[name](*program.images())))


def test_a_group_of_one_process_is_no_group():
    X, y = program.images()
    without = program.facts(program.distiller().fit(X, y))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        _same(program.facts(program.distiller().fit(X, y)), without)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("name", "what"), [("other data", "X, y"), ("other parameter", "alpha")])
def test_processes_that_differ_are_found_out_in_all_of_them(together, name, what):
    for said in together.outcomes(name):
        assert said.startswith("ValueError: the 2 processes of torch.distributed do not fit the same: they differ in")
        assert all(one in said for one in what.split(", "))
        assert "distributed=False" in said


def test_without_a_seed_that_of_the_first_process_counts(together):
    _same(*together.outcomes("no seed"))


def test_each_on_its_own(together):
    X, y = program.images()
    for rank, found in enumerate(together.outcomes("alone")):
        _same(found, program.facts(program.distiller(random_state=rank).fit(X, y)))


def test_all_processes_name_the_bad_images_of_one(together):
    first, second = together.outcomes("bad image")
    assert first == second
    assert "X[149], 10 bytes: not an image" in first


def test_a_callback_of_one_process_ends_the_run_in_all(together):
    first, second = together.outcomes("stop")
    _same(first, second)
    assert len(first["history"]) == 8


def test_an_error_of_a_callback_is_raised_there_and_told_elsewhere(together):
    first, second = together.outcomes("fail")
    assert first == "RuntimeError: a callback of process 1 has raised an error; see its output"
    assert second == "KeyError: 'mine'"


def test_callbacks_see_all_images(together):
    first, second = (np.load(together.folder / f"look-{rank}.npy") for rank in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert first.shape == together.outcomes("look")[0]["X"].shape


def test_a_callback_of_one_process_cannot_see_the_images(together):
    first, second = together.outcomes("look in one")
    assert first == "RuntimeError: a callback of process 1 has raised an error; see its output"
    assert second.startswith("RuntimeError: each process has some of the images")


def test_an_interrupt_of_one_process_ends_the_run_in_all(together):
    first, second = together.outcomes("interrupt")
    _same(first, second)
    assert len(first["history"]) in (8, 9)
    assert all("the images so far are kept" in one["interrupt"][1][0] for one in together.both)


def test_a_run_of_two_processes_goes_on_in_one(together):
    X, y = program.images()
    path = together.folder / "run"
    assert path.exists()
    resumed = program.facts(program.distiller(checkpoint=Checkpoint(path, every=5)).fit(X, y))
    _same(resumed, program.facts(program.distiller().fit(X, y)))


def test_a_process_that_fails_alone_does_not_leave_the_others_waiting(together):
    first, second = together.outcomes("fails in one")
    assert second == "ZeroDivisionError: only here"
    assert first.startswith("LostProcessError: process 0 of 2 has lost the others")


def test_processes_agree_on_time(together):
    first, second = together.outcomes("budget")
    _same(first, second)
    assert first["history"] == second["history"]


def test_a_process_that_is_killed(together):
    """The other one ends by itself, and says why; the run goes on from its checkpoint."""
    assert together.codes == [0, -9]
    said = together.both[0]["killed"][0]
    assert said.startswith("LostProcessError: process 0 of 2 has lost the others: one of them was killed")
    assert "checkpoint=" in said
    X, y = program.images()
    resumed = program.facts(program.distiller(checkpoint=Checkpoint(together.folder / "killed", every=4)).fit(X, y))
    _same(resumed, program.facts(program.distiller().fit(X, y)))


class _Several(Ranks):
    """Processes of which only this one exists."""

    def __init__(self, rank, size, others=()):
        self.rank, self.size, self.others = rank, size, others

    def of_all(self, value):
        return [value, *self.others]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("n", [8, 9, 10, 100, 1000])
def test_things_are_divided_equally_and_in_order(n, size):
    counts = _Several(0, size).counts(n)
    assert sum(counts) == n
    assert len(counts) == size
    assert max(counts) - min(counts) <= 1
    parts = [_Several(rank, size).own(n) for rank in range(size)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_chunks_of_several_processes_are_those_of_one(size):
    for m, k in ((16, 3), (50, 4), (101, 2), (1000, 4)):
        whole = split_views(m, k, 8)
        chunks = []
        for rank in range(size):
            own = _Several(rank, size).own(m)
            chunks += [
                (rows.start + k * own.start, rows.stop + k * own.start) for rows in split_views(own.stop - own.start, k, 8)
            ]
        if m // size * k >= 8:
            assert chunks == [(rows.start, rows.stop) for rows in whole]


def test_more_processes_than_images():
    distiller = program.distiller(images_per_class=1)
    data = distiller._validated(*program.images(), None)
    with pytest.raises(ValueError, match=r"6 processes cannot share 5 synthetic samples.*Start at most 5 processes"):
        check_processes(distiller, data, _Several(0, 6))
    check_processes(distiller, data, ALONE)


def test_other_parameters_are_shown():
    with pytest.raises(ValueError, match="differ in objective"):
        check_same(_Several(0, 2, [{"y": "a", "objective": "mse"}]), {"y": "a"})


def test_what_differs_is_shown():
    with pytest.raises(ValueError, match=r"differ in alpha \(alpha: process 0 has 1.0; process 1 has 2.0\)"):
        check_same(_Several(0, 2, [{"alpha": "2.0", "y": "a"}]), {"alpha": "1.0", "y": "a"})
