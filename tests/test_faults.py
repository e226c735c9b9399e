"""Killed processes, full disks, read-only folders: what was complete is not lost, what is half is not taken for whole."""

import ctypes
import errno
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from networks import tiny_encoder
from tqdm.auto import tqdm

from sklearn_clpdd import (
    Checkpoint,
    CLPDistiller,
    FrozenEncoder,
    distillation_report,
    load_distilled,
    save_distilled,
)
from sklearn_clpdd.baselines import RandomSubset
from sklearn_clpdd.distill._checkpoint import read_checkpoint
from sklearn_clpdd.encoder import _extractor as extractor_module
from sklearn_clpdd.encoder._feature_cache import feature_cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, killed and limited")
FORK = multiprocessing.get_context("fork") if sys.platform == "linux" else None
MODULE = tiny_encoder()
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
LABELS = np.arange(60) % 3


def encoder(**settings):
    return FrozenEncoder(MODULE, image_size=12, l2_normalize=False, device="cpu", **settings)


def distilled(seed):
    return RandomSubset(encoder(), images_per_class=9, random_state=seed).fit(IMAGES, LABELS)


def run(**settings):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)) + 3 * np.eye(3, 4)[LABELS]
    return CLPDistiller(None, random_state=0, **settings).fit(X, LABELS)


# Work without end, into `folder`; and what has to be true whenever it is killed.


def save(folder):
    sets = [distilled(seed) for seed in range(2)]
    while True:
        for one in sets:
            save_distilled(one, folder / "set", overwrite=True)


def saved(folder):
    """The set of one of the two seeds, at its place or, between two renames, beside it under the name that the error says."""
    if not (folder / "set").exists():
        (old,) = folder.glob(".set-*-old")
        with pytest.raises(FileNotFoundError, match=old.name):
            load_distilled(folder / "set")
        os.rename(old, folder / "set")
    images, _, _ = load_distilled(folder / "set")
    wanted = [np.rint(255 * distilled(seed).X_synthetic_).astype(np.uint8) for seed in range(2)]
    assert any(np.array_equal(images, one) for one in wanted)


def report(folder):
    fitted = distilled(0)
    while True:
        distillation_report(fitted, IMAGES, LABELS, folder / "report.html", overwrite=True)


def reported(folder):
    assert (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def cache(folder):
    while True:
        encoder(memory=folder / "cache").transform(np.random.default_rng().integers(0, 256, (40, 16, 16, 3)).astype(np.uint8))
        encoder(memory=folder / "cache").transform(IMAGES)


def cached(folder):
    np.testing.assert_allclose(encoder(memory=folder / "cache").transform(IMAGES), encoder().transform(IMAGES), atol=1e-6)


def checkpoint(folder):
    while True:
        (folder / "run").unlink(missing_ok=True) if random.random() < 0.3 else None
        run(max_iter=60, checkpoint=Checkpoint(folder / "run", every=1))


def continued(folder):
    if (folder / "run").exists():
        assert read_checkpoint(folder / "run")[1]["step"] <= 60
    whole = run(max_iter=60)
    np.testing.assert_allclose(run(max_iter=60, checkpoint=folder / "run").X_synthetic_, whole.X_synthetic_, atol=1e-5)
    (folder / "run").unlink()


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("work", "check"), [(save, saved), (report, reported), (cache, cached), (checkpoint, continued)])
def test_killed_at_random(work, check, times, tmp_path, monkeypatch):
    monkeypatch.setattr(extractor_module, "_BLOCK", 8)
    encoder().load()
    # After a backward pass of another test, a forked process has no threads for its own.
    context = multiprocessing.get_context("spawn") if work is checkpoint else FORK
    for _ in range(times):
        process = context.Process(target=work, args=(tmp_path,))
        process.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(tmp_path.rglob("*.*")):
            time.sleep(0.01)
        time.sleep(random.uniform(0.1, 0.6))
        while not any((tmp_path / name).exists() for name in ("set", "report.html", "cache", "run")):
            assert process.is_alive()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        check(tmp_path)


def _hold_the_lock_of_tqdm():
    tqdm.get_lock().acquire()
    time.sleep(60)


