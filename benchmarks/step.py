"""Time and memory of a distillation step compared with those of the encoder alone.

    python benchmarks/step.py [SECTION ...] [--output DIR]

``encoder``: the optimisations of the encoder, added one by one, and other networks. ``patches``: the gradient of a convolution of
patches, in two ways. ``heap``: the effect of glibc keeping freed memory during a
fit. ``parts``: a step compared with a forward pass and an input gradient of the encoder over the same number of views, in the
same run, and the share of each part, measured alone. ``memory``: peak memory above the loaded encoder, each figure in its own
process. ``growth``: how time and memory grow with the parameters, with a plot. ``objective``: the outer loss over features of
the size of ImageNet-1K's, from a float16 file. Images and features are random.
"""

import argparse
import copy
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F

from sklearn_clpdd import DSA, FrozenEncoder, LinearSchedule
from sklearn_clpdd.distill._adapters import ImageAdapter
from sklearn_clpdd.distill._loop import ViewPlan, optimize
from sklearn_clpdd.distill._objectives import CrossEntropy, WithNeighbors
from sklearn_clpdd.distill._parametrizations import Pyramid
from sklearn_clpdd.distill._real_features import BatchSampler, RealFeatures
from sklearn_clpdd.distill._state import State
from sklearn_clpdd.encoder._backbone import Backbone
from sklearn_clpdd.encoder._extractor import FeatureExtractor
from sklearn_clpdd.encoder._folding import fold_batch_norms, fold_paddings
from sklearn_clpdd.encoder._frozen_layers import _gradient_of_patches, save_less_for_backward
from sklearn_clpdd.encoder._precision import candidates, products_of
from sklearn_clpdd.encoder.images._forms import as_images
from sklearn_clpdd.utils._heap import reuse_freed_memory

CPU = torch.device("cpu")
ROUNDS = 7


