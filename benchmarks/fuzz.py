"""Generated and mutated inputs of every kind: each gives what an independent oracle gives, or one of the documented errors.

The oracles are Pillow, numpy, plain torch, torchvision, timm and scikit-learn. An error counts as documented if its type is, and
if this library or scikit-learn's validation raised it, with a message; errors that come straight from another library do not. An
input that the oracle takes may not be refused. Each case has a limit of time and memory, runs in a folder of its own and may not
touch anything outside of it. A case is a function of the seed and its number, so that ``--case`` repeats it; the inputs of cases
that fail are kept in ``--failures``.

    python benchmarks/fuzz.py --cases 10000 --seed 0 --minutes 20

The workers are processes, because a fault may crash or hang one of them.
"""

import argparse
import copy
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
import torch
from measure import machine, table
from PIL import Image, ImageOps
from safetensors.torch import save_file
from sklearn.linear_model import RidgeClassifier
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import nn

import sklearn_clpdd
from sklearn_clpdd import Checkpoint, ClosedFormProbe, CLPDistiller, FrozenEncoder, load_distilled, save_distilled
from sklearn_clpdd.baselines import RandomSubset
from sklearn_clpdd.datasets import load_image_folder
from sklearn_clpdd.encoder import _feature_cache
from sklearn_clpdd.encoder._preprocessing import Preprocessing
from sklearn_clpdd.encoder.images._forms import as_images

SECONDS, MEGABYTES = 20, 700  # limits of a case
DOCUMENTED = (ValueError, TypeError, OSError, MemoryError)
KINDS: dict = {}


class WrongError(Exception):
    """A result that is not the oracle's."""


def kind(function):
    """Register a kind of cases."""
    KINDS[function.__name__] = function
    return function


def run_case(seed, number, folder):
    """Outcome of one case: ``equal``, ``refused``, or a fault with its description."""
    rng = np.random.default_rng([seed, number])
    function = KINDS[list(KINDS)[number % len(KINDS)]]
    before = _peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(rng, folder)
        outcome, said = "equal", ""
    except WrongError as error:
        outcome, said = "WRONG", str(error)
    except Exception as error:
        outcome, said = _judge(error)
    if _peak() - before > MEGABYTES:
        outcome, said = "MEMORY", f"{_peak() - before:.0f} MB"
    if sorted(os.listdir(folder.parent)) != [folder.name]:
        outcome, said = "OUTSIDE", str(sorted(os.listdir(folder.parent)))
    return {"number": number, "kind": function.__name__, "outcome": outcome, "said": said[:500]}


def _judge(error):

    frames = traceback.extract_tb(error.__traceback__)
    ours = (os.path.dirname(sklearn_clpdd.__file__), os.path.dirname(sklearn.__file__))
    where = f"{type(error).__name__}: {error} ({frames[-1].filename}:{frames[-1].lineno})"
    if isinstance(error, DOCUMENTED) and str(error) and frames[-1].filename.startswith(ours):
        return "refused", where
    return "UNDOCUMENTED", where


def _peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def expect(condition, words):
    """Raise unless the library agrees with the oracle."""
    if not condition:
        raise WrongError(words)


@contextmanager
def accepted(valid, words):
    """An input that the oracle takes may not be refused, and one that it does not take may not be accepted."""
    try:
        yield
    except DOCUMENTED as error:
        expect(not valid, f"{words} refused: {error}")
        raise
    expect(valid, f"{words} accepted")


def close(found, wanted, tolerance, words):
    """Raise unless two arrays agree."""
    found, wanted = np.asarray(found, dtype=float), np.asarray(wanted, dtype=float)
    expect(found.shape == wanted.shape, f"{words}: shape {found.shape}, not {wanted.shape}")
    error = np.abs(found - wanted).max() if found.size else 0.0
    expect(error <= tolerance, f"{words}: difference {error:.3g}, more than {tolerance:.3g}")


# ---- oracles -----------------------------------------------------------------------------------------------------------


def shown(picture):
    """What a viewer shows, ``(h, w, 3)`` in [0, 1], by Pillow alone; None if its range is unknown."""
    bits = getattr(picture, "tag_v2", {}).get(258)
    kind_of_file = picture.format
    picture.load()
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception:  # broken metadata
        picture = picture.copy()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind_of_file == "PPM"):
        grey = np.asarray(picture).astype(float) / (4095 if bits == (12,) else 65535)
        transparent = picture.info.get("transparency")
        if isinstance(transparent, int):
            grey[np.asarray(picture) == transparent] = 1
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        return None

    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        if picture.mode == "La":
            picture = picture.convert("LA")
        white.alpha_composite(picture.convert("RGBA"))
        picture = white
    return np.asarray(picture.convert("RGB")) / 255


