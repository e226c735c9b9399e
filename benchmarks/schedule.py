"""Accuracy of the default schedule and of fixed settings for time budgets from seconds to minutes.

    python benchmarks/schedule.py DATA [--size 64] [--seconds 5 20 60] [--seeds 1] [--settings default ...] [--output NAME]

DATA holds ``train`` and ``val`` folders with one folder of images per class. The figure is that of the closed-form probe on the
test images, which are used for nothing else; with ``--steps`` it is followed by the number of steps. The first row is about what
runs with ``init="kmeans"`` start from, the real images nearest to the k-means centres. The script writes
benchmarks/results/schedule-<name of DATA>.md, and all figures to a .json file; runs that it contains are not repeated.
"""

from pathlib import Path

import numpy as np
from measure import format_mean, machine, recorded, study_parser, train_and_test, write_page

from sklearn_clpdd import DSA, CLPDistiller, FrozenEncoder, LinearSchedule
from sklearn_clpdd.baselines import ClassCentroids

SETTINGS = {
    "default": {},
    "learning_rate=0.02": {"learning_rate": 0.02},
    "learning_rate=0.1": {"learning_rate": 0.1},
    "warmup_steps=0": {"learning_rate": LinearSchedule(warmup_steps=0)},
    "peak=0.1, warmup_steps=0": {"learning_rate": LinearSchedule(0.1, warmup_steps=0)},
    "decay_fraction=0": {"learning_rate": LinearSchedule(decay_fraction=0.0)},
    "decay_fraction=1": {"learning_rate": LinearSchedule(decay_fraction=1.0)},
    "n_views=1": {"augmentation": DSA(n_views=1)},
    "n_views=4": {"augmentation": DSA(n_views=4)},
    "real_batch_size=512": {"real_batch_size": 512},
    "unaugmented_weight=0": {"augmentation": DSA(unaugmented_weight=0.0)},
    "augmentation=None": {"augmentation": None},
    "objective='cross_entropy'": {"objective": "cross_entropy"},
    "init='noise'": {"init": "noise"},
    "init='noise', peak=0.1, warmup_steps=0": {"init": "noise", "learning_rate": LinearSchedule(0.1, warmup_steps=0)},
    "as in the paper": {
        "init": "noise",
        "learning_rate": LinearSchedule(0.1, warmup_steps=0),
        "augmentation": DSA(unaugmented_weight=0.0),
        "sampling": "uniform",
        "objective": "cosine_cross_entropy",
        "temperature": 0.1,
    },
}


def main(arguments):
    X, y, *test = train_and_test(arguments.folder)
    name = arguments.output or f"schedule-{arguments.folder.name}"
    path = arguments.results / f"{name}.json"
    encoder = FrozenEncoder(image_size=arguments.size, n_jobs=-1, memory=str(arguments.results / "cache"))

    # A file of another name may be that of several data sets.
    common = {"size": arguments.size} | ({"data": arguments.folder.name} if arguments.output else {})

    def measured(parameters, seconds, seed):
        settings = {**common, "seconds": seconds, "seed": seed, **parameters}

        def work():
            budget = {"time_budget": seconds, "max_iter": 10**7}
            fitted = CLPDistiller(encoder, random_state=seed, **budget, **parameters).fit(X, y)
            return {"steps": fitted.n_iter_, "accuracy": fitted.score(*test)}

        return recorded(path, settings, work)

    def start(seed):
        def work():
            return {"accuracy": ClassCentroids(encoder, random_state=seed).fit(X, y).score(*test)}

        return recorded(path, {**common, "seed": seed, "start": True}, work, distilled=False)

    def cell(parameters, seconds):
        records = [measured(parameters, seconds, seed) for seed in range(arguments.seeds)]
        steps = np.mean([record["steps"] for record in records])
        return format_mean([record["accuracy"] for record in records]) + f" ({steps:.0f})" * arguments.steps

    starts = format_mean([start(seed)["accuracy"] for seed in range(arguments.seeds)])
    rows = [["nearest to k-means centres, not learned", *[starts] * len(arguments.seconds)]]
    rows += [[title, *(cell(SETTINGS[title], seconds) for seconds in arguments.seconds)] for title in arguments.settings]
    chosen = " ".join(f"'{title}'" for title in arguments.settings)
    intro = (
        f"`{arguments.folder.name}`, closed-form accuracy, one image per class, views of {arguments.size} px, "
        f"{arguments.seeds} seed(s); {machine()}; `python benchmarks/schedule.py DIR --size {arguments.size} "
        f"--seconds {' '.join(f'{s:g}' for s in arguments.seconds)} --seeds {arguments.seeds}{' --steps' * arguments.steps}"
        f"{f' --settings {chosen}' if arguments.settings != list(SETTINGS) else ''}"
        f"{f' --output {arguments.output}' if arguments.output else ''}`"
    )
    write_page(arguments.results, name, intro, ["", *(f"{seconds:g} s" for seconds in arguments.seconds)], rows)


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 20, 60])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", action="store_true", help="show the numbers of steps")
    parser.add_argument("--output", help="name of the files, by default schedule-<name of DATA>")
    main(parser.parse_args())