def seconds(work, rounds=ROUNDS):
    """Median seconds of a few calls, after a warm-up call."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Case:
    """One setting: classes, views of an image, pixels, views in a chunk, real features in a step and in all, and so on."""

    def __init__(
        self,
        classes: int,
        views: int,
        size: int,
        chunk: int | None = None,
        batch: int = 4096,
        real: int | None = None,
        images_per_class: int = 1,
        encoder: FrozenEncoder | None = None,
        unaugmented: bool = True,
        keep_all: bool = False,
    ):
        encoder = encoder or FrozenEncoder(image_size=size, device="cpu")
        self.extractor = encoder.load()
        self.precision = self.extractor.gradient_dtype_
        device = self.extractor.device
        self.classes, self.views, self.size = classes, views, size
        self.n_random = views - unaugmented
        self.weight = 0.5 if unaugmented else 0.0
        m = classes * images_per_class
        self.total = m * views
        self.plan = ImageAdapter(as_images(np.zeros((1, size, size), np.uint8)), [encoder], None).chunk_plan(self.total, chunk)
        if keep_all:  # the graphs of all views, whatever the memory
            self.plan = self.plan._replace(n_kept_views=self.total)
        self.chunks, self.kept = self.plan.chunks(m, views)
        side = self.extractor.preprocessing.resize_size
        generators = [torch.Generator().manual_seed(i) for i in range(4)]
        self.parametrization = Pyramid((m, 3, side, side), generators[0], device=device)
        self.parametrization.grow(1.0)
        self.y = torch.arange(classes, device=device).repeat_interleave(images_per_class)
        targets = F.one_hot(self.y, classes).float()
        self.state = State(self.parametrization, targets, {"views": generators[1], "batches": generators[2]})
        n = real or max(2 * batch, 4 * classes)
        R = torch.randn(n, self.extractor.n_features, generator=generators[3])
        R /= R.norm(dim=1, keepdim=True)  # in place, since the memory is measured
        real = RealFeatures(R.numpy(), np.arange(n) % classes, np.arange(n))
        self.real = BatchSampler(real, batch, device, torch.float32)
        self.objective = CrossEntropy(1.0, 0.1)
        self.unaugmented_objective = WithNeighbors(self.objective, self.y, 0.05)
        self.draws = DSA().draw(self.total, generators[1])
        self.pixels = torch.rand(max(len(range(*rows.indices(self.total))) for rows in self.chunks), 3, size, size, device=device)

    def steps(self):
        """The optimisation loop of the library."""
        return optimize(
            self.state,
            self.real,
            encode=partial(self.extractor, precision=self.precision),
            preprocess=self.extractor.preprocessing,
            views=ViewPlan(DSA(), self.n_random, self.weight),
            objective=self.objective,
            unaugmented_objective=self.unaugmented_objective,
            learning_rate=LinearSchedule().rate,
            progress=lambda: 0.5,
            chunk_plan=self.plan,
            differentiating=partial(products_of, self.precision, self.extractor.device),
        )

    @property
    def twice(self):
        """Fraction of the views that pass twice."""
        return sum(rows.stop - rows.start for rows in self.chunks[: -self.kept]) / self.total

    # The parts, each over the chunks of a step.

    def encoder(self):
        """The encoder alone, which is the lower bound."""
        for rows in self.chunks:
            gradient(partial(self.extractor, precision=self.precision), self.pixels[: rows.stop - rows.start])

    def images(self):
        """θ to images, and the gradient."""
        for rows in self.chunks:
            samples = slice(rows.start // self.views, -(-rows.stop // self.views))
            theta = [level.detach()[samples].requires_grad_() for level in self.parametrization.parameters]
            decoded = self.parametrization.decode(theta)
            torch.autograd.grad(decoded, theta, torch.ones_like(decoded))

    def views_of_images(self):
        """Images to views, and the gradient."""
        decoded = torch.rand(1, *self.parametrization.shape[1:])
        for rows in self.chunks:
            n = -(-rows.stop // self.views) - rows.start // self.views
            samples = decoded.expand(n, -1, -1, -1).clone().requires_grad_()
            own = {name: drawn[rows] for name, drawn in self.draws.items()}
            views = DSA()(samples, own, self.extractor.preprocessing)
            torch.autograd.grad(views, samples, torch.ones_like(views))

    def outer_loss(self):
        """A batch of real features, the probe, the loss, and its gradient in the features of the views."""
        Z = F.normalize(torch.randn(self.total, self.extractor.n_features), dim=1).requires_grad_()
        Y, real = self.state.targets, self.real.sample(self.state.random["batches"])
        n = len(Y) * self.n_random
        loss = self.objective(Z[:n], Y.repeat_interleave(self.n_random, 0), *real) + self.unaugmented_objective(Z[n:], Y, *real)
        torch.autograd.grad(loss, Z)


def encoder(output):
    heads = ["", "112 px, 34 views", "", "224 px, 10 views", "", "kept for the gradient of a view of 224 px"]
    yield table_row(heads)
    yield table_row(["---"] * 6)
    module = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval().requires_grad_(False)
    stages = {"timm's, `channels_last`": copy.deepcopy(module).to(memory_format=torch.channels_last)}
    for name, change in {
        "batch norms folded": fold_batch_norms,
        "paddings folded": fold_paddings,
        "layers keep less": save_less_for_backward,
        "memory stays with the process": lambda module: None,
    }.items():
        change(module)
        stages[name] = copy.deepcopy(module).to(memory_format=torch.channels_last)
    times = {}
    for size, n in ((112, 34), (224, 10)):
        preprocessing = FrozenEncoder(image_size=size, device="cpu").load().preprocessing
        stage = {
            name: FeatureExtractor(Backbone(module, preprocessing, 1280, CPU), dtype="float32") for name, module in stages.items()
        }
        pixels = torch.rand(n, 3, size, size)
        for _ in range(ROUNDS + 1):  # taking turns, after a warm-up
            for name, extractor in stage.items():
                with reuse_freed_memory() if name == list(stages)[-1] else nullcontext():
                    gradient(extractor, pixels)  # allocates the memory that is to be reused
                    times.setdefault((name, size), []).append(seconds_of(partial(gradient, extractor, pixels)))
    first = next(iter(stages))
    for name in stages:
        cells = []
        for size in (112, 224):
            ours, floor = (statistics.median(times[one, size][1:]) for one in (name, first))
            cells += [f"{1e3 * ours:.0f} ms", f"{ours / floor:.2f}"]
        yield table_row([name, *cells, f"{stage[name].backbone.graph_bytes() / 1e6:.1f} MB"])
    yield ""
    yield "Forward pass and input gradient; each row has what those above it have."
    yield ""
    yield from networks()


# Untrained weights, 224 px, and views in a pass.
NETWORKS = {
    "vit_small_patch14_dinov2": 8,
    "vit_base_patch16_224": 4,
    "convnext_tiny": 8,
    "tf_efficientnet_lite0": 16,
}


def networks():
    """Other networks: timm's module as it is and ours, in float32, and in bfloat16 where the CPU has instructions for it."""
    precisions = ["float32", *candidates(CPU)]
    heads = ["224 px", "precision", "forward and gradient, of timm's in float32", "of timm's in the same precision"]
    heads += ["images encoded in a second, times timm's in float32", "kept for the gradient of a view", "of timm's in float32"]
    yield table_row(heads)
    yield table_row(["---"] * len(heads))
    for name, n in NETWORKS.items():
        pixels = torch.rand(n, 3, 224, 224)
        sized = {"img_size": 224} if "dinov2" in name else {}
        plain = timm.create_model(name, num_classes=0, **sized).eval().requires_grad_(False)
        extractor = FrozenEncoder(name, weights=None, image_size=224, l2_normalize=False, device="cpu").load()
        ways = {}
        for precision in precisions:
            ways["timm's", precision] = autocast(plain, precision)
            ways["ours", precision] = partial(extractor, precision=precision)
        times = {}
        with reuse_freed_memory():
            for _ in range(ROUNDS + 1):
                for way, run in ways.items():
                    times.setdefault((way, "gradient"), []).append(seconds_of(partial(gradient, run, pixels)))
                    with torch.inference_mode():
                        times.setdefault((way, "features"), []).append(seconds_of(partial(run, pixels)))
        took = {key: statistics.median(values[1:]) for key, values in times.items()}
        first = "timm's", "float32"
        kept = Backbone(plain, extractor.preprocessing, extractor.n_features, CPU).graph_bytes()
        for precision in precisions:
            ours, theirs = ("ours", precision), ("timm's", precision)
            ratios = [took[ours, "gradient"] / took[one, "gradient"] for one in (first, theirs)]
            speed = took[first, "features"] / took[ours, "features"]
            bytes_ = extractor.backbone.graph_bytes(precision)
            cells = [f"`{name}`", precision, *(f"{ratio:.2f}" for ratio in ratios), f"{speed:.2f}"]
            yield table_row([*cells, f"{bytes_ / 1e6:.1f} MB", f"{bytes_ / kept:.2f}"])
        yield table_row([f"`{name}`", f'"auto" is {extractor.dtype_}, gradients {extractor.gradient_dtype_}', *[""] * 5])
        if "bfloat16" not in precisions:
            bytes_ = extractor.backbone.graph_bytes("bfloat16")
            cells = ["bfloat16, without instructions for it", "", "", "", f"{bytes_ / 1e6:.1f} MB", f"{bytes_ / kept:.2f}"]
            yield table_row([f"`{name}`", *cells])