def network_input(pixels, settings):
    """timm's own transform of ``(h, w, 3)`` in [0, 1], in floats: ``(3, s, s)``."""
    options = {name: settings[name] for name in ("crop_pct", "crop_mode", "interpolation")}
    transform = transforms_imagenet_eval(settings["image_size"], mean=(0, 0, 0), std=(1, 1, 1), normalize=False, **options)
    for step in transform.transforms:
        if hasattr(step, "fill"):
            step.fill = 0
    # Beside a picture in border mode is the mean colour in 8 bits, here the zeros with which torchvision pads a difference.
    fill = torch.tensor([round(255 * value) / 255 for value in settings["mean"]])[:, None, None]
    target = settings["image_size"] / settings["crop_pct"]
    if settings["crop_mode"] == "border" and min(pixels.shape[:2]) / max(pixels.shape[:2]) * target < 2:
        return None  # timm reduces a side to no pixels, or torch to one, which it then computes wrongly
    return (transform(torch.from_numpy(pixels).permute(2, 0, 1).float() - fill) + fill).clamp(0, 1).numpy()


def pooled(module, pixels):
    """Features of a plain torch module."""
    with torch.no_grad():
        return module(torch.from_numpy(pixels).float()).numpy()


def small_network(seed=0):
    """A module with a batch norm, a convolution and 6 features."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 6)
        ).eval()


_network = []


def shared_network():
    """The same module in all cases of a process, so that it is loaded once."""
    if not _network:
        _network.append(small_network())
    return _network[0]


# ---- pictures ----------------------------------------------------------------------------------------------------------

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"]
FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "ICO", "JPEG2000"]


def _picture(rng):
    """A random picture of a random mode."""
    height, width = (int(side) for side in rng.integers(8, 70, 2))
    if rng.random() < 0.1:
        height = int(rng.integers(1, 8))
    mode = str(rng.choice(MODES))
    pixels = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray(rng.integers(0, 256, (height, width)).astype(np.int32 if mode == "I" else np.float32))
    picture = Image.fromarray(pixels)
    if mode == "P":
        return picture.quantize(int(rng.integers(2, 256))) if rng.random() < 0.5 else picture.convert("RGB").convert("P")
    if mode == "La":
        return picture.convert("LA").convert("La")
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), pixels[..., :3].tobytes())
    return (picture.convert("LA") if mode == "PA" else picture).convert(mode)


def _encoded(rng, picture):
    """A picture as a file, with an orientation; None if Pillow cannot write its mode in the chosen format."""
    options = {}
    if rng.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(0, 10))
        options["exif"] = exif
    if picture.mode in ("L", "RGB", "P", "1") and rng.random() < 0.2:
        options["transparency"] = {"RGB": (1, 2, 3)}.get(picture.mode, 0)
    file, form = io.BytesIO(), str(rng.choice(FORMATS))
    try:
        picture.save(file, form, **options)
    except Exception:
        return None
    return file.getvalue()


def _settings(rng):
    return {
        "image_size": int(rng.integers(9, 40)),
        "crop_pct": float(rng.choice([1.0, 0.875, 0.9, 0.95, 0.5])),
        "crop_mode": str(rng.choice(["center", "squash", "border"])),
        "interpolation": str(rng.choice(["bicubic", "bilinear"])),
        "mean": tuple(map(float, rng.random(3).round(3))),
    }


def _check_picture(given, pixels, settings, words, tolerance=2e-4):

    with accepted(pixels is not None, words):
        images = as_images([given])
        images.check()
        found = images.read([0], Preprocessing(**settings))[0].numpy()
    wanted = network_input(pixels, settings)
    if wanted is not None:
        close(found, wanted, tolerance, words)


def _given(rng, content, folder):
    """A file's content as a path, as bytes, or as a lazily opened picture."""
    way = rng.integers(3)
    if way == 0:
        path = folder / "picture.bin"
        path.write_bytes(content)
        return str(path)
    return content if way == 1 else Image.open(io.BytesIO(content))


def _is_reduced(picture, settings):
    """Whether a JPEG is so large that it is decoded at a reduced scale."""
    target = settings["image_size"] / settings["crop_pct"]
    return picture.format in ("JPEG", "MPO") and max(picture.size) >= 4 * target * 0.9


@kind
def pictures(rng, folder):
    """Pictures of every mode and format, against Pillow and timm's transform."""
    picture, settings = _picture(rng), _settings(rng)
    content = _encoded(rng, picture)
    if content is None:
        wanted = shown(picture.copy())
        return _check_picture(picture, wanted, settings, f"picture of mode {picture.mode}, {picture.size}")
    (folder / "picture.bin").write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    words = f"{opened.format} of mode {opened.mode}, {opened.size}, {settings}"
    tolerance = 0.7 if _is_reduced(opened, settings) else 2e-4
    _check_picture(_given(rng, content, folder), shown(opened), settings, words, tolerance)


