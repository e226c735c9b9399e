"""Augmentations: synthetic images → differentiable random views, with all views of an image in consecutive rows.

An augmentation draws its random numbers first (`draw`) and applies them later (`__call__`), so that the same views can be
computed twice: once for the features and once, chunk by chunk, for their gradient. To add one, write a subclass and an entry in
`AUGMENTATIONS`.
"""

import math
from collections.abc import Callable
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.utils import check_scalar
from torch import Tensor

from ..utils._documented import DocumentedMixin
from ..utils._sklearn_compat import Interval, StrOptions

# For `n_views="auto"`: random views per step, at least, and views of one image, at most.
_TOTAL_VIEWS, _MAX_VIEWS = 20, 8


class Augmentation(DocumentedMixin, BaseEstimator):
    """The unaugmented image, preprocessed for the encoder. Subclasses compute random views and set ``is_random`` to True.

    Subclasses are scikit-learn estimators: ``__init__`` stores each argument, unchanged, under its own name. The class attributes
    `n_views` and `unaugmented_weight` can be overridden, or be made parameters.

    Attributes
    ----------
    is_random : bool
        Whether there are random views.
    n_views : "auto" or int
        Random views of each synthetic image per step. ``"auto"``: the smallest number that gives at least 20 views in total, but
        at most eight.
    unaugmented_weight : float in [0, 1)
        Share of the unaugmented images in the loss; the random views have the rest. 0: the unaugmented images do not take part.
    """

    is_random = False
    n_views: str | int = "auto"
    unaugmented_weight: float = 0.5

    _parameter_constraints: dict = {}

    def _validate_params(self):
        super()._validate_params()
        if self.n_views != "auto":
            check_scalar(self.n_views, "n_views", Integral, min_val=1)
        check_scalar(self.unaugmented_weight, "unaugmented_weight", Real, min_val=0, max_val=1, include_boundaries="left")

    def draw(self, n_views: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random numbers for ``n_views`` views: tensors on the CPU whose first axis is the view."""
        return {}

    def __call__(self, images: Tensor, draws: dict[str, Tensor], preprocessing: Callable) -> Tensor:
        """Views of each image, as many as were drawn, in the encoder's size: ``(n, 3, H, W)`` → ``(n·k, 3, s, s)``."""
        return preprocessing(images)

    def views_per_image(self, m: int) -> int:
        """Views of each of ``m`` images in a step: random ones, or the unaugmented one only."""
        if not self.is_random:
            return 1
        return min(_MAX_VIEWS, -(-_TOTAL_VIEWS // m)) if self.n_views == "auto" else int(self.n_views)


class DSA(Augmentation):
    """Random flip, resized crop and noise, differentiable in the image.

    Parameters
    ----------
    n_views : "auto" or int, default="auto"
        Random views of each synthetic image per step. ``"auto"``: the smallest number that gives at least 20 views in total, but
        at most eight.
    unaugmented_weight : float in [0, 1), default=0.5
        Share of the unaugmented images, from which a probe will be trained, in the loss; the random views have the rest.
        0: random views only, and no nearest-neighbour loss.
    scale : tuple of 2 floats, default=(0.08, 1.0)
        Range of the area of the crop as a fraction of that of the image, as in torchvision's ``RandomResizedCrop``.
    ratio : tuple of 2 floats, default=(0.75, 4/3)
        Range of the aspect ratio (width / height) of the crop.
    flip : float in [0, 1], default=0.5
        Probability of a horizontal flip.
    noise : float, default=0.0
        Standard deviation of Gaussian noise, ≥ 0, for images in [0, 1]. It is added after the crop, and the sum is not clipped.
    noise_mean : float, default=0.0
        Mean of the noise.
    noise_probability : float in [0, 1], default=1.0
        Probability that a view gets noise.
    outside : {"clip", "zeros"}, default="clip"
        What to do with a crop that extends beyond the image, as one of nearly the full area may.
        ``"clip"``: clip it to the image. ``"zeros"``: keep its size and pad the image with black.

    References
    ----------
    DSA: differentiable siamese augmentation, arXiv 2102.08259; these are the three augmentations of LGM (arXiv 2511.16674). LGM's
    released code (commit 1d84ffd, ``src/augmentation``) flips, crops and adds noise in this order, distils with
    ``DSA(noise=0.2, noise_mean=0.5, noise_probability=0.5, outside="zeros")``, and evaluates with ``DSA(outside="zeros")``.

    Examples
    --------
    >>> from sklearn_clpdd import DSA, CLPDistiller
    >>> distiller = CLPDistiller(augmentation=DSA(flip=0, scale=(0.8, 1)))
    >>> distiller.set_params(augmentation__n_views=4).augmentation
    DSA(flip=0, n_views=4, scale=(0.8, 1))
    """

    is_random = True

    _parameter_constraints = {
        "n_views": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "unaugmented_weight": [Interval(Real, 0, 1, closed="left")],
        "scale": [tuple, list],
        "ratio": [tuple, list],
        "flip": [Interval(Real, 0, 1, closed="both")],
        "noise": [Interval(Real, 0, None, closed="left")],
        "noise_mean": [Interval(Real, None, None, closed="neither")],
        "noise_probability": [Interval(Real, 0, 1, closed="both")],
        "outside": [StrOptions({"clip", "zeros"})],
    }

    def __init__(
        self,
        *,
        n_views="auto",
        unaugmented_weight=0.5,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip=0.5,
        noise=0.0,
        noise_mean=0.0,
        noise_probability=1.0,
        outside="clip",
    ):
        self.n_views = n_views
        self.unaugmented_weight = unaugmented_weight
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.noise = noise
        self.noise_mean = noise_mean
        self.noise_probability = noise_probability
        self.outside = outside

    def _validate_params(self):
        super()._validate_params()
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale has to be a range of area fractions, 0 < low <= high <= 1; got {self.scale}")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio has to be a range of width / height, 0 < low <= high; got {self.ratio}")

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
        # Maps [-1, 1]² of the view to coordinates of the image: scaled to the crop, whose centre is such that, along each axis,
        # the smaller one of crop and image lies within the larger one.
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
        # All views of an image are sampled as one tall view, which reads the image in place instead of copying it for each view.
        padding = "border" if self.outside == "clip" else "zeros"
        tall = F.grid_sample(images, grid.view(n, -1, s, 2), padding_mode=padding, align_corners=False)
        views = tall.view(n, channels, -1, s, s).permute(0, 2, 3, 4, 1).reshape(-1, s, s, channels).permute(0, 3, 1, 2)
        return views + self._noise_like(views, draws) if self._adds_noise else views

    def _noise_like(self, views: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Noise for each view; zero for views without noise."""
        noise = self.noise * _normal_like(views, draws["seed"]) if self.noise else torch.zeros_like(views)
        if self.noise_mean:
            noise = noise + self.noise_mean
        if "noisy" in draws:
            noise = noise * draws["noisy"].to(noise, non_blocking=True)[:, None, None, None]
        return noise


def _normal_like(views: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal noise from one seed per view, so that it does not depend on the chunk that the view is in."""
    generator = torch.Generator(views.device)
    noise = torch.empty_like(views, memory_format=torch.contiguous_format)
    for view, seed in zip(noise, seeds.tolist(), strict=True):
        view.normal_(generator=generator.manual_seed(seed))
    return noise


# The views of LGM's released code (commit 1d84ffd, `src/augmentation`): for its distillation, and for its probes.
LGM_DISTILLATION_VIEWS = DSA(
    n_views=10, unaugmented_weight=0.0, noise=0.2, noise_mean=0.5, noise_probability=0.5, outside="zeros"
)
LGM_PROBE_VIEWS = DSA(outside="zeros")

AUGMENTATIONS: dict[str, type[Augmentation]] = {"dsa": DSA}
