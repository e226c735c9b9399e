"""Parametrisations: what the optimiser moves (θ) → synthetic images in [0, 1].

A new one is a subclass here plus an entry in `PARAMETRIZATIONS`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Square root of the colour covariance of natural images (ImageNet), scaled to a largest column norm of 1: it maps
# independent channels to RGB as natural images have it (Olah et al., "Feature Visualization", Distill 2017; LGM section 3).
_COLOR = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLOR = _COLOR / _COLOR.norm(dim=0).max()
# Pixel values this close to 0 and 1 are the furthest that a sigmoid is asked to reproduce.
_MARGIN = 1 / 512


class Parametrization:
    """Base class: ``m`` synthetic samples as a function of the tensors in `parameters`.

    The first axis of each of these tensors is the sample's, and a sample depends on its own rows only: so that some samples can
    be decoded without the others. There is no other state, but for what `grow` sets: a run goes on from the tensors alone.

    Parameters
    ----------
    shape : tuple of int
        Shape of the decoded samples, ``(m, 3, H, W)`` for images.
    generator : torch.Generator
        Source of the noise that θ starts from.
    device, dtype : torch.device, torch.dtype
        Where and how θ lives.
    """

    def __init__(self, shape, generator, *, device="cpu", dtype=torch.float32):
        self.shape = tuple(shape)
        self.parameters = self._start(generator, {"device": device, "dtype": dtype})

    def _start(self, generator, factory) -> list[Tensor]:
        raise NotImplementedError

    def __call__(self) -> Tensor:
        """All samples."""
        return self.decode(self.parameters)

    def decode(self, theta: list[Tensor]) -> Tensor:
        """Samples from the same rows of each tensor in `parameters`, differentiably."""
        raise NotImplementedError

    def set(self, samples: Tensor) -> None:
        """Move θ so that it decodes to ``samples``, as nearly as it can."""
        raise NotImplementedError

    @property
    def detail(self) -> float:
        """How finely the images are resolved by now: as a share of their pixels along a side."""
        return 1.0

    #: How far it has grown: what `decode` depends on beside θ.
    stage = 0

    def grow(self, progress: float) -> None:
        """Told before each step what share of the run is done, in [0, 1)."""


class Points(Parametrization):
    """Points ``(m, d)`` in feature space, without bounds; θ is in units of a coordinate of a vector of norm 1."""

    def _start(self, generator, factory):
        return [_normal(self.shape, generator, **factory).requires_grad_()]

    def decode(self, theta):
        return theta[0] / math.sqrt(self.shape[1])

    def set(self, samples):
        with torch.no_grad():
            self.parameters[0].copy_(samples * math.sqrt(self.shape[1]))


class Pixels(Parametrization):
    """One number per pixel and channel, through a sigmoid."""

    def _start(self, generator, factory):
        return [(0.1 * _normal(self.shape, generator, **factory)).requires_grad_()]

    def decode(self, theta):
        return torch.sigmoid(theta[0])

    def set(self, samples):
        with torch.no_grad():
            self.parameters[0].copy_(_logit(samples))


class Pyramid(Parametrization):
    """A sum of bilinearly upsampled levels of 1, 2, 4, … pixels, in a decorrelated colour space, through a sigmoid.

    The images come into being from coarse to fine: a level joins at each of the first ``n_levels`` steps of
    ``growth`` · (run length). It is what makes the images transfer to other encoders (LGM, arXiv 2511.16674, section 3).
    """

    growth = 0.05
    noise, gain = 0.1, 1.0  # standard deviation that θ starts with; what the sum of the levels is multiplied by

    def _start(self, generator, factory):
        m, channels, height, width = self.shape
        longest = max(height, width)
        sides = [2**i for i in range(longest.bit_length()) if 2**i < longest] + [longest]
        shapes = [(max(1, round(side * height / longest)), max(1, round(side * width / longest))) for side in sides]
        self._color = self.gain * _COLOR.to(**factory)
        self.stage = 1
        return [(self.noise * _normal((m, channels, *shape), generator, **factory)).requires_grad_() for shape in shapes]

    def grow(self, progress):
        self.stage = max(self.stage, min(len(self.parameters), 1 + int(progress / self.growth)))

    @property
    def detail(self):
        return max(self.parameters[self.stage - 1].shape[-2:]) / max(self.shape[-2:])

    def decode(self, theta):
        image = self._sum(theta[: self.stage])
        return torch.sigmoid((self._color @ image.flatten(2)).view_as(image))

    def _sum(self, levels: list[Tensor]) -> Tensor:
        """The levels at full size, added up; each is upsampled level by level."""
        image = levels[0]
        for level in levels[1:]:
            image = _resize(image, level.shape[-2:]) + level
        return _resize(image, self.shape[-2:])

    def set(self, samples):
        """Laplacian pyramid of ``samples``; all levels take part from here on."""
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
    """The pyramid as LGM's released code has it: a level every 200 of 5,000 steps, much noise, and a steeper sigmoid.

    When a level joins, with noise as strong as that of the others, all are scaled down to what they add up to. Each level is
    upsampled to the full size at once (commit 1d84ffd, ``src/synsets/pyramid.py``).
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


def _logit(samples: Tensor) -> Tensor:
    return torch.logit(samples, eps=_MARGIN)


def _resize(image: Tensor, shape) -> Tensor:
    if image.shape[-2:] == tuple(shape):
        return image
    return F.interpolate(image, tuple(shape), mode="bilinear", align_corners=False)


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {"pixels": Pixels, "pyramid": Pyramid}
