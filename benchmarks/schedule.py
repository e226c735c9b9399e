"""Accuracy of the default schedule and of fixed settings for time budgets from seconds to minutes.

    python benchmarks/schedule.py DATA [--size 64] [--seconds 5 20 60] [--seeds 1]

DATA holds ``train`` and ``val`` folders with one folder of images per class. The figure is that of the closed-form probe on the
test images, which are used for nothing else. The script writes benchmarks/results/schedule-<name of DATA>.md, and all figures to
a .json file; runs that it contains are not repeated.
"""

from pathlib import Path

from measure import format_mean, machine, recorded, study_parser, train_and_test, write_page

from sklearn_clpdd import DSA, CLPDistiller, FrozenEncoder, LinearSchedule

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
    name = f"schedule-{arguments.folder.name}"
    path = arguments.results / f"{name}.json"
    encoder = FrozenEncoder(image_size=arguments.size, n_jobs=-1, memory=str(arguments.results / "cache"))

    def accuracy(parameters, seconds, seed):
        settings = {"size": arguments.size, "seconds": seconds, "seed": seed, **parameters}

        def work():
            budget = {"time_budget": seconds, "max_iter": 10**7}
            fitted = CLPDistiller(encoder, random_state=seed, **budget, **parameters).fit(X, y)
            return {"steps": fitted.n_iter_, "accuracy": fitted.score(*test)}

        return recorded(path, settings, work)["accuracy"]

    rows = [
        [title, *(format_mean([accuracy(given, s, seed) for seed in range(arguments.seeds)]) for s in arguments.seconds)]
        for title, given in SETTINGS.items()
    ]
    intro = (
        f"`{arguments.folder.name}`, closed-form accuracy, one image per class, views of {arguments.size} px, "
        f"{arguments.seeds} seed(s); {machine()}; `python benchmarks/schedule.py DIR --size {arguments.size} "
        f"--seconds {' '.join(f'{s:g}' for s in arguments.seconds)} --seeds {arguments.seeds}`"
    )
    write_page(arguments.results, name, intro, ["", *(f"{seconds:g} s" for seconds in arguments.seconds)], rows)


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 20, 60])
    parser.add_argument("--seeds", type=int, default=1)
    main(parser.parse_args())
