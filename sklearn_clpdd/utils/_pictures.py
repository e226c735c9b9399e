"""Synthetic images as pictures: in 8 bits, as PNG files, side by side."""

import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image

from ._arrays import evenly_spaced
from ._labels import label_text

# Side in pixels of an image in a notebook, and how many are shown at most.
_HTML_SIDE, _MAX_IN_HTML = 96, 20


def to_8_bit(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return np.rint(255 * images).astype(np.uint8)


def to_png(image: np.ndarray) -> bytes:
    """An image ``(H, W, 3)`` uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png")
    return file.getvalue()


def columns_for(n: int) -> int:
    """Columns of a grid of ``n`` images: up to five in one row, otherwise about twice as wide as high."""
    return min(n, max(5, math.ceil(math.sqrt(2 * n))))


def mosaic(images: np.ndarray, n_columns: int, gap: int = 2) -> np.ndarray:
    """Arrange images ``(n, H, W, 3)`` uint8 row by row in one image, on white."""
    n, height, width, _ = images.shape
    n_rows = -(-n // n_columns)
    whole = np.full((n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // n_columns * (height + gap), i % n_columns * (width + gap)
        whole[top : top + height, left : left + width] = image
    return whole


def to_data_urls(images: np.ndarray, labels: np.ndarray, max_n: int) -> list[tuple[str, str]]:
    """Labels of at most ``max_n`` images in [0, 1], and their PNG files as data URLs."""
    rows = evenly_spaced(len(images), max_n)
    files = (base64.b64encode(to_png(image)).decode() for image in to_8_bit(images[rows]))
    return [(label_text(labels[row]), f"data:image/png;base64,{file}") for row, file in zip(rows, files, strict=True)]


def to_html(images: np.ndarray, labels: np.ndarray) -> str:
    """Some of the images in [0, 1] as HTML, for notebooks."""
    shown = to_data_urls(images, labels, _MAX_IN_HTML)
    figures = (
        '<figure style="margin:0;text-align:center;font-size:small">'
        f'<img src="{source}" alt="synthetic image of class {name}" style="width:{_HTML_SIDE}px;display:block">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, source in ((escape(label), source) for label, source in shown)
    )
    more = f"<p>{len(shown)} of {len(images)} synthetic images</p>" if len(shown) < len(images) else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:6px;margin-top:6px">{"".join(figures)}</div>{more}'
