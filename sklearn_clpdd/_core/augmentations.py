"""Augmentations: synthetic images → differentiable random views, all those of an image in a row.

An augmentation draws its random numbers first (`draw`) and applies them afterwards (`__call__`), so that the same views can
be made twice: once for the features and once, chunk by chunk, for their gradient. A new one is a subclass here plus an entry
in `AUGMENTATIONS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation:
    """The image itself, preprocessed as the encoder has it: what a probe is going to see."""

    is_random = False

    def draw(self, n_views: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random numbers for ``n_views`` views: tensors on the CPU whose first axis is the view."""
        return {}

    def __call__(self, images: Tensor, draws: dict[str, Tensor], preprocessing: Callable) -> Tensor:
        """Views of each image, as many as are drawn, of the encoder's size: ``(n, 3, H, W)`` → ``(n·k, 3, s, s)``."""
        return preprocessing(images)


@dataclass(frozen=True)
class DSA(Augmentation):
    """Random flip, resized crop and noise, differentiable in the image.

    Parameters
    ----------
    scale : tuple of 2 floats, default=(0.08, 1.0)
        Range of the crop's area as a share of the image's, as in torchvision's ``RandomResizedCrop``.
    ratio : tuple of 2 floats, default=(0.75, 4/3)
        Range of the crop's aspect ratio (width / height).
    flip : float in [0, 1], default=0.5
        Probability of a horizontal flip.
    noise : float, default=0.0
        Standard deviation of Gaussian noise, in units of the image's range [0, 1]. Noise is added after the crop, and the sum
        is not clipped.
    noise_mean : float, default=0.0
        Mean of the noise.
    noise_probability : float in [0, 1], default=1.0
        Probability that a view gets noise.
    outside : {"clip", "zeros"}, default="clip"
        What happens to a crop that is wider or higher than the image, as one of nearly its area and another aspect ratio is.
        ``"clip"``: it is clipped to the image. ``"zeros"``: it keeps its size, and is black outside the image.

    References
    ----------
    DSA: differentiable siamese augmentation, arXiv 2102.08259; the three are those that LGM uses (arXiv 2511.16674). LGM's
    released code (commit 1d84ffd, ``src/augmentation``) flips, crops and adds noise in this order, distils with
    ``DSA(noise=0.2, noise_mean=0.5, noise_probability=0.5, outside="zeros")``, and evaluates with ``DSA(outside="zeros")``.

    Examples
    --------
    >>> from sklearn_clpdd import DSA, CLPDistiller
    >>> CLPDistiller(augmentation=DSA(flip=0, scale=(0.8, 1))).augmentation.scale
    (0.8, 1)
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    noise: float = 0.0
    noise_mean: float = 0.0
    noise_probability: float = 1.0
    outside: str = "clip"

    is_random = True

    def __post_init__(self):
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is a range of shares of the image's area, 0 < low <= high <= 1; got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is a range of width / height, 0 < low <= high; got {self.ratio}")
        if not (0 <= self.flip <= 1 and self.noise >= 0):
            raise ValueError(f"flip is a probability and noise a standard deviation >= 0; got {self.flip} and {self.noise}")
        if not (math.isfinite(self.noise_mean) and 0 <= self.noise_probability <= 1):
            raise ValueError(
                "noise_mean is a finite number and noise_probability a probability; "
                f"got {self.noise_mean} and {self.noise_probability}"
            )
        if self.outside not in ("clip", "zeros"):
            raise ValueError(f"outside is 'clip' or 'zeros'; got {self.outside!r}")

    @property
    def _adds_noise(self) -> bool:
        return bool(self.noise or self.noise_mean) and self.noise_probability > 0

    def draw(self, n_views, generator):
        u = torch.rand(5, n_views, generator=generator, dtype=torch.float32, device="cpu")
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * u[0]
        low, high = map(math.log, self.ratio)
        ratio = torch.exp(low + (high - low) * u[1])
        width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
        if self.outside == "clip":
            width, height = width.clamp(max=1), height.clamp(max=1)
        mirror = 1 - 2 * (u[2] < self.flip).to(u)
        # What the view's [-1, 1]² becomes in the image's: scaled to the crop, whose centre is such that the smaller of the two
        # lies within the larger.
        center = (2 * u[3] - 1) * (1 - width), (2 * u[4] - 1) * (1 - height)
        seeds = torch.randint(2**62, (n_views,), generator=generator, device="cpu")
        draws = {"scale": torch.stack([mirror * width, height], 1), "center": torch.stack(center, 1), "seed": seeds}
        if self._adds_noise and self.noise_probability < 1:
            chosen = torch.rand(n_views, generator=generator, dtype=torch.float32, device="cpu") < self.noise_probability
            draws["noisy"] = chosen
        return draws

    def __call__(self, images, draws, preprocessing):
        n, channels, s = len(images), images.shape[1], preprocessing.image_size
        scale, center = (draws[name].to(images, non_blocking=True) for name in ("scale", "center"))
        ticks = (2 * torch.arange(s, device=images.device, dtype=images.dtype) + 1) / s - 1
        x, y = (scale[..., None] * ticks + center[..., None]).unbind(1)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
        # The views of an image are one tall view of it: they read it in place, without a copy for each.
        padding = "border" if self.outside == "clip" else "zeros"
        tall = F.grid_sample(images, grid.view(n, -1, s, 2), padding_mode=padding, align_corners=False)
        views = tall.view(n, channels, -1, s, s).permute(0, 2, 3, 4, 1).reshape(-1, s, s, channels).permute(0, 3, 1, 2)
        return views + self._noise_like(views, draws) if self._adds_noise else views

    def _noise_like(self, views: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Noise for each view, zero for those that get none."""
        noise = self.noise * _normal_like(views, draws["seed"]) if self.noise else torch.zeros_like(views)
        if self.noise_mean:
            noise = noise + self.noise_mean
        if "noisy" in draws:
            noise = noise * draws["noisy"].to(noise, non_blocking=True)[:, None, None, None]
        return noise


def _normal_like(views: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal noise, each view's from its own seed: the same whatever chunk the view is in."""
    generator = torch.Generator(views.device)
    noise = torch.empty_like(views, memory_format=torch.contiguous_format)
    for view, seed in zip(noise, seeds.tolist(), strict=True):
        view.normal_(generator=generator.manual_seed(seed))
    return noise


# The views of LGM's released code (commit 1d84ffd, `src/augmentation`): those of its distillation, and those of its probes.
LGM_DISTILLATION_VIEWS = DSA(noise=0.2, noise_mean=0.5, noise_probability=0.5, outside="zeros")
LGM_PROBE_VIEWS = DSA(outside="zeros")

AUGMENTATIONS: dict[str, type[Augmentation]] = {"dsa": DSA}
