"""What limits a linear head that is trained on ten images as LGM trains it: its random start, and the distances of the images.

    python benchmarks/head.py DATA ... [--sizes 64 ...] [--classes 0 ...] [--steps 300] [--seeds 3]

DATA holds ``train`` and ``val`` folders with one folder of images per class, at most 100, of which ``--classes`` takes the first
ones. One image per class is distilled; heads are trained on 300 precomputed random views of each, one view per class and step, by
Adam with cosine decay, as in LGM's protocol except for what a row names. Some rows replace the views: by the images themselves,
by points of feature space, which need not be those of an image, or by real images. The script writes benchmarks/results/head.md,
and all figures to a .json file; runs that it contains are not repeated.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import format_mean, machine, recorded, study_parser, train_and_test, write_page

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.distill._augmentations import LGM_PROBE_VIEWS
from sklearn_clpdd.evaluation import sgd_probe_scores
from sklearn_clpdd.evaluation._head import _INITIAL_STD
from sklearn_clpdd.evaluation._probes import features_of_views, make_task

N_VIEWS = 300
HEADS = {
    "the same, of views from a stock: 1,000 steps, random start": {},
    "4,000 steps": {"steps": 4000},
    "ten times the rate": {"times": 10},
    "half of the initial weights": {"start": 0.5},
    "twice the initial weights": {"start": 2.0},
    "from zero": {"start": 0.0},
    "from zero, ten times the rate": {"start": 0.0, "times": 10},
    "from zero, a rate of 3e-4": {"start": 0.0, "rate": 3e-4},
    "random start, a rate of 3e-4, the images themselves": {"rate": 3e-4, "points": "images"},
    "from zero, a rate of 3e-4, the images themselves": {"start": 0.0, "rate": 3e-4, "points": "images"},
    "views drawn together, to half of their distances": {"scale": 0.5},
    "means of the views": {"points": "means"},
    "means of the views, to 0.3 of their distances": {"points": "means", "scale": 0.3},
    "means of the real classes": {"points": "real"},
    "means of the real classes, to half of their distances": {"points": "real", "scale": 0.5},
    "real images, another one of each class per step": {"points": "all"},
    "real images, another one of each class per step, from zero, a rate of 3e-4": {"points": "all", "start": 0.0, "rate": 3e-4},
}
DISTANCES = {
    ("between", "views"): "views",
    ("between", "real"): "real features",
    ("within", "views"): "views",
    ("within", "real"): "real features",
}


def trained(points, generator, *, steps=1000, times=1, rate=None, start=1.0):
    """Weights ``(C, d)`` and bias of a head that is trained on one of the points ``(n, C, d)`` of each class per step.

    Adam's rate is ``times`` that of the protocol, or given; the standard deviation of the initial weights is ``start`` times that
    of the protocol.
    """
    n, n_classes, d = points.shape
    weight = (start * _INITIAL_STD * torch.randn(n_classes, d, generator=generator)).requires_grad_()
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], times * 1e-3 * n_classes / 256 if rate is None else rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    classes = torch.arange(n_classes)
    for _ in range(steps):
        chosen = torch.randint(n, (n_classes,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(F.linear(points[chosen, classes], weight, bias), classes).backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def first_classes(data, n):
    """Training and test images of the first classes; of all for 0."""
    X, y, X_test, y_test = data
    names = np.unique(y)[: n or None]
    own, own_test = np.isin(y, names), np.isin(y_test, names)
    return np.asarray(X)[own], y[own], np.asarray(X_test)[own_test], y_test[own_test]


def measured(arguments, folder, size, data, path, seed):
    """Test accuracies of all heads, and distances of views and real features, between and within classes."""
    X, y, X_test, y_test = data
    names, codes = np.unique(y, return_inverse=True)
    r, codes = np.searchsorted(names, y_test), torch.from_numpy(codes)

    def work():
        cache = str(arguments.results / "cache")
        encoder = FrozenEncoder(image_size=size, n_jobs=-1, memory=cache)
        raw = FrozenEncoder(image_size=size, l2_normalize=False, n_jobs=-1, memory=cache)
        images = CLPDistiller(encoder, max_iter=arguments.steps, random_state=seed).fit(X, y).transform()
        task = make_task(images, names, X_test, y_test, None, raw)
        views = torch.from_numpy(features_of_views(task, N_VIEWS, seed, LGM_PROBE_VIEWS)).view(N_VIEWS, len(images), -1)
        real, test = torch.from_numpy(raw.encode(X)), torch.from_numpy(task.test_features)
        means = torch.stack([real[codes == c].mean(0) for c in range(len(names))])
        points = {"views": views, "means": views.mean(0, keepdim=True), "real": means[None]}
        points["images"] = torch.from_numpy(task.features)[None]
        n = min(int((codes == c).sum()) for c in range(len(names)))
        points["all"] = torch.stack([real[codes == c][:n] for c in range(len(names))], dim=1)

        def accuracy(given):
            own = points[given.get("points", "views")]
            middle = own.mean((0, 1))
            own = middle + given.get("scale", 1.0) * (own - middle)
            options = {name: value for name, value in given.items() if name not in ("points", "scale")}
            weight, bias = trained(own, torch.Generator().manual_seed(seed), **options)
            return (F.linear(test, weight, bias).argmax(1).numpy() == r).mean().item()

        return {
            "protocol": sgd_probe_scores(images, names, X_test, y_test, encoder=encoder, random_state=seed)["top1"].item(),
            "top1": {title: accuracy(given) for title, given in HEADS.items()},
            "between": {"views": torch.pdist(views.mean(0)).mean().item(), "real": torch.pdist(means).mean().item()},
            "within": {
                "views": (views - views.mean(0)).norm(dim=2).mean().item(),
                "real": (real - means[codes]).norm(dim=1).mean().item(),
            },
        }

    settings = {"data": folder.name, "size": size, "steps": arguments.steps, "seed": seed, "heads": HEADS, "views": N_VIEWS}
    settings["classes"] = len(names)
    return recorded(path, settings, work)


def main(arguments):
    path = arguments.results / "head.json"
    columns = []
    sets = [first_classes(train_and_test(folder), n) for folder, n in zip(arguments.data, arguments.classes, strict=True)]
    for folder, (_, y, *_) in zip(arguments.data, sets, strict=True):
        if len(np.unique(y)) > 100:
            raise SystemExit(f"{folder} has {len(np.unique(y))} classes; this study takes 100 at most")
    for folder, size, data in zip(arguments.data, arguments.sizes, sets, strict=True):
        records = [measured(arguments, folder, size, data, path, seed) for seed in range(arguments.seeds)]
        protocol = format_mean([record["protocol"] for record in records])
        accuracies = [protocol, *(format_mean([record["top1"][title] for record in records]) for title in HEADS)]
        distances = [f"{np.mean([record[kind][whose] for record in records]):.1f}" for kind, whose in DISTANCES]
        columns.append(accuracies + distances)
    titles = ["LGM's protocol", *HEADS, *(f"distance {kind} classes, {title}" for (kind, _), title in DISTANCES.items())]
    intro = (
        f"Test accuracy of heads, one image per class, {arguments.steps} steps of distillation, {arguments.seeds} "
        f"seed(s); {machine()}; "
        f"`python benchmarks/head.py {' '.join(folder.name for folder in arguments.data)} "
        f"--sizes {' '.join(map(str, arguments.sizes))} --classes {' '.join(map(str, arguments.classes))} "
        f"--steps {arguments.steps} --seeds {arguments.seeds}`"
    )
    heads = [
        "head",
        *(f"{folder.name}, {len(np.unique(y))} classes" for folder, (_, y, *_) in zip(arguments.data, sets, strict=True)),
    ]
    write_page(arguments.results, "head", intro, heads, zip(titles, *columns, strict=True))


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="side of the views, for each data set")
    parser.add_argument("--classes", type=int, nargs="+", help="the first ones of each data set; 0: all, the default")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.classes = arguments.classes or [0] * len(arguments.data)
    for name in ("sizes", "classes"):
        if len(getattr(arguments, name)) != len(arguments.data):
            parser.error(
                f"--{name} has {len(getattr(arguments, name))} numbers for {len(arguments.data)} data sets; give one for each"
            )
    main(arguments)
