"""
Bring your own parts
====================

Your own encoder, objective, augmentation and parametrisation, on scikit-learn's bundled
digits.
"""

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import nn

from sklearn_clpdd import (
    Augmentation,
    CLPDistiller,
    FrozenEncoder,
    Parametrization,
    SyntheticImagesDisplay,
)
from sklearn_clpdd.datasets import load_digit_images

X, y = load_digit_images()
X_train, X_test, y_train, y_test = train_test_split(
    X[:800], y[:800], test_size=0.5, stratify=y[:800], random_state=0
)
settings = {"max_iter": 60, "random_state": 0}

# %%
# An encoder
# ----------
# Any differentiable module that maps images ``(n, 3, H, W)`` to features ``(n, d)``. A
# module does not declare its image size or normalisation, so we pass both to the
# encoder. This one consists of random convolutions over patches.


# begin encoder
class RandomPatches(nn.Module):
    """Rectified responses to random patches, averaged over each quarter."""

    def __init__(self, width=512, patch=9):
        super().__init__()
        self.filters = nn.Conv2d(3, width, patch, stride=2)
        generator = torch.Generator().manual_seed(0)
        nn.init.normal_(self.filters.weight, generator=generator)
        nn.init.normal_(self.filters.bias, generator=generator)

    def forward(self, images):
        return F.adaptive_avg_pool2d(self.filters(images).relu(), 2).flatten(1)


encoder = FrozenEncoder(
    RandomPatches(), image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3
)
distiller = CLPDistiller(encoder, augmentation=None, **settings).fit(X_train, y_train)
print(f"random patches: {distiller.score(X_test, y_test):.3f}")
# end encoder

# %%
# An objective
# ------------
# A function of synthetic features, their targets, real features and their class
# indices, differentiable in the first. This one pulls every real image nearer to the
# mean of the synthetic images of its class than to the other means.


# begin objective
def nearest_mean(Z, Y, R, r):
    """Cross-entropy of the squared distances to the synthetic class means."""
    means = (Y.T @ Z) / Y.sum(dim=0)[:, None]
    return F.cross_entropy(-torch.cdist(R, means).square() / 0.1, r)


encoder = FrozenEncoder(image_size=64, memory="output/cache")
distiller = CLPDistiller(
    encoder, objective=nearest_mean, augmentation=None, **settings
).fit(X_train, y_train)
print(f"nearest mean: {distiller.score(X_test, y_test):.3f}")
# end objective

# %%
# An augmentation
# ---------------
# Views that do not fit into memory together are computed twice, for the features and
# for their gradient. Therefore the random numbers are drawn first and applied later:
# ``draw`` returns CPU tensors whose first axis is the view, and a call receives those
# of some images.


# begin augmentation
class Shift(Augmentation):
    """Random shifts by up to a tenth of the image, which a digit survives."""

    is_random = True
    n_views = 2  # per image and step

    def draw(self, n_views, generator):
        return {"shift": 0.2 * (2 * torch.rand(n_views, 2, generator=generator) - 1)}

    def __call__(self, images, draws, preprocessing):
        shift = draws["shift"].to(images)
        k = len(shift) // len(images)  # the views of each image are consecutive
        theta = torch.eye(2, device=images.device, dtype=images.dtype).expand(
            len(shift), 2, 2
        )
        grid = F.affine_grid(
            torch.cat([theta, shift[..., None]], dim=2),
            (len(shift), *images.shape[1:]),
            align_corners=False,
        )
        views = F.grid_sample(
            images.repeat_interleave(k, 0),
            grid,
            padding_mode="border",
            align_corners=False,
        )
        return preprocessing(views)


distiller = CLPDistiller(encoder, augmentation=Shift(), **settings).fit(
    X_train, y_train
)
print(f"shifts: {distiller.score(X_test, y_test):.3f}")
# end augmentation

# %%
# A parametrisation
# -----------------
# The parameters that the optimiser updates, and how they become images; each image
# depends on its own rows only. Grey images for digits:


# begin parametrization
class Grey(Parametrization):
    """Grey pixels, mapped to [0, 1] by a sigmoid."""

    def initial(self, generator, device, dtype):
        m, _, height, width = self.shape
        noise = torch.randn((m, 1, height, width), generator=generator)
        return [noise.to(device, dtype).requires_grad_()]

    def decode(self, theta):
        return theta[0].sigmoid().expand(-1, 3, -1, -1)

    def set_samples(self, samples):
        with torch.no_grad():
            self.parameters[0].copy_(
                torch.logit(samples.mean(dim=1, keepdim=True), eps=1 / 512)
            )


distiller = CLPDistiller(
    encoder, parametrization=Grey, augmentation=None, **settings
).fit(X_train, y_train)
print(f"grey pixels: {distiller.score(X_test, y_test):.3f}")
SyntheticImagesDisplay.from_estimator(distiller, X_test, y_test)
# end parametrization