def _mutated(rng, content):
    """Bytes flipped, cut, inserted, removed or overwritten by another file's."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        way, place = rng.integers(6), int(rng.integers(len(data) + 1))
        if way == 0:
            data = data[:place]
        elif way == 1:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif way == 2:
            del data[place : place + int(rng.integers(1, 9))]
        elif way == 3:
            data[:8] = rng.choice(
                [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JF", b"GIF89a\1\1", b"II*\0\x08\0\0\0", b'{"a": 1}']
            )
        else:
            for _ in range(int(rng.integers(1, 6))):
                if data:
                    early = min(len(data), 64) if way == 4 else len(data)
                    data[int(rng.integers(early))] = int(rng.integers(256))
    return bytes(data)


@kind
def mutated_pictures(rng, folder):
    """Broken image files: refused, or what Pillow reads from them."""
    content = None
    while content is None:
        content = _encoded(rng, _picture(rng))
    late = len(content) // 3 * int(rng.integers(3))  # headers stay as they are in two of three cases
    content, settings = content[:late] + _mutated(rng, content[late:]), _settings(rng)
    (folder / "picture.bin").write_bytes(content)
    given = content if rng.random() < 0.5 else str(folder / "picture.bin")
    try:
        opened = Image.open(io.BytesIO(content))
        form, reduced = opened.format, _is_reduced(opened, settings)
        wanted = shown(opened)
    except Exception:
        wanted, form, reduced = None, None, False
    _check_picture(given, wanted, settings, f"mutated {form}", 1.0 if reduced else 0.01)


# ---- arrays and sequences ----------------------------------------------------------------------------------------------


@kind
def arrays(rng, folder):
    """Arrays and tensors of any shape, dtype and range."""
    n_axes = int(rng.choice([1, 2, 3, 4, 5], p=[0.05, 0.05, 0.2, 0.65, 0.05]))
    shape = [int(side) for side in rng.integers(0 if rng.random() < 0.1 else 1, 20, n_axes)]
    if n_axes == 4 and rng.random() < 0.9:
        shape[int(rng.choice([3, 3, 1]))] = int(rng.choice([1, 3, 3, 3, 4], p=[0.2, 0.25, 0.25, 0.25, 0.05]))
    others = ["f2", ">f4", ">f8", "longdouble", "i8", "?", "c8", "O", "U3"]
    dtype = str(rng.choice(["u1", "f4", "f8", *others], p=[0.25, 0.15, 0.15, *[0.05] * 9]))
    values = rng.random(shape) * (255 if dtype == "u1" else 1)
    if rng.random() < 0.15 and values.size:
        values.flat[int(rng.integers(values.size))] = rng.choice([np.nan, np.inf, -1, 2, 300])
    X = values.astype(dtype if dtype != "longdouble" else np.longdouble)
    valid = X.dtype == np.uint8 or (X.dtype.kind == "f" and values.size and values.min() >= -1e-6 and values.max() <= 1 + 1e-6)
    valid = bool(valid) and 0 not in shape
    as_tensor = rng.random() < 0.3 and X.dtype.kind in "uf" and X.dtype.isnative and X.dtype.itemsize <= 8
    if as_tensor:
        valid = valid and n_axes == 4 and shape[1] in (1, 3)
        given = torch.from_numpy(X)
    else:
        valid = valid and ((n_axes == 4 and shape[3] in (1, 3)) or (n_axes == 3 and shape[2] not in (1, 3)))
        given = X if rng.random() < 0.8 else X[::-1][::-1]
    np.save(folder / "X.npy", X, allow_pickle=True)
    size = int(rng.integers(6, 20))
    encoder = FrozenEncoder(
        shared_network(), image_size=size, l2_normalize=False, device="cpu", batch_size=int(rng.integers(1, 9))
    )
    with accepted(valid, f"{type(given).__name__} of {X.dtype} {shape}"):
        found = encoder.transform(given)
    pixels = np.asarray(X, float) / (255 if X.dtype == np.uint8 else 1)
    pixels = pixels if as_tensor else np.moveaxis(pixels[..., None] if n_axes == 3 else pixels, -1, 1)
    whole = np.repeat(pixels, 3, axis=1) if pixels.shape[1] == 1 else pixels
    settings = {"image_size": size, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic", "mean": (0, 0, 0)}
    seen = np.stack([network_input(np.moveaxis(image, 0, -1), settings) for image in whole])
    close(found, pooled(shared_network(), seen), 2e-3 if dtype == "f2" else 2e-4, f"features of {X.dtype} {shape}")


class _Listed:
    """A sequence that is no list."""

    def __init__(self, members):
        self._members = members

    def __len__(self):
        return len(self._members)

    def __getitem__(self, i):
        return self._members[i]


@kind
def sequences(rng, folder):
    """Lists and other sequences of mixed pictures, some of which are none."""
    members, wanted = [], []
    for i in range(int(rng.integers(1, 6))):
        pixels = rng.integers(0, 256, (int(rng.integers(1, 30)), int(rng.integers(1, 30)), 3)).astype(np.uint8)
        member, seen = _member(rng, pixels, folder / f"{i}.png")
        members.append(member)
        wanted.append(seen)
    way = int(rng.integers(6))
    objects = np.empty(len(members), dtype=object)
    objects[:] = members
    X = [members, tuple(members), deque(members), _Listed(members), objects, pd.Series(objects)][way]
    size = int(rng.integers(6, 16))
    encoder = FrozenEncoder(shared_network(), image_size=size, l2_normalize=False, n_jobs=int(rng.choice([1, 2])), device="cpu")
    with accepted(all(seen is not None for seen in wanted), f"{type(X).__name__} of {[type(m).__name__ for m in members]}"):
        found = encoder.transform(X)
    settings = {"image_size": size, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic", "mean": (0, 0, 0)}
    seen = np.stack([network_input(pixels, settings) for pixels in wanted])
    close(found, pooled(shared_network(), seen), 2e-4, f"features of {type(X).__name__} {[type(m).__name__ for m in members]}")


def _member(rng, pixels, path):
    """One element of a sequence and its pixels in [0, 1]; None if it is no picture."""
    picture, seen = Image.fromarray(pixels), pixels / 255
    file = io.BytesIO()
    picture.save(file, "PNG")
    way = int(rng.integers(14 if rng.random() < 0.5 else 10))
    if way == 0:
        path.write_bytes(file.getvalue())
        return (str(path) if rng.random() < 0.5 else path), seen
    good = [None, picture, file.getvalue(), pixels, seen, torch.from_numpy(pixels).permute(2, 0, 1)]
    good += [(picture, 3), {"bytes": file.getvalue(), "path": None}, file, bytearray(file.getvalue())]
    if way < len(good):
        return good[way], seen
    return [{"image": picture}, (picture, picture), str(path) + ".missing", None][way - len(good)], None


# ---- labels and probes -------------------------------------------------------------------------------------------------


@kind
def labels(rng, folder):
    """Labels of every type, through a probe, against scikit-learn's RidgeClassifier with their codes."""
    n, n_classes = int(rng.integers(6, 30)), int(rng.integers(2, 5))
    codes = np.r_[np.arange(n_classes), rng.integers(0, n_classes, n)][: max(n, n_classes)]
    X = rng.normal(size=(len(codes), 3)) + 3 * np.eye(n_classes, 3)[codes]
    words = sorted(
        {"".join(map(chr, rng.choice([36, 95, 97, 98, 0xE9, 0x1F600, 0xDC80, 60], int(rng.integers(1, 5))))) for _ in range(40)}
    )
    sources = [
        np.sort(rng.choice(2**40, n_classes, replace=False)) - 2**39,
        np.array([False, True]) if n_classes == 2 else np.arange(n_classes),
        np.arange(n_classes).astype(float),
        np.array(words[:n_classes]),
        np.array(words[:n_classes], dtype=object),
        np.array(["2000-01-01", "2001-01-01", "2002-01-01", "2003-01-01"], "M8[D]")[:n_classes],
        np.arange(n_classes).astype("m8[s]"),
        np.arange(n_classes) + 0.5,
        np.array([b"a", b"b", b"c", b"d"])[:n_classes],
        np.array([1, "a", 2.0, None], dtype=object)[:n_classes],
    ]
    which = int(rng.integers(len(sources)))
    classes = sources[which]
    surrogates = which in (3, 4) and any(0xDC00 <= ord(letter) < 0xE000 for word in classes for letter in word)
    valid = which < 7 and len(classes) == n_classes
    y = classes[codes % len(classes)]
    wrapped = int(rng.integers(4)) * (not surrogates)  # which pandas does not take
    missing = False
    if wrapped == 1:
        y = pd.Series(y)
    elif wrapped == 2 and which in (0, 1, 2) and len(classes) == n_classes:
        y = pd.Series(y).astype("boolean" if classes.dtype == bool else "Int64")
        if rng.random() < 0.4:
            y.iloc[int(rng.integers(len(y)))] = pd.NA
            missing = True
    elif wrapped == 3 and valid:
        y = pd.Series(pd.Categorical(y))
    with accepted(valid and not missing, f"labels {classes[:3]!r} in a {type(y).__name__}, missing: {missing}"):
        probe = ClosedFormProbe(1.0, temperature=0.2).fit(X, y)
    oracle = RidgeClassifier(alpha=1.0).fit(X, codes)
    expect((probe.predict(X) == np.asarray(classes)[oracle.predict(X)]).all(), f"other predictions with labels {classes[:3]!r}")
    if which < 5:
        expect(probe.classes_.tolist() == classes.tolist(), f"classes {probe.classes_.tolist()}, not {classes.tolist()}")


