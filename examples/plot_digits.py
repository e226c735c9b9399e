"""
Ten images instead of nine hundred
==================================

We distil half of scikit-learn's bundled digits (8 × 8 pixels, grey) to one synthetic
image per class, for a linear probe on a frozen EfficientNet-Lite0, and classify the
other half with that probe.

No download is needed. The script prints a table and saves a picture under ``output/``.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from sklearn_clpdd import (
    CLPDistiller,
    FrozenEncoder,
    HistoryDisplay,
    SyntheticImagesDisplay,
)
from sklearn_clpdd.datasets import load_digit_images
from sklearn_clpdd.evaluation import compare_with_real

X, y = load_digit_images()
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.5, stratify=y, random_state=0
)

# %%
# Distil
# ------
# Digits are upright and centred, so random crops and flips would distort them; the
# synthetic images are learned without random views. The default,
# ``augmentation="dsa"``, suits photographs.

encoder = FrozenEncoder(image_size=80)
distiller = CLPDistiller(
    encoder, augmentation=None, max_iter=300, random_state=0, verbose=1
)
distiller.fit(X_train, y_train)

# %%
# Compare
# -------
# The same closed-form probe, trained on all real images, on one random real image per
# class (mean of 50 draws), and on the distilled ones.

rows = compare_with_real(
    distiller, X_train, y_train, X_test, y_test, n_draws=50, random_state=0
)
print(f"\n{'probe trained on':<20}{'images':>8}{'test accuracy':>16}")
for name, (
    n_images,
    accuracy,
) in rows.items():  # "random real" is the mean over the draws
    print(f"{name:<20}{n_images:>8}{accuracy:>16.3f}")

# %%
# Look
# ----

figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4), width_ratios=[3, 2], layout="constrained"
)
SyntheticImagesDisplay(distiller.transform(), distiller.y_synthetic_).plot(ax=left)
HistoryDisplay.from_estimator(distiller, ax=right)

output = Path("output")
output.mkdir(exist_ok=True)
figure.savefig(output / "digits.png", dpi=150)
print(f"picture: {output / 'digits.png'}")
