"""
From a folder of photos to ten images to a probe
================================================

A folder has one folder of photos for each class. We classify with a frozen encoder and
a linear probe; shrink the 3,000 photos to ten synthetic images, one for each class; and
train a probe on these ten that is nearly as good. The photos here are `Imagenette
<https://github.com/fastai/imagenette>`_'s, 300 of each of ten classes; the script takes
any folder, and draws the pictures that you see on this page::

    python examples/a_folder_of_photos.py DIR

It takes two minutes on two cores. The command line does the same without a script:
``python -m sklearn_clpdd probe DIR``, and ``python -m sklearn_clpdd distill DIR --out
ten-images``.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageOps
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import (
    ClosedFormProbe,
    CLPDistiller,
    FrozenEncoder,
    HistoryDisplay,
    save_distilled,
    save_probe,
)
from sklearn_clpdd.baselines import ClassCentroids
from sklearn_clpdd.datasets import load_image_folder

parser = argparse.ArgumentParser()
parser.add_argument(
    "folder", type=Path, help="with a train and a val folder of classes"
)
parser.add_argument(
    "--output",
    type=Path,
    default=Path("output"),
    help="where pictures go (default: %(default)s)",
)
parser.add_argument("--steps", type=int, default=600, help="(default: %(default)s)")
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)

# %%
# The photos
# ----------
# Only their paths are listed; photos are read when their turn comes. Imagenette's
# folders are called by numbers of WordNet.

X, y = load_image_folder(arguments.folder, "train")
X_test, y_test = load_image_folder(arguments.folder, "val")

NAMES = {
    "n01440764": "tench",
    "n02102040": "springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
classes = np.unique(y)


def show(rows, name):
    """Draw rows of one image for each class, each with a text on its left."""
    figure, axes = plt.subplots(
        len(rows), len(classes), figsize=(10.5, 1.08 * len(rows) + 0.2), squeeze=False
    )
    for line, (text, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    for ax, label in zip(axes[0], classes, strict=True):
        ax.set_title(NAMES.get(label, label), fontsize=8, pad=3)
    figure.subplots_adjust(
        left=0.14,
        right=0.995,
        top=1 - 0.2 / len(rows),
        bottom=0.01,
        wspace=0.04,
        hspace=0.04,
    )
    figure.savefig(arguments.output / name, dpi=100, pil_kwargs={"quality": 88})


def thumbnails(paths):
    return [ImageOps.fit(Image.open(path).convert("RGB"), (128, 128)) for path in paths]


show(
    {
        f"photo {i}": thumbnails([X[y == label][i] for label in classes])
        for i in (1, 2, 3)
    },
    "photos.jpg",
)

# %%
# .. image:: /images/photos.jpg
#    :alt: Three photos of each of ten classes.
#
# A probe on all of them
# ----------------------
# The encoder is frozen: it turns each photo into a row of 1,280 features, once. The
# probe on these rows starts from a closed form, so that it chooses its own strength and
# calibrates its probabilities in a second, with nothing held out.

encoder = FrozenEncoder(
    image_size=112, n_jobs=-1, memory=arguments.output / "cache", verbose=1
)
probe = make_pipeline(encoder, ClosedFormProbe()).fit(X, y)
on_all = probe.score(X_test, y_test)
print(f"expected accuracy {probe[-1].loo_score_:.3f}, on the test photos {on_all:.3f}")

# %%
# Ten images instead of 3,000
# ---------------------------
# The distiller starts from the most central photo of each class, and changes its pixels
# such that a probe trained on the ten images classifies all photos well. With
# ``random_state``, a run on the same machine gives the same images again.

distiller = CLPDistiller(
    encoder, max_iter=arguments.steps, random_state=0, verbose=1
).fit(X, y)
central = ClassCentroids(encoder).fit(X, y)
on_ten, on_central = distiller.score(X_test, y_test), central.score(X_test, y_test)
show(
    {
        f"ten photos\nprobe: {on_central:.1%}": central.transform(),
        f"ten distilled\nprobe: {on_ten:.1%}": distiller.transform(),
    },
    "distilled.jpg",
)
print(
    f"probe on ten photos {on_central:.3f}, on ten distilled images {on_ten:.3f}, "
    f"on all photos {on_all:.3f}"
)

# %%
# .. image:: /images/distilled.jpg
#    :alt: The most central photo of each class, and below it the distilled image.
#
# The number is the test accuracy of the probe that these ten images train. The learning
# curve shows the loss, and the accuracy on photos that were held out to choose the best
# step:

HistoryDisplay.from_estimator(distiller)
plt.gcf().savefig(arguments.output / "curve.jpg", dpi=80, pil_kwargs={"quality": 88})

# %%
# .. image:: /images/curve.jpg
#    :alt: The loss falls and the held-out accuracy rises over the steps.
#
# Pass them on
# ------------
# The ten images are a folder that anyone can train on, and the probe is one file
# without code. Both are checked when they are loaded, and both can go to the Hugging
# Face hub by :func:`~sklearn_clpdd.push_to_hub`.

save_distilled(
    distiller, arguments.output / "ten-images", X_test, y_test, overwrite=True
)
save_probe(
    probe, arguments.output / "probe.safetensors", X_test, y_test, overwrite=True
)

# %%
# What the probe says about five photos of the test, with the probabilities of its first
# answer:

some = np.linspace(0, len(X_test) - 1, 5).astype(int)
figure, axes = plt.subplots(1, 5, figsize=(10, 2.4), layout="constrained")
for ax, image, row in zip(
    axes, thumbnails(X_test[some]), probe.predict_proba(X_test[some]), strict=True
):
    ax.imshow(image)
    ax.set(xticks=[], yticks=[])
    ax.set_title(
        f"{NAMES.get(classes[row.argmax()], classes[row.argmax()])}, {row.max():.0%}",
        fontsize=9,
    )
figure.savefig(arguments.output / "predicted.jpg", dpi=80, pil_kwargs={"quality": 88})

# %%
# .. image:: /images/predicted.jpg
#    :alt: Five photos, each with the class and its probability.
#
# :doc:`../quickstart` goes through the same steps one by one.

# sphinx_gallery_thumbnail_path = "images/distilled.jpg"