def autocast(module, precision):
    """timm's module as it is, on normalised images, in a precision."""

    def run(images):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return module(images).float()

    return run


def gradient(extractor, pixels):
    """Forward pass and input gradient, including the normalisation of the features."""
    views = pixels.clone().requires_grad_()
    Z = extractor(views)
    torch.autograd.grad(Z, views, Z.detach())


def parts(output):
    heads = ["classes × views, pixels", "views in a chunk", "pass twice", "encoder (floor)", "step", "step / floor"]
    yield table_row([*heads, "images", "views", "outer loss", "Adam"])
    yield table_row(["---"] * 10)
    vit = FrozenEncoder("vit_small_patch14_dinov2", weights=None, image_size=224, device="cpu")
    for classes, views, size, options in (
        (10, 2, 112, {}),
        (10, 10, 112, {}),
        (10, 10, 112, {"chunk": 34}),
        (10, 10, 224, {"chunk": 100}),
        (10, 10, 224, {}),
        (1000, 2, 112, {}),
        (10, 3, 224, {"encoder": vit, "keep_all": True}),
    ):
        case = Case(classes, views, size, **options)
        steps = case.steps()
        rounds = 3 if case.total * size**2 > 1e7 else ROUNDS
        with reuse_freed_memory():  # as in `fit`
            # Taking turns, so that changes in the speed of the machine affect both.
            for _ in range(2):
                case.encoder(), next(steps)
            floor, step = [], []
            for _ in range(rounds):
                floor.append(seconds_of(case.encoder))
                step.append(seconds_of(lambda steps=steps: next(steps)))
            floor, step = statistics.median(floor), statistics.median(step)
            parts = (case.images, case.views_of_images, case.outer_loss, case.state.optimizer.step)
            shares = [f"{100 * seconds(part, rounds) / floor:.1f} %" for part in parts]
        yield table_row(
            [
                f"{classes:,} × {views}, {size}" + (f", ViT-S/14, {case.precision}" if "encoder" in options else ""),
                f"{max(rows.stop - rows.start for rows in case.chunks)}",
                f"{100 * case.twice:.0f} %",
                f"{1e3 * floor:.0f} ms",
                f"{1e3 * step:.0f} ms",
                f"{step / floor:.2f}",
                *shares,
            ]
        )
        del case, steps
        gc.collect()
    yield ""
    yield "Parts in per cent of the floor, a forward pass and an input gradient of the encoder over the same chunks."


