"""Parametrisations: what the optimiser moves (θ) → synthetic images in [0, 1].

To add one, write a subclass and an entry in `PARAMETRIZATIONS`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Square root of the colour covariance of natural images (ImageNet), scaled to a largest column norm of 1. It maps independent
# channels to RGB values correlated as in natural images (Olah et al., "Feature Visualization", Distill 2017; LGM section 3).
_COLOR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOR = _COLOR / _COLOR.norm(dim=0).max()
# Pixel values are moved this far from 0 and 1 before the inverse of the sigmoid is taken.
_MARGIN = 1 / 512


class Parametrization:
    """Base class: ``m`` synthetic samples as a function of the tensors in `parameters`.

    The first axis of each of these tensors is that of the samples, and a sample depends on its own rows only, so that some
    samples can be decoded without the others. There is no other state than `stage`. `set_samples` and `grow` set
    it; a resumed run gets it from the same calls, because a checkpoint contains the tensors and the progress only.

    Parameters
    ----------
    shape : tuple of int
        Shape of the decoded samples, ``(m, 3, H, W)`` for images.
    generator : torch.Generator
        Source of the random initial values of θ.
    device, dtype : torch.device, torch.dtype
        Device and dtype of θ.
    """

    #: How far it has grown: the only state besides θ on which `decode` depends.
    stage = 0

    def __init__(self, shape, generator, *, device="cpu", dtype=torch.float32):
        self.shape = tuple(shape)
        self.parameters = self.initial(generator, device, dtype)

    def initial(self, generator, device, dtype) -> list[Tensor]:
        """Random initial values of θ: tensors that require a gradient, whose first axis is that of the samples."""
        raise NotImplementedError

    def keep(self, samples: slice) -> None:
        """Forget all other samples."""
        self.parameters = [theta.detach()[samples].clone().requires_grad_() for theta in self.parameters]
        self.shape = (len(self.parameters[0]), *self.shape[1:])

    def __call__(self) -> Tensor:
        """All samples."""
        return self.decode(self.parameters)

    def decode(self, theta: list[Tensor]) -> Tensor:
        """Samples for the same rows of each tensor in `parameters`, differentiable."""
        raise NotImplementedError

    def set_samples(self, samples: Tensor) -> None:
        """Set θ such that it decodes to ``samples``, as closely as possible."""
        raise NotImplementedError

    def grow(self, progress: float) -> None:
        """Called before each step with the fraction of the run that is done, in [0, 1)."""


class Points(Parametrization):
    """Unbounded points ``(m, d)`` in feature space; θ is scaled by the typical coordinate of a unit vector."""

    def initial(self, generator, device, dtype):
        return [_normal(self.shape, generator, device, dtype).requires_grad_()]

    def decode(self, theta):
        return theta[0] / math.sqrt(self.shape[1])

    def set_samples(self, samples):
        with torch.no_grad():
            self.parameters[0].copy_(samples * math.sqrt(self.shape[1]))


class Pixels(Parametrization):
    """One number per pixel and channel, through a sigmoid."""

    def initial(self, generator, device, dtype):
        return [(0.1 * _normal(self.shape, generator, device, dtype)).requires_grad_()]

    def decode(self, theta):
        return _sigmoid(theta[0])

    def set_samples(self, samples):
        with torch.no_grad():
            self.parameters[0].copy_(_logit(samples))


class Pyramid(Parametrization):
    """A sum of bilinearly upsampled levels of 1, 2, 4, … pixels, in a decorrelated colour space, through a sigmoid.

    From noise, images form from coarse to fine: the run starts with one level, and another one is added after each fraction
    ``growth`` of the run. Pyramids make the images transfer to other encoders (LGM, arXiv 2511.16674, section 3).
    """

    growth = 0.05
    noise, gain = 0.1, 1.0  # initial standard deviation of θ, and factor of the sum of the levels

    def initial(self, generator, device, dtype):
        m, channels, height, width = self.shape
        longest = max(height, width)
        sides = [2**i for i in range(longest.bit_length()) if 2**i < longest] + [longest]
        shapes = [(max(1, round(side * height / longest)), max(1, round(side * width / longest))) for side in sides]
        self._color = self.gain * _COLOR.to(device, dtype)
        self.stage = 1
        return [(self.noise * _normal((m, channels, *shape), generator, device, dtype)).requires_grad_() for shape in shapes]

    def grow(self, progress):
        self.stage = max(self.stage, min(len(self.parameters), 1 + int(progress / self.growth)))

    def decode(self, theta):
        image = self._sum(theta[: self.stage])
        return _sigmoid((self._color @ image.flatten(2)).view_as(image))

    def _sum(self, levels: list[Tensor]) -> Tensor:
        """Sum of the levels at full size, each upsampled from level to level."""
        image = levels[0]
        for level in levels[1:]:
            image = _resize(image, level.shape[-2:]) + level
        return _resize(image, self.shape[-2:])

    def set_samples(self, samples):
        """Set θ to the Laplacian pyramid of ``samples``; from then on, all levels are used."""
        self.stage = len(self.parameters)
        with torch.no_grad():
            target = torch.einsum("ij,njhw->nihw", torch.linalg.inv(self._color), _logit(samples))
            self._set_levels(target)

    def _set_levels(self, target: Tensor) -> None:
        image = torch.zeros_like(self.parameters[0])
        for level in self.parameters:
            shape = level.shape[-2:]
            image = _resize(image, shape)
            level.copy_(F.interpolate(target, shape, mode="bilinear", antialias=True) - image)
            image = image + level


class LGMPyramid(Pyramid):
    """The pyramid of LGM's released code: a new level every 200 of 5,000 steps, more noise, and a steeper sigmoid.

    A new level starts with as much noise as the others, and all levels are then scaled down to the same total. Each level is
    upsampled to the full size directly (commit 1d84ffd, ``src/synsets/pyramid.py``).
    """

    growth = 200 / 5000
    noise, gain = 1.0, 2.0

    @torch.no_grad()
    def grow(self, progress):
        n = self.stage
        super().grow(progress)
        if self.stage > n:
            for i, level in enumerate(self.parameters[: self.stage]):
                level.mul_((n if i < n else 1) / self.stage)

    def _sum(self, levels):
        return torch.stack([_resize(level, self.shape[-2:]) for level in levels]).sum(dim=0)

    def _set_levels(self, target):
        rest = target
        for level in self.parameters:
            level.copy_(F.interpolate(rest, level.shape[-2:], mode="bilinear", antialias=True))
            rest = rest - _resize(level, rest.shape[-2:])


def _normal(shape, generator, device, dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype, device="cpu").to(device)


def _sigmoid(x: Tensor) -> Tensor:
    """Sigmoid whose rounding does not depend on where a number is in a tensor.

    ``torch.sigmoid`` computes the last numbers of a tensor by another routine, so that some of the images would differ from the
    same images among all in the last bit.
    """
    return 0.5 + 0.5 * torch.tanh(0.5 * x)


def _logit(samples: Tensor) -> Tensor:
    return torch.logit(samples, eps=_MARGIN)


def _resize(image: Tensor, shape) -> Tensor:
    if image.shape[-2:] == tuple(shape):
        return image
    return F.interpolate(image, tuple(shape), mode="bilinear", align_corners=False)


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {"pixels": Pixels, "pyramid": Pyramid}
