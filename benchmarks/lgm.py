"""LGM's published steps in plain torch beside this library's: gradients, seconds, memory, and accuracy.

    python benchmarks/lgm.py [SECTION ...] [--data DIR] [--views 3] [--steps 5000] [--output benchmarks/results]

``gradient``: our closed form compared with second-order autodiff. ``step``: seconds per step. ``memory``: peak memory above the
loaded encoder for 100 views of 224 px, each figure in its own process. ``published``: the published recipe (arXiv 2511.16674 and
its code, commit 1d84ffd), trained on DIR/train and evaluated on DIR/val as in ``table.py``: each step encodes random views, with
noise, of random real images, one real view per synthetic view; the gradient of the head is differentiated again; timm's network
is unchanged, in float32; Adam is reset whenever a level is added to the pyramid. `CLPDistiller()` follows in the same process,
with budgets of 2, 4, 8 … seconds and three seeds each, until it is at least as accurate under both protocols: how many times
sooner it is there. DIR is ``$SKLEARN_CLPDD_DATA/imagenette`` by default.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import data_option, format_mean, machine, memory_in_use, peak_memory, require_data, reset_peak_memory, table, warm
from tqdm import trange

from sklearn_clpdd import DSA, CLPDistiller, FrozenEncoder
from sklearn_clpdd.baselines import LGMDistiller, SFMDistiller
from sklearn_clpdd.baselines._matching import GradientMatching
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.distill._augmentations import LGM_DISTILLATION_VIEWS, LGM_PROBE_VIEWS
from sklearn_clpdd.distill._parametrizations import _COLOR
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.encoder.images._forms import as_images
from sklearn_clpdd.encoder.sources._names import BACKBONES
from sklearn_clpdd.encoder.sources._timm import create_module
from sklearn_clpdd.evaluation import closed_form_probe_scores, sgd_probe_scores

MODEL = "tf_efficientnet_lite0"
# Whose memory is measured, with how many views of each of ten images.
PEAKS = {"LGMDistiller": (LGMDistiller, 10), "CLPDistiller": (CLPDistiller, 10), "SFMDistiller": (SFMDistiller, 1)}
BUDGETS = (2, 4, 8, 16, 32, 64)  # seconds of `CLPDistiller()`


def autodiff_loss(Z, r, R, real_r, head):
    """The published loss: the cosine distance of the gradients of a linear head, differentiable in ``Z``."""
    parameters = list(head.parameters())
    theirs = torch.autograd.grad(F.cross_entropy(head(R), real_r), parameters)
    ours = torch.autograd.grad(F.cross_entropy(head(Z), r), parameters, create_graph=True)
    theirs, ours = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (theirs, ours))
    return 1 - F.cosine_similarity(theirs.detach(), ours, dim=0)


class PublishedRecipe:
    """Synthetic images, and their optimisation as in the published code.

    ``module`` and ``preprocessing`` are those of timm's network, by default EfficientNet-Lite0's; ``precision`` is that of
    autocast, on ``device``.
    """

    def __init__(
        self,
        images,
        y,
        n_classes,
        views,
        size,
        *,
        every=200,
        rate=2e-3,
        seed=0,
        cached=False,
        module=None,
        preprocessing=None,
        device="cpu",
        precision=None,
    ):
        self.random = torch.Generator().manual_seed(seed)
        self.noise_random = torch.Generator(device).manual_seed(seed)
        self.device, self.precision = torch.device(device), precision
        module = create_module(BACKBONES[MODEL], "auto", None, {}) if module is None else module
        self.module = module.eval().requires_grad_(False).to(device)
        self.preprocessing = preprocessing or FrozenEncoder(image_size=size, device="cpu").load().preprocessing
        self.images, self.y, self.views, self.every, self.rate = images, y.to(device), views, every, rate
        self.side, self.r = images.shape[-1], torch.arange(n_classes, device=device)
        self.pyramid = [self.noise(1)]
        self.adam, self.n_steps, self.noisy = self.fresh_adam(), 0, LGM_DISTILLATION_VIEWS
        self.cached = self.encode(self.cropped(images[: views * n_classes])) if cached else None

    def noise(self, side):
        return torch.randn(len(self.r), 3, side, side, generator=self.random).to(self.device)

    def fresh_adam(self):
        for level in self.pyramid:
            level.requires_grad_()
        return torch.optim.Adam(self.pyramid, lr=self.rate)

    def extend(self):
        n, side = len(self.pyramid), min(2 * self.pyramid[-1].shape[-1], self.side)
        if self.pyramid[-1].shape[-1] < self.side:
            self.pyramid = [level.detach() * n / (n + 1) for level in self.pyramid] + [self.noise(side) / (n + 1)]
            self.adam = self.fresh_adam()

    def decode(self):
        total = sum(F.interpolate(level, self.side, mode="bilinear") for level in self.pyramid)
        return torch.sigmoid(2 * torch.einsum("ij,njhw->nihw", _COLOR.to(total), total))

    def cropped(self, images):
        """Real images, of which the loader takes a random crop of the encoder's size."""
        size = self.preprocessing.image_size
        corners = torch.randint(self.side - size + 1, (2, len(images), 1), generator=self.random) + torch.arange(size)
        y, x = corners.to(images.device)
        n, channels = (torch.arange(k, device=images.device) for k in images.shape[:2])
        crops = images[n[:, None, None, None], channels[:, None, None], y[:, None, :, None], x[:, None, None, :]]
        return crops.to(self.device).float() / 255

    def encode(self, images):
        views = LGM_PROBE_VIEWS(images, LGM_PROBE_VIEWS.draw(len(images), self.random), self.preprocessing)
        noisy = torch.rand(len(views), 1, 1, 1, device=views.device, generator=self.noise_random) < self.noisy.noise_probability
        normal = torch.randn(views.shape, device=views.device, generator=self.noise_random)
        views = views + noisy * (self.noisy.noise_mean + self.noisy.noise * normal)
        mean, std = (views.new_tensor(values)[:, None, None] for values in (self.preprocessing.mean, self.preprocessing.std))
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            return self.module((views - mean) / std).float()

    def step(self):
        if self.n_steps and self.n_steps % self.every == 0:
            self.extend()
        head = torch.nn.Linear(self.module.num_features, len(self.r), device=self.device)
        with torch.no_grad():
            head.weight.copy_(0.01 * torch.randn(head.weight.shape, generator=self.random))
            head.bias.zero_()
            rows = torch.randint(len(self.images), (self.views * len(self.r),), generator=self.random)
            R = self.encode(self.cropped(self.images[rows])) if self.cached is None else self.cached
        Z = self.encode(self.decode().repeat(self.views, 1, 1, 1))
        loss = autodiff_loss(Z, self.r.repeat(self.views), R, self.y[rows.to(self.device)], head)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.n_steps += 1
        return loss.item()