def _work_beside_a_killed_process():
    tqdm.get_lock()  # created before the fork, and so shared
    holder = FORK.Process(target=_hold_the_lock_of_tqdm)
    holder.start()
    time.sleep(0.5)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    encoder().transform(IMAGES)


def test_a_process_that_is_killed_within_tqdm_stops_no_other():
    process = FORK.Process(target=_work_beside_a_killed_process)
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0


def _outcome(function, arguments):
    """What a function returns, or its error, and its warnings."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return function(*arguments), [str(one.message) for one in caught]
    except Exception as error:
        return error, []


_FRESH = """
import os, pickle, sys
sys.path[:0] = pickle.load(sys.stdin.buffer)
import test_faults
function, arguments = pickle.load(sys.stdin.buffer)
os.write(int(sys.argv[1]), pickle.dumps(test_faults._outcome(function, arguments)))
"""


def _in_fresh_process(function, arguments):
    """As in a forked process, but with its own threads of autograd."""
    reading, writing = os.pipe()  # files of a process with a limit may not grow
    content = pickle.dumps(sys.path) + cloudpickle.dumps((function, arguments))
    command = [sys.executable, "-c", _FRESH, str(writing)]
    subprocess.run(command, input=content, pass_fds=[writing], timeout=120, check=True)
    os.close(writing)
    with open(reading, "rb") as file:
        return pickle.load(file)


def _in_child(function, *arguments):
    """Run in a forked process, and return what it returns or raise what it raises."""
    queue = FORK.Queue()
    process = FORK.Process(target=lambda: queue.put(_outcome(function, arguments)))
    process.start()
    result, messages = queue.get(timeout=120)
    process.join()
    if isinstance(result, RuntimeError) and "fork-based multiprocessing" in str(result):
        # Another test of this process has started threads of autograd, which a fork does not have.
        result, messages = _in_fresh_process(function, arguments)
    if isinstance(result, Exception):
        raise result
    return result, messages


def _with_small_files(function, limit):
    def limited(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return function(*arguments)

    return limited


def test_a_full_disk(tmp_path):
    """Files may not grow beyond a few bytes, as on a disk that is full."""
    first, second = distilled(0), distilled(1)
    save_distilled(first, tmp_path / "set")
    page = distillation_report(first, IMAGES, LABELS, tmp_path / "report.html")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    overwrite = {"overwrite": True}
    for work in (
        lambda: save_distilled(second, tmp_path / "set", **overwrite),
        lambda: distillation_report(second, IMAGES, LABELS, page, **overwrite),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is compared)
            _in_child(_with_small_files(work, 700))
        assert caught.value.errno == errno.EFBIG
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    wanted = encoder().transform(IMAGES)
    found, messages = _in_child(_with_small_files(lambda: encoder(memory=tmp_path / "cache").transform(IMAGES), 700))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert any("could not be cached" in message for message in messages)
    samples, messages = _in_child(
        _with_small_files(lambda: run(max_iter=6, checkpoint=Checkpoint(tmp_path / "run", every=2)).X_synthetic_, 300)
    )
    np.testing.assert_allclose(samples, run(max_iter=6).X_synthetic_, atol=1e-6)
    assert any("checkpoint could not be written" in message for message in messages), messages
    assert not (tmp_path / "run").exists()
    np.testing.assert_allclose(encoder(memory=tmp_path / "cache").transform(IMAGES), wanted, atol=1e-6)


def _unprivileged(function):
    """Permissions apply to root as well: without the capabilities to override them (linux/capability.h)."""

    def unprivileged(*arguments):
        libc = ctypes.CDLL(None)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, data)
        data[0] &= ~0b1110  # effective: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        assert libc.capset(header, data) == 0
        return function(*arguments)

    return unprivileged


@pytest.fixture
def locked():
    """A folder that the test makes read-only."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chmod(folder, 0o755)
        yield folder
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                os.chmod(path, 0o755)


def _read_only(folder):
    for path in [folder, *folder.rglob("*")]:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)


