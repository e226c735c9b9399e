"""What a GPU does: the CUDA tests, images encoded per second, steps of ImageNet-1K's size beside LGM's, and a probe of that size.

    SCIPY_ARRAY_API=1 python benchmarks/gpu.py [SECTION ...] [--device cuda] [--small] [--output DIR]

At most eight minutes on one H100. No download, untrained weights, random images; runs in a plain checkout that is not installed.
``tests``: ``tests/test_cuda.py``. ``step``: 1,000 classes of one image of 256 px, views of 224 px, ViT-B/16, 1 and 3 views,
beside LGM's published step (``lgm.py``: autocast in half precision, real views encoded in each step, second order) with as many
views, each in its own process. ``probe``: 1,281,167 rows of 768 features in 1,000 classes, as numpy arrays and as tensors of the
GPU, beside `RidgeClassifierCV`. ``encode``: ViT-B/16, 224 px, in each precision beside timm's network under autocast. The page is
written after each row, so that what was done stays if the run is cut off. ``--small --device cpu`` runs anywhere.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, installed or not

import numpy as np
import sklearn
import timm
import torch
from lgm import PublishedRecipe
from measure import RESULTS, machine, memory_in_use, peak_memory, reset_peak_memory, table
from sklearn.linear_model import RidgeClassifierCV
from step import Case

from sklearn_clpdd import ClosedFormProbe, FrozenEncoder
from sklearn_clpdd.encoder._precision import PRECISIONS, candidates, products_of
from sklearn_clpdd.utils._torch_modes import float32_products

FULL = {"model": "vit_base_patch16_224", "images": 4096, "batch": 256, "views": ((1000, 1), (1000, 3))}
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


def precisions(device):
    """All precisions of a device, and the default."""
    return ["float32", *candidates(torch.device(device)), "auto"]


def make_encoder(options, precision):
    own = {"dtype": precision, "batch_size": options["batch"], "device": options["device"]}
    return FrozenEncoder(options["model"], weights=None, crop_pct=0.875, n_jobs=-1, **own)


def timm_network(options):
    return timm.create_model(options["model"], num_classes=0).eval().requires_grad_(False).to(options["device"])


def encode(options, variant, precision):
    """Images per second: of the network on pixels that are on the device, or of ``transform`` on a uint8 array."""
    encoder = make_encoder(options, precision)
    if variant == "transform":
        images = np.random.default_rng(0).integers(0, 256, (options["images"], 256, 256, 3), dtype=np.uint8)
        return len(images) / median_seconds(lambda: encoder.transform(images), options, warm_up=1)
    pixels = torch.rand(options["batch"], 3, 224, 224).to(options["device"])
    network = encoder.load() if variant == "ours" else timm_network(options)

    half = PRECISIONS.get(precision) if variant == "timm" else None

    @torch.inference_mode()
    def work():
        with float32_products(tf32=precision == "tf32"):
            for _ in range(4):
                with torch.autocast(options["device"], half, enabled=half is not None):
                    network(pixels)

    return 4 * len(pixels) / median_seconds(work, options)


def step(options, variant, precision, classes, views):
    """Median seconds of a step, and its peak memory in MB, without network and images."""
    device = options["device"]
    encoder = make_encoder(options, precision)
    preprocessing = encoder.load().preprocessing
    if variant == "ours":
        case = Case(classes, views, 224, encoder=encoder, unaugmented=False)
        steps, precision = case.steps(), case.precision
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
    with products_of("float32", torch.device(device)):  # outside our network; the published step has half precision
        work()
        reset_peak_memory(device)
        seconds = median_seconds(work, options, warm_up=1)
    return seconds, peak_memory(device) - before, precision


def alone(options, *arguments):
    """Result of `step` in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps([options, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the process ended with {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    if isinstance(result, str):
        raise torch.cuda.OutOfMemoryError(result) if "out of memory" in result else RuntimeError(result)
    return result


def one(options, *arguments):
    """Print the result of `step`, or its error, as JSON."""
    print(json.dumps(result_or_error(step, options, *arguments)))


PROBES = {
    '`ClosedFormProbe(loss="squared")`, numpy arrays': lambda device: ClosedFormProbe(loss="squared", device=device),
    '`ClosedFormProbe(loss="squared")`, tensors': lambda device: ClosedFormProbe(loss="squared"),
    "`ClosedFormProbe()`, tensors": lambda device: ClosedFormProbe(),
    "`RidgeClassifierCV`, 13 strengths, tensors": lambda device: RidgeClassifierCV(np.logspace(-3, 3, 13)),
}


def probe(options, variant, n, d, classes):
    """Seconds of a fit, its peak memory on the device in MB, and its training accuracy."""
    device = options["device"]
    random = torch.Generator(device).manual_seed(0)
    y = torch.arange(n, device=device) % classes
    X = torch.randn(classes, d, generator=random, device=device)[y] / 4
    X += torch.randn(n, d, generator=random, device=device)
    if variant.endswith("numpy arrays"):
        X, y = X.cpu().numpy(), y.cpu().numpy()
    estimator = PROBES[variant](device)
    some = slice(0, 20 * classes)
    with sklearn.config_context(array_api_dispatch=variant.endswith("tensors")):
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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_cuda.py")]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    print(done.stdout[-6000:], flush=True)
    yield f"`tests/test_cuda.py`: {done.stdout.strip().splitlines()[-1].strip('= ')}"


def encode_section(options):
    ways = {"timm's network": "timm", "`FrozenEncoder().load()`": "ours", "`FrozenEncoder().transform`": "transform"}
    yield from table([f"`{options['model']}`, 224 px", "precision", "images/s"], [])
    for (title, variant), precision in itertools.product(ways.items(), precisions(options["device"])):
        if (variant, precision) == ("timm", "auto"):
            continue
        cells = [title, precision, formatted(result_or_error(encode, options, variant, precision), "{:,.0f}")]
        yield from table(cells, [])[:1]
    chosen = make_encoder(options, "auto").load()
    yield ""
    yield f'"auto" is {chosen.dtype_}; for gradients it is {chosen.gradient_dtype_}.'


def step_section(options):
    ours = precisions(options["device"])
    half = next((one for one in ours if one in ("bfloat16", "float16")), "float32")
    ways = [("published", half), *(("ours", precision) for precision in ours)]
    heads = ["classes × views", "", "precision", "seconds", "times faster than published", "peak above what is loaded, MB"]
    yield from table([*heads, "of published"], [])
    for classes, views in options["views"]:
        published = None
        for variant, precision in ways:
            seen = result_or_error(alone, options, variant, precision, classes, views)
            seconds, peak, used = seen if isinstance(seen, list) else (seen, "", precision)
            if published is None and isinstance(seen, list):
                published = seconds, peak
            ratios = ["", ""]
            if published is not None and isinstance(seen, list):
                ratios = [f"{published[0] / seconds:.1f}", f"{peak / published[1]:.2f}"]
            title = "LGM's published step" if variant == "published" else "`CLPDistiller`'s loop, random views only"
            name = precision if used == precision else f"{precision}: {used}"
            cells = [f"{classes:,} × {views}", title, name, formatted(seconds, "{:.3f}"), ratios[0], formatted(peak, "{:,.0f}")]
            yield from table([*cells, ratios[1]], [])[:1]


def probe_section(options):
    yield from table(["rows × features × classes", "", "seconds", "peak on the GPU, MB", "accuracy on the training rows"], [])
    for shape in options["probes"]:
        for variant in PROBES:
            seen = result_or_error(probe, options, variant, *shape)
            seconds, peak, accuracy = seen if isinstance(seen, tuple) else (seen, "", "")
            cells = [" × ".join(f"{n:,}" for n in shape), variant, formatted(seconds, "{:.2f}"), formatted(peak, "{:,.0f}")]
            yield from table([*cells, formatted(accuracy, "{:.3f}")], [])[:1]


SECTIONS = {"tests": tests_section, "step": step_section, "probe": probe_section, "encode": encode_section}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, help="folder of gpu.md; benchmarks/results without --small")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*json.loads(arguments.one))
        return
    options = (SMALL if arguments.small else FULL) | {"device": arguments.device}
    output = arguments.output or (None if arguments.small else RESULTS)
    lines = [f"{machine()}; `SCIPY_ARRAY_API=1 python benchmarks/gpu.py`"]
    for name in arguments.sections or SECTIONS:
        begin = time.perf_counter()
        for line in itertools.chain([""], SECTIONS[name](options)):
            lines.append(line)
            print(line, flush=True)
            if output is not None:
                output.mkdir(parents=True, exist_ok=True)
                (output / "gpu.md").write_text("\n".join(lines) + "\n")
        print(f"[{name}: {time.perf_counter() - begin:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