@kind
def probes(rng, folder):
    """Features of any scale, shape, dtype and degeneracy, against a solution by numpy in float64."""
    n, d = int(rng.integers(3, 40)), int(rng.integers(1, 40))
    n_classes = int(rng.integers(2, 4))
    codes = np.arange(n) % n_classes
    scale = 10.0 ** rng.integers(-12, 13)
    X = (rng.normal(size=(n, d)) + 2 * np.eye(n_classes, d)[codes] + rng.normal(size=d) * rng.choice([0, 1, 10])) * scale
    X[:, rng.random(d) < 0.1] = scale
    dtype = rng.choice([np.float64, np.float32])
    X = X.astype(dtype)
    if rng.random() < 0.05:
        X[int(rng.integers(n)), int(rng.integers(d))] = rng.choice([np.nan, np.inf])
    alpha = float(scale**2 * 10.0 ** rng.integers(-2, 4))
    intercept, solver = bool(rng.random() < 0.7), str(rng.choice(["auto", "primal", "dual"]))
    weight = rng.random(n) + 0.1 if rng.random() < 0.4 else None
    np.savez(folder / "case.npz", X=X, codes=codes, alpha=alpha, weight=np.ones(n) if weight is None else weight)
    probe = ClosedFormProbe(alpha, temperature=0.2, fit_intercept=intercept, solver=solver)
    with accepted(bool(np.isfinite(X).all()), f"{n} × {d} features of scale {scale:g}, {solver}"):
        probe.fit(X, codes, sample_weight=weight)
    Z, Y = X.astype(float), 2.0 * np.eye(n_classes)[codes] - 1
    w = np.ones(n) if weight is None else weight
    mean_z, mean_y = (w @ Z / w.sum(), w @ Y / w.sum()) if intercept else (0 * Z[0], 0 * Y[0])
    root = np.sqrt(w)[:, None]
    U, s, Vt = np.linalg.svd(root * (Z - mean_z), full_matrices=False)
    scores = (Z - mean_z) @ (Vt.T * (s / (s**2 + alpha))) @ (U.T @ (root * (Y - mean_y))) + mean_y
    wanted = scores[:, 1] if n_classes == 2 else scores
    close(probe.decision_function(X), wanted, 2e-3 if dtype == np.float32 else 1e-6, f"scores of {n} × {d}, {solver}, {scale:g}")


