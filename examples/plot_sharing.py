"""
Look at it, save it, pass it on
===============================

We distil digits, plot the results, and save the images as a folder that others can
load, with a report. Everything is written to ``output/``.
"""

from pathlib import Path

from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_clpdd import (
    ClosedFormProbe,
    CLPDistiller,
    FeatureMapDisplay,
    FrozenEncoder,
    HistoryDisplay,
    Snapshots,
    SyntheticImagesDisplay,
    distillation_report,
    load_distilled,
    save_distilled,
)
from sklearn_clpdd.datasets import load_digit_images

X, y = load_digit_images()
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)
output = Path("output")
output.mkdir(exist_ok=True)

# We start from noise to watch the images emerge; `Snapshots` keeps intermediate images.
encoder = FrozenEncoder(image_size=80, memory=output / "cache")
snapshots = Snapshots(every=10)
distiller = CLPDistiller(
    encoder,
    augmentation=None,
    init="noise",
    max_iter=200,
    random_state=0,
    callback=snapshots,
)
distiller.fit(X_train, y_train)

# %%
# The images
# ----------

SyntheticImagesDisplay.from_estimator(distiller, X_test, y_test)

# %%
# The run
# -------
# Loss and accuracy on the held-out tenth of the training images; the upper axis shows
# seconds.

HistoryDisplay.from_estimator(distiller)

# %%
# How the images emerged
# ----------------------

snapshots.save_gif(output / "digits.gif")

# %%
# .. only:: html
#
#    .. image:: ../../examples/output/digits.gif
#       :alt: Ten synthetic digits, from noise to their final form.
#
# Where they lie
# --------------
# Features in the two directions of largest variance. Some synthetic images lie outside
# the clouds of their classes, away from the other classes: they exaggerate what
# distinguishes their class.

FeatureMapDisplay.from_estimator(distiller, X_train, y_train, random_state=0)

# %%
# Confusion matrix
# ----------------
# A distiller is a classifier, and scikit-learn draws its confusion matrix.

ConfusionMatrixDisplay.from_estimator(distiller, X_test, y_test, colorbar=False)

# %%
# Save and load
# -------------
# The folder contains PNG files in one folder per class, a card with the images, and a
# manifest with their provenance. Loading checks the images against the manifest.

folder = save_distilled(distiller, output / "digits", X_test, y_test, overwrite=True)
print(
    *sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))[:4],
    sep="\n",
)

images, labels, manifest = load_distilled(folder)
probe = make_pipeline(encoder, ClosedFormProbe(1.0, temperature=0.2))
probe.fit(images, labels)
print(f"a probe trained on the files: {probe.score(X_test, y_test):.3f}")
print(f"the distiller: {distiller.score(X_test, y_test):.3f}")

# %%
# A report
# --------
# One self-contained HTML page.

report = distillation_report(
    distiller,
    X_test,
    y_test,
    output / "digits.html",
    X=X_train,
    y=y_train,
    random_state=0,
    overwrite=True,
)
print(f"{report}: {report.stat().st_size / 1e3:.0f} kB")
