"""The rows of the papers, one command each, for users who have the data, the weights of the encoders and a GPU.

    python benchmarks/paper.py --dataset imagenet-100 --encoder dinov2_vitb14 --root DIR [--generate] [options of table.py]

``--dataset``: ``imagenet-100`` (LGM's class list) and ``imagenet-1k``, DIR holding ``train`` and ``val`` folders with one
folder per WordNet id; ``waterbirds``, DIR holding ``metadata.csv`` and the images, or a folder with both; ``spawrious``
(one-to-one, hard), DIR holding ``spawrious224``. The last two are evaluated on their worst group as well. ``--encoder`` is
one or more of the four ViT-B, by default all. ``--generate`` first writes a few images of noise in that layout to DIR, for a
trial without data:

    python benchmarks/paper.py --dataset waterbirds --root /tmp/birds --generate --weights none --size 112 --seconds 2 --epochs 5
"""

import argparse
import csv
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from table import Data, add_options, folder_data, main

# The order of classes is that of the published list; LGM's code names the same classes by their indices.
IMAGENET_100 = (Path(__file__).parent / "imagenet100.txt").read_text().split()
ENCODERS = ["clip_vitb16", "dinov2_vitb14", "eva02_vitb14", "mocov3_vitb16"]
# Backgrounds of each breed in training and in the test set, for Spawrious' "one to one, hard" (arXiv 2303.05470).
SPAWRIOUS = {
    "bulldog": ("jungle", "mountain"),
    "dachshund": ("mountain", "snow"),
    "labrador": ("snow", "desert"),
    "corgi": ("desert", "jungle"),
}
SPAWRIOUS_FILLER, SPAWRIOUS_TOTAL, SPAWRIOUS_SHARES = "beach", 3168, (0.97, 0.87)


def imagenet_100(root):
    data = folder_data(root)
    missing = sorted(set(IMAGENET_100) - set(data.y))
    if missing:
        raise SystemExit(f"{root / 'train'} lacks {len(missing)} of the 100 classes: {', '.join(missing[:5])} …")
    train, test = (np.isin(labels, IMAGENET_100) for labels in (data.y, data.y_test))
    return Data(data.X[train], data.y[train], data.X_test[test], data.y_test[test])


def waterbirds(root):
    """Land and water birds in front of land and water; a group is a pair of both."""
    (table,) = sorted(root.rglob("metadata.csv"))[:1] or [root / "metadata.csv"]
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    paths = np.array([str(table.parent / row["img_filename"]) for row in rows])
    y = np.array([("landbird", "waterbird")[int(row["y"])] for row in rows])
    groups = np.char.add(np.char.add(y, " on "), [("land", "water")[int(row["place"])] for row in rows])
    train, test = (np.array([row["split"] == code for row in rows]) for code in ("0", "2"))
    return Data(paths[train], y[train], paths[test], y[test], groups[test])


def spawrious(root):
    """Breeds of dogs whose backgrounds change between training and test; a group is a pair of breed and background."""
    root = root if root.name == "spawrious224" else root / "spawrious224"

    def pictures(environment, background, breed, n=None):
        return sorted(map(str, (root / str(environment) / background / breed).glob("*.png")))[:n]

    train, test = [], []
    for (breed, (usual, other)), (environment, share) in product(SPAWRIOUS.items(), enumerate(SPAWRIOUS_SHARES)):
        n = int(share * SPAWRIOUS_TOTAL)
        train += [(path, breed) for path in pictures(environment, usual, breed, n)]
        train += [(path, breed) for path in pictures(environment, SPAWRIOUS_FILLER, breed, SPAWRIOUS_TOTAL - n)]
        test += [(path, breed, f"{breed} on {other}") for path in pictures(environment, other, breed)]
    if not train or not test:
        raise SystemExit(f"{root} has to hold <0 or 1>/<background>/<breed>/*.png, as Spawrious has it")
    return Data(*map(np.array, zip(*train, strict=True)), *map(np.array, zip(*test, strict=True)))


DATASETS = {"imagenet-100": imagenet_100, "imagenet-1k": folder_data, "waterbirds": waterbirds, "spawrious": spawrious}


def generate(dataset, root, n=3, side=64):
    """Write a few images of noise, with one colour per class, to where the loaders look for them."""
    rng = np.random.default_rng(0)

    def write(path, code):
        path.parent.mkdir(parents=True, exist_ok=True)
        color = np.random.default_rng(code).integers(60, 196, 3)
        Image.fromarray((color + rng.integers(-60, 60, (side, side, 3))).astype(np.uint8)).save(path)

    if dataset.startswith("imagenet"):
        names = IMAGENET_100 if dataset == "imagenet-100" else [*IMAGENET_100[:20], "n00000001"]
        for part, (code, name), i in product(("train", "val"), enumerate(names), range(n)):
            write(root / part / name / f"{name}_{i}.JPEG", code)
    elif dataset == "waterbirds":
        folder = root / "waterbirds_v1.0"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "metadata.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["img_id", "img_filename", "y", "split", "place", "place_filename"])
            for i, (y, place, split, _) in enumerate(product((0, 1), (0, 1), (0, 1, 2), range(n))):
                name = f"{y:03}.bird/{i}.jpg"
                write(folder / name, 2 * y + place)
                table.writerow([i, name, y, split, place, ""])
    else:
        backgrounds = [*{background for pair in SPAWRIOUS.values() for background in pair}, SPAWRIOUS_FILLER]
        for environment, background, (code, breed), i in product((0, 1), backgrounds, enumerate(SPAWRIOUS), range(n)):
            write(root / "spawrious224" / str(environment) / background / breed / f"{i}.png", code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--generate", action="store_true", help="write a few images of noise in the layout of the data set first")
    add_options(parser, size=224)
    parser.set_defaults(encoder=ENCODERS, seconds=[60, 600], seeds=1, heads=5)
    arguments = parser.parse_args()
    arguments.output = arguments.output or Path(__file__).parent / "results" / f"paper-{arguments.dataset}"
    if arguments.generate and not arguments.run:
        generate(arguments.dataset, arguments.root)
    main(arguments, DATASETS[arguments.dataset](arguments.root))
