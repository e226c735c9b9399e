"""
What the images look like, and why
==================================

The synthetic images of ten digits beside the most central real images and their nearest
real neighbours; the positions of the classes in feature space; and the effect of ridge
strength, temperature, views, start and parametrisation on the images.

No download is needed. Pictures are saved under ``output/``.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from sklearn_clpdd import CLPDistiller, FrozenEncoder
from sklearn_clpdd.baselines import ClassCentroids, NearestReals
from sklearn_clpdd.datasets import load_digit_images

X, y = load_digit_images()
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)
encoder = FrozenEncoder(
    image_size=80, memory="output/cache"
)  # the real images are encoded only once
output = Path("output")
output.mkdir(exist_ok=True)

# %%
# Where they come from, and what is near them
# -------------------------------------------
# Each image starts from the most central real image of its class that is not held out.
# The real image nearest to the result is typical of its class, too; the synthetic image
# differs from it in what distinguishes its class from the other nine.

distiller = CLPDistiller(encoder, augmentation=None, max_iter=100, random_state=0).fit(
    X_train, y_train
)
start = ClassCentroids(encoder, random_state=0).fit(X_train, y_train)
neighbours = NearestReals(distiller).fit(X_train, y_train)


def show(rows, name):
    """Show rows of ten images, with titles on the left."""
    figure, axes = plt.subplots(
        len(rows),
        10,
        figsize=(10, 1.15 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, rotation=0, ha="right", va="center")
    figure.savefig(output / name, dpi=110)


def titled(what, fitted):
    return f"{what}\n{fitted.score(X_test, y_test):.3f}"


show(
    {
        titled("most central real", start): start.transform(),
        titled("synthetic", distiller): distiller.transform(),
        titled("nearest real", neighbours): neighbours.transform(),
    },
    "gallery-neighbours.png",
)

# %%
# The number beside each row is the test accuracy of the probe that these ten images
# train.
#
# How the classes lie
# -------------------
# The anchors are the directions in feature space along which the classes are scored. If
# the cosine of two anchors is large, the encoder sees mostly the same in both classes,
# and the probe separates them by the rest.

figure, ax = plt.subplots(figsize=(5, 4.2), layout="constrained")
picture = ax.imshow(
    distiller.anchors_ @ distiller.anchors_.T, cmap="RdBu_r", vmin=-1, vmax=1
)
ax.set(
    xticks=range(10),
    yticks=range(10),
    xticklabels=distiller.classes_,
    yticklabels=distiller.classes_,
    title="cosines of anchors",
)
figure.colorbar(picture)
figure.savefig(output / "gallery-anchors.png", dpi=110)

# %%
# What the parameters do
# ----------------------
# A ridge strength that is wrong by a factor of a thousand, or a temperature that is
# wrong by a factor of ten, hardly changes the images. Random views spread what matters
# over the image, which helps heads that are trained on crops of photographs, but not
# digits. From noise, the pyramid leads to smooth images, coarse to fine; single pixels
# still look like noise, to other encoders too.

variants = {
    "defaults": {},
    "alpha=0.001": {"alpha": 0.001},
    "alpha=1000": {"alpha": 1000.0},
    "temperature=0.01": {"temperature": 0.01},
    "temperature=1": {"temperature": 1.0},
    "with views": {"augmentation": "dsa"},
    "init='noise'": {"init": "noise"},
    "noise, pixels": {"init": "noise", "parametrization": "pixels"},
}
rows = {}
for name, parameters in variants.items():
    fitted = CLPDistiller(
        encoder,
        **{"augmentation": None, "max_iter": 60, "random_state": 0, **parameters},
    ).fit(X_train, y_train)
    rows[titled(name, fitted)] = fitted.transform()
show(rows, "gallery-parameters.png")
