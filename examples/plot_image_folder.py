"""
Any folder of images
====================

Distil a folder that holds one folder of images per class, or a ``train`` and a ``val`` folder of them::

    python examples/plot_image_folder.py DIR

Without a ``val`` folder, a quarter of the images is held out for the test. The script prints a table, saves the synthetic images
as PNG files that can be loaded anywhere, and writes a report about them.
"""

import argparse
from pathlib import Path

from sklearn.model_selection import train_test_split

from sklearn_clpdd import CLPDistiller, FrozenEncoder, distillation_report, save_distilled
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.evaluation import compare_with_real

parser = argparse.ArgumentParser(description="Distil a folder of images, one folder per class.")
parser.add_argument("folder", type=Path)
parser.add_argument("--encoder", default="tf_efficientnet_lite0", help="a timm name or a short name (default: %(default)s)")
parser.add_argument("--image-size", type=int, default=112, help="side of what enters the encoder (default: %(default)s)")
parser.add_argument("--images-per-class", type=int, default=1)
parser.add_argument("--max-iter", type=int, default=600)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, default=Path("output"), help="where the images go (default: %(default)s)")
arguments = parser.parse_args()

if (arguments.folder / "train").is_dir() and (arguments.folder / "val").is_dir():
    X_train, y_train = load_image_folder(arguments.folder / "train")
    X_test, y_test = load_image_folder(arguments.folder / "val")
else:
    X, y = load_image_folder(arguments.folder)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=arguments.seed)

# With a cache, the comparison below does not encode the training images again.
cache = arguments.output / "cache"
encoder = FrozenEncoder(arguments.encoder, image_size=arguments.image_size, n_jobs=-1, memory=cache, verbose=1)
distiller = CLPDistiller(
    encoder,
    images_per_class=arguments.images_per_class,
    max_iter=arguments.max_iter,
    random_state=arguments.seed,
    verbose=1,
).fit(X_train, y_train)

rows = compare_with_real(distiller, X_train, y_train, X_test, y_test, random_state=arguments.seed)
print(f"\n{'probe trained on':<20}{'images':>8}{'test accuracy':>16}")
for name, (n_images, accuracy) in rows.items():  # "random real" is the mean over the draws
    print(f"{name:<20}{n_images:>8}{accuracy:>16.3f}")

images = save_distilled(distiller, arguments.output / "images", X_test, y_test, overwrite=True)
report = distillation_report(
    distiller, X_test, y_test, arguments.output / "report.html", X=X_train, y=y_train, random_state=arguments.seed, overwrite=True
)
print(f"images: {images}\nreport: {report}")
