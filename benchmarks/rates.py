"""The best learning rate of each method, chosen on held-out training images.

    python benchmarks/rates.py DATA [--size 112] [--seconds 30] [--rates 0.02 0.05 0.1 0.2] [--output FILE]

Each fit holds out a tenth of DATA/train; the figure is the accuracy of the closed-form probe on it, for the kept images.
"""

import argparse
from pathlib import Path

from measure import machine, table
from table import METHODS, encoder_of

from sklearn_clpdd import LinearSchedule
from sklearn_clpdd.datasets import load_image_folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dm", "lgm-dsa", "clp-dsa"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    X, y = load_image_folder(arguments.folder / "train")
    arguments.weights, arguments.device, cache = (
        "auto",
        "auto",
        Path(__file__).parent / "results" / f"table-{arguments.folder.name}",
    )
    output, arguments.output = arguments.output, cache
    encoder = encoder_of(arguments, "tf_efficientnet_lite0")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.methods:
        cells = [METHODS[name].title]
        for rate in arguments.rates:
            scores = []
            for seed in range(arguments.seeds):
                run = {"time_budget": arguments.seconds, "max_iter": 10**7, "random_state": seed}
                settings = METHODS[name].settings | {"learning_rate": LinearSchedule(rate, warmup_steps=0)}
                fitted = METHODS[name].kind(encoder, **settings, **run).fit(X, y)
                scored = [record for record in fitted.history_ if "val_loss" in record]
                scores.append(min(scored, key=lambda record: record["val_loss"])["val_accuracy"])
            cells.append(f"{sum(scores) / len(scores):.3f}")
        rows.append(cells)
        print(cells, flush=True)
    lines = [
        f"Held-out accuracy after {arguments.seconds:g} s, by rate; `{arguments.folder.name}`, views of {arguments.size} px, "
        f"{arguments.seeds} seed(s); {machine()}; `python benchmarks/rates.py DIR --rates {' '.join(map(str, arguments.rates))} "
        f"--seconds {arguments.seconds:g} --seeds {arguments.seeds}`",
        "",
        *table(["", *arguments.rates], rows),
    ]
    print("\n".join(lines))
    if output:
        output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