JUNK = [
    None,
    "",
    "auto",
    "nonsense",
    -1,
    0,
    1,
    2.5,
    float("nan"),
    float("inf"),
    True,
    [],
    (),
    {},
    [1, 2],
    (0.5, 0.5, 0.5),
    b"x",
    10**30,
]


@kind
def parameters(rng, folder):
    """Parameters of the wrong type or value: an error before the work, or a result."""
    codes = np.arange(12) % 2
    X = rng.normal(size=(12, 5)) + 2 * np.eye(2, 5)[codes]
    images = rng.integers(0, 256, (12, 9, 9, 3)).astype(np.uint8)
    estimators = [
        lambda: (ClosedFormProbe(), X),
        lambda: (CLPDistiller(None, max_iter=2, random_state=0), X),
        lambda: (FrozenEncoder(shared_network(), image_size=8, device="cpu"), images),
    ]
    estimator, data = estimators[int(rng.integers(3))]()
    names = sorted(
        set(estimator.get_params(deep=False)) - {"encoder", "model", "max_iter", "max_seconds", "checkpoint", "memory"}
    )
    for name in rng.choice(names, int(rng.integers(1, 3))):
        value = JUNK[int(rng.integers(len(JUNK)))]
        if not (name in ("images_per_class", "n_jobs", "image_size", "batch_size", "real_batch_size") and value == 10**30):
            estimator.set_params(**{str(name): value})
    (folder / "parameters.txt").write_text(repr(estimator.get_params(deep=False)))
    if isinstance(estimator, FrozenEncoder):
        found = estimator.transform(data)
    else:
        fitted = estimator.fit(data, codes)
        found = fitted.predict_proba(data)
    expect(len(found) == 12, "other number of rows")
    expect(
        bool(np.isfinite(np.asarray(found, dtype=float)).all()),
        f"results that are not finite with {estimator.get_params(deep=False)}",
    )


# ---- folders and files -------------------------------------------------------------------------------------------------


