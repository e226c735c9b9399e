"""What a GPU does: the CUDA tests, images encoded per second, steps of ImageNet-1K's size beside LGM's, and a probe of that size.

    SCIPY_ARRAY_API=1 python benchmarks/gpu.py [SECTION ...] [--device cuda] [--small] [--output DIR]

No download, untrained weights, random images. ``tests``: ``tests/test_cuda.py``. ``step``: 1,000 classes of one image of 256
px, views of 224 px, ViT-B/16, beside LGM's published step (``lgm.py``) with as many views. ``probe``: 1,281,167 rows of 768
features in 1,000 classes, beside `RidgeClassifierCV` on tensors of the GPU. ``encode``: ViT-B/16, 224 px, in each precision
beside timm's network under autocast. The page is written after each section, so that what was done stays if the run is cut off.
With ``--small --device cpu`` all sections run anywhere.
"""

import argparse
import gc
import itertools
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import sklearn
import timm
import torch
from lgm import PublishedRecipe
from measure import machine, memory_in_use, peak_memory, reset_peak_memory, table
from sklearn.linear_model import RidgeClassifierCV
from step import Case

from sklearn_clpdd import ClosedFormProbe, FrozenEncoder

PRECISIONS = {"float32": None, "TF32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
FULL = {"model": "vit_base_patch16_224", "images": 4096, "batch": 256, "views": ((100, 1), (1000, 1))}
FULL |= {"probes": ((100_000, 768, 100), (1_281_167, 768, 1000)), "rounds": 3}
SMALL = {"model": "vit_tiny_patch16_224", "images": 8, "batch": 4, "views": ((2, 2),), "probes": ((500, 16, 5),), "rounds": 1}


def synchronized(work, device):
    """Seconds of a call, including the work of the device."""
    begin = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def median_seconds(work, options, warm_up=2):
    """Median of a few calls."""
    times = [synchronized(work, options["device"]) for _ in range(warm_up + options["rounds"])]
    return statistics.median(times[warm_up:])


def set_precision(precision):
    """Allow TF32 in this process, or forbid it."""
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")


def make_encoder(options, precision):
    """The library's encoder, which has no float16."""
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    batch = options["batch"]
    return FrozenEncoder(
        options["model"], weights=None, crop_pct=0.875, dtype=dtype, batch_size=batch, device=options["device"], n_jobs=-1
    )


def timm_network(options):
    return timm.create_model(options["model"], num_classes=0).eval().requires_grad_(False).to(options["device"])


def encode(options, variant, precision):
    """Images per second: of the network on pixels that are on the device, or of ``transform`` on a uint8 array."""
    set_precision(precision)
    encoder = make_encoder(options, precision)
    if variant == "transform":
        images = np.random.default_rng(0).integers(0, 256, (options["images"], 256, 256, 3), dtype=np.uint8)
        return len(images) / median_seconds(lambda: encoder.transform(images), options, warm_up=1)
    pixels = torch.rand(options["batch"], 3, 224, 224).to(options["device"])
    network = encoder.load() if variant == "ours" else timm_network(options)

    half = PRECISIONS[precision] if variant == "timm" else None

    @torch.inference_mode()
    def work():
        for _ in range(4):
            with torch.autocast(options["device"], half, enabled=half is not None):
                network(pixels)

    return 4 * len(pixels) / median_seconds(work, options)


def step(options, variant, precision, classes, views):
    """Median seconds of a step, and its peak memory in MB, without network and images."""
    device = options["device"]
    set_precision(precision)
    encoder = make_encoder(options, precision)
    preprocessing = encoder.load().preprocessing
    if variant == "ours":
        case = Case(classes, views, 224, encoder=encoder, unaugmented=False)
        steps = case.steps()
        before, work = memory_in_use(device), lambda: next(steps)
    else:
        images = torch.randint(256, (max(2000, classes), 3, 256, 256), dtype=torch.uint8).to(device)
        y = torch.arange(len(images)) % classes
        network = timm_network(options)
        recipe = PublishedRecipe(
            images,
            y,
            classes,
            views,
            224,
            every=10**6,
            module=network,
            preprocessing=preprocessing,
            device=device,
            precision=PRECISIONS[precision],
        )
        while recipe.pyramid[-1].shape[-1] < 256:
            recipe.extend()
        before, work = memory_in_use(device), recipe.step
    work()
    reset_peak_memory(device)
    seconds = median_seconds(work, options, warm_up=1)
    return seconds, peak_memory(device) - before


def probe(options, variant, n, d, classes):
    """Seconds of a fit, its peak memory on the device in MB, and its training accuracy."""
    device = options["device"]
    random = torch.Generator(device).manual_seed(0)
    y = torch.arange(n, device=device) % classes
    X = torch.randn(classes, d, generator=random, device=device)[y] / 4
    X += torch.randn(n, d, generator=random, device=device)
    if variant == "ours":
        X, y = X.cpu().numpy(), y.cpu().numpy()
        estimator = ClosedFormProbe(device=device)
    else:
        estimator = RidgeClassifierCV(np.logspace(-3, 3, 13))
    some = slice(0, 20 * classes)
    with sklearn.config_context(array_api_dispatch=variant != "ours"):
        estimator.fit(X[some], y[some])  # loads libraries
        reset_peak_memory(device)
        before = memory_in_use(device)
        seconds = synchronized(lambda: estimator.fit(X, y), device)
        accuracy = float((estimator.predict(X[:10_000]) == y[:10_000]).sum()) / len(y[:10_000])
    return seconds, peak_memory(device) - before, accuracy


def result_or_error(work, *arguments):
    """Result of a call, or a short description of its error."""
    try:
        return work(*arguments)
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error)[:100]}".replace("|", "/").replace("\n", " ")
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def formatted(value, template):
    """A number in a format; text as it is."""
    return template.format(value) if isinstance(value, float | int) else value


