"""Robustness of several settings to long-tailed classes, wrong labels, and a spurious background.

    python benchmarks/robustness.py DATA [--size 64] [--seconds 30] [--seeds 1]

DATA holds ``train`` and ``val`` folders with one folder of images per class; apart from backgrounds, the test images are not
changed. The script writes benchmarks/results/robustness.md, and all figures to a .json file; runs that it contains are not
repeated.

* long tail: class ``c`` of ``C`` keeps ``50^(-c / (C-1))`` of its images;
* wrong labels: a fifth of the labels is replaced by other classes; compared with the correct labels;
* background: all images get a frame in one of C colours; in training it is the colour of the class in four cases of five, in
  testing a random one.
"""

from pathlib import Path

import numpy as np
from measure import format_mean, machine, recorded, study_parser, train_and_test, write_page
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from sklearn_clpdd import ClosedFormProbe, CLPDistiller, FrozenEncoder, allocate_images
from sklearn_clpdd.baselines import ClassCentroids, RandomSubset

FRAME = 0.15  # relative to the side


def framed(paths, colors, side):
    """Images with frames in the given colours."""
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in paths])
    inside = np.zeros((side, side, 1), dtype=bool)
    edge = round(FRAME * side)
    inside[edge:-edge, edge:-edge] = True
    return np.where(inside, images, colors[:, None, None].astype(np.uint8))


def long_tail(X, y, rng):
    classes = np.unique(y)
    keep = []
    for c, label in enumerate(classes):
        members = rng.permutation(np.flatnonzero(y == label))
        keep.append(members[: max(1, round(len(members) * 50 ** (-c / (len(classes) - 1))))])
    rows = np.sort(np.concatenate(keep))
    return X[rows], y[rows]


def wrong_labels(y, rng):
    classes, codes = np.unique(y, return_inverse=True)
    wrong = rng.random(len(y)) < 0.2
    return classes[np.where(wrong, (codes + rng.integers(1, len(classes), len(y))) % len(classes), codes)]


def main(arguments):
    X, y, X_test, y_test = map(np.array, train_and_test(arguments.folder))
    path, rows = arguments.results / "robustness.json", []
    encoder = FrozenEncoder(image_size=arguments.size, n_jobs=-1, memory=str(arguments.results / "cache"))

    def row(task, name, method, fit, test, groups=None, test_groups=None):
        """One row: balanced accuracy and worst-group accuracy."""
        records = []
        for seed in range(arguments.seeds):

            def work(seed=seed):
                estimator = method(seed).fit(*fit) if groups is None else method(seed).fit(*fit, groups=groups)
                predicted = estimator.predict(test[0])
                record = {"balanced": float(balanced_accuracy_score(test[1], predicted))}
                if test_groups is not None:
                    record["worst"] = float(
                        min(np.mean((predicted == test[1])[test_groups == g]) for g in np.unique(test_groups))
                    )
                return record

            settings = {"data": arguments.folder.name, "task": task, "name": name, "seed": seed, "size": arguments.size}
            records.append(recorded(path, settings | {"seconds": arguments.seconds}, work))
        worst = [record["worst"] for record in records if "worst" in record]
        rows.append([task, name, format_mean([record["balanced"] for record in records]), format_mean(worst)])

    def distilled(**parameters):
        budget = {"time_budget": arguments.seconds, "max_iter": 10**7}
        return lambda seed: CLPDistiller(encoder, random_state=seed, **budget, **parameters)

    def subset(kind):
        return lambda seed: kind(encoder, **({} if kind is ClassCentroids else {"random_state": seed}))

    class Probe:
        """The probe trained on all real images."""

        def __init__(self, **parameters):
            self.probe = ClosedFormProbe(**parameters)

        def fit(self, X, y):
            self.probe.fit(encoder.transform(X), y)
            return self

        def predict(self, X):
            return self.probe.predict(encoder.transform(X))

    rng = np.random.default_rng(0)
    test = (X_test, y_test)
    tail = long_tail(X, y, rng)
    row("long tail", "all real", lambda seed: Probe(), tail, test)
    row("long tail", "all real, class_weight='balanced'", lambda seed: Probe(class_weight="balanced"), tail, test)
    row("long tail", "random real", subset(RandomSubset), tail, test)
    row("long tail", "centroids", subset(ClassCentroids), tail, test)
    row("long tail", "distilled", distilled(), tail, test)
    row("long tail", "distilled, sampling='uniform'", distilled(sampling="uniform"), tail, test)
    row("long tail", "distilled, 30 in all", distilled(images_per_class=allocate_images(tail[1], 30)), tail, test)
    classes, counts = np.unique(tail[1], return_counts=True)
    shares = np.sqrt(counts) / np.sqrt(counts).sum()
    by_root = dict(zip(classes.tolist(), np.maximum(1, (30 * shares).round()).astype(int).tolist(), strict=True))
    row("long tail", f"distilled, by square roots: {list(by_root.values())}", distilled(images_per_class=by_root), tail, test)

    noisy = wrong_labels(y, rng)
    row("right labels", "all real", lambda seed: Probe(), (X, y), test)
    row("right labels", "distilled", distilled(), (X, y), test)
    row("20 % wrong labels", "all real", lambda seed: Probe(), (X, noisy), test)
    row("20 % wrong labels", "random real", subset(RandomSubset), (X, noisy), test)
    row("20 % wrong labels", "centroids", subset(ClassCentroids), (X, noisy), test)
    row("20 % wrong labels", "distilled", distilled(), (X, noisy), test)

    classes, codes = np.unique(y, return_inverse=True)
    hues = Image.fromarray(np.array([[(255 * c // len(classes), 220, 220) for c in range(len(classes))]], np.uint8), "HSV")
    colors = np.array(hues.convert("RGB"))[0]
    frames = np.where(rng.random(len(y)) < 0.8, codes, rng.integers(len(classes), size=len(y)))
    test_codes, test_frames = np.unique(y_test, return_inverse=True)[1], rng.integers(len(classes), size=len(y_test))
    spurious = framed(X, colors[frames], 2 * arguments.size), y
    test = framed(X_test, colors[test_frames], 2 * arguments.size), y_test
    agree = (test_codes == test_frames).astype(int)
    row("background", "all real", lambda seed: Probe(), spurious, test, None, agree)
    row("background", "distilled", distilled(), spurious, test, None, agree)
    row("background", "distilled, groups=", distilled(), spurious, test, frames, agree)

    intro = (
        f"`{arguments.folder.name}`, one image per class but where it says otherwise; views of {arguments.size} px, "
        f"{arguments.seconds:g} s of steps, {arguments.seeds} seed(s); closed-form probe; {machine()}; "
        f"`python benchmarks/robustness.py DIR --size {arguments.size} --seconds {arguments.seconds:g} "
        f"--seeds {arguments.seeds}`"
    )
    heads = ["task", "trained on", "balanced accuracy", "of the worse of two groups"]
    write_page(arguments.results, "robustness", intro, heads, rows)


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    main(parser.parse_args())
