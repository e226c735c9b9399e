"""A grid search on one process and on two: how long it takes, and how many images it encodes.

    python benchmarks/search.py [DIR] [--steps 15] [--size 112] [--jobs 2] [--repeats 3]

DIR holds ``train`` and ``val`` folders with one folder of images per class. Three searches, of a distiller, of a probe, and of
the encoder's preprocessing, have eight cells and two folds each; the cache is empty for the first fit and full for the second.
With one process torch has all threads, with several each has its share. Runs with one and with several alternate, and the
median of their ratios is given, with the least and the largest. benchmarks/results/search.md is written.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import joblib
import numpy as np
import torch
from measure import folder_argument, machine, study_parser, train_and_test, write_page
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder


def searches(size, steps):
    """Estimator by cache, and grid, of each search."""
    few = {"max_iter": steps, "random_state": 0}
    return {
        "distiller: alpha × start": (
            lambda cache: CLPDistiller(FrozenEncoder(image_size=size, memory=cache, n_jobs=-1), **few),
            {"alpha": [0.01, 0.1, 1.0, 10.0], "init": ["kmeans", "noise"]},
        ),
        "probe: kernel × alpha": (
            lambda cache: make_pipeline(FrozenEncoder(image_size=size, memory=cache, n_jobs=-1), ClosedFormProbe()),
            {"closedformprobe__kernel": ["linear", "rbf"], "closedformprobe__alpha": [0.01, 0.1, 1.0, 10.0]},
        ),
        "encoder: image size × crop": (
            lambda cache: make_pipeline(FrozenEncoder(memory=cache, n_jobs=-1), ClosedFormProbe()),
            {"frozenencoder__image_size": [64, 80, 96, 112], "frozenencoder__crop_pct": [0.875, 1.0]},
        ),
    }


def seconds_of_views(size, n_threads, n_views=30, repeats=10):
    """Of the encoder's forward pass and input gradient, the most of a distiller's step, on so many threads."""
    backbone, before = FrozenEncoder(image_size=size).load().backbone, torch.get_num_threads()
    views = torch.rand(n_views, 3, size, size, requires_grad=True)
    torch.set_num_threads(n_threads)
    backbone(views).sum().backward()
    begin = time.perf_counter()
    for _ in range(repeats):
        backbone(views).sum().backward()
    torch.set_num_threads(before)
    return (time.perf_counter() - begin) / repeats


def n_kept(cache):
    """Features in a cache."""
    return sum(len(np.load(path)) for path in Path(cache).rglob("*.keys.npy"))


def fits(make, grid, X, y, n_jobs):
    """Seconds and computed features of the first and the second fit of a search."""
    # Workers start and load the network before the measurement.
    joblib.Parallel(n_jobs)(joblib.delayed(warm)(112) for _ in range(8 * n_jobs))
    seen = []
    with tempfile.TemporaryDirectory() as cache:
        search = GridSearchCV(make(cache), grid, cv=2, n_jobs=n_jobs, refit=False)
        for _ in range(2):
            before, begin = n_kept(cache), time.perf_counter()
            search.fit(X, y)
            seen.append((time.perf_counter() - begin, n_kept(cache) - before))
    print(n_jobs, seen, flush=True)
    return seen


def main():
    parser = study_parser(__doc__)
    folder_argument(parser, "imagenette")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    X, y, *_ = train_and_test(arguments.folder)
    one, all_of_them = (seconds_of_views(arguments.size, n) for n in (1, torch.get_num_threads()))
    rows = []
    for name, (make, grid) in searches(arguments.size, arguments.steps).items():
        runs = [fits(make, grid, X, y, n_jobs) for _ in range(arguments.repeats) for n_jobs in (1, arguments.jobs)]
        for fit in (0, 1):
            alone, together = ([run[fit] for run in runs[first::2]] for first in (0, 1))
            ratios = [a[0] / b[0] for a, b in zip(alone, together, strict=True)]
            rows.append([name, ("first", "second")[fit]])
            rows[-1] += [f"{median(seconds for seconds, _ in own):.1f} s" for own in (alone, together)]
            rows[-1] += [f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
            rows[-1] += [max(kept for _, kept in own) for own in (alone, together)]
            print(rows[-1], flush=True)
    intro = (
        f"Searches of eight cells and two folds on {len(y):,} images of {arguments.folder.name}, EfficientNet-Lite0, "
        f"{arguments.size} px, {arguments.steps} steps of the distiller ({machine()}). Forward pass and input gradient of 30 "
        f"views take {one:.2f} s on one thread, and {all_of_them:.2f} s on all, {one / all_of_them:.2f} times as fast."
    )
    heads = [
        "search",
        "fit",
        "n_jobs=1",
        f"n_jobs={arguments.jobs}",
        "× as fast",
        "features computed",
        "the same, several processes",
    ]
    write_page(arguments.results, "search", intro, heads, rows)


def warm(size):
    FrozenEncoder(image_size=size).load()


if __name__ == "__main__":
    main()
