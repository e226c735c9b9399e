"""`ClosedFormProbe` beside scikit-learn's classifiers on the same features.

    python benchmarks/probe.py [SECTION ...] [--data DIR] [--output benchmarks/results]

Each section writes one table to its own file: ``speed`` (generated features: time, memory, agreement with `RidgeClassifierCV`),
``logistic`` (the logistic loss with one strength, beside `LogisticRegression`), ``real`` (the shared sets and scikit-learn's
digits: accuracy, log-loss, calibration), ``few`` (1 to 50 images per class, beside peers whose strength is chosen), ``losses``
(both losses with 10 to 100 images per class: from where on ``loss="auto"`` is logistic), ``small`` (fits on distilled sets),
``stream`` (1,281,167 rows of 768 half-precision features, from disk). DIR holds the image folders of ``real``, ``few`` and
``losses``; the default is ``$SKLEARN_CLPDD_DATA``.

Every estimator of ``speed``, ``logistic``, ``real`` and ``stream`` runs in its own process, one after the other, with
``OPENBLAS_CORETYPE`` and ``OPENBLAS_L2_SIZE`` unset, so that numpy's BLAS is at its fastest. Memory is the peak of the process
during ``fit`` minus the memory before it, without file-backed pages.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid

from sklearn_clpdd import ClosedFormProbe, FrozenEncoder
from sklearn_clpdd.datasets import load_image_folder

ALPHAS = np.logspace(-3, 3, 13)
IMAGENET = 1_281_167, 768, 1000


# (n, d, C, number of candidates)
SPEED = [(2_000, 1280, 10, 20), (10_000, 1280, 10, 20), (20_000, 768, 200, 10), (50_000, 768, 1000, 10)]

# (n, d, C) of the logistic loss.
LOGISTIC = [(20_000, 768, 200), (50_000, 768, 1000)]


def logistic_search(n_folds=5):
    """Logistic regression, its strength chosen by the log-loss of folds: scikit-learn's best one for probabilities."""
    return GridSearchCV(LogisticRegression(max_iter=300), {"C": np.logspace(-1, 3, 5)}, cv=n_folds, scoring="neg_log_loss")


def calibrated_ridge():
    """scikit-learn's closest to the squared loss."""
    return CalibratedClassifierCV(RidgeClassifierCV(ALPHAS), method="temperature", cv=5)


REAL = {
    "ClosedFormProbe()": lambda: ClosedFormProbe(),
    'ClosedFormProbe(loss="squared")': lambda: ClosedFormProbe(loss="squared"),
    'ClosedFormProbe(kernel="rbf")': lambda: ClosedFormProbe(kernel="rbf"),
    "RidgeClassifierCV, 13 alphas": lambda: RidgeClassifierCV(ALPHAS),
    "CalibratedClassifierCV(RidgeClassifierCV), temperature": calibrated_ridge,
    "LogisticRegression, 5-fold search": logistic_search,
    "LogisticRegressionCV": lambda: LogisticRegressionCV(Cs=np.logspace(-1, 3, 5), cv=5, max_iter=300, scoring="neg_log_loss"),
    "LDA, shrinkage": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
}
# Sets of `real`, and the size in pixels to which their images are resized.
SETS = [("imagenette", 112), ("imagenette", 224), ("cifar10", 64), ("cifar10", 224)]
SETS += [("tiny-imagenet-200", 64), ("tiny-imagenet-200", 224), ("digits", None)]

FEW = {
    "ClosedFormProbe()": lambda: ClosedFormProbe(),
    'ClosedFormProbe(loss="squared")': lambda: ClosedFormProbe(loss="squared"),
    "RidgeClassifierCV": lambda: RidgeClassifierCV(ALPHAS),
    "LogisticRegression": logistic_search,
    "LDA, shrinkage": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "nearest class mean": lambda: NearestCentroid(),
}


