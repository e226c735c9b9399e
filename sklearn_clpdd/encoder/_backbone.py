"""A frozen network and its preprocessing."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import joblib
import torch
import torch.nn.functional as F
from joblib.hashing import NumpyHasher
from torch import Tensor, nn

from ._folding import SameConv2d


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone expects its images.

    Parameters
    ----------
    image_size : int
        Side of the network's input, in pixels.
    crop_pct : float
        The shorter side of an image is resized to ``image_size / crop_pct``, and the image is cropped at its centre.
    mean, std : tuple of 3 floats
        Normalisation of RGB values in [0, 1].
    interpolation : {"bilinear", "bicubic"}
        Method of resizing, always with antialiasing.
    """

    image_size: int
    crop_pct: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"

    @property
    def resize_size(self) -> int:
        """Length of the shorter side before the crop, in pixels."""
        return math.floor(self.image_size / self.crop_pct + 1e-6)  # 128 / (128 / 186) is 185.99…

    def uncropped(self, side: int) -> "Preprocessing":
        """A copy without a crop, for images of this side."""
        return replace(self, image_size=side, crop_pct=1.0)

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and centre-crop ``(n, 3, H, W)`` in [0, 1] to ``(n, 3, image_size, image_size)``, still in [0, 1]."""
        shorter = min(images.shape[-2:])
        if shorter != self.resize_size:
            size = [max(self.resize_size, round(side * self.resize_size / shorter)) for side in images.shape[-2:]]
            images = F.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = ((side - self.image_size) // 2 for side in images.shape[-2:])
        return images[..., top : top + self.image_size, left : left + self.image_size]


class Backbone:
    """A frozen network and its preprocessing: images ``(n, 3, s, s)`` in [0, 1] → features ``(n, n_features)``."""

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, n_features: int, device: torch.device, weights_sha256: str = ""
    ):
        self.module = module
        self.preprocessing = preprocessing
        self.n_features = n_features
        self.device = device
        self.weights_sha256 = weights_sha256  # of the weights as loaded, before folding
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        normalized = (images - self._mean.to(images.dtype)) / self._std.to(images.dtype)
        return self.module(normalized.contiguous(memory_format=torch.channels_last))

    @cached_property
    def digest(self) -> str:
        """Digest of the network, its weights, and its preprocessing."""
        try:
            network = _ContentHasher("md5").hash(self.module)
        except Exception as error:  # pickling a user's module can fail in many ways
            raise ValueError(
                f"memory= and checkpoint= recognise a network by its pickle, but a {type(self.module).__name__} cannot be "
                f"pickled ({type(error).__name__}: {error}). Remove from it what cannot be pickled, or leave both at None"
            ) from error
        return joblib.hash((network, self.preprocessing))

    @cached_property
    def graph_bytes(self) -> int:
        """Bytes that autograd saves to backpropagate to one image, measured on a blank image.

        Raises
        ------
        ValueError
            If the features have no gradient with respect to the images.
        """
        size = self.preprocessing.image_size
        own = {tensor.untyped_storage().data_ptr() for tensor in (*self.module.parameters(), *self.module.buffers())}
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.inference_mode(False), torch.enable_grad():
            image = torch.zeros(1, 3, size, size, device=self.device, dtype=torch.float32, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                features = self(image)  # keeps the saved tensors alive while they are counted
        if not features.requires_grad:
            raise ValueError(
                f"{type(self.module).__name__} returns features without a gradient with respect to its images, which "
                "learning synthetic images needs: remove what stops the gradient, such as no_grad(), detach() or numpy()"
            )
        del features
        return max(1, sum(saved.values()))


class _ContentHasher(NumpyHasher):
    """joblib's hash, with tensors hashed by value: torch's own pickles of equal modules differ.

    Folded paddings, which exist on CPUs only, hash like the original convolution, so that a CPU can resume a run from a GPU.
    """

    def save(self, obj):
        """Replace tensors by arrays."""
        if isinstance(obj, SameConv2d):
            obj = obj.convolution
        if isinstance(obj, Tensor):
            obj = (str(obj.dtype), obj.shape, obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        super().save(obj)
