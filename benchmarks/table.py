"""The table of methods: all on the same images, with the same encoder and the same evaluations.

    python benchmarks/table.py DATA [--size 112] [--seconds 60] [--seeds 3] [--methods NAME ...] [--published] [--output DIR] ...

DATA holds ``train`` and ``val`` (or ``test``) folders with one folder of images per class. Each run (a method, a time budget, a
seed) has its own process, for its peak memory; runs with the same settings are not repeated. The results are written to
``table.md``, ``table.png`` and, with all figures, ``table.json`` in DIR, by default benchmarks/results/table-<name of DATA>.

The budget covers the steps: the real images are encoded once for all runs, and their features are cached. All methods share
loop, encoder and, but for those with all published settings, the pyramid. Those "from noise" see random views only, at the rate
that is the best one for LGM on held-out training images (``rates.py``). Evaluations: the closed-form probe; LGM's protocol, a
linear head trained by Adam on random crops (``--epochs``), last epoch; a head that begins with zeros and sees the images
themselves, for about 1,000 steps. Under other encoders also classifier inheritance: the probe of all real images behind the first
encoder, reached through a linear map that is fitted to views of the images. Nothing is chosen by the test set.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from measure import defaults, format_mean, machine, memory_in_use, peak_memory, protocol_digest, reset_peak_memory, table, warm
from sklearn.base import clone
from tqdm import tqdm

from sklearn_clpdd import DSA, ClosedFormProbe, CLPDistiller, FrozenEncoder, LinearSchedule
from sklearn_clpdd.baselines import (
    LGM_PUBLISHED,
    SFM_PUBLISHED,
    ClassCentroids,
    CoreSet,
    DMDistiller,
    LGMDistiller,
    NearestReals,
    RandomSubset,
    SFMDistiller,
)
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.evaluation import closed_form_probe_scores, inherited_probe_scores, sgd_probe_scores, transfer_scores
from sklearn_clpdd.evaluation._probes import BATCH_SIZE
from sklearn_clpdd.utils._fingerprint import fingerprint


class Method(NamedTuple):
    """A row: its title, estimator and parameters, and whether it has a time budget."""

    title: str
    kind: type | None
    settings: dict
    timed: bool = True


# Published methods start from noise and use random views only; the rate is the best one for LGM by `rates.py`.
_FROM_NOISE = {
    "init": "noise",
    "augmentation": DSA(unaugmented_weight=0.0),
    "sampling": "uniform",
    "learning_rate": LinearSchedule(0.1, warmup_steps=0),
}
METHODS = {
    "random": Method("random real images", RandomSubset, {}, timed=False),
    "centroids": Method("nearest to k-means centres", ClassCentroids, {}, timed=False),
    "herding": Method("herding", CoreSet, {}, timed=False),
    "k-center": Method("k-center greedy", CoreSet, {"strategy": "k_center"}, timed=False),
    "nearest": Method("nearest real images of `CLPDistiller()`", NearestReals, {}, timed=False),
    "dm": Method("feature-mean matching (DM), from noise", DMDistiller, _FROM_NOISE),
    "sfm": Method(
        "SFM, from noise, one view", SFMDistiller, {**_FROM_NOISE, "augmentation": DSA(n_views=1, unaugmented_weight=0.0)}
    ),
    "lgm": Method("LGM without random views", LGMDistiller, {**_FROM_NOISE, "augmentation": None}),
    "lgm-published": Method("LGM, all published settings", LGMDistiller, LGM_PUBLISHED, timed=False),
    "sfm-published": Method("SFM, all published settings", SFMDistiller, SFM_PUBLISHED, timed=False),
    "lgm-dsa": Method("LGM, from noise", LGMDistiller, _FROM_NOISE),
    "lgm-ours": Method("`LGMDistiller()`", LGMDistiller, {}),
    "clp-paper": Method(
        "CLP-DD of the paper, from noise",
        CLPDistiller,
        {"objective": "cosine_cross_entropy", "temperature": 0.1, **_FROM_NOISE},
    ),
    "clp-mse": Method('`CLPDistiller(objective="mse")`', CLPDistiller, {"objective": "mse"}),
    "clp-ce": Method('`CLPDistiller(objective="cross_entropy")`', CLPDistiller, {"objective": "cross_entropy"}),
    "clp": Method("`CLPDistiller(augmentation=None)`", CLPDistiller, {"augmentation": None}),
    "clp-dsa": Method("`CLPDistiller()`", CLPDistiller, {}),
    "real": Method("all real images", None, {}, timed=False),
}
PROTOCOLS = {"closed_form": "closed-form probe", "sgd": "LGM's protocol", "sgd_zero": "head from zero"}
# Those of the plot and of the tables by budget, and those under other encoders.
MAIN = ("closed_form", "sgd")
TRANSFER = {"closed_form": "closed-form probe", "sgd": "LGM's protocol", "inherited": "inherited probe"}
ZERO_START = {"initial_std": 0.0, "learning_rate": 3e-4, "augmentation": None}
PUBLISHED = ("lgm-published", "sfm-published")
DEFAULT = [name for name in METHODS if name not in (*PUBLISHED, "nearest", "lgm", "clp-ce", "clp")]
# The file names of a run with a time budget contain its seconds.
_UNTIMED = 0.0


class Data(NamedTuple):
    """Training and test images, and groups of the latter."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    groups: np.ndarray | None = None


