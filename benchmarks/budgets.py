"""Accuracy of five probes on distilled, random real, and the most central real images, by the number of images per class.

    python benchmarks/budgets.py DATA [--size 112] [--seconds 300] [--images-per-class 1 10] [--seeds 3] [--output NAME] ...

DATA holds ``train`` and ``val`` folders with one folder of images per class. All distillers have the default settings, apart
from the options, and a time budget for the steps. The script writes benchmarks/results/budgets-<name of DATA>.md, and all figures
to a .json file; runs that it contains are not repeated. The number of epochs of the SGD head is divided by the square root of the
images per class. The share is relative to the accuracy of the same probe on all real images: the closed-form probe with its
strength chosen by leave-one-out; the SGD head with 1,000 steps of a hundred images, or as many as the largest set of the page
has. The last column is the accuracy on the training images, including the held-out ones.
"""

import math
from pathlib import Path

import numpy as np
from measure import format_mean, machine, recorded, study_parser, top1, train_and_test, write_page
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.baselines import ClassCentroids, RandomSubset
from sklearn_clpdd.evaluation import closed_form_probe_scores, probe_scores, sgd_probe_scores

PROBES = {
    "closed_form": "closed form",
    "closed_form_views": "closed form, on 20 views",
    "logistic": "LogisticRegression",
    "knn": "nearest neighbour",
    "sgd": "SGD head (LGM's protocol)",
}
SHARES = ("closed_form", "sgd")
METHODS = {"distilled": CLPDistiller, "random real": RandomSubset, "centroids": ClassCentroids}


def epochs_of(arguments, per_class):
    """Epochs of the SGD head."""
    return max(1, round(arguments.epochs / math.sqrt(per_class)))


def batches_of(n_images):
    """Steps per epoch of the SGD head."""
    return -(-n_images // 100)


def measured(arguments, encoder, data, path, method, per_class, seed):
    """Accuracies of the probes on one image set."""
    X, y, *test = data
    run = {"random_state": seed, "images_per_class": per_class}
    if method == "distilled":
        run |= {"time_budget": arguments.seconds, "max_iter": 10**7}
        if arguments.learn_targets:
            run["learn_targets"] = True
        if arguments.objective:
            run["objective"] = arguments.objective
        if arguments.temperature:
            run["temperature"] = arguments.temperature
    epochs = epochs_of(arguments, per_class)

    def work():
        fitted = METHODS[method](encoder, **run).fit(X, y)
        images, labels = fitted.transform(), fitted.y_synthetic_
        scores = top1(probe_scores(images, labels, *test, encoder=encoder, n_epochs=epochs, random_state=seed))
        if method == "distilled":
            return {"top1": scores, "steps": fitted.n_iter_, "train": fitted.score(X, y)}
        return {"top1": scores}

    settings = {"data": arguments.folder.name, "method": method, "size": arguments.size, "epochs": epochs}
    return recorded(path, settings | run, work, distilled=method == "distilled")


def all_real(arguments, encoder, data, path):
    """Accuracies on all real images; nearest neighbours and LogisticRegression use thousands of them."""
    X, y, *test = data
    n_classes = len(np.unique(y))
    most = max(epochs_of(arguments, k) * batches_of(k * n_classes) for k in arguments.images_per_class)
    epochs = max(1, round(max(most, 1000) / batches_of(len(X))))
    settings = {"data": arguments.folder.name, "method": "all real", "size": arguments.size}

    def work():
        scores = {"closed_form": closed_form_probe_scores(X, y, *test, encoder=encoder, alpha="loo")}
        scores["sgd"] = sgd_probe_scores(X, y, *test, encoder=encoder, n_epochs=epochs, random_state=0)
        return {"top1": top1(scores)}

    def of_scikit_learn():
        Z, Z_test = encoder.transform(X), encoder.transform(test[0])
        probes = {"logistic": LogisticRegression(max_iter=1000), "knn": KNeighborsClassifier(1)}
        return {"top1": {name: probe.fit(Z, y).score(Z_test, test[1]) for name, probe in probes.items()}}

    scores = recorded(path, settings | {"epochs": epochs}, work, distilled=False)["top1"]
    return scores | recorded(path, settings | {"probes": "scikit-learn's"}, of_scikit_learn, distilled=False)["top1"]


def main(arguments):
    data = train_and_test(arguments.folder)
    name = arguments.output or f"budgets-{arguments.folder.name}"
    path = arguments.results / f"{name}.json"
    encoder = FrozenEncoder(image_size=arguments.size, n_jobs=-1, memory=str(arguments.results / "cache"))
    real = all_real(arguments, encoder, data, path)
    rows = [["all real", len(data[0]), "", *(f"{real[probe]:.3f}" if probe in real else "" for probe in PROBES), "", "", ""]]
    for per_class in arguments.images_per_class:
        for method in arguments.methods:
            records = [measured(arguments, encoder, data, path, method, per_class, seed) for seed in range(arguments.seeds)]
            scores = {probe: [record["top1"][probe] for record in records] for probe in PROBES}
            shares = [f"{100 * np.mean(scores[probe]) / real[probe]:.0f} %" for probe in SHARES]
            steps = f"{np.mean([record['steps'] for record in records]):.0f}" if method == "distilled" else ""
            train = format_mean([record["train"] for record in records]) if method == "distilled" else ""
            rows.append([method, per_class * len(np.unique(data[1])), steps, *map(format_mean, scores.values()), *shares, train])
    shares = [f"share of all real, {PROBES[probe]}" for probe in SHARES]
    heads = ["", "images", "steps", *PROBES.values(), *shares, "closed form, training images"]
    seeds = "one seed" if arguments.seeds == 1 else f"mean ± standard deviation over {arguments.seeds} seeds"
    chosen = " ".join(f"'{method}'" if " " in method else method for method in arguments.methods)
    intro = (
        f"{len(data[0]):,} training and {len(data[2]):,} test images; views of {arguments.size} px; {arguments.seconds:g} s of "
        f"steps, {seeds}; {machine()}; `python benchmarks/budgets.py DIR "
        f"--size {arguments.size} --seconds {arguments.seconds:g} --seeds {arguments.seeds} --epochs {arguments.epochs} "
        f"--images-per-class {' '.join(map(str, arguments.images_per_class))}{' --learn-targets' * arguments.learn_targets}"
        f"{f' --objective {arguments.objective}' if arguments.objective else ''}"
        f"{f' --temperature {arguments.temperature:g}' if arguments.temperature else ''}"
        f"{f' --methods {chosen}' if arguments.methods != list(METHODS) else ''}"
        f"{f' --output {arguments.output}' if arguments.output else ''}`; the SGD head is trained for "
        f"{' and '.join(str(epochs_of(arguments, k)) for k in arguments.images_per_class)} epochs"
    )
    write_page(arguments.results, name, intro, heads, rows)


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--images-per-class", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1000, help="of LGM's protocol, over the root of the images per class")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--learn-targets", action="store_true")
    parser.add_argument("--objective", help="another one than the distiller's default")
    parser.add_argument("--temperature", type=float, help="one that is not set by the data")
    parser.add_argument("--output", help="name of the files, by default budgets-<name of DATA>")
    main(parser.parse_args())