def test_a_folder_that_turns_read_only(locked):
    first, second = distilled(0), distilled(1)
    save_distilled(first, locked / "set")
    distillation_report(first, IMAGES, LABELS, locked / "report.html")
    encoder(memory=locked / "cache").transform(IMAGES[:30])
    before = {path: path.read_bytes() for path in locked.rglob("*") if path.is_file()}
    _read_only(locked)
    for work in (
        lambda: save_distilled(second, locked / "set", overwrite=True),
        lambda: distillation_report(second, IMAGES, LABELS, locked / "report.html", overwrite=True),
    ):
        with pytest.raises(PermissionError):
            _in_child(_unprivileged(work))
    found, messages = _in_child(_unprivileged(lambda: encoder(memory=locked / "cache").transform(IMAGES)))
    np.testing.assert_allclose(found, encoder().transform(IMAGES), atol=1e-6)
    assert sum("could not be cached" in message for message in messages) == 1
    _, messages = _in_child(_unprivileged(lambda: run(max_iter=6, checkpoint=Checkpoint(locked / "run", every=1)).X_synthetic_))
    assert any("checkpoint could not be written" in message for message in messages)
    assert {path: path.read_bytes() for path in locked.rglob("*") if path.is_file()} == before


def test_a_cache_that_cannot_be_made_is_an_error_before_the_work(locked, tmp_path):
    _read_only(locked)
    with pytest.raises(PermissionError, match=r"memory=.* cannot be used as a folder for features .*pass a folder"):
        _in_child(_unprivileged(lambda: encoder(memory=locked / "cache").transform(IMAGES)))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"memory=.*file'? cannot be used as a folder for features"):
        encoder(memory=tmp_path / "file").transform(IMAGES)
    assert (tmp_path / "file").read_text() == "mine"


def _encode(folder, queue):
    queue.put(encoder(memory=folder).transform(IMAGES))


def test_eight_processes_on_one_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(extractor_module, "_BLOCK", 7)
    wanted = encoder().transform(IMAGES)
    queue = FORK.Queue()
    processes = [FORK.Process(target=_encode, args=(tmp_path / "cache", queue)) for _ in range(8)]
    for process in processes:
        process.start()
    for _ in processes:
        np.testing.assert_allclose(queue.get(timeout=120), wanted, atol=1e-6)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    np.testing.assert_allclose(encoder(memory=tmp_path / "cache").transform(IMAGES), wanted, atol=1e-6)


def test_the_cache_can_be_bounded(tmp_path):
    import joblib

    memory = joblib.Memory(tmp_path / "cache", verbose=0)
    wanted = encoder(memory=memory).transform(IMAGES)
    other = encoder(memory=memory, crop_pct=0.5).transform(IMAGES)

    def folders():
        return len({path.parent for path in (tmp_path / "cache").rglob("*.keys.npy")})

    assert folders() == 2
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.npy"))
    memory.reduce_size(bytes_limit=int(0.7 * size))
    assert folders() == 1
    np.testing.assert_allclose(encoder(memory=memory).transform(IMAGES), wanted, atol=1e-6)
    memory.reduce_size(bytes_limit=0)
    assert folders() == 0
    np.testing.assert_allclose(encoder(memory=memory, crop_pct=0.5).transform(IMAGES), other, atol=1e-6)


def test_a_cached_file_that_cannot_be_read_for_now_is_kept(tmp_path, monkeypatch):
    """Unlike a damaged one, which would be found, and computed again, by every process."""
    wanted = encoder(memory=tmp_path).transform(IMAGES)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    load = np.load

    def failing(path, *args, **kwargs):
        if not str(path).endswith(".keys.npy"):
            raise OSError(errno.EIO, "Input/output error")
        return load(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", failing)
        np.testing.assert_allclose(encoder(memory=tmp_path).transform(IMAGES), wanted, atol=1e-6)
    assert all(path.read_bytes() == content for path, content in files.items())
    for path in set(tmp_path.rglob("*.npy")) - set(files):  # what was computed meanwhile
        path.unlink()
    feature_cache.cache_clear()
    (damaged,) = [path for path in files if not path.name.endswith(".keys.npy")]
    damaged.write_bytes(files[damaged][:-9] + bytes(9))
    np.testing.assert_allclose(encoder(memory=tmp_path).transform(IMAGES), wanted, atol=1e-6)
    assert not damaged.exists()