def some_images(n, side):
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def recipe(views, size, n_classes=10, **parameters):
    side = FrozenEncoder(image_size=size).load().preprocessing.resize_size
    plain = PublishedRecipe(
        some_images(views * n_classes, side), torch.arange(views * n_classes) % n_classes, n_classes, views, size, **parameters
    )
    while plain.pyramid[-1].shape[-1] < side:
        plain.extend()
    return plain


def gradient(arguments):
    """Largest difference of the gradient of the loss in the features, relative to its largest entry."""
    random = torch.Generator().manual_seed(0)
    rows = []
    for dtype, n_classes, mk, d, B in (
        (torch.float64, 10, 20, 64, 100),
        (torch.float32, 10, 100, 1280, 4096),
        (torch.float32, 100, 300, 768, 4096),
    ):
        Z, R = (F.normalize(torch.randn(n, d, generator=random, dtype=dtype), dim=1) for n in (mk, B))
        r, real_r = (torch.arange(n) % n_classes for n in (mk, B))
        head = torch.nn.Linear(d, n_classes, dtype=dtype)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            head.weight.copy_(GradientMatching.std * torch.randn(n_classes, d, generator=draw))
            head.bias.zero_()
        Z.requires_grad_()
        Y = F.one_hot(r, n_classes).to(dtype)

        def closed(Z=Z, Y=Y, R=R, real_r=real_r):
            return torch.autograd.grad(GradientMatching(torch.Generator().manual_seed(1))(Z, Y, R, real_r), Z)[0]

        def second(Z=Z, r=r, R=R, real_r=real_r, head=head):
            return torch.autograd.grad(autodiff_loss(Z, r, R, real_r, head), Z)[0]

        ours, theirs = closed(), second()
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        times = [statistics.median(seconds_of(work) for _ in range(7)) for work in (closed, second)]
        rows.append(
            [
                f"{n_classes}, {mk}, {d}, {B:,}",
                str(dtype)[6:],
                f"{difference:.0e}",
                *(f"{1e3 * t:.1f} ms" for t in times),
                f"{times[1] / times[0]:.1f}",
            ]
        )
    heads = [
        "classes, views, features, real features",
        "precision",
        "largest relative difference",
        "closed form",
        "second order",
        "ratio",
    ]
    return table(heads, rows)


