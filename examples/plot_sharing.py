"""
Look at it, save it, pass it on
===============================

Digits are distilled; what there is to see of it is drawn; and the images are saved as a folder that others can load, with a
report about them. Everything goes to ``output/``.
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
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
output = Path("output")
output.mkdir(exist_ok=True)

# From noise, so that the images can be seen to come into being: `Snapshots` keeps how they looked on the way.
encoder = FrozenEncoder(image_size=80, memory=output / "cache")
snapshots = Snapshots(every=10)
distiller = CLPDistiller(encoder, augmentation=None, init="noise", max_iter=200, random_state=0, callback=snapshots)
distiller.fit(X_train, y_train)

# %%
# The images
# ----------

SyntheticImagesDisplay.from_estimator(distiller, X_test, y_test)

# %%
# The run
# -------
# Loss and accuracy on the tenth of the training images that were held out; the axis above has the seconds.

HistoryDisplay.from_estimator(distiller)

# %%
# How they came into being
# ------------------------

snapshots.save_gif(output / "digits.gif")

# %%
# .. only:: html
#
#    .. image:: ../../examples/output/digits.gif
#       :alt: Ten synthetic digits, from noise to their final form.
#
# Where they lie
# --------------
# Features in the two directions of their largest variance. Some synthetic images lie outside of the clouds of their classes, away
# from the others: what tells the class from these is exaggerated in them.

FeatureMapDisplay.from_estimator(distiller, X_train, y_train, random_state=0)

# %%
# What is taken for what
# ----------------------
# A distiller is a classifier, and scikit-learn draws its confusion matrix.

ConfusionMatrixDisplay.from_estimator(distiller, X_test, y_test, colorbar=False)

# %%
# Save and load
# -------------
# PNG files in a folder for each class, a card with the pictures, and a manifest that says where they come from. What is loaded is
# checked against it.

folder = save_distilled(distiller, output / "digits", X_test, y_test, overwrite=True)
print(*sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))[:4], sep="\n")

images, labels, manifest = load_distilled(folder)
probe = make_pipeline(encoder, ClosedFormProbe(1.0, temperature=0.2)).fit(images, labels)
print(f"a probe trained on the files: {probe.score(X_test, y_test):.3f}; the distiller: {distiller.score(X_test, y_test):.3f}")

# %%
# A report
# --------
# One page of HTML that needs no other file.

report = distillation_report(
    distiller, X_test, y_test, output / "digits.html", X=X_train, y=y_train, random_state=0, overwrite=True
)
print(f"{report}: {report.stat().st_size / 1e3:.0f} kB")
