"""Looks at a network before it is trusted: one row for each image, from that image alone, by the copy, in which layout."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..utils._warnings import warn
from ._preprocessing import Preprocessing
from .sources._network import name_of

# Largest difference of features that another layout or folded layers may cause, relative to that between two images.
_TOLERANCE = 1e-3
# The same between the features of an image alone and beside another one.
_BATCH_TOLERANCE = 1e-2
# Differences that are rounding, relative to the features: of float32 (at most 4e-6 in 26 of timm's models), and of TF32 on GPUs.
_ROUNDING, _GPU_ROUNDING = 64 * 2**-23, 4 * 2**-11
_BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
# Names of layers that classify, and numbers of classes of the usual sets.
_HEADS = {"fc", "classifier", "classif", "head", "heads", "head_dist", "logits", "last_linear"}
_N_CLASSES = {10, 100, 101, 200, 365, 1000, 1001, 11221, 11821, 21841, 21843}


def verified(
    module: nn.Module, preprocessing: Preprocessing, original: nn.Module | None, fold: Callable[[nn.Module], nn.Module]
) -> tuple[nn.Module, torch.memory_format, int]:
    """What is to compute, the folded module or the module; in which layout; and the number of features.

    Three passes of at most two images find out. The second image alone is encoded by the module; both images and the first one
    alone are encoded by the folded module, in the ``channels_last`` layout. If that fails or differs, a pass of the module with
    both images says whether the folding, the layout or the module is to blame.

    Parameters
    ----------
    module : nn.Module
        Frozen, in eval mode.
    preprocessing : Preprocessing
        Size and normalisation of the images.
    original : nn.Module or None
        What the module was copied from, and must not call.
    fold : callable
        Returns a folded copy of the module, or the module itself.

    Returns
    -------
    module : nn.Module
    layout : torch.memory_format
    n_features : int

    Raises
    ------
    ValueError
        If the module fails, or calls the ``original``; if it returns something other than a row of finite values for each image,
        or the same row for both; or if the features of an image depend on the other images of its batch.
    """
    images = _example_images(preprocessing, module)
    with _never_called(original):
        alone = _rows(module, images[1:], torch.contiguous_format)
        layout, folded = torch.channels_last, fold(module)
        try:
            both = _rows(folded, images, layout)
            if _difference(both[1], alone[0], both) <= _TOLERANCE:
                first = _rows(folded, images[:1], layout)
                _check_rows(module, both, _difference(first[0], both[0], both))
                return folded, layout, alone.shape[1]
        except _FailedError:  # layers that the module accesses directly, or views of activations
            layout = torch.contiguous_format
        both = _rows(module, images, layout)
    _check_rows(module, both, _difference(both[1], alone[0], both))
    return module, layout, alone.shape[1]


def _example_images(preprocessing: Preprocessing, module: nn.Module) -> Tensor:
    """Two normalised images ``(2, 3, size, size)`` that differ, on the device of a module."""
    size = preprocessing.image_size
    noise = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    noise[1] *= torch.linspace(1, 0, size, dtype=torch.float32, device="cpu")
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return ((noise - mean) / std).to(next(module.parameters(), noise))


class _FailedError(ValueError):
    """A module failed, or returned something else than features."""


def _rows(module: nn.Module, images: Tensor, layout: torch.memory_format) -> Tensor:
    """Features of images in a memory layout."""
    name, size, n = name_of(module), images.shape[-1], len(images)
    try:
        with torch.no_grad():
            features = module.to(memory_format=layout)(images.contiguous(memory_format=layout))
    except _OriginalCalledError:
        raise ValueError(
            f"a copy of {name} still computes with the module that it was copied from, which a function or a hook refers "
            "to. Let the function use its own module (self, or the argument of the hook), or put it into a method"
        ) from None
    except Exception as error:  # a user's module can fail in many ways
        raise _FailedError(
            f"{name} fails on {n} image{'s' * (n > 1)} of {size} × {size} px ({type(error).__name__}: {error}). "
            "It has to accept any number of images of this size; pass image_size= if it needs another one"
        ) from error
    if not isinstance(features, Tensor) or features.layout != torch.strided or features.shape[:1] != (n,) or features.ndim != 2:
        seen: Any = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise _FailedError(
            f"an encoder maps images (n, 3, H, W) to a tensor of features (n, d); {name} returned {seen} "
            f"for {n} image{'s' * (n > 1)}. Wrap it in a module that pools or selects its output"
        )
    if not features.is_floating_point() or features.shape[1] == 0:
        raise _FailedError(
            f"{name} returned features of {features.dtype} and shape {tuple(features.shape)}; they have to be floats"
        )
    if not bool(features.isfinite().all()):
        raise _FailedError(f"the features that {name} returns for images in [0, 1] are not finite; check its weights")
    return features.float()


def _check_rows(module: nn.Module, both: Tensor, error: float) -> None:
    """Raise if features are the same for two images, or depend on the other images of a batch."""
    name = name_of(module)
    if torch.equal(both[0], both[1]):
        raise ValueError(
            f"{name} returns the same features for two images that differ; check that its output depends on its input, and "
            "is not kept from an earlier call"
        )
    if not error <= _BATCH_TOLERANCE:
        layers = [key for key, one in module.named_modules() if isinstance(one, _BATCH_NORMS) and _uses_batch(one)]
        raise ValueError(
            f"the features that {name} returns for an image depend on the other images of the batch, or on chance (by "
            f"{error:.2g} of the difference between two images)"
            + (f": {', '.join(layers[:5])} normalise by the statistics of the batch. " if layers else ". ")
            + "Features have to be those of one image: use running statistics, and no dropout, in eval mode"
        )


def _uses_batch(norm: nn.Module) -> bool:
    return norm.training or norm.running_mean is None


def _difference(one: Tensor, other: Tensor, both: Tensor) -> float:
    """Difference between two features of an image, beyond rounding, relative to that between two images."""
    if one.shape != other.shape:
        return float("inf")
    rounding = (_ROUNDING if both.device.type == "cpu" else _GPU_ROUNDING) * both.norm()
    return (((one - other).norm() - rounding).clamp_min(0) / (both[0] - both[1]).norm()).item()


def warn_of_head(module: nn.Module, n_features: int) -> None:
    """Warn if the features seem to be the logits of a classifier."""
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        return
    name, last = layers[-1]
    n_outputs = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    is_usual = n_features in _N_CLASSES or type(module).__module__.startswith(("torchvision.", "timm.", "transformers."))
    if is_usual and n_outputs == n_features and _HEADS & set(name.split(".")):
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

    thread = get_ident()  # another one may be using the user's module

    def refuse(module: nn.Module, inputs) -> None:
        if module in layers and get_ident() == thread:
            raise _OriginalCalledError

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