def seconds_of(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ours(kind, views, size, n_steps, n_real=4096):
    """Seconds per step of a fit on random images, without the first two."""
    images = some_images(20, FrozenEncoder(image_size=size).load().preprocessing.resize_size)
    rows = np.arange(max(20, n_real)) % 20
    encoder = FrozenEncoder(image_size=size, memory=None)
    parameters = {
        "augmentation": DSA(n_views=views, unaugmented_weight=0.0),
        "max_iter": n_steps + 2,
        "validation_fraction": None,
        "random_state": 0,
    }
    # All levels of the pyramid are used from the start.
    fitted = kind(encoder, init="real", **parameters).fit(images[rows], rows % 10)
    return np.diff([record["seconds"] for record in fitted.history_])[1:]


def step(arguments):
    """The methods take turns, so that changes in the speed of the machine affect all of them."""
    size = arguments.size
    rows = []
    for views in (arguments.views, 10):
        kinds = {
            "published recipe": recipe(views, size).step,
            "the same, features of real images cached": recipe(views, size, cached=True).step,
        }
        # SFM has one view of each image in a step, whatever LGM has.
        own_kinds = {"`LGMDistiller`": (LGMDistiller, views), "`CLPDistiller`": (CLPDistiller, views)}
        own_kinds |= {"`SFMDistiller`, one view": (SFMDistiller, 1)}
        times = {name: [] for name in [*kinds, *own_kinds]}
        for _ in range(3):
            for name, work in kinds.items():
                times[name] += [seconds_of(work) for _ in range(5)][1:]
            for name, (kind, n_views) in own_kinds.items():
                times[name] += ours(kind, n_views, size, 5, n_real=200).tolist()
        floor = statistics.median(times["`LGMDistiller`"])
        for name, own in times.items():
            rows.append(
                [
                    f"10 × {own_kinds[name][1] if name in own_kinds else views}, {size} px",
                    name,
                    f"{1e3 * statistics.median(own):.0f} ms",
                    f"{statistics.median(own) / floor:.2f}",
                ]
            )
    return table(["classes × views", "", "a step", "of `LGMDistiller`'s"], rows)


def memory(arguments):
    rows = []
    for what in ("published", *PEAKS):
        command = [sys.executable, __file__, "--peak", what]
        peak = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        one = ", one view of each image" if what == "SFMDistiller" else ""
        rows.append(["published recipe" if what == "published" else f"`{what}`{one}", f"{peak:,.0f} MB"])
        if what == "published":
            first = peak
        rows[-1].append(f"{first / peak:.1f}")
    return table(["10 images, 10 views of each, 224 px", "peak above the loaded encoder", "published / this"], rows)


def peak(what):
    warm(FrozenEncoder(image_size=224).load())
    if what == "published":
        plain = recipe(10, 224)
        work = plain.step
    else:
        kind, views = PEAKS[what]
        work = partial(ours, kind, views, 224, 2, n_real=20)
    reset_peak_memory()
    before = memory_in_use()
    for _ in range(3 if what == "published" else 1):
        work()
    print(json.dumps(peak_memory() - before))


def published(arguments):
    X, y = load_image_folder(arguments.data / "train")
    X_test, y_test = load_image_folder(arguments.data / "val")
    encoder = FrozenEncoder(image_size=arguments.size, n_jobs=-1)
    source, whole = as_images(X), Preprocessing(image_size=encoder.load().preprocessing.resize_size)
    blocks = [range(i, min(i + 256, len(X))) for i in range(0, len(X), 256)]
    images = torch.cat([(255 * source.read(rows, whole, -1)).round().to(torch.uint8) for rows in blocks])
    classes, codes = np.unique(y, return_inverse=True)
    every = max(1, arguments.steps // 25)
    plain = PublishedRecipe(
        images, torch.from_numpy(codes), len(classes), arguments.views, arguments.size, every=every, rate=arguments.rate
    )
    begin = time.perf_counter()
    for _ in trange(arguments.steps, mininterval=10):
        plain.step()
    seconds = time.perf_counter() - begin
    synthetic = plain.decode().detach().permute(0, 2, 3, 1).numpy()
    scored = partial(both_protocols, X_test=X_test, y_test=y_test, encoder=encoder)
    goal = scored(synthetic, classes, seed=0)
    print(goal, f"{seconds:.0f} s", flush=True)
    what = f"LGM's recipe, {arguments.views} views, rate {arguments.rate:g}, a level every {every} steps"
    rows = [[what, f"{arguments.steps:,}", *(f"{score:.3f}" for score in goal), f"{seconds:.0f}", "", "", ""]]
    for budget in BUDGETS:
        runs = [default_within(budget, seed, encoder, X, y, scored) for seed in range(3)]
        scores = np.array([run["scores"] for run in runs])
        steps, loop, total = (np.mean([run[name] for run in runs]) for name in ("steps", "loop", "fit"))
        cells = [format_mean(column) for column in scores.T]
        reached = (scores.mean(axis=0) >= goal).all()
        of_loop, of_fit = (f"{seconds / own:.0f}" if reached else "" for own in (loop, total))
        rows.append(["`CLPDistiller()`", f"{steps:.0f}", *cells, f"{loop:.1f}", of_loop, f"{total:.1f}", of_fit])
        print(rows[-1], flush=True)
        if reached:
            break

    heads = ["", "steps", "closed-form probe", "LGM's protocol", "seconds of steps", "times faster"]
    return table([*heads, "seconds of `fit`, which encodes the real images", "times faster"], rows)


def both_protocols(images, labels, *, X_test, y_test, encoder, seed):
    """Accuracies of the closed-form probe and of a head by LGM's protocol."""
    test = (X_test, y_test)
    return [
        closed_form_probe_scores(images, labels, *test, encoder=encoder)["top1"].item(),
        sgd_probe_scores(images, labels, *test, encoder=encoder, random_state=seed)["top1"].item(),
    ]


def default_within(budget, seed, encoder, X, y, scored):
    """Steps, seconds and accuracies of `CLPDistiller()` with a time budget."""
    begin = time.perf_counter()
    fitted = CLPDistiller(encoder, time_budget=budget, max_iter=10**7, random_state=seed).fit(X, y)
    record = {"fit": time.perf_counter() - begin, "loop": fitted.history_[-1]["seconds"], "steps": fitted.n_iter_}
    return record | {"scores": scored(fitted.transform(), fitted.y_synthetic_, seed=seed)}


SECTIONS = {"gradient": gradient, "step": step, "memory": memory, "published": published}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    data_option(parser)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.peak)
        return
    if "published" in (arguments.sections or SECTIONS):
        require_data(parser, arguments)
    for name in arguments.sections or SECTIONS:
        options = f" --steps {arguments.steps} --rate {arguments.rate:g} --views {arguments.views}" if name == "published" else ""
        begin = f"{machine()}; `python benchmarks/lgm.py {name}{options}`"
        lines = [begin, "", *SECTIONS[name](arguments)]
        print("\n".join(lines), flush=True)
        if arguments.output is not None:
            arguments.output.mkdir(parents=True, exist_ok=True)
            suffix = f"-{arguments.steps}-{arguments.rate:g}" if name == "published" else ""
            (arguments.output / f"lgm-{name}{suffix}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
