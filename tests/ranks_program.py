"""What each of two processes does in `test_ranks.py`: `python ranks_program.py OUTPUT`. In the end, the second one is killed."""

import os
import pickle
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from sklearn_clpdd import DSA, Checkpoint, CLPDistiller, FrozenEncoder
from sklearn_clpdd.baselines import LGMDistiller

FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else None
RANK = int(os.environ.get("RANK", "0"))


def network():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 5, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 12, 3, stride=2), torch.nn.ReLU()
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def images(n=150):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 5
    X = rng.integers(0, 128, (n, 24, 24, 3)).astype(np.uint8)
    X[np.arange(n), :, :, y % 3] += (20 * (1 + y))[:, None, None].astype(np.uint8)
    return X, np.array(["a", "b", "c", "d", "e"])[y]


def encoder(**parameters):
    return FrozenEncoder(network(), image_size=20, batch_size=16, device="cpu", **{"dtype": "float32", **parameters})


def distiller(kind=CLPDistiller, **parameters):
    chosen = {"images_per_class": 2, "augmentation": DSA(n_views=2), "max_iter": 30, "random_state": 0} | parameters
    return kind(encoder(), **chosen)


def points(**parameters):
    return CLPDistiller(None, max_iter=30, images_per_class=3, random_state=0, **parameters)


def features(dtype=np.float64):
    X, y = images()
    return X[:, ::6, ::6].reshape(len(X), -1).astype(dtype), y


def facts(fitted):
    return {
        "X": fitted.X_synthetic_,
        "coef": fitted.probe_.coef_,
        "targets": fitted.targets_,
        "history": fitted.history_,
        "best": (fitted.best_iter_, fitted.val_loss_, fitted.val_accuracy_),
    }


class StopsAt:
    def __init__(self, step, what):
        self.step, self.what = step, what

    def __call__(self, fitted, record):
        if record["step"] == self.step:
            self.what(fitted)


def _raise(error):
    raise error


class FailsInOne:
    """An objective that fails in one process only."""

    fingerprint = "fails in one"

    def __init__(self):
        self.calls = 0

    def __call__(self, Z, Y, R, r):
        self.calls += 1
        if RANK == 1 and self.calls == 5:
            raise ZeroDivisionError("only here")
        return (Z.mean(0) - R.mean(0)).square().sum()


def scenarios():
    X, y = images()
    bad = [*X[:-1], b"no picture"]
    callback = {
        "stop": StopsAt(7, lambda fitted: _raise(StopIteration)) if RANK == 1 else None,
        "fail": StopsAt(7, lambda fitted: _raise(KeyError("mine"))) if RANK == 1 else None,
        "interrupt": StopsAt(7, lambda fitted: os.kill(os.getpid(), signal.SIGINT)) if RANK == 1 else None,
        "look": StopsAt(7, lambda fitted: np.save(FOLDER / f"look-{RANK}.npy", fitted.transform())),
    }
    path = FOLDER / "run"
    return {
        "images": lambda: facts(distiller().fit(X, y)),
        "cached": lambda: facts(distiller().set_params(encoder=encoder(memory=FOLDER / "cache")).fit(X, y)),
        "points": lambda: facts(points().fit(*features())),
        "learned targets": lambda: facts(distiller(learn_targets=True).fit(X, y)),
        "lgm": lambda: facts(distiller(LGMDistiller).fit(X, y)),
        "noise, many chunks": lambda: facts(distiller(init="noise", encoder_batch_size=4).fit(X, y)),
        "other data": lambda: distiller().fit(X[RANK:], y[RANK:]),
        "other parameter": lambda: distiller(alpha=1.0 + RANK).fit(X, y),
        "no seed": lambda: facts(distiller(random_state=None).fit(X, y)),
        "alone": lambda: facts(distiller(distributed=False, random_state=RANK).fit(X, y)),
        "bad image": lambda: distiller().fit(bad, y),
        "stop": lambda: facts(distiller(callback=callback["stop"]).fit(X, y)),
        "fail": lambda: distiller(callback=callback["fail"]).fit(X, y),
        "look": lambda: facts(distiller(callback=callback["look"]).fit(X, y)),
        "look in one": lambda: distiller(callback=callback["look"] if RANK == 1 else None).fit(X, y),
        "interrupt": lambda: facts(distiller(callback=callback["interrupt"]).fit(X, y)),
        "checkpoint": lambda: facts(distiller(callback=callback["stop"], checkpoint=Checkpoint(path, every=5)).fit(X, y)),
        "fails in one": lambda: distiller(objective=FailsInOne()).fit(X, y),
        "budget": lambda: facts(distiller(time_budget=0.5, max_iter=10_000).fit(X, y)),
        "after all": lambda: facts(distiller().fit(X, y)),
    }


def killed():
    """The second process is killed in its tenth step."""
    X, y = images()
    kill = StopsAt(10, lambda fitted: os.kill(os.getpid(), signal.SIGKILL)) if RANK == 1 else None
    return distiller(callback=kill, checkpoint=Checkpoint(FOLDER / "killed", every=4)).fit(X, y)


def outcome(work):
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = work()
        return found, [str(one.message) for one in warned]
    except Exception as error:
        return f"{type(error).__name__}: {error}", []


if __name__ == "__main__":
    results = {name: outcome(work) for name, work in scenarios().items()}
    (FOLDER / f"{RANK}.pickle").write_bytes(pickle.dumps(results))
    results["killed"] = outcome(killed)
    (FOLDER / f"{RANK}.pickle").write_bytes(pickle.dumps(results))