class Run(NamedTuple):
    """One run of a method."""

    encoder: str
    method: str
    seconds: float
    seed: int

    @property
    def name(self):
        budget = f"-{self.seconds:g}s" if self.seconds else ""
        return f"{re.sub(r'[^A-Za-z0-9_.]', '-', self.encoder)}-{self.method}{budget}-{self.seed}"


def add_options(parser, *, size=112, output=None):
    """Options other than the data set, shared with `paper.py`."""
    parser.add_argument("--encoder", nargs="+", default=["tf_efficientnet_lite0"], help="distilled with, one table for each")
    parser.add_argument("--transfer-to", nargs="*", default=[], help="encoders that the images are evaluated with as well")
    parser.add_argument("--weights", choices=("auto", "none"), default="auto", help="none: untrained encoders")
    parser.add_argument("--size", type=int, default=size, help="side of the views, in pixels")
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--seconds", type=float, nargs="+", default=[60], help="budgets of the steps; the table has the last")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1000, help="of LGM's protocol")
    parser.add_argument("--heads", type=int, default=1, help="of LGM's protocol, for each seed")
    parser.add_argument("--transfer-heads", type=int, default=1, help="the same under the other encoders; 0: none")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT)
    parser.add_argument("--published", action="store_true", help="LGM and SFM with their published settings, too: 5,000 steps")
    parser.add_argument("--published-views", type=int, default=LGM_PUBLISHED["augmentation"].n_views, help="of LGM")
    parser.add_argument("--published-steps", type=int, default=LGM_PUBLISHED["max_iter"])
    parser.add_argument("--map-views", type=int, default=100, help="of each image, for the map of an inherited probe")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--run", help=argparse.SUPPRESS)


def encoder_of(arguments, name, **parameters):
    return FrozenEncoder(
        name,
        weights=None if arguments.weights == "none" else arguments.weights,
        image_size=arguments.size,
        n_jobs=-1,
        memory=str(arguments.output / "cache"),
        device=arguments.device,
        **parameters,
    )


def runs_of(arguments):
    """All runs; those that others depend on come first."""
    methods = [*arguments.methods, *(PUBLISHED if arguments.published else ())]
    methods = [name for name in METHODS if name in methods]
    order = sorted(methods, key=lambda name: name == "nearest")
    return [
        Run(encoder, method, seconds, seed)
        for encoder, method in product(arguments.encoder, order)
        for seconds in (arguments.seconds if METHODS[method].timed else [_UNTIMED])
        for seed in range(arguments.seeds if method not in ("real", *PUBLISHED) else 1)
    ]


