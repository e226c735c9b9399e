"""A linear head trained by SGD: on random views as in LGM's released evaluator, or otherwise."""

from collections.abc import Callable
from itertools import islice
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils import check_random_state, check_scalar
from torch import Tensor

from ..distill._augmentations import LGM_PROBE_VIEWS, Augmentation
from ..utils._torch_modes import standard_torch_modes
from ._probes import BATCH_SIZE, ProbeTask, check_finite, make_task, pixel_reader, stack_metrics

# Adam's rate for a batch of 256 images, and standard deviation of the initial weights (commit 1d84ffd:
# `src/distillation/eval.py`, `src/models/linear_classifier.py`).
_LEARNING_RATE = 1e-3
_INITIAL_STD = 0.01


class HeadRecipe(NamedTuple):
    """How a head is trained; by default, as LGM trains it. `sgd_probe_scores` documents the fields."""

    n_epochs: int = 1000
    initial_std: float = _INITIAL_STD
    learning_rate: float | None = None
    augmentation: Augmentation | None = LGM_PROBE_VIEWS

    def rate(self, batch_size: int) -> float:
        """Adam's rate at the start."""
        return _LEARNING_RATE * batch_size / 256 if self.learning_rate is None else float(self.learning_rate)

    def check(self) -> None:
        """Raise if a field is out of range, or of the wrong type."""
        check_scalar(self.n_epochs, "n_epochs", Integral, min_val=1)
        check_scalar(self.initial_std, "initial_std", Real, min_val=0)
        check_finite(self.initial_std, "initial_std")
        if self.learning_rate is not None:
            check_scalar(self.learning_rate, "learning_rate", Real, min_val=0, include_boundaries="neither")
            check_finite(self.learning_rate, "learning_rate")
        if self.augmentation is not None:
            if not isinstance(self.augmentation, Augmentation):
                raise TypeError(
                    f'augmentation has to be "lgm", an augmentation such as DSA(), or None; got {self.augmentation!r}'
                )
            self.augmentation._validate_params()


@standard_torch_modes()
def sgd_probe_scores(
    images,
    labels,
    X_test,
    y_test,
    *,
    encoder=None,
    n_epochs=1000,
    initial_std=_INITIAL_STD,
    learning_rate=None,
    augmentation="lgm",
    n_repeats=1,
    groups=None,
    random_state=None,
):
    """Test scores of a linear head trained by SGD on a small image set, by default by LGM's protocol.

    In LGM's protocol, weights are initialised from a normal distribution of standard deviation 0.01, biases with zero. An epoch
    uses one random resized crop (0.08 to 1 of the area) with a random flip of each image, in shuffled batches of up to 100. The
    head is trained on the encoder's features, which are not normalised, by Adam with a rate of ``1e-3 · batch / 256`` that falls
    to zero along a cosine over the epochs. The test set is scored once, with the head of the last epoch.

    Parameters
    ----------
    images : images
        Training images, in any form that :class:`FrozenEncoder` accepts.
    labels : array-like of shape (n_images,)
        Their classes.
    X_test : images
        Test images.
    y_test : array-like of shape (n_test,)
        Their classes.
    encoder : FrozenEncoder, str, torch.nn.Module or None, default=None
        A name or a module stands for ``FrozenEncoder(encoder)``, ``None`` for ``FrozenEncoder()``.
    n_epochs : int, default=1000
        Passes over ``images``.
    initial_std : float, default=0.01
        Standard deviation of the initial weights, ≥ 0.
    learning_rate : float, default=None
        Adam's largest rate, > 0. ``None``: ``1e-3 · batch / 256`` for batches of ``min(100, n_images)``.
    augmentation : "lgm", Augmentation or None, default="lgm"
        The view of each image in an epoch: that of LGM's protocol, that of an augmentation such as :class:`DSA`, whose `n_views`
        and `unaugmented_weight` do not matter here, or, for ``None``, the image as the encoder sees it.
    n_repeats : int, default=1
        Number of heads, each with its own initial weights and views; the published protocol has five.
    groups : array-like of shape (n_test,), default=None
        Groups of the test images, such as pairs of class and background.
    random_state : int, RandomState instance or None, default=None
        Seed.

    Returns
    -------
    dict of str to ndarray of shape (n_repeats,)
        ``"top1"`` accuracy; ``"top5"`` accuracy, if there are more than five classes; ``"worst_group"``, the least accuracy of a
        group, if there are groups.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        As :func:`closed_form_probe_scores`.

    See Also
    --------
    closed_form_probe_scores : The probe in closed form.

    Notes
    -----
    **Few images.** A batch of few images has a low rate in LGM's protocol: with ten images it is 4e-5, at which a weight moves by
    hardly more than 0.02 in 1,000 steps, and it begins 0.01 from zero. Such a head keeps much of its random start, whatever the
    images are. If you are free to choose, use the closed form, or train on the images themselves, from zero:
    ``sgd_probe_scores(..., initial_std=0, learning_rate=3e-4, augmentation=None)``.

    **Details.** By default, this is the evaluator of LGM's released code (commit 1d84ffd: ``src/distillation/eval.py``,
    ``src/models/linear_classifier.py``, ``src/augmentation/basic_aug.py``), compared line by line. Remaining differences:

    * Images are normalised as in the training of the encoder; there, by ImageNet's mean and standard deviation for all encoders.
    * Features and head are computed in float32 (the encoder in its own `dtype`); the released code trains under mixed precision,
      with a scaled loss, and tests in float32.
    * Test images are resized and cropped as each encoder requires. The released code resizes them to 256 and crops them to 224 px
      for every encoder, which is what the four encoders of the paper require here, too.
    * On several GPUs the released code divides the rate by their number; here one device computes.
    * ``"top5"`` is computed for more than five classes; there, for five too, where it is always 1.

    References
    ----------
    *Dataset Distillation for Pre-Trained Self-Supervised Vision Models*, arXiv 2511.16674, evaluation.

    Examples
    --------
    >>> from sklearn_clpdd import FrozenEncoder
    >>> from sklearn_clpdd.datasets import load_digit_images
    >>> from sklearn_clpdd.evaluation import sgd_probe_scores
    >>> X, y = load_digit_images()
    >>> encoder = FrozenEncoder(image_size=32)
    >>> scores = sgd_probe_scores(X[:20], y[:20], X[100:200], y[100:200], encoder=encoder, n_epochs=2, n_repeats=3)
    >>> scores["top1"].shape
    (3,)
    """
    recipe = HeadRecipe(n_epochs, initial_std, learning_rate, LGM_PROBE_VIEWS if augmentation == "lgm" else augmentation)
    check_heads(recipe, n_repeats, 1)
    task = make_task(images, labels, X_test, y_test, groups, encoder, needs_raw=True)
    return head_metrics(task, recipe, n_repeats, random_state)


