"""Images of one size in an array or a tensor."""

from functools import cached_property

import joblib
import numpy as np
import torch
from torch import Tensor

from ._base import Images, digest, parallel, stack_keys
from ._decoding import decode

# Images whose values are checked at once, so that checking a large array needs little memory.
_CHUNK = 1024


class PixelArray(Images):
    """A numpy array ``(n, H, W, C)`` or a tensor ``(n, C, H, W)``, with 1 or 3 channels, as the user passed it."""

    def __init__(self, pixels: np.ndarray | Tensor):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def check(self, indices=None):
        if self.pixels.dtype in (np.uint8, torch.uint8):
            return
        indices = range(len(self)) if indices is None else indices
        for part in (indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)):
            chunk = self._at(part)
            low, high = float(chunk.min()), float(chunk.max())
            if not (low >= -1e-6 and high <= 1 + 1e-6):  # also true for NaN, which min and max propagate
                seen = "NaN" if np.isnan(low) or np.isnan(high) else f"values from {low:g} to {high:g}"
                raise ValueError(
                    f"float images have values in [0, 1]; got {seen} (images {part[0]} to {part[-1]}). "
                    "Rescale them to [0, 1], or pass uint8"
                )

    def keys(self):
        return self._keys

    portable_keys = keys

    @cached_property
    def _keys(self) -> np.ndarray:
        pixels = self.pixels if isinstance(self.pixels, np.ndarray) else self.pixels.numpy()
        form = f"{type(self.pixels).__name__} {pixels.dtype} {pixels.shape[1:]}".encode()
        return stack_keys(digest(form, np.ascontiguousarray(image).data) for image in pixels)

    def _at(self, indices):
        """The pixels of these images; a view if ``indices`` is a range."""
        return self.pixels[slice(indices.start, indices.stop) if isinstance(indices, range) else indices]

    def read(self, indices, preprocessing, n_jobs=None):
        shape = self.pixels.shape
        if preprocessing.is_alone(*(shape[1:3] if isinstance(self.pixels, np.ndarray) else shape[2:])):
            images = parallel(n_jobs)(joblib.delayed(decode)(self.pixels[i], preprocessing) for i in indices)
            return torch.cat(images)
        batch = self._at(indices)
        if isinstance(batch, np.ndarray):  # torch has no negative strides, and only native dtypes
            dtype = np.uint8 if batch.dtype == np.uint8 else np.float32
            batch = torch.from_numpy(np.array(batch, dtype, order="C")).permute(0, 3, 1, 2)
        batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
        return preprocessing(batch.expand(-1, 3, -1, -1))
