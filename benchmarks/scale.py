"""Many classes, many images per class, within a budget of time: accuracy, steps and peak memory.

    python benchmarks/scale.py [DIR] [--images-per-class 10] [--size 64] [--turned] [--seconds 1000] [--output FILE]

DIR holds ``train`` and ``val`` folders with one folder of images per class, by default ``$SKLEARN_CLPDD_DATA/tiny-imagenet-200``.
With ``--turned``, each of five orientations of an image is a class of its own, which makes 1,000 classes, and views are not
flipped. All figures are measured in one run.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from measure import folder_argument, machine, memory_in_use, peak_memory, reset_peak_memory, table, train_and_test, warm
from PIL import Image

from sklearn_clpdd import DSA, CLPDistiller, FrozenEncoder
from sklearn_clpdd.evaluation import compare_with_real


def turned(paths, labels):
    """Square images in five orientations, each of which is a class."""
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    turns = [np.rot90(images, k, axes=(1, 2)) for k in range(4)] + [images.swapaxes(1, 2)]
    return np.concatenate(turns), np.concatenate([np.char.add(labels, f" {k}") for k in range(len(turns))])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    folder_argument(parser, "tiny-imagenet-200")
    parser.add_argument("--images-per-class", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="side of the views; images have 64 px")
    parser.add_argument("--turned", action="store_true")
    parser.add_argument("--seconds", type=float, default=1000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    X, y, X_test, y_test = train_and_test(arguments.folder)
    if arguments.turned:
        (X, y), (X_test, y_test) = turned(X, y), turned(X_test, y_test)

    encoder = FrozenEncoder(image_size=arguments.size, crop_pct=arguments.size / 64, verbose=1)
    warm(encoder.load())
    reset_peak_memory()
    before, begin = memory_in_use(), time.perf_counter()
    distiller = CLPDistiller(
        encoder,
        images_per_class=arguments.images_per_class,
        augmentation=DSA(flip=0 if arguments.turned else 0.5),
        max_iter=10_000,
        time_budget=arguments.seconds,
        random_state=0,
        verbose=1,
    ).fit(X, y)
    took, memory = time.perf_counter() - begin, peak_memory() - before
    rows = compare_with_real(distiller, X, y, X_test, y_test, n_draws=5, random_state=0)

    side = distiller.transform().shape[1]
    lines = [
        f"`{arguments.folder.name}`, {len(distiller.classes_):,} classes{' by turning the images' if arguments.turned else ''}, "
        f"{len(X):,} training and {len(X_test):,} validation images, EfficientNet-Lite0, "
        f"{side} px images, {arguments.size} px views, {arguments.images_per_class} images per class; "
        f"{machine()}; `python benchmarks/scale.py DIR --images-per-class {arguments.images_per_class} "
        f"--size {arguments.size}{' --turned' if arguments.turned else ''} --seconds {arguments.seconds:.0f}`",
        "",
        f"{distiller.n_iter_} steps in {distiller.history_[-1]['seconds']:.0f} s (`fit`: {took:.0f} s), {memory:.0f} MB above "
        "the loaded encoder.",
        "",
        *table(
            ["trained on", "images", "validation accuracy"],
            [[name, n, f"{accuracy:.3f}"] for name, (n, accuracy) in rows.items()],
        ),
    ]
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