@kind
def folders(rng, folder):
    """Trees of files, folders and links, against a walk by ``os.walk``."""
    root = folder / "root"
    root.mkdir()
    names = rng.choice(
        ["cat", "dog", "train", "Test", "val", "caf\udce9", ".hidden", "b c", "_x"], int(rng.integers(1, 5)), replace=False
    )
    places = [root]
    for name in map(str, names):
        (root / name).mkdir()
        places.append(root / name)
    for i in range(int(rng.integers(0, 12))):
        place = places[int(rng.integers(len(places)))]
        way = int(rng.integers(7))
        if way == 0 and place != root:
            (place / f"sub{i}").mkdir()
            places.append(place / f"sub{i}")
        elif way == 1:
            (place / f"link{i}").symlink_to(places[int(rng.integers(len(places)))], target_is_directory=True)
        elif way == 2:
            (place / f"gone{i}.png").symlink_to(root / "nowhere.png")
        else:
            suffix = str(rng.choice([".png", ".JPG", ".txt", "", ".pdf", ".webp"]))
            Image.new("RGB", (2, 2)).save(place / f"{i}{suffix}", format="png")
    wanted = []
    for name in sorted(os.listdir(root)):
        if name.startswith(".") or not (root / name).is_dir():
            continue
        if not _is_above(str(root / name), str(root)):
            wanted += [(path, name) for path in sorted(_walked(str(root / name)))]
    visible = [name for name in os.listdir(root) if not name.startswith(".") and (root / name).is_dir()]
    splits = [name for name in visible if name.casefold() in ("train", "test", "val")]
    are_splits = bool(splits) and (len(splits) == len(visible) or all(_holds_classes(root / name) for name in splits))
    with accepted(bool(visible) and not are_splits and {name for _, name in wanted} == set(visible), f"a folder with {visible}"):
        paths, found = load_image_folder(root)
    expect(sorted(zip(paths.tolist(), found.tolist(), strict=True)) == sorted(wanted), f"{len(paths)} files, not {len(wanted)}")


def _walked(folder):
    """Images below a folder; a folder that is one of those above it is not entered."""
    found = []
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            if not _is_above(path, folder):
                found += _walked(path)
        elif os.path.splitext(name)[1].lower() in (".png", ".jpg", ".webp"):
            found.append(path)
    return found


def _is_above(path, folder):
    """Whether a folder is one of those that were entered on the way to ``folder``, or contains the root."""
    real, steps = os.path.realpath(path), []
    while folder != os.path.dirname(folder):
        steps.append(os.path.realpath(folder))
        folder = os.path.dirname(folder)
    return real in steps


def _holds_classes(folder):
    """Whether a folder has no images, but folders with images."""

    def has_images(place):
        names = [name for name in os.listdir(place) if os.path.splitext(name)[1].lower() in (".png", ".jpg", ".webp")]
        return any(name[0] != "." and not os.path.isdir(place / name) for name in names)

    inner = [folder / name for name in os.listdir(folder) if name[0] != "." and os.path.isdir(folder / name)]
    return not has_images(folder) and any(map(has_images, inner))


_saved: dict = {}


def _distilled_set():
    """A small distilled set, its images and labels, saved once per process."""
    if not _saved:
        images = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3)).astype(np.uint8)
        y = np.array(["a", "b", "c"] * 2)
        fitted = RandomSubset(FrozenEncoder(shared_network(), image_size=8, device="cpu"), random_state=0).fit(images, y)
        path = save_distilled(fitted, Path(tempfile.mkdtemp()) / "set")
        _saved.update(path=path, content=load_distilled(path), fitted=fitted)
    return _saved


def _mutated_json(rng, value, depth=0):
    """A JSON value with one random part replaced."""
    junk = [
        None,
        -1,
        0,
        1e308,
        10**25,
        "",
        "../../etc/passwd",
        "/etc/passwd",
        "con/0.png",
        [],
        {},
        "<U100000000",
        True,
        "O",
        "V9",
    ]
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        key = str(rng.choice(list(value)))
        if rng.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: _mutated_json(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = int(rng.integers(len(value)))
        return [*value[:i], _mutated_json(rng, value[i], depth + 1), *value[i + 1 :]]
    return junk[int(rng.integers(len(junk)))]


@kind
def manifests(rng, folder):
    """Distilled sets with changed manifests and files: refused, or exactly the images and labels that were saved."""
    saved = _distilled_set()
    target = folder / "set"
    shutil.copytree(saved["path"], target)
    path = target / "manifest.json"
    way = int(rng.integers(4))
    if way == 0:
        path.write_bytes(_mutated(rng, path.read_bytes()))
    elif way == 1:
        manifest = _mutated_json(rng, json.loads(path.read_text()))
        if isinstance(manifest, dict) and rng.random() < 0.7:  # with a digest that fits
            content = {name: value for name, value in manifest.items() if name != "sha256"}
            manifest["sha256"] = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(manifest))
    elif way == 2:
        images = sorted(target.glob("*/*.png"))
        one = images[int(rng.integers(len(images)))]
        one.write_bytes(_mutated(rng, one.read_bytes()))
    else:
        path.write_text(str(rng.choice(["[" * 10_000, "{}", "null", "", "NaN", '{"format": 1e999}', "9" * 5000])))
    entries = [p for p in sorted(target.rglob("*")) if p.is_file()]
    before = {p: p.read_bytes() for p in entries}
    try:
        images, found, manifest = load_distilled(target)
        wanted = saved["content"]
        read = [tuple(entry[name] for name in ("file", "class")) for entry in manifest["images"]]
        kept = [tuple(entry[name] for name in ("file", "class")) for entry in wanted[2]["images"]]
        same_labels = [entry["label"] for entry in manifest["classes"]] == ["a", "b", "c"] and read == kept
        expect(np.array_equal(images, wanted[0]), "other images")
        expect(not same_labels or np.array_equal(found.astype(str), wanted[1]), "other labels")
    finally:
        expect(all(p.is_file() and p.read_bytes() == content for p, content in before.items()), "a file was changed by reading")
    with_extra = rng.random() < 0.5
    if with_extra:
        (target / "notes.txt").write_text("mine")
    with suppress(FileExistsError):
        save_distilled(saved["fitted"], target, overwrite=True)
    expect(not with_extra or (target / "notes.txt").is_file(), "a file of the user's was removed")


