"""Many classes, many images per class, within a budget of time: accuracy, steps and peak memory.

    python benchmarks/scale.py [DIR] [--images-per-class 10] [--size 64] [--turned] [--seconds 1000] [--output FILE]

DIR holds ``train`` and ``val`` folders with one folder of images per class, by default ``$SKLEARN_CLPDD_DATA/tiny-imagenet-200``.
With ``--turned`` each of five orientations of an image is a class of its own: 1,000 of them. The synthetic images start from real
ones and are seen in one random view and as a whole in each step. Everything is measured in this one run.
"""

import argparse
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sklearn_clpdd import DSA, CLPDistiller, FrozenEncoder
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.evaluation import compare_with_real


def resident():
    """Most memory in use until now, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def turned(paths, labels):
    """Square images in five orientations, each a class."""
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    turns = [np.rot90(images, k, axes=(1, 2)) for k in range(4)] + [images.swapaxes(1, 2)]
    return np.concatenate(turns), np.concatenate([np.char.add(labels, f" {k}") for k in range(len(turns))])


def main():
    data = os.environ.get("SKLEARN_CLPDD_DATA")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(data, "tiny-imagenet-200") if data else None)
    parser.add_argument("--images-per-class", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="side of the views; images have 64 px")
    parser.add_argument("--turned", action="store_true")
    parser.add_argument("--seconds", type=float, default=1000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.folder is None:
        sys.exit("give the folder of a data set, or set SKLEARN_CLPDD_DATA to the folder that holds tiny-imagenet-200/")
    sets = [load_image_folder(arguments.folder / part) for part in ("train", "val")]
    (X, y), (X_test, y_test) = [turned(*one) for one in sets] if arguments.turned else sets

    encoder = FrozenEncoder(image_size=arguments.size, crop_pct=arguments.size / 64, verbose=1)
    backbone = encoder.load()
    with torch.no_grad():
        backbone(torch.zeros(1, 3, arguments.size, arguments.size))
    before, begin = resident(), time.perf_counter()
    distiller = CLPDistiller(
        encoder,
        images_per_class=arguments.images_per_class,
        init="real",
        augmentation=DSA(flip=0 if arguments.turned else 0.5),
        n_views=1,
        max_iter=10_000,
        time_budget=arguments.seconds,
        random_state=0,
        verbose=1,
    ).fit(X, y)
    took, memory = time.perf_counter() - begin, resident() - before
    rows = compare_with_real(distiller, X, y, X_test, y_test, n_draws=5, random_state=0)

    side = distiller.transform().shape[1]
    lines = [
        f"`{arguments.folder.name}`, {len(distiller.classes_):,} classes{' by turning the images' if arguments.turned else ''}, "
        f"{len(X):,} training and {len(X_test):,} validation images, EfficientNet-Lite0, "
        f"{side} px images, {arguments.size} px views, {arguments.images_per_class} images per class; "
        f"{platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}; `python benchmarks/scale.py DIR --images-per-class {arguments.images_per_class} "
        f"--size {arguments.size}{' --turned' if arguments.turned else ''} --seconds {arguments.seconds:.0f}`",
        "",
        f"{distiller.n_iter_} steps in {distiller.history_[-1]['seconds']:.0f} s (`fit`: {took:.0f} s), {memory:.0f} MB above "
        "the loaded encoder.",
        "",
        "| trained on | images | validation accuracy |",
        "| --- | --- | --- |",
        *(f"| {name} | {n} | {accuracy:.3f} |" for name, (n, accuracy) in rows.items()),
    ]
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
