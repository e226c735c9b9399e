"""What bounds a linear head that is trained as LGM trains it on ten images: its random start, and how far apart the images are.

    python benchmarks/head.py DATA ... [--sizes 64 ...] [--steps 300] [--seeds 3]

DATA holds ``train`` and ``val`` folders with one folder of images per class. One image per class is distilled; heads are trained
on features of 300 random views of each, one of each class a step, by Adam with cosine decay, as in LGM's protocol but for what a
row names. The last rows replace the views by points of feature space that no image need have. benchmarks/results/head.md is
written, and with every number a .json, whose runs are not made again.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import machine, recorded, spell, study_parser, train_and_test, write_page

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.evaluation import _features_of_views

N_VIEWS = 300
# Adam's rate of the protocol for batches of ten.
RATE = 1e-3 * 10 / 256
HEADS = {
    "LGM's protocol: 1,000 steps, rate 4e-5, random start": {},
    "4,000 steps": {"steps": 4000},
    "ten times the rate": {"rate": 10 * RATE},
    "from zero": {"start": 0.0},
    "from zero, ten times the rate": {"start": 0.0, "rate": 10 * RATE},
    "views drawn together, to half of their distances": {"scale": 0.5},
    "means of the views": {"points": "means"},
    "means of the views, to 0.3 of their distances": {"points": "means", "scale": 0.3},
    "means of the real classes": {"points": "real"},
    "means of the real classes, to half of their distances": {"points": "real", "scale": 0.5},
}
DISTANCES = {
    ("between", "views"): "views",
    ("between", "real"): "real features",
    ("within", "views"): "views",
    ("within", "real"): "real features",
}


def trained(points, generator, *, steps=1000, rate=RATE, start=1.0):
    """Weights ``(C, d)`` and bias of a head that sees one of the points ``(n, C, d)`` of each class in each step."""
    n, n_classes, d = points.shape
    bound = start * d**-0.5  # torch's own start of a linear layer, which is the protocol's
    weight = (bound * (2 * torch.rand(n_classes, d, generator=generator) - 1)).requires_grad_()
    bias = (bound * (2 * torch.rand(n_classes, generator=generator) - 1)).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    classes = torch.arange(n_classes)
    for _ in range(steps):
        chosen = torch.randint(n, (n_classes,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(F.linear(points[chosen, classes], weight, bias), classes).backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def measured(arguments, folder, size, data, path, seed):
    """Test accuracies of all heads; between and within classes, distances of views and of real features."""
    X, y, X_test, y_test = data
    names, r = np.unique(y_test, return_inverse=True)

    def work():
        cache = str(arguments.results / "cache")
        encoder = FrozenEncoder(image_size=size, n_jobs=-1, memory=cache)
        raw = FrozenEncoder(image_size=size, normalize=False, n_jobs=-1, memory=cache)
        images = CLPDistiller(encoder, max_iter=arguments.steps, random_state=seed).fit(X, y).transform()
        views = torch.from_numpy(_features_of_views(images, raw, N_VIEWS, seed)).view(N_VIEWS, len(images), -1)
        real, test = (torch.from_numpy(raw.encode(pictures)) for pictures in (X, X_test))
        codes = torch.from_numpy(np.searchsorted(names, y))
        means = torch.stack([real[codes == c].mean(0) for c in range(len(names))])
        points = {"views": views, "means": views.mean(0, keepdim=True), "real": means[None]}

        def accuracy(given):
            own = points[given.get("points", "views")]
            middle = own.mean((0, 1))
            own = middle + given.get("scale", 1.0) * (own - middle)
            options = {name: value for name, value in given.items() if name not in ("points", "scale")}
            weight, bias = trained(own, torch.Generator().manual_seed(seed), **options)
            return (F.linear(test, weight, bias).argmax(1).numpy() == r).mean().item()

        return {
            "top1": {title: accuracy(given) for title, given in HEADS.items()},
            "between": {"views": torch.pdist(views.mean(0)).mean().item(), "real": torch.pdist(means).mean().item()},
            "within": {
                "views": (views - views.mean(0)).norm(dim=2).mean().item(),
                "real": (real - means[codes]).norm(dim=1).mean().item(),
            },
        }

    settings = {"data": folder.name, "size": size, "steps": arguments.steps, "seed": seed}
    return recorded(path, settings, work)


def main(arguments):
    path = arguments.results / "head.json"
    columns = []
    for folder, size in zip(arguments.data, arguments.sizes, strict=True):
        data = train_and_test(folder)
        records = [measured(arguments, folder, size, data, path, seed) for seed in range(arguments.seeds)]
        accuracies = [spell([record["top1"][title] for record in records]) for title in HEADS]
        distances = [f"{np.mean([record[kind][whose] for record in records]):.1f}" for kind, whose in DISTANCES]
        columns.append(accuracies + distances)
    titles = [*HEADS, *(f"distance {kind} classes, {title}" for (kind, _), title in DISTANCES.items())]
    intro = (
        f"Test accuracy of heads, one image per class, {arguments.steps} steps, {arguments.seeds} seed(s); {machine()}; "
        f"`python benchmarks/head.py {' '.join(folder.name for folder in arguments.data)} "
        f"--sizes {' '.join(map(str, arguments.sizes))} --steps {arguments.steps} --seeds {arguments.seeds}`"
    )
    heads = ["head", *(folder.name for folder in arguments.data)]
    write_page(arguments.results, "head", intro, heads, zip(titles, *columns, strict=True))


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="side of the views, for each data set")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args())