_runs: dict = {}


def _run(path=None):

    rng = np.random.default_rng(0)
    codes = np.arange(20) % 2
    X = rng.normal(size=(20, 4)) + 3 * np.eye(2, 4)[codes]
    checkpoint = None if path is None else Checkpoint(path, every=2)
    return CLPDistiller(None, max_iter=6, random_state=0, checkpoint=checkpoint).fit(X, codes).X_synthetic_


@kind
def checkpoints(rng, folder):
    """Runs that continue from a changed checkpoint: refused, or the images of the whole run."""
    if not _runs:
        file = Path(tempfile.mkdtemp()) / "run"
        _runs.update(wanted=_run(file), content=file.read_bytes())
    path = folder / "run"
    content = _mutated(rng, _runs["content"]) if rng.random() < 0.9 else _runs["content"]
    path.write_bytes(content)
    try:
        close(_run(path), _runs["wanted"], 0.0, "samples of a continued run")
    except ValueError:
        expect(path.read_bytes() == content, "a refused checkpoint was changed")
        raise


@kind
def weights(rng, folder):
    """Weights files in every container, with other networks in them, mutated, against ``load_state_dict``."""
    seeds = rng.integers(1, 10**6, 2)
    module, other = (small_network(int(seed)) for seed in seeds)
    state, rest = module.state_dict(), other.state_dict()
    prefix = str(rng.choice(["", "module.", "backbone.", "module.backbone."]))
    mine = {prefix + name: value for name, value in state.items()}
    theirs = {prefix + name: value for name, value in rest.items()}
    contents = [
        mine,
        {"state_dict": mine, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        {"student": theirs, "teacher": mine},
        {"state_dict": theirs, "state_dict_ema": mine},
        {"model": theirs, "model_ema": mine},
        {**{f"student.{k}": v for k, v in theirs.items()}, **{f"teacher.{k}": v for k, v in mine.items()}},
        {"one": theirs, "two": mine},
        {name: value for i, (name, value) in enumerate(mine.items()) if i != 3},
        {**mine, prefix + "0.weight": mine[prefix + "0.weight"][:, :2]},
        {**mine, prefix + "0.bias": mine[prefix + "0.bias"] * float("nan")},
    ]
    way = int(rng.integers(len(contents)))
    valid = way < 6
    if way in (0, 7, 8, 9) and rng.random() < 0.5:
        path = folder / "weights.safetensors"
        save_file({name: value.contiguous() for name, value in contents[way].items()}, path)
    else:
        path = folder / "weights.pth"
        torch.save(contents[way], path)
    was_mutated = rng.random() < 0.3
    if was_mutated:
        path.write_bytes(_mutated(rng, path.read_bytes()))
    images = rng.integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    encoder = FrozenEncoder(copy.deepcopy(other), weights=path, image_size=12, l2_normalize=False, device="cpu")
    if was_mutated:
        encoder.transform(images)  # other bytes may be other weights
        return
    with accepted(valid, f"weights file {way}"):
        found = encoder.transform(images)
    close(found, pooled(module, images.transpose(0, 3, 1, 2) / 255), 2e-4, f"features with the weights of content {way}")


@kind
def cached_features(rng, folder):
    """A cache whose files were cut, changed, removed or moved to another encoder never changes features."""
    images = rng.integers(0, 256, (5, 10, 10, 3)).astype(np.uint8)
    encoders = [
        FrozenEncoder(shared_network(), image_size=8, crop_pct=crop, l2_normalize=False, memory=folder / "cache", device="cpu")
        for crop in (1.0, 0.8)
    ]
    wanted = [encoder.transform(images[:3]) for encoder in encoders]
    files = sorted((folder / "cache").rglob("*.npy"))
    for _ in range(int(rng.integers(1, 3))):
        one, two = (files[int(i)] for i in rng.integers(len(files), size=2))
        way = int(rng.integers(5))
        if way == 0 and one.exists():
            one.write_bytes(_mutated(rng, one.read_bytes()))
        elif way == 1 and one.exists() and two.exists():
            first, second = one.read_bytes(), two.read_bytes()
            one.write_bytes(second)
            two.write_bytes(first)
        elif way == 2:
            one.unlink(missing_ok=True)
        elif way == 3 and one.exists():
            (one.parent / f"{int(rng.integers(99))}{''.join(one.suffixes)}").write_bytes(one.read_bytes())
        else:
            np.save(one, np.array([{"a": 1}], dtype=object), allow_pickle=True)

    _feature_cache.feature_cache.cache_clear()  # as another process would see it
    for encoder, features in zip(encoders, wanted, strict=True):
        found = encoder.transform(images)
        close(found[:3], features, 1e-6, "cached features")
        close(found, encoder.set_params(memory=None).transform(images), 1e-5, "features beside cached ones")


# ---- running -----------------------------------------------------------------------------------------------------------


def work(arguments):
    """Run cases one after another, and write each outcome as a line."""
    Image.MAX_IMAGE_PIXELS = 2**20  # so that a changed size in a header costs little
    torch.set_num_threads(1)
    for number in range(arguments.start, arguments.stop, arguments.step):
        print(json.dumps({"begun": number}), flush=True)
        root = Path(tempfile.mkdtemp())
        folder = root / "case"
        folder.mkdir()
        result = run_case(arguments.seed, number, folder)
        if result["outcome"] not in ("equal", "refused") and arguments.failures:
            kept = Path(arguments.failures) / f"{arguments.seed}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder, kept, symlinks=True)
        shutil.rmtree(root, ignore_errors=True)
        print(json.dumps(result), flush=True)


def supervise(seed, start, stop, step, failures, deadline=float("inf")):
    """Outcomes of cases in a process, which is started again after a crash or a hang."""
    results, number = [], start
    while number < stop and time.monotonic() < deadline:
        command = [sys.executable, __file__, "--work", "--seed", seed, "--start", number, "--stop", stop, "--step", step]
        command += ["--failures", failures] if failures else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        begun, buffer = number, b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], SECONDS + (40 if begun == number else 0))
            block = os.read(process.stdout.fileno(), 65536) if ready else b""
            if not block:
                break
            buffer += block
            *lines, buffer = buffer.split(b"\n")
            for line in map(json.loads, lines):
                if "begun" in line:
                    begun = line["begun"]
                else:
                    results.append(line)
            if time.monotonic() > deadline:
                break
        late = time.monotonic() > deadline
        process.kill()
        said = process.communicate()[1].decode(errors="replace")[-300:]
        last = results[-1]["number"] if results else start - step
        if last < begun and not late:
            names = list(KINDS)
            outcome = "CRASH" if ready else "HANG"
            results.append({"number": begun, "kind": names[begun % len(names)], "outcome": outcome, "said": said})
            last = begun
        number = last + step
    return results