def settings_of(arguments, run, data):
    """Everything that the figures of a run depend on."""
    names = ("size", "weights", "images_per_class", "epochs", "heads", "transfer_heads", "device")
    settings = {name: getattr(arguments, name) for name in names} | run._asdict() | {"defaults": defaults()}
    settings |= {"protocol": protocol_digest(), "images": [len(data.X), len(data.X_test), str(Path(data.X[0]).parent.parent)]}
    settings["zero_start"], settings["transfer_to"] = ZERO_START, others_of(arguments, run)
    if settings["transfer_to"]:
        settings["inherited"] = inheritance_of(arguments)
    settings["parameters"] = {name: getattr(value, "__name__", value) for name, value in METHODS[run.method].settings.items()}
    if run.method == "nearest":
        settings["of"] = settings_of(arguments, distilled_of(arguments, run), data)
    if run.method in PUBLISHED:
        settings["steps"] = arguments.published_steps
    if run.method == "lgm-published":
        settings["views"] = arguments.published_views
    return json.loads(json.dumps(settings, default=fingerprint))


def distilled_of(arguments, run):
    """The run whose nearest real images these are."""
    return run._replace(method="clp-dsa", seconds=arguments.seconds[-1])


def others_of(arguments, run):
    """Other encoders that a run is evaluated with; only for the largest budget."""
    return arguments.transfer_to if run.seconds in (_UNTIMED, arguments.seconds[-1]) else []


def file_of(arguments, run, suffix):
    return arguments.output / "runs" / f"{run.name}{suffix}"


def estimator_of(arguments, run, encoder, n_classes, checkpoint):
    """The estimator of a run."""
    method = METHODS[run.method]
    if run.method == "nearest":
        return NearestReals(joblib.load(file_of(arguments, distilled_of(arguments, run), ".joblib")))
    parameters = {"images_per_class": arguments.images_per_class, **method.settings}
    if "random_state" in method.kind._get_param_names():
        parameters["random_state"] = run.seed
    if method.timed:
        parameters |= {"time_budget": run.seconds, "max_iter": 10**7}
    if run.method in PUBLISHED:
        parameters |= {"max_iter": arguments.published_steps, "verbose": 1}
        parameters["checkpoint"] = checkpoint  # for runs of many minutes
        encoder = encoder_of(arguments, run.encoder, l2_normalize=False)
    if run.method == "lgm-published":
        # The same number of real images per step as of synthetic views.
        views = arguments.published_views
        parameters["augmentation"] = clone(LGM_PUBLISHED["augmentation"]).set_params(n_views=views)
        parameters["real_batch_size"] = views * n_classes * arguments.images_per_class
    return method.kind(encoder, **parameters)


