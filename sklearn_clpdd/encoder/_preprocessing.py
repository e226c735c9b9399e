"""How images are resized and cropped before a network sees them, as timm's evaluation does it."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# An image is resized together with others up to this number of pixels, before or after resizing, and by itself above it.
_MAX_PIXELS = 2**20
# Those of timm's pretrained models. Pillow and torch have the same ones with antialiasing.
INTERPOLATIONS, CROP_MODES = ("bicubic", "bilinear"), ("center", "squash", "border")


class Placement(NamedTuple):
    """Where the network's input lies in an image that has been resized to ``height`` × ``width``.

    The input may begin outside of the image, at a negative ``top`` or ``left``, and end outside of it. Its pixels there have
    the mean colour.
    """

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone expects its images.

    Parameters
    ----------
    image_size : int
        Side of the network's input, in pixels.
    crop_pct : float
        Side of the input / side of the resized image from which it is cropped at the centre.
    mean, std : tuple of 3 floats
        Normalisation of RGB values in [0, 1].
    interpolation : {"bilinear", "bicubic"}
        Method of resizing, always with antialiasing.
    crop_mode : {"center", "squash", "border"}
        How an image that is not square is resized: its shorter side to ``image_size / crop_pct``, both sides, or its longer
        side. With ``"border"`` the rest of the input has the mean colour.

    Notes
    -----
    Sizes and positions are those of ``transforms_imagenet_eval`` in timm (huggingface/pytorch-image-models, version 1.0) and of
    ``Resize`` and ``CenterCrop`` in torchvision, but pixels stay floats.
    """

    image_size: int
    crop_pct: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    @property
    def resize_size(self) -> int:
        """Length before the crop, in pixels, of the sides that ``crop_mode`` names."""
        return math.floor(self.image_size / self.crop_pct + 1e-6)  # 128 / (128 / 186) is 185.99…

    def uncropped(self, side: int) -> "Preprocessing":
        """A copy without a crop, for images of this side."""
        return replace(self, image_size=side, crop_pct=1.0)

    def place(self, height: int, width: int) -> Placement:
        """Sizes and position for an image of this height and width."""
        target = self.resize_size
        if self.crop_mode == "squash":
            height, width = target, target
        elif self.crop_mode == "border":
            ratio = max(height, width) / target
            height, width = max(1, round(height / ratio)), max(1, round(width / ratio))
        else:
            shorter = min(height, width)
            height, width = (target if side == shorter else int(target * side / shorter) for side in (height, width))
        return Placement(height, width, *(self._start(side) for side in (height, width)))

    def _start(self, side: int) -> int:
        """Where a centred crop of ``image_size`` begins."""
        if side < self.image_size:
            return -((self.image_size - side) // 2)
        return round((side - self.image_size) / 2)  # half to even, as in torchvision

    def is_alone(self, height: int, width: int) -> bool:
        """Whether an image of this size is so large or elongated that it is resized by itself, and only where that is needed."""
        place = self.place(height, width)
        is_large = max(height * width, place.height * place.width) > _MAX_PIXELS
        return is_large or min(place.height, place.width) == 1  # which torch resizes wrongly, depending on the memory layout

    @property
    def fill(self) -> Tensor:
        """Colour outside of an image, ``(3, 1, 1)``, in 8 bits as in timm."""
        return torch.tensor([round(255 * value) / 255 for value in self.mean], dtype=torch.float32)[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and crop ``(n, 3, H, W)`` in [0, 1] to ``(n, 3, image_size, image_size)``, still in [0, 1]."""
        height, width, top, left = self.place(*images.shape[-2:])
        if (height, width) != images.shape[-2:]:
            images = F.interpolate(images, (height, width), mode=self.interpolation, antialias=True).clamp(0, 1)
        inside = images[..., max(top, 0) : top + self.image_size, max(left, 0) : left + self.image_size]
        return self.pad(inside, max(-top, 0), max(-left, 0))

    def pad(self, inside: Tensor, top: int, left: int) -> Tensor:
        """Images that begin at ``top`` and ``left`` of the input, filled up to its size."""
        if inside.shape[-2:] == (self.image_size, self.image_size):
            return inside
        whole = self.fill.to(inside).expand(*inside.shape[:-2], self.image_size, self.image_size).clone()
        whole[..., top : top + inside.shape[-2], left : left + inside.shape[-1]] = inside
        return whole