def page(results, arguments, seconds):
    """A table by kind, and what failed."""
    outcomes = ["equal", "refused", "WRONG", "UNDOCUMENTED", "CRASH", "HANG", "MEMORY", "OUTSIDE"]
    counts = {name: Counter(r["outcome"] for r in results if r["kind"] == name) for name in KINDS}
    rows = [[f"`{name}`", KINDS[name].__doc__.strip(), *(counts[name][one] for one in outcomes)] for name in KINDS]
    total = Counter(r["outcome"] for r in results)
    rows.append(["all", "", *(total[one] for one in outcomes)])
    lines = [
        f"`python benchmarks/fuzz.py --cases {arguments.cases} --seed {' '.join(map(str, arguments.seed))}`: "
        f"{len(results)} cases in {seconds:.0f} s ({machine()}).",
        "",
        "Equal: the oracle's result. Refused: a documented error of this library. The other columns are faults.",
        "",
        *table(["kind", "what it tries", *outcomes], rows),
    ]
    faults = [r for r in results if r["outcome"] not in ("equal", "refused")]
    lines += ["", *(f"- case {r['number']} ({r['kind']}): {r['outcome']}, {r['said']}" for r in faults[:50])]
    return "\n".join(lines) + "\n", faults


def main():
    """Run the cases of all seeds, write the page, and fail if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--case", type=int, help="run this case alone, in this process, and show its error")
    parser.add_argument("--failures", default="", help="folder for the inputs of cases that fail")
    parser.add_argument("--output", default="", help="folder of the page")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    for name, default in (("--start", 0), ("--stop", 0), ("--step", 1)):
        parser.add_argument(name, type=int, default=default, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        arguments.seed = arguments.seed[0]
        work(arguments)
        return
    if arguments.case is not None:
        Image.MAX_IMAGE_PIXELS = 2**20
        folder = Path(tempfile.mkdtemp()) / "case"
        folder.mkdir()
        function = KINDS[list(KINDS)[arguments.case % len(KINDS)]]
        function(np.random.default_rng([arguments.seed[0], arguments.case]), folder)
        return

    started = time.monotonic()
    deadline, n = started + 60 * arguments.minutes, arguments.processes
    with ThreadPoolExecutor(n) as pool:
        tasks = [(seed, i, arguments.cases, n, arguments.failures, deadline) for seed in arguments.seed for i in range(n)]
        results = [result for part in pool.map(lambda task: supervise(*task), tasks) for result in part]
    text, faults = page(results, arguments, time.monotonic() - started)
    print(text)
    if arguments.output:
        (Path(arguments.output) / "fuzz.md").write_text(text)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