def resident():
    """Bytes in memory, without file-backed pages."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


class Measured:
    """Measure the seconds of a block, and its peak memory above that at its beginning."""

    def __enter__(self):
        self._done, self._before, self._peak = False, resident(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def _watch(self):
        while not self._done:
            self._peak = max(self._peak, resident())
            time.sleep(0.002)

    def __exit__(self, *error):
        self.seconds = time.perf_counter() - self._start
        self._done = True
        self._thread.join()
        self.megabytes = (self._peak - self._before) / 1e6


def in_process(task, **parameters):
    """The result of a function of this file in a new process."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    command = [sys.executable, __file__, "--task", json.dumps([task, parameters])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def generated(n, d, n_classes):
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n)
    means = 0.15 * rng.standard_normal((n_classes, d), dtype=np.float32)
    X = rng.standard_normal((n, d), dtype=np.float32)
    X += means[y]
    return X, y


def task_speed(name, shape, scoring):
    n, d, n_classes, n_alphas = shape
    X, y = generated(n, d, n_classes)
    alphas = np.logspace(-1, 5, n_alphas)
    if name == "ours":
        probe = ClosedFormProbe(alphas, loss="squared", scoring=scoring)
    else:
        probe = RidgeClassifierCV(alphas, scoring="accuracy" if scoring == "accuracy" else None)
    type(probe)(alphas).fit(X[:200], y[:200] % 3)  # starts threads and loads libraries
    with Measured() as cost:
        probe.fit(X, y)
    predictions = probe.predict(X[:10_000])
    return (
        cost.seconds,
        cost.megabytes,
        float(probe.alpha_),
        int(np.dot(predictions, np.arange(len(predictions)))),
        X.nbytes / 1e6,
    )


def speed():
    lines = [
        "| n, d, C, candidates | scoring | `ClosedFormProbe` | `RidgeClassifierCV` | ratio | same alpha, same predictions | "
        "memory above the features | the features |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for shape in SPEED:
        for scoring in ("accuracy", "neg_mean_squared_error"):
            if shape[2] == 1000 and scoring != "accuracy":
                continue
            ours, theirs = (in_process("speed", name=name, shape=shape, scoring=scoring) for name in ("ours", "theirs"))
            same = " and ".join(("no", "yes")[ours[i] == theirs[i]] for i in (2, 3))
            lines.append(
                f"| {', '.join(f'{number:,}' for number in shape)} | {scoring} | {ours[0]:.2f} s | {theirs[0]:.2f} s | "
                f"{theirs[0] / ours[0]:.1f} | {same} | {ours[1]:.0f} MB, {theirs[1]:.0f} MB | {ours[4]:.0f} MB |"
            )
            progress(lines[-1])
    return lines


def task_logistic(name, shape):
    X, y = generated(*shape)
    ours = ClosedFormProbe(1.0, loss="logistic", temperature=1.0)
    estimator = ours if name == "ours" else LogisticRegression(max_iter=1000, tol=float(name))
    type(estimator)().fit(X[:200], y[:200] % 3)
    with Measured() as cost:
        estimator.fit(X, y)
    scores = estimator.decision_function(X).astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(y)), y]
    return cost.seconds, cost.megabytes, float(losses.sum() + 0.5 * np.square(estimator.coef_, dtype=np.float64).sum())


