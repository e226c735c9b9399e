"""Looks at a network before it is trusted: one row for each image, from that image alone, by the copy, in which layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..utils._warnings import warn

# Largest relative difference of features that another layout or folded layers may cause (Lite0: 2e-6).
_TOLERANCE = 1e-3
# Largest relative difference between the features of an image alone and beside another one; GPUs with TF32 reach 1e-3.
_BATCH_TOLERANCE = 1e-2
_BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
# Names of layers that classify, and numbers of classes of the usual sets.
_HEADS = {"fc", "classifier", "head", "heads", "head_dist", "logits", "last_linear"}
_N_CLASSES = {10, 100, 101, 200, 365, 1000, 1001, 11221, 11821, 21841, 21843}


def example_images(size: int, module: nn.Module) -> Tensor:
    """Two images ``(2, 3, size, size)`` that differ, in [0, 1], on the device of a module."""
    noise = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    noise[1] *= torch.linspace(1, 0, size, dtype=torch.float32, device="cpu")
    return noise.to(next(module.parameters(), noise))


def example_features(module: nn.Module, images: Tensor, original: nn.Module | None) -> Tensor:
    """Features of two images.

    Raises
    ------
    ValueError
        If the module fails, calls the ``original`` that it was copied from, or returns something other than a row of finite
        values for each image, or the same row for both.
    """
    name, size = type(module).__name__, images.shape[-1]
    with _never_called(original):
        try:
            features = _call(module, images)
        except _OriginalCalledError:
            raise ValueError(
                f"a copy of {name} still computes with the module that it was copied from, which a function or a hook refers "
                "to. Let the function use its own module (self, or the argument of the hook), or put it into a method"
            ) from None
        except (RuntimeError, ValueError, AssertionError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{name} fails on two images of {size} × {size} px ({type(error).__name__}: {error}). "
                "Pass an image_size= that it accepts; it has to accept any number of images"
            ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2 or features.shape[1] == 0:
        seen: Any = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"an encoder maps images (n, 3, H, W) to a tensor of features (n, d); {name} returned {seen} "
            "for two images. Wrap it in a module that pools or selects its output"
        )
    if not bool(features.isfinite().all()):
        raise ValueError(f"the features that {name} returns for images in [0, 1] are not finite; check its weights")
    if torch.equal(features[0], features[1]):
        raise ValueError(
            f"{name} returns the same features for two images that differ; check that its output depends on its input, and "
            "is not kept from an earlier call"
        )
    return features


def choose(module: nn.Module, folded: nn.Module, images: Tensor, features: Tensor) -> tuple[nn.Module, torch.memory_format]:
    """What is to compute, the folded module or the module, and in which layout.

    At most two further passes find out. Normally one of the folded module, in the ``channels_last`` layout, agrees; otherwise one
    of the module says whether the folding, the layout or the module is to blame.

    Raises
    ------
    ValueError
        If the features of an image depend on the other images of its batch.
    """
    layout = torch.channels_last
    try:
        error = _difference(folded, images, features, layout)
        if error <= _TOLERANCE:
            return folded, layout
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # layers that the module accesses directly, or views
        layout = torch.contiguous_format
    error = _difference(module, images, features, layout)
    if not error <= _BATCH_TOLERANCE:
        layers = [key for key, one in module.named_modules() if isinstance(one, _BATCH_NORMS) and one.running_mean is None]
        raise ValueError(
            f"the features that {type(module).__name__} returns for an image depend on the other images of the batch, or on "
            f"chance (relative difference {error:.2g})"
            + (f": {', '.join(layers[:5])} normalise by the statistics of the batch. " if layers else ". ")
            + "Features have to be those of one image: use running statistics, and no dropout, in eval mode"
        )
    return module, layout


def _difference(module: nn.Module, images: Tensor, features: Tensor, layout: torch.memory_format) -> float:
    """Relative difference of the features of the second image, if it is alone and in this layout."""
    module.to(memory_format=layout)
    alone = _call(module, images[1:].contiguous(memory_format=layout))
    if not isinstance(alone, Tensor) or alone.shape != features[1:].shape:
        return float("inf")
    return ((alone - features[1:]).norm() / features[1:].norm()).item()


def _call(module: nn.Module, images: Tensor):
    with torch.no_grad():
        return module(images)


def warn_of_head(module: nn.Module, n_features: int) -> None:
    """Warn if the features seem to be the logits of a classifier."""
    linear = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        return
    name, last = linear[-1]
    is_usual = n_features in _N_CLASSES or type(module).__module__.startswith(("torchvision.", "timm.", "transformers."))
    if is_usual and last.out_features == n_features and _HEADS & set(name.split(".")):
        warn(
            f"the {n_features} features of {type(module).__name__} are the output of its layer {name!r}, which seems to be the "
            "head of a classifier. The features before the head usually serve better: replace it by torch.nn.Identity()"
        )


class _OriginalCalledError(Exception):
    """The original module was called instead of its copy."""


@contextmanager
def _never_called(original: nn.Module | None) -> Iterator[None]:
    """Raise if a layer of this module is called."""
    if original is None:
        yield
        return
    layers = set(original.modules())

    def refuse(module: nn.Module, inputs) -> None:
        if module in layers:
            raise _OriginalCalledError

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