def tests_section(options):
    file = Path(__file__).parents[1] / "tests" / "test_cuda.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout[-6000:], flush=True)
    yield f"`tests/test_cuda.py`: {done.stdout.strip().splitlines()[-1].strip('= ')}"


def encode_section(options):
    ways = {"timm's network": "timm", "`FrozenEncoder().load()`": "ours", "`FrozenEncoder().transform`": "transform"}
    rows = []
    unmeasured = {("timm", "TF32")}
    unsupported = {("ours", "float16"), ("transform", "float16")}
    for (title, variant), precision in itertools.product(ways.items(), PRECISIONS):
        if (variant, precision) in unmeasured | unsupported:
            continue
        rows.append([title, precision, formatted(result_or_error(encode, options, variant, precision), "{:,.0f}")])
        print(rows[-1], flush=True)
    yield from table([f"`{options['model']}`, 224 px", "precision", "images/s"], rows)


def step_section(options):
    ways = [("published", "float32"), ("published", "bfloat16"), ("ours", "float32"), ("ours", "TF32"), ("ours", "bfloat16")]
    rows = []
    for (classes, views), (variant, precision) in itertools.product(options["views"], ways):
        if (variant, precision) == ("published", "float32") and classes * views > 250:
            continue  # more than 80 GB
        seen = result_or_error(step, options, variant, precision, classes, views)
        seconds, peak = seen if isinstance(seen, tuple) else (seen, "")
        title = "LGM's published step" if variant == "published" else "`CLPDistiller`'s loop, random views only"
        rows.append([f"{classes:,} × {views}", title, precision, formatted(seconds, "{:.3f}"), formatted(peak, "{:,.0f}")])
        print(rows[-1], flush=True)
    yield from table(["classes × views", "", "precision", "seconds", "peak above what is loaded, MB"], rows)


def probe_section(options):
    rows = []
    for shape in options["probes"]:
        for variant in ("ours", "RidgeClassifierCV"):
            seen = result_or_error(probe, options, variant, *shape)
            seconds, peak, accuracy = seen if isinstance(seen, tuple) else (seen, "", "")
            name = "`ClosedFormProbe()`, numpy arrays" if variant == "ours" else "`RidgeClassifierCV`, 13 strengths, tensors"
            cells = [" × ".join(f"{n:,}" for n in shape), name, formatted(seconds, "{:.2f}"), formatted(peak, "{:,.0f}")]
            rows.append([*cells, formatted(accuracy, "{:.3f}")])
            print(rows[-1], flush=True)
    yield from table(["rows × features × classes", "", "seconds", "peak on the GPU, MB", "accuracy on the training rows"], rows)


SECTIONS = {"tests": tests_section, "step": step_section, "probe": probe_section, "encode": encode_section}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    options = (SMALL if arguments.small else FULL) | {"device": arguments.device}
    lines = [f"{machine()}; `SCIPY_ARRAY_API=1 python benchmarks/gpu.py`"]
    for name in arguments.sections or SECTIONS:
        begin = time.perf_counter()
        lines += ["", *SECTIONS[name](options)]
        print("\n".join(lines[-40:]), f"\n[{name}: {time.perf_counter() - begin:.0f} s]", sep="", flush=True)
        if arguments.output is not None:
            arguments.output.mkdir(parents=True, exist_ok=True)
            (arguments.output / "gpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