def table_row(cells):
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def seconds_of(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def alone(rounds=3, **case):
    """Peak memory above the loaded encoder in MB, median seconds of a few steps, and sizes, from a new process."""
    script = (
        "import json, statistics, sys; sys.path.insert(0, sys.argv[1]); import measure, step\n"
        "case, rounds = json.loads(sys.argv[2]), int(sys.argv[3])\n"
        "backbone = step.FrozenEncoder(image_size=case['size'], device='cpu').load(); measure.warm(backbone)\n"
        "before = measure.memory_in_use()\n"
        "case = step.Case(**case); steps = case.steps()\n"
        "with step.reuse_freed_memory():\n"
        "    next(steps)\n"
        "    took = statistics.median(step.seconds_of(lambda: next(steps)) for _ in range(rounds))\n"
        "R = case.real._R.numel() * 4 / 1e6; theta = sum(level.numel() for level in case.parametrization.parameters) * 4 / 1e6\n"
        "chunk = max(rows.stop - rows.start for rows in case.chunks); once = round(case.total * (1 - case.twice))\n"
        "seen = {'R': R, 'theta': theta, 'chunk': chunk, 'once': once}\n"
        "print(json.dumps({'peak': measure.peak_memory() - before, 'seconds': took, **seen}))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), json.dumps(case), str(rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def memory(output):
    heads = ["classes × views, pixels", "`encoder_batch_size`", "views in a chunk", "pass once", "peak above the loaded encoder"]
    yield table_row([*heads, "of it real features", "θ, its gradient and two moments"])
    yield table_row(["---"] * 7)
    for classes, views, size, chunk in (
        (10, 10, 224, None),
        (100, 10, 224, None),
        (10, 100, 224, None),
        (10, 10, 224, 10),
        (10, 100, 224, 10),
        (10, 10, 224, 100),
        (10, 10, 112, None),
        (10, 100, 112, None),
        (1000, 2, 112, None),
    ):
        seen = alone(classes=classes, views=views, size=size, chunk=chunk)
        sizes = [f"{seen[name]:.0f} MB" for name in ("peak", "R")] + [f"{4 * seen['theta']:.0f} MB"]
        yield table_row([f"{classes:,} × {views}, {size}", chunk or "auto", seen["chunk"], seen["once"], *sizes])


# Around 10 classes of one image, 2 views of 112 px, a batch of 4,096 of 8,192 real features.
SWEEPS = {
    "classes": ("classes", (10, 30, 100, 300, 1000)),
    "images per class": ("images_per_class", (1, 3, 10, 30, 100)),
    "views of an image": ("views", (2, 5, 10, 30, 100)),
    "side of a view": ("size", (64, 80, 112, 160, 224)),
    "real samples in a step": ("batch", (1024, 4096, 16384, 65536)),
    "real samples": ("real", (8192, 32768, 131072, 524288)),
}


def growth(output):
    seen = {}
    yield table_row(["growing", *["value: time of a step, peak"] * 6, "exponents between the last two"])
    yield table_row(["---"] * 8)
    for name, (parameter, values) in SWEEPS.items():
        base = {"classes": 10, "views": 2, "size": 112, "real": 131072 if parameter == "batch" else 8192}
        seen[name] = [(value, alone(**{**base, parameter: value})) for value in values]
        cells = [f"{value:,}: {one['seconds']:.3f} s, {one['peak']:.0f} MB" for value, one in seen[name]]
        (low, first), (high, last) = seen[name][-2:]
        slopes = [np.log(last[key] / first[key]) / np.log(high / low) for key in ("seconds", "peak")]
        yield table_row([name, *cells, *[""] * (6 - len(cells)), f"{slopes[0]:.2f}, {slopes[1]:.2f}"])
    if output is not None:
        plot(seen, output / "step-growth.png")


# Documented by glibc; if they are set, the library does not change the allocator.
TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647"
HEAP_RUN = """
import sys
from contextlib import nullcontext
import numpy as np
from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.distill import _base
from sklearn_clpdd.encoder import _extractor
if sys.argv[1] == "never":
    _base.reuse_freed_memory = _extractor.reuse_freed_memory = nullcontext
side = int(sys.argv[2]) * 8 // 7
X = np.random.default_rng(0).integers(0, 256, (40, side, side, 3), dtype=np.uint8)
encoder = FrozenEncoder(image_size=int(sys.argv[2]), device="cpu")
seconds = [record["seconds"] for record in CLPDistiller(encoder, max_iter=22, random_state=0).fit(X, np.arange(40) % 10).history_]
print((seconds[-1] - seconds[1]) / 20)
"""


def heap(output):
    """Each run has its own process; the settings take turns."""
    ways = {
        "glibc's defaults": ("never", ""),
        "memory reused during `fit`, as it is": ("always", ""),
        f"`GLIBC_TUNABLES={TUNABLES}`": ("never", TUNABLES),
    }
    times = {}
    for size, (title, (way, tunables)) in itertools.product((224, 112), [*ways.items()] * 5):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        environment |= {"GLIBC_TUNABLES": tunables} if tunables else {}
        command = [sys.executable, "-c", HEAP_RUN, way, str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        times.setdefault((title, size), []).append(float(done.stdout))
    yield table_row(["`CLPDistiller()`, 10 classes", "a step at 224 px, the default", "", "at 112 px", ""])
    yield table_row(["---"] * 5)
    for title in ways:
        cells = []
        for size in (224, 112):
            own, floor = (statistics.median(times[one, size]) for one in (title, next(iter(ways))))
            cells += [f"{1e3 * own:.0f} ms", f"{own / floor:.2f}"]
        yield table_row([title, *cells])
    yield ""
    yield "Medians of five runs of 20 steps, in turn."


def plot(seen, path):
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(2, len(seen), figsize=(2.4 * len(seen), 5), sharey="row", sharex="col", layout="constrained")
    for (above, below), (name, points) in zip(axes.T, seen.items(), strict=True):
        values = [value for value, _ in points]
        above.loglog(values, [one["seconds"] for _, one in points], "o-")
        below.loglog(values, [one["peak"] for _, one in points], "o-", color="C1")
        below.set_xlabel(name)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("peak above the encoder, MB")
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=100)


def patches(output):
    """Gradients of the first layers of vision transformers and of ConvNeXt, 224 px, in the images."""
    yield table_row(["patch, features", "transposed convolution", "one matrix product", "ratio"])
    yield table_row(["---"] * 4)
    for side, features, n in ((14, 384, 10), (16, 768, 4), (4, 96, 8)):
        weight = torch.randn(features, 3, side, side)
        dy = torch.randn(n, features, 224 // side, 224 // side).contiguous(memory_format=torch.channels_last)
        ways = (lambda dy=dy, weight=weight, side=side: torch.conv_transpose2d(dy, weight, None, side),)
        ways += (lambda dy=dy, weight=weight: _gradient_of_patches(dy, weight),)
        with reuse_freed_memory():
            times = [[seconds_of(way) for way in ways] for _ in range(ROUNDS + 1)][1:]
        theirs, ours = (statistics.median(one) for one in zip(*times, strict=True))
        yield table_row([f"{side} px, {features}", f"{1e3 * theirs:.1f} ms", f"{1e3 * ours:.1f} ms", f"{ours / theirs:.2f}"])


def objective(output):
    n, d, classes = 1_281_167, 768, 1000
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        R = np.memmap(Path(folder, "features"), dtype=np.float16, mode="w+", shape=(n, d))
        for start in range(0, n, 8192):
            R[start : start + 8192] = generator.standard_normal(R[start : start + 8192].shape, dtype=np.float32) / d**0.5
        r = generator.integers(classes, size=n)
        Z = F.normalize(torch.randn(classes, d), dim=1).requires_grad_()
        Y = F.one_hot(torch.arange(classes), classes).float()
        loss = WithNeighbors(CrossEntropy(1.0, 0.1), torch.arange(classes), 0.05)
        yield "| rows in a batch | uniform | balanced | a batch in memory |"
        yield "| --- | --- | --- | --- |"
        for size in (4096, 16384, 65536):
            line = []
            for strata in (None, r):
                real = BatchSampler(RealFeatures(R, r, np.arange(n), strata=strata), size, CPU, torch.float32)
                draws = torch.Generator().manual_seed(0)
                line.append(seconds(lambda real=real, draws=draws: torch.autograd.grad(loss(Z, Y, *real.sample(draws)), Z), 3))
            batch = real.sample(draws)
            line.append(seconds(lambda batch=batch: torch.autograd.grad(loss(Z, Y, *batch), Z), 3))
            yield f"| {size:,} | " + " | ".join(f"{1e3 * value:.0f} ms" for value in line) + " |"
        yield ""
        yield f"Gradient of the outer loss in Z, {n:,} × {d} features in a float16 file, 1,000 classes."


SECTIONS = {
    "encoder": encoder,
    "patches": patches,
    "heap": heap,
    "parts": parts,
    "memory": memory,
    "growth": growth,
    "objective": objective,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section {sorted(unknown)}; there are {list(SECTIONS)}")
    for name in arguments.sections or SECTIONS:
        title = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, EfficientNet-Lite0; "
        lines = []
        for line in itertools.chain([f"{title}`python benchmarks/step.py {name}`", ""], SECTIONS[name](arguments.output)):
            print(line, flush=True)
            lines.append(line)
        print()
        if arguments.output is not None:
            arguments.output.mkdir(parents=True, exist_ok=True)
            (arguments.output / f"step-{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