def logistic():
    lines = [
        "| n, d, C | classifier, alpha = 1 / C = 1 | fit | times ours | objective | memory above the features |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ways = {"`ClosedFormProbe`": "ours", "`LogisticRegression()`": "1e-4", "`LogisticRegression(tol=1e-6)`": "1e-6"}
    for shape in LOGISTIC:
        ours = None
        for title, name in ways.items():
            seconds, megabytes, objective = in_process("logistic", name=name, shape=shape)
            ours = ours or seconds
            cells = [", ".join(f"{number:,}" for number in shape), title, f"{seconds:.2f} s", f"{seconds / ours:.1f}"]
            lines.append(f"| {' | '.join([*cells, f'{objective:,.1f}', f'{megabytes:.0f} MB'])} |")
            progress(lines[-1])
    return lines


def feature_file(name, size, cache):
    return Path(cache, f"{name}-{size}.npz")


def features(data, name, size, cache):
    """Features and labels of the training and validation images, cached in a file."""
    path = feature_file(name, size, cache)
    if name == "digits" and not path.exists():
        X, y = load_digits(return_X_y=True)
        even = np.arange(len(X)) % 2 == 0
        np.savez(path, X_train=X[even] / 16, y_train=y[even], X_val=X[~even] / 16, y_val=y[~even])
    if not path.exists():
        encoder = FrozenEncoder(image_size=size, n_jobs=-1)
        parts = {}
        for part in ("train", "val"):
            X, y = load_image_folder(Path(data, name, part))
            parts |= {f"X_{part}": encoder.transform(X), f"y_{part}": np.unique(y, return_inverse=True)[1]}
        np.savez(path, **parts)
    with np.load(path) as arrays:
        return [arrays[key] for key in ("X_train", "y_train", "X_val", "y_val")]


def calibration_error(probabilities, y, n_bins=15):
    """Expected calibration error of the most likely class, with bins of equal width."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [abs(right[bins == i].mean() - confidence[bins == i].mean()) * np.mean(bins == i) for i in np.unique(bins)]
    return float(np.sum(gaps))


def task_real(name, path):
    with np.load(path) as arrays:
        X, y, X_test, y_test = (arrays[key] for key in ("X_train", "y_train", "X_val", "y_val"))
    warnings.simplefilter("ignore")
    estimator = REAL[name]()
    ClosedFormProbe().fit(X[:50], np.arange(50) % 2)
    with Measured() as cost:
        estimator.fit(X, y)
    result = [cost.seconds, cost.megabytes, float(np.mean(estimator.predict(X_test) == y_test))]
    if hasattr(estimator, "predict_proba"):
        probabilities = estimator.predict_proba(X_test)
        result += [log_loss(y_test, probabilities), calibration_error(probabilities, y_test), least_error(probabilities)]
    return result


def least_error(probabilities, n_draws=20):
    """Mean calibration error of labels that are drawn from the probabilities: that of perfect ones on as many samples."""
    rng, totals = np.random.default_rng(0), probabilities.astype(np.float64).cumsum(axis=1)
    draws = (rng.random((n_draws, len(totals), 1)) * totals[:, -1:] > totals).sum(axis=2)
    return float(np.mean([calibration_error(probabilities, y) for y in draws]))


def real(data, cache):
    lines = [
        "| features | classifier | fit | memory | accuracy | log-loss | calibration error | that of labels drawn from it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, size in SETS:
        n, d = features(data, name, size, cache)[0].shape
        title = f"{name}, {size} px" if size else name
        for classifier in REAL:
            if classifier == "LogisticRegressionCV" and n > 3000:
                continue  # minutes, and beside the search nothing new
            seconds, megabytes, *scores = in_process("real", name=classifier, path=str(feature_file(name, size, cache)))
            cells = [f"{score:.3f}" for score in scores] + ["", "", ""]
            lines.append(
                f"| {title}, {n:,} × {d:,} | `{classifier}` | {seconds:.1f} s | {megabytes:.0f} MB | {' | '.join(cells[:4])} |"
            )
            progress(lines[-1])
    return lines


def few(data, cache):
    lines = [
        f"| features | images a class (draws) | {' | '.join(FEW)} | ours less the best peer |",
        "| --- | --- | " + "--- | " * (len(FEW) + 1),
    ]
    warnings.simplefilter("ignore")
    for name in ("imagenette", "cifar10", "tiny-imagenet-200"):
        X, y, X_test, y_test = features(data, name, 224, cache)
        classes = np.unique(y)
        for shots in (1, 5, 10, 50):
            many = len(classes) > 100
            n_draws = (2 if many else 5) if np.bincount(y).max() > shots else 1  # all there are
            scores = {classifier: [] for classifier in FEW}
            for seed in range(n_draws):
                rng = np.random.default_rng(seed)
                rows = np.concatenate([rng.choice(np.flatnonzero(y == label), shots, replace=False) for label in classes])
                for classifier, make in FEW.items():
                    if shots == 1 and classifier.startswith("LDA"):
                        continue  # no covariance within classes
                    if many and classifier == "LogisticRegression":
                        continue  # an hour
                    # One image a class leaves nothing to choose by.
                    chosen = LogisticRegression(max_iter=300) if shots == 1 and make is logistic_search else make()
                    scores[classifier].append(100 * np.mean(chosen.fit(X[rows], y[rows]).predict(X_test) == y_test))
            means = {classifier: np.mean(values) for classifier, values in scores.items() if values}
            ours = means["ClosedFormProbe()"]
            best = max(value for classifier, value in means.items() if not classifier.startswith("ClosedFormProbe"))
            cells = [f"{means[classifier]:.1f}" if classifier in means else "" for classifier in FEW]
            lines.append(f"| {name} | {shots} ({n_draws}) | {' | '.join(cells)} | {ours - best:+.2f} |")
            progress(lines[-1])
    return lines


def losses(data, cache):
    lines = [
        "| features | images a class (draws) | accuracy in %, squared and logistic | log-loss, squared and logistic |",
        "| --- | --- | --- | --- |",
    ]
    for name, shots in itertools.product(("imagenette", "cifar10", "tiny-imagenet-200"), (10, 20, 30, 50, 100)):
        X, y, X_test, y_test = features(data, name, 224, cache)
        classes, most = np.unique(y), np.bincount(y).max()
        if shots > most:
            continue
        n_draws = 1 if shots == most else (2 if len(classes) > 100 else 5)
        seen = []
        for seed in range(n_draws):
            rng = np.random.default_rng(seed)
            rows = np.concatenate([rng.choice(np.flatnonzero(y == label), shots, replace=False) for label in classes])
            fits = [ClosedFormProbe(loss=loss).fit(X[rows], y[rows]) for loss in ("squared", "logistic")]
            seen.append([[100 * fit.score(X_test, y_test), log_loss(y_test, fit.predict_proba(X_test))] for fit in fits])
        (squared, its_loss), (logistic_, other_loss) = np.mean(seen, axis=0)
        lines.append(f"| {name} | {shots} ({n_draws}) | {squared:.1f}, {logistic_:.1f} | {its_loss:.3f}, {other_loss:.3f} |")
        progress(lines[-1])
    return lines


def median_milliseconds(function, n_repeats):
    function()
    seconds = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


def task_small(n):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 1280), dtype=np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y = np.arange(n) % min(10, n // 2)
    Z, Y = torch.from_numpy(X), torch.from_numpy(np.eye(10, dtype=np.float32)[y])

    def bare():
        centred = Z - Z.mean(0)
        K = centred @ centred.T
        K.diagonal().add_(1.0)
        return centred.T @ torch.cholesky_solve(Y, torch.linalg.cholesky(K))

    fits = {
        "bare": bare,
        "given": lambda: ClosedFormProbe(1.0, temperature=0.2).fit(X, y),
        "calibrated": lambda: ClosedFormProbe(1.0).fit(X, y),
        "chosen": lambda: ClosedFormProbe().fit(X, y),
        "theirs": lambda: RidgeClassifier(1.0).fit(X, y),
    }
    n_repeats = 20 if n > 300 else 200
    return {name: median_milliseconds(fit, n_repeats) for name, fit in fits.items()}


def small():
    lines = [
        "| n, d = 1,280, float32 | torch's solve alone | `alpha=1, temperature=0.2` | `alpha=1` | defaults | `RidgeClassifier` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for n in (10, 30, 100, 300, 1000):
        cells = in_process("small", n=n)
        order = ("bare", "given", "calibrated", "chosen", "theirs")
        lines.append(f"| {n:,} | " + " | ".join(f"{cells[name]:.2f} ms" for name in order) + " |")
        progress(lines[-1])
    return lines


def task_stream(path):
    n, d, n_classes = IMAGENET
    X = np.load(path, mmap_mode="r")
    y = np.random.default_rng(0).integers(0, n_classes, n)
    batch, classes = 65_536, np.arange(n_classes)
    A = torch.from_numpy(X[:8192].astype(np.float64))
    rates = {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        B = A.to(dtype)
        rates[name] = 2 * len(B) * d * d / (median_milliseconds(lambda: B.T @ B, 9) / 1e3)  # noqa: B023
    probe = ClosedFormProbe(10.0, temperature=0.2)
    probe.partial_fit(X[:batch], y[:batch], classes=classes)
    held = resident()
    with Measured() as cost:
        for start in range(batch, n, batch):
            probe.partial_fit(X[start : start + batch], y[start : start + batch])
            if start == batch:
                first = resident()
    growth = (resident() - max(first, held)) / 1e6
    with Measured() as solve:
        coef = probe.coef_
    return {
        "seconds": cost.seconds,
        "rate": 2 * (n - batch) * d * d / cost.seconds,
        **rates,
        "peak": cost.megabytes,
        "growth": growth,
        "solve": solve.seconds,
        "norm": float(np.linalg.norm(coef)),
    }


def task_exact(path):
    """Coefficients from float16 batches compared with a float64 reference, on the first rows."""
    _, _, n_classes = IMAGENET
    X = np.load(path, mmap_mode="r")[:40_000]
    y = np.random.default_rng(0).integers(0, n_classes, IMAGENET[0])[:40_000]
    probe = ClosedFormProbe(10.0, temperature=0.2, dtype="float64")
    for start in range(0, len(X), 7_000):
        probe.partial_fit(X[start : start + 7_000], y[start : start + 7_000], classes=np.arange(n_classes))
    Z, Y = X.astype(np.float64), 2.0 * (y[:, None] == np.arange(n_classes)) - 1
    Z -= Z.mean(axis=0)
    W = np.linalg.solve(Z.T @ Z + 10.0 * np.eye(Z.shape[1]), Z.T @ (Y - Y.mean(axis=0)))
    return float(np.abs(probe.coef_ - W.T).max() / np.abs(W).max())


def stream():
    n, d, n_classes = IMAGENET
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "X.npy"))
        X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, d))
        rng = np.random.default_rng(1)
        means = 0.15 * rng.standard_normal((n_classes, d), dtype=np.float32)
        y = np.random.default_rng(0).integers(0, n_classes, n)
        for start in range(0, n, 65_536):
            part = X[start : start + 65_536]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32) + means[y[start : start + 65_536]]
        X.flush()
        del X
        error = in_process("exact", path=path)
        seen = in_process("stream", path=path)
    return [
        f"| `partial_fit` over {n:,} × {d} float16 from a memmap, {n_classes:,} classes | |",
        "| --- | --- |",
        f"| seconds, {(n - 65_536) / seen['seconds']:,.0f} rows a second | {seen['seconds']:.1f} |",
        f"| Gram update, 2·n·d² per second (GFLOP/s) | {seen['rate'] / 1e9:.0f} |",
        f"| torch's matrix product of 8,192 rows in float64 (GFLOP/s) | {seen['float64'] / 1e9:.0f} |",
        f"| the same in float32 (GFLOP/s) | {seen['float32'] / 1e9:.0f} |",
        f"| share of the float64 rate | {seen['rate'] / seen['float64']:.2f} |",
        f"| memory, peak above what the first batch left (MB) | {seen['peak']:.0f} |",
        f"| memory, growth from the second batch to the last (MB) | {seen['growth']:.0f} |",
        f"| solving for the coefficients (s) | {seen['solve']:.2f} |",
        f"| largest difference to a float64 reference, 40,000 rows, relative to the largest coefficient | {error:.0e} |",
    ]


def progress(line):
    print(line, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sections = ("speed", "logistic", "real", "few", "losses", "small", "stream")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections)}; all by default")
    parser.add_argument("--data", default=os.environ.get("SKLEARN_CLPDD_DATA"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--cache", help="folder that keeps the features of the image folders")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        name, parameters = arguments.task
        print(json.dumps(globals()[f"task_{name}"](**parameters)))
        return
    chosen = arguments.sections or sections
    if unknown := set(chosen) - set(sections):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    if not arguments.data and {"real", "few", "losses"} & set(chosen):
        parser.error("give --data, or set SKLEARN_CLPDD_DATA, to the folder that holds imagenette/ and cifar10/")
    header = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, scikit-learn {sklearn.__version__}, numpy "
        f"{np.__version__}; OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE unset; `python benchmarks/probe.py"
    )
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or temporary
        for section in chosen:
            lines = real(arguments.data, cache) if section == "real" else None
            lines = few(arguments.data, cache) if section == "few" else lines
            lines = losses(arguments.data, cache) if section == "losses" else lines
            lines = lines or {"speed": speed, "logistic": logistic, "small": small, "stream": stream}[section]()
            text = "\n".join([f"{header} {section}`", "", *lines, ""])
            print(text, flush=True)
            if arguments.output:
                arguments.output.mkdir(parents=True, exist_ok=True)
                (arguments.output / f"probe-{section}.md").write_text(text)


if __name__ == "__main__":
    main()