def check_heads(recipe: HeadRecipe, n_repeats, least):
    """Raise if heads cannot be trained so, or their number is too small."""
    recipe.check()
    check_scalar(n_repeats, "n_repeats", Integral, min_val=least)


def head_metrics(task: ProbeTask, recipe: HeadRecipe, n_repeats: int, random_state) -> dict[str, np.ndarray]:
    """Metrics of heads trained by SGD on features that are not normalised."""
    seeds = check_random_state(random_state).randint(2**31 - 1, size=n_repeats)
    encode = _images_encoder(task) if recipe.augmentation is None else _views_encoder(task, recipe.augmentation)
    test, runs = task.raw_test_features, []
    for seed in seeds:
        weight, bias = _train_head(task, encode, recipe, torch.Generator().manual_seed(int(seed)))
        runs.append(task.metrics(test @ weight.T + bias))
    return stack_metrics(runs)


def _views_encoder(task: ProbeTask, augmentation: Augmentation) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
    """A function from positions and the random numbers of their views to features."""
    extractor = task.raw_extractor
    # Raises if training images are missing or, where all fit into memory, undecodable.
    read = pixel_reader(task.images, extractor)

    @torch.no_grad()
    def encode(rows: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return extractor(augmentation(read(rows), draws, extractor.preprocessing))

    return encode


def _images_encoder(task: ProbeTask) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
    """The same for the images themselves, which are encoded once."""
    features = torch.from_numpy(task.raw_features).to(task.extractor.device)
    return lambda rows, draws: features[rows.to(features.device)]


def _train_head(
    task: ProbeTask, encode: Callable, recipe: HeadRecipe, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Train a linear head; return its weights ``(C, d)`` and biases ``(C,)``. ``encode`` returns features of views."""
    device, views = task.extractor.device, recipe.augmentation or Augmentation()
    classes, codes = np.unique(task.labels, return_inverse=True)
    y, n_classes = torch.from_numpy(codes), len(classes)
    drawn = torch.randn(n_classes, task.extractor.n_features, generator=generator, dtype=torch.float32, device="cpu")
    weight = (recipe.initial_std * drawn).to(device).requires_grad_()
    bias = torch.zeros(n_classes, dtype=torch.float32, device=device, requires_grad=True)
    batch_size = min(BATCH_SIZE, len(y))
    optimizer = torch.optim.Adam([weight, bias], lr=recipe.rate(batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.n_epochs)

    def batches():
        """Yield rows, the random numbers of their views, and whether they end an epoch."""
        for _ in range(recipe.n_epochs):
            parts = torch.randperm(len(y), generator=generator, device="cpu").split(batch_size)
            for i, rows in enumerate(parts):
                yield rows, views.draw(len(rows), generator), i == len(parts) - 1

    remaining = batches()
    # Views do not depend on the head, so those of several small batches are encoded together.
    while together := list(islice(remaining, max(1, BATCH_SIZE // batch_size))):
        rows = torch.cat([rows for rows, _, _ in together])
        draws = {name: torch.cat([drawn[name] for _, drawn, _ in together]) for name in together[0][1]}
        features = encode(rows, draws)
        targets = y[rows].to(device)
        sizes = [len(rows) for rows, _, _ in together]
        for Z, r, (_, _, ends) in zip(features.split(sizes), targets.split(sizes), together, strict=True):
            loss = F.cross_entropy(F.linear(Z, weight, bias), r)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if ends:
                schedule.step()
    return weight.detach().cpu().numpy(), bias.detach().cpu().numpy()
