"""
A table with pictures and numbers
=================================

Offers of used bicycles, generated: a photo shows the colour, two numbers are year and
price, and some offers have no photo. A ``ColumnTransformer`` encodes the column of
photos beside the numbers, and a probe learns from both which offers are sold. Which
ones are depends on the colour and on the price.
"""

import io

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_clpdd import ClosedFormProbe, FrozenEncoder

# %%
# Photos are contents of PNG files, as a database or a parquet file has them. One offer
# in ten has none.

rng = np.random.default_rng(0)
n = 200
colors = np.array([(200, 30, 30), (30, 60, 200), (40, 160, 60), (120, 120, 120)])
color = rng.integers(4, size=n)


def photo(rgb):
    """A frame of this colour before a noisy wall."""
    pixels = rng.integers(150, 256, (48, 48, 3)).astype(np.uint8)
    top, left = rng.integers(4, 16, 2)
    pixels[top : top + 24, left : left + 24] = rgb + rng.integers(-20, 20, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


table = pd.DataFrame(
    {
        "photo": [photo(colors[one]) if rng.random() < 0.9 else None for one in color],
        "year": rng.integers(2005, 2026, n),
        "price": rng.integers(50, 900, n),
    }
)
sold = (
    0.01 * (600 - table["price"]) + 3 * np.isin(color, [0, 1]) + rng.normal(size=n) > 2
).astype(int)
table.head()

# %%
# The photo, the numbers, and both. A row without a photo has features of zeros.

photos = ("photo", FrozenEncoder(image_size=64, missing="zero"), "photo")
numbers = ("numbers", StandardScaler(), ["year", "price"])
accuracies = {
    name: cross_val_score(
        make_pipeline(ColumnTransformer(columns), ClosedFormProbe()), table, sold, cv=3
    ).mean()
    for name, columns in (
        ("photo", [photos]),
        ("numbers", [numbers]),
        ("both", [photos, numbers]),
    )
}
print(pd.Series(accuracies).round(3))
assert accuracies["both"] > max(accuracies["photo"], accuracies["numbers"])