def evaluate(arguments, run, images, labels, data, encoder):
    """Scores of all protocols, and with other encoders."""
    common = {"encoder": encoder, "groups": data.groups}
    # All real images: the same number of steps of Adam as for the synthetic ones, with a hundred images each.
    real = run.method == "real"
    heads = {"n_epochs": arguments.epochs, "n_repeats": arguments.heads, "random_state": run.seed}
    if real:
        batches = -(-arguments.images_per_class * len(np.unique(labels)) // 100)
        heads["n_epochs"] = max(1, round(100 * batches * arguments.epochs / len(images)))
    alpha = "loo" if real else 1.0
    test = (data.X_test, data.y_test)
    scores = {"closed_form": closed_form_probe_scores(images, labels, *test, alpha=alpha, **common)}
    scores["sgd"] = sgd_probe_scores(images, labels, *test, **heads, **common)
    steps = {"n_epochs": max(1, round(1000 / -(-len(images) // BATCH_SIZE)))}
    scores["sgd_zero"] = sgd_probe_scores(images, labels, *test, **{**heads, **steps}, **ZERO_START, **common)
    encoders = {name: encoder_of(arguments, name) for name in others_of(arguments, run)}
    heads["n_repeats"] = 0 if real else arguments.transfer_heads
    moved = transfer_scores(images, labels, *test, encoders, alpha=alpha, groups=data.groups, **heads)
    if encoders and not real:
        old = {"probe": probe_of_all(arguments, data, encoder), "probe_encoder": encoder, "groups": data.groups}
        inherit = partial(inherited_probe_scores, images, *test, **old, **inheritance_of(arguments))
        for name, other in encoders.items():
            moved[name]["inherited"] = inherit(encoder=other, random_state=run.seed)
    return scores, moved


def inheritance_of(arguments):
    """Parameters of an inherited probe."""
    return {"n_views": arguments.map_views, "alpha": 1.0}


def probe_of_all(arguments, data, encoder):
    """The probe of all real images, fitted once for all runs."""
    fit = joblib.Memory(arguments.output / "cache", verbose=0).cache(fitted_probe)
    return fit(encoder.encode(data.X), data.y)


def fitted_probe(Z, y):
    return ClosedFormProbe().fit(Z, y)


def make(arguments, run, data):
    """Make one run in this process, and write its record."""
    encoder = encoder_of(arguments, run.encoder)
    device = encoder.load().device.type
    warm(encoder.load())
    record = {"settings": settings_of(arguments, run, data), "machine": machine()}
    checkpoint = file_of(arguments, run, f"-{joblib.hash(record)[:8]}.safetensors")
    if run.method == "real":
        images, labels = data.X, data.y
    else:
        estimator = estimator_of(arguments, run, encoder, len(np.unique(data.y)), checkpoint)
        reset_peak_memory(device)
        before, begin = memory_in_use(device), time.perf_counter()
        estimator.fit(data.X, data.y)
        record |= {"fit": time.perf_counter() - begin, "memory": peak_memory(device) - before}
        history = getattr(estimator, "history_", None)
        record["steps"] = len(history) if history else None
        record["seconds"] = history[-1]["seconds"] if history else record["fit"]
        images, labels = estimator.transform(), estimator.y_synthetic_
        joblib.dump(estimator, file_of(arguments, run, ".joblib"), compress=3)
    scores, moved = evaluate(arguments, run, images, labels, data, encoder)
    record |= {"n_images": len(images), "scores": _lists(scores), "transfer": _lists(moved)}
    written = file_of(arguments, run, ".part")
    written.write_text(json.dumps(record, indent=1) + "\n")
    written.replace(file_of(arguments, run, ".json"))  # atomic
    checkpoint.unlink(missing_ok=True)


def encode(arguments, data, name):
    """Cache the features of all images, and return the seconds that the training images took when they were first encoded."""
    took = []
    for normalize in (True, False):
        encoder = encoder_of(arguments, name, l2_normalize=normalize)
        encoder.load()
        begin = time.perf_counter()
        encoder.encode(data.X)
        took.append(time.perf_counter() - begin)
        encoder.encode(data.X_test)
    return max(took)


def encoding_file(arguments, name):
    """The file with these seconds."""
    what = joblib.hash((name, arguments.size, arguments.weights, arguments.device))[:8]
    return arguments.output / "runs" / f"encoding-{what}.json"


def _lists(scores):
    if isinstance(scores, dict):
        return {name: _lists(value) for name, value in scores.items()}
    return scores.tolist()


def known(arguments, run, data):
    """The record of a run with these settings, if there is one."""
    path = file_of(arguments, run, ".json")
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    return record if record["settings"] == settings_of(arguments, run, data) else None


def format_steps(steps):
    """Their mean, or their range where one run had far fewer than another in the same time: the machine was busy during it."""
    alike = steps.max() < 1.25 * steps.min()
    return f"{steps.mean():.0f}" if alike else f"{steps.min():.0f} to {steps.max():.0f}"


def values(records, *path):
    """All values of an entry of the records, over seeds and heads."""
    found = []
    for record in records:
        for name in path:
            record = record.get(name) if isinstance(record, dict) else None
        if record is not None:
            found += record if isinstance(record, list) else [record]
    return np.array(found, dtype=float)


class Report:
    """Tables and a plot of the records of one encoder."""

    def __init__(self, arguments, encoder, records):
        self.arguments, self.encoder = arguments, encoder
        self.records: dict[tuple[str, float], list] = {}
        for run, record in records:
            if run.encoder == encoder:
                self.records.setdefault((run.method, run.seconds), []).append(record)
        self.methods = [name for name in METHODS if any(name == method for method, _ in self.records)]

    def last(self, method):
        """Records of the largest budget."""
        return self.records.get((method, self.arguments.seconds[-1] if METHODS[method].timed else _UNTIMED), [])

    def title(self, protocol):
        """Name of a protocol; LGM's has 1,000 epochs unless the name says otherwise."""
        other = f", {self.arguments.epochs} epochs" if protocol == "sgd" and self.arguments.epochs != 1000 else ""
        return {**PROTOCOLS, **TRANSFER}[protocol] + other

    def accuracy(self, records, protocol):
        return values(records, "scores", protocol, "top1")

    def main(self):
        of_groups = MAIN if len(values(self.last("clp-dsa"), "scores", "sgd", "worst_group")) else ()
        heads = ["", "images", *map(self.title, PROTOCOLS), *(f"worst group, {self.title(protocol)}" for protocol in of_groups)]
        heads += ["seconds", "steps", "peak memory, MB"]
        rows = []
        for method in self.methods:
            records = self.last(method)
            cells = [METHODS[method].title, records[0]["n_images"]]
            cells += [format_mean(self.accuracy(records, protocol)) for protocol in PROTOCOLS]
            cells += [format_mean(values(records, "scores", protocol, "worst_group")) for protocol in of_groups]
            formats = {
                "seconds": lambda own: f"{own.mean():.1f}",
                "steps": format_steps,
                "memory": lambda own: f"{own.mean():.0f}",
            }
            for name, form in formats.items():
                own = values(records, name)
                cells.append(form(own) if len(own) else "")
            rows.append(cells)
        return table(heads, rows)

    def by_budget(self):
        timed = [name for name in self.methods if METHODS[name].timed]
        heads = ["", *(f"{self.title(name)}, {seconds:g} s" for name in MAIN for seconds in self.arguments.seconds)]
        rows = [
            [METHODS[name].title]
            + [format_mean(self.accuracy(self.records[name, s], p)) for p in MAIN for s in self.arguments.seconds]
            for name in timed
        ]
        return table(heads, rows)

    def time_to(self):
        """When `CLPDistiller()` reaches the final accuracies of LGM."""
        rows = []
        for (method, _), records in self.records.items():
            if not method.startswith("lgm-"):
                continue
            cells = [METHODS[method].title, f"{values(records, 'seconds').mean():.0f}"]
            for protocol in MAIN:
                goal, took = self.accuracy(records, protocol).mean(), values(records, "seconds").mean()
                reached = [
                    values(self.records["clp-dsa", s], "seconds").mean()
                    for s in self.arguments.seconds
                    if self.accuracy(self.records["clp-dsa", s], protocol).mean() >= goal
                ]
                cells += [
                    f"{goal:.3f}",
                    f"{reached[0]:.0f} s" if reached else "not within these",
                    f"{took / reached[0]:.1f}" if reached else "",
                ]
            rows.append(cells)
        heads = ["", "its seconds"]
        for protocol in MAIN:
            heads += [f"its accuracy, {self.title(protocol)}", "`CLPDistiller()` reaches it in", "times faster"]
        return table(heads, rows)

    def transfer(self):
        protocols = [protocol for protocol in TRANSFER if protocol != "sgd" or self.arguments.transfer_heads]
        columns = [(other, protocol) for other in self.arguments.transfer_to for protocol in protocols]
        rows = [
            [METHODS[name].title, *(format_mean(values(self.last(name), "transfer", *column, "top1")) for column in columns)]
            for name in self.methods
        ]
        return table(["", *(f"{self.title(protocol)}, {other}" for other, protocol in columns)], rows)

    def plot(self, axes):
        """Accuracy against seconds: a curve for each method with time budgets, a line for each method without."""
        for ax, protocol in zip(axes, MAIN, strict=True):
            for i, name in enumerate(self.methods):
                style = {"color": "black" if name == "real" else f"C{i}", "label": METHODS[name].title}
                mine = [
                    (values(r, "seconds").mean(), self.accuracy(r, protocol))
                    for (m, _), r in self.records.items()
                    if m == name and r[0].get("steps")
                ]
                if mine:
                    seconds, scores = zip(*mine, strict=True)
                    means, stds = ([statistic(s) for s in scores] for statistic in (np.mean, np.std))
                    ax.errorbar(seconds, means, stds, marker="o", capsize=2, **style)
                else:
                    ax.axhline(
                        self.accuracy(self.last(name), protocol).mean(), linestyle="--" if name == "real" else ":", **style
                    )
            ax.set(
                xscale="log",
                xlabel="seconds of distillation",
                ylabel="test accuracy",
                title=f"{self.encoder}, {self.title(protocol)}",
            )
            ax.grid(alpha=0.3)


def report(arguments, data, records):
    """Write the tables and the plot."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    machines = sorted({record["machine"] for _, record in records})
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines = [
        f"{len(data.X):,} training and {len(data.X_test):,} test images, {len(np.unique(data.y))} classes; views of "
        f"{arguments.size} px; {'; '.join(machines)}; `python benchmarks/{command}`"
    ]
    figure, axes = plt.subplots(
        len(arguments.encoder), 2, figsize=(11, 4.5 * len(arguments.encoder)), squeeze=False, sharey="row"
    )
    for row, encoder in zip(axes, arguments.encoder, strict=True):
        page = Report(arguments, encoder, records)
        lines += [
            "",
            f"## {encoder}",
            "",
            f"Encoding the training images, once for all: {json.loads(encoding_file(arguments, encoder).read_text()):.0f} s.",
            "",
            *page.main(),
        ]
        several = len(arguments.seconds) > 1
        if several:
            lines += ["", "By budget:", "", *page.by_budget()]
        of_both = "clp-dsa" in page.methods and any(name.startswith("lgm-") for name in page.methods)
        if of_both and (several or arguments.published):
            lines += ["", "The smallest of the budgets with which `CLPDistiller()` is at least as good:", "", *page.time_to()]
        if arguments.transfer_to:
            lines += ["", "The same images under other encoders:", "", *page.transfer()]
        page.plot(row)
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(arguments.output / "table.png", dpi=110, bbox_inches="tight")
    (arguments.output / "table.md").write_text("\n".join(lines) + "\n")
    (arguments.output / "table.json").write_text(json.dumps([record for _, record in records], indent=1) + "\n")
    print("\n".join(lines))


def main(arguments, data):
    """Make all missing runs, each in its own process, and write the report."""
    arguments.seconds = sorted(arguments.seconds)
    (arguments.output / "runs").mkdir(parents=True, exist_ok=True)
    if arguments.run:
        what = json.loads(arguments.run)
        if isinstance(what, str):
            encoding_file(arguments, what).write_text(json.dumps(encode(arguments, data, what)))
        else:
            make(arguments, Run(*what), data)
        return
    if "nearest" in arguments.methods and "clp-dsa" not in arguments.methods:
        sys.exit("the nearest reals are those of clp-dsa: add it to --methods, or leave out nearest")

    def child(what):
        subprocess.run([sys.executable, *sys.argv, "--run", json.dumps(what)], check=True)

    for name in dict.fromkeys([*arguments.encoder, *arguments.transfer_to]):
        if not encoding_file(arguments, name).exists():
            child(name)
    runs = runs_of(arguments)
    for run in (bar := tqdm(runs)):
        bar.set_description(run.name)
        if known(arguments, run, data) is None:
            child(list(run))
    report(arguments, data, [(run, known(arguments, run, data)) for run in runs])


def folder_data(root):
    """Images of ``train`` and of ``val`` or ``test``."""
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    return Data(*load_image_folder(root / "train"), *load_image_folder(test))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    add_options(parser)
    arguments = parser.parse_args()
    arguments.output = arguments.output or Path(__file__).parent / "results" / f"table-{arguments.folder.name}"
    main(arguments, folder_data(arguments.folder))
