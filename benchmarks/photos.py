"""Large photos and plain folders: memory and time of `FrozenEncoder`, and its speed beside timm's own loader.

``python benchmarks/photos.py large`` encodes 64 JPEG photos of 24 MP with two threads, 16 as PNG, and one picture of one pixel's
width. ``python benchmarks/photos.py folder DIR`` encodes 1,000 files of an image folder, and has timm's network do the same with
timm's loader and two workers. ``--output`` writes the page.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine, peak_memory, reset_peak_memory, table
from PIL import Image

SIDE = 224


def photo(folder, size, suffix):
    """A smooth photo-like picture with some noise."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (30, 45, 3)).astype(np.uint8))
    picture = small.resize(size, Image.Resampling.BICUBIC)
    path = Path(folder, f"{size[0]}.{suffix}")
    picture.save(path, quality=90)
    return str(path)


def encode(path, n):
    """Peak memory in MB above that of as many small images, and seconds, of one file listed ``n`` times."""
    from sklearn_clpdd import FrozenEncoder

    encoder = FrozenEncoder(image_size=SIDE, n_jobs=2)
    small = np.zeros((n, SIDE, SIDE, 3), np.uint8)
    encoder.transform(small)
    reset_peak_memory()
    encoder.transform(small)
    network = peak_memory()
    reset_peak_memory()
    started = time.perf_counter()
    encoder.transform([path] * n)
    return max(0, peak_memory() - network), time.perf_counter() - started


def measure_large():
    """Each row in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, size, suffix, n in (
            ("64 photos of 24 MP, JPEG", (6000, 4000), "jpg", 64),
            ("16 photos of 24 MP, PNG", (6000, 4000), "png", 16),
            ("a picture of 1 × 20,000 px", (1, 20_000), "png", 1),
        ):
            command = [sys.executable, __file__, "one", photo(folder, size, suffix), str(n)]
            megabytes, seconds = map(
                float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
            )
            rows.append([what, f"{megabytes:.0f} MB", f"{seconds:.1f} s"])
    return [
        f"`python benchmarks/photos.py large`: EfficientNet-Lite0 at {SIDE} px, `n_jobs=2`; peak memory above that of as many "
        f"images of {SIDE} px ({machine()}).",
        "",
        *table(["files", "peak memory", "time"], rows),
    ]


def measure_folder(root, n=1000):
    """Images per second, in turns, and their ratio."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader, resolve_data_config

    from sklearn_clpdd import FrozenEncoder
    from sklearn_clpdd.datasets import load_image_folder

    paths = load_image_folder(root)[0]
    paths = paths[np.linspace(0, len(paths) - 1, n).astype(int)].tolist()
    encoder = FrozenEncoder(n_jobs=-1)
    encoder.transform(paths[:64])
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate(paths):
            target = Path(folder, "class", f"{i:05}{Path(path).suffix}")
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(Path(path).resolve())
        model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
        config = resolve_data_config(model=model)
        loader = create_loader(
            create_dataset("", root=folder),
            config["input_size"],
            64,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            num_workers=2,
            use_prefetcher=False,
            persistent_workers=False,
        )
        seconds = {"ours": [], "timm": []}
        for _ in range(3):
            started = time.perf_counter()
            encoder.transform(paths)
            seconds["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            with torch.inference_mode():
                for images, _ in loader:
                    model(images)
            seconds["timm"].append(time.perf_counter() - started)
    rows = [[name, *(f"{one:.1f} s" for one in times), f"{n / min(times):.0f} img/s"] for name, times in seconds.items()]
    ratio = min(seconds["timm"]) / min(seconds["ours"])
    return [
        f"`python benchmarks/photos.py folder DIR`: {n} files of {Path(root).parent.name}, EfficientNet-Lite0 at {SIDE} px; "
        f"`FrozenEncoder(n_jobs=-1)` and timm's network with timm's loader and two workers ({machine()}).",
        "",
        *table(["", "run 1", "run 2", "run 3", "best"], rows),
        "",
        f"The best runs differ by a factor of {ratio:.2f}.",
    ]


def main():
    """Print the page of one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["large", "folder", "one"])
    parser.add_argument("arguments", nargs="*", help="DIR of the folder")
    parser.add_argument("--output", help="folder of the page")
    arguments = parser.parse_args()
    if arguments.part == "one":
        print(*encode(arguments.arguments[0], int(arguments.arguments[1])))
        return
    lines = measure_large() if arguments.part == "large" else measure_folder(arguments.arguments[0])
    print("\n".join(lines))
    if arguments.output:
        Path(arguments.output, f"photos-{arguments.part}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
