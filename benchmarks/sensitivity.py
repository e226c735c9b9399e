"""How accuracy depends on the ridge strength and the temperature, and whether the defaults need a search.

    python benchmarks/sensitivity.py DATA:SIZE:STEPS[:EPOCHS] [...] [--encoders ...] [--alphas ...] [--temperatures ...]

Each DATA holds ``train`` and ``val`` folders. For each of them and each encoder, there is a run of STEPS steps for every pair
of a fixed λ and a fixed τ, and one with the defaults; all are evaluated with the closed-form probe, with the λ of the run, and
with LGM's protocol (unless EPOCHS is 0). The script writes benchmarks/results/sensitivity.md and .png, and all figures to a
.json file; runs that it contains are not repeated.
"""

from itertools import product
from pathlib import Path

import numpy as np
from measure import machine, recorded, study_parser, top1, train_and_test, write_page

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.evaluation import closed_form_probe_scores, sgd_probe_scores

PROTOCOLS = {"closed_form": "closed-form probe", "sgd": "LGM's protocol"}


def cell(path, data, folder, encoder, size, steps, epochs, parameters):
    """Accuracies for one choice of parameters."""
    X, y, *test = data
    settings = {"data": folder.name, "encoder": encoder.model, "size": size, "steps": steps, "epochs": epochs, **parameters}

    def work():
        fitted = CLPDistiller(encoder, max_iter=steps, random_state=0, **parameters).fit(X, y)
        images, labels = fitted.transform(), fitted.y_synthetic_
        scores = {"closed_form": closed_form_probe_scores(images, labels, *test, encoder=encoder, alpha=fitted.alpha_)}
        if epochs:
            scores["sgd"] = sgd_probe_scores(images, labels, *test, encoder=encoder, n_epochs=epochs, random_state=0)
        return {"top1": top1(scores), "temperature": fitted.temperature_}

    return recorded(path, settings, work)


def heatmap(ax, arguments, grid, default, title):
    """Accuracies of the grid, with that of the default in the title."""
    picture = ax.imshow(grid, cmap="viridis", aspect="auto")
    ax.set_xticks(range(len(arguments.temperatures)), [f"{value:g}" for value in arguments.temperatures])
    ax.set_yticks(range(len(arguments.alphas)), [f"{value:g}" for value in arguments.alphas])
    ax.set(xlabel="τ", ylabel="λ", title=f"{title}\ndefault {default:.3f}, best cell {grid.max():.3f}")
    for (i, j), value in np.ndenumerate(grid):
        ax.text(j, i, f"{value:.3f}", ha="center", va="center", color="white" if value < grid.mean() else "black", fontsize=8)
    return picture


def main(arguments):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    path = arguments.results / "sensitivity.json"
    rows, maps = [], []
    for spec, name in product(arguments.data, arguments.encoders):
        folder, size, steps, *epochs = spec.split(":")
        folder, size, steps = Path(folder), int(size), int(steps)
        epochs = int(epochs[0]) if epochs else arguments.epochs
        data = train_and_test(folder)
        encoder = FrozenEncoder(name, image_size=size, n_jobs=-1, memory=str(arguments.results / "cache"))
        common = (path, data, folder, encoder, size, steps, epochs)
        default = cell(*common, {})
        grid = {
            pair: cell(*common, {"alpha": pair[0], "temperature": pair[1]})
            for pair in product(arguments.alphas, arguments.temperatures)
        }
        for protocol, title in PROTOCOLS.items():
            if protocol not in default["top1"]:
                continue
            values = np.array([record["top1"][protocol] for record in grid.values()])
            best = list(grid)[values.argmax()]
            own = default["top1"][protocol]
            rows.append(
                [
                    *(folder.name, name, title, steps, f"{own:.3f}", f"{default['temperature']:.3f}", f"{values.max():.3f}"),
                    *(f"{best[0]:g}, {best[1]:g}", f"{100 * (own - values.max()):+.1f}", f"{values.min():.3f}"),
                ]
            )
            shape = len(arguments.alphas), len(arguments.temperatures)
            maps.append((values.reshape(shape), own, f"{folder.name}, {name.removeprefix('tf_')}, {title}"))
    figure, axes = plt.subplots(-(-len(maps) // 2), 2, figsize=(11, 4 * -(-len(maps) // 2)), squeeze=False, layout="constrained")
    for ax in axes.flat[len(maps) :]:
        ax.axis("off")
    for ax, (values, own, title) in zip(axes.flat, maps, strict=False):
        heatmap(ax, arguments, values, own, title)
    figure.savefig(arguments.results / "sensitivity.png", dpi=80)
    heads = [
        "data",
        "encoder",
        "protocol",
        "steps",
        "default",
        "its τ",
        "best cell",
        "at λ, τ",
        "default − best, points",
        "worst",
    ]
    intro = (
        f"One image per class, one seed; λ in {arguments.alphas}, τ in {arguments.temperatures}; {machine()}; "
        f"`python benchmarks/sensitivity.py {' '.join(Path(spec).name for spec in arguments.data)} "
        f"--encoders {' '.join(arguments.encoders)} --alphas {' '.join(f'{value:g}' for value in arguments.alphas)} "
        f"--temperatures {' '.join(f'{value:g}' for value in arguments.temperatures)}`"
    )
    write_page(arguments.results, "sensitivity", intro, heads, rows)


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("data", nargs="+", help="folder:side of the views:steps, and :epochs of LGM's protocol if others")
    parser.add_argument("--encoders", nargs="+", default=["tf_efficientnet_lite0"])
    parser.add_argument("--alphas", type=float, nargs="+", default=[1e-3, 1e-1, 1e1, 1e3])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.02, 0.2, 2])
    parser.add_argument("--epochs", type=int, default=1000)
    main(parser.parse_args())
