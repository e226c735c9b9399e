"""Accuracy against the time of distillation, one image per class, within a budget.

    python benchmarks/curve.py [DIR] [--seconds 60] [--seeds 3] [--output DIR]

DIR holds ``train`` and ``val`` folders with one folder of images per class, by default ``$SKLEARN_CLPDD_DATA/imagenette``.
With the default settings, and from noise, where the pyramid gains finer levels during the run. The images of every twentieth step
are kept during the run, and scored with the closed-form probe afterwards.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from measure import folder_argument, machine, train_and_test

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.probe._solved import relative_probe

SETTINGS = {
    "default": {},
    "from noise": {"init": "noise"},
}


def curve(encoder, X, y, X_test, y_test, **parameters):
    """Seconds and validation accuracies during a run, and those of its final images."""
    moments = []

    def keep_images(distiller, record):
        if record["step"] % 20 == 0:
            moments.append((record["seconds"], distiller.transform()))

    distiller = CLPDistiller(encoder, callback=keep_images, **parameters).fit(X, y)
    test, labels = encoder.encode(X_test), distiller.y_synthetic_
    points = []
    for seconds, images in moments:
        Z = encoder.encode(images)
        points.append((seconds, relative_probe(Z, distiller.alpha_).fit(Z, labels).score(test, y_test)))
    return [*points, (distiller.history_[-1]["seconds"], distiller.probe_.score(test, y_test))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    folder_argument(parser, "imagenette")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    sets = train_and_test(arguments.folder)
    grid = np.linspace(0, arguments.seconds, 13)[1:]
    lines = [
        f"`{arguments.folder.name}`, closed-form validation accuracy after so many seconds of distillation; EfficientNet-Lite0, "
        f"128 px images, 112 px views, 1 image per class; {machine()}; "
        f"`python benchmarks/curve.py DIR --seconds {arguments.seconds:g} --seeds {arguments.seeds}`",
        "",
        f"| | {' | '.join(f'{seconds:g} s' for seconds in grid)} | kept | first ≥ 0.90 |",
        "| --- |" + " --- |" * (len(grid) + 2),
    ]
    with tempfile.TemporaryDirectory() as cache:
        encoder = FrozenEncoder(image_size=112, n_jobs=-1, memory=cache)
        for name, settings in SETTINGS.items():
            for seed in range(arguments.seeds):
                budget = {"max_iter": 100_000, "time_budget": arguments.seconds}
                points = curve(encoder, *sets, random_state=seed, **budget, **settings)
                seconds, scores = map(np.array, zip(*points, strict=True))
                cells = [f"{scores[:-1][seconds[:-1] <= limit][-1]:.3f}" for limit in grid]
                reached = np.append(seconds[:-1][scores[:-1] >= 0.9], np.inf)[0]
                lines.append(f"| {name}, seed {seed} | {' | '.join(cells)} | {scores[-1]:.3f} | {reached:.0f} s |")
                print(lines[-1], flush=True)
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "curve.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
