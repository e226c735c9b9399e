"""The private parts of torch and timm that are used here, and their public replacements, if any.

``tests/test_compat.py`` checks them; a failure names the version that broke them.

=============================== ==============================================================================
private name                    public replacement
=============================== ==============================================================================
``fuse_conv_bn_weights``        none for weights; ``fuse_conv_bn_eval`` takes whole modules, also undocumented
``aten.hardtanh_backward``      none; torch offers its gradient only as a part of autograd
``native_layer_norm``             none; only ``F.layer_norm``, which chooses itself what to save
``nn.Conv2d._conv_forward``     none; overriding ``forward`` would lose the padding modes
``checkpoint_filter_fn``        none; timm's models translate other layouts of checkpoints in it
``_abort_process_group``        none; ``destroy_process_group`` waits for operations of NCCL that never end
``ProcessGroup._get_backend``   none that says the timeout of a group
``Conv2dSame``, ``LayerNorm``     those of ``timm.layers``, which would import timm
=============================== ==============================================================================
"""

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = [
    "checkpoint_filter",
    "clamp_backward",
    "end_group",
    "fuse_conv_bn_weights",
    "group_timeout",
    "has_fixed_input_size",
    "is_conv2d_same",
    "is_layer_norm",
    "layer_norm_backward",
    "pretrained_config",
]


def group_timeout() -> timedelta | None:
    """Timeout of torch's default process group, or None for that of torch."""
    try:
        return dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):  # a group of NCCL only, for example
        return None


def end_group(group: Any, *, abort: bool) -> None:
    """End a process group; after an error without waiting for operations that are not complete."""
    end = getattr(distributed_c10d, "_abort_process_group", None) if abort else None
    (end or dist.destroy_process_group)(group)


def clamp_backward(dy: Tensor, y: Tensor, low: float, high: float) -> Tensor:
    """Gradient of ``y = x.clamp(low, high)`` with respect to ``x``, from ``y``."""
    return torch.ops.aten.hardtanh_backward(dy, y, low, high)


def layer_norm_backward(dy: Tensor, x: Tensor, shape, mean: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a layer norm with respect to its input ``x``."""
    return torch.ops.aten.native_layer_norm_backward(dy, x, shape, mean, rstd, weight, None, [True, False, False])[0]


def is_layer_norm(module: nn.Module) -> bool:
    """Whether a module is torch's layer norm or timm's, which computes the same."""
    kind = type(module)
    return kind is nn.LayerNorm or (kind.__name__ == "LayerNorm" and kind.__module__ == "timm.layers.norm")


def is_conv2d_same(module: nn.Module) -> bool:
    """Whether a module is timm's convolution with TensorFlow's "same" padding."""
    return type(module).__name__ == "Conv2dSame"


def checkpoint_filter(module: nn.Module) -> Callable | None:
    """timm's function that translates other layouts of checkpoints for a model, if it has one."""
    return getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)


def pretrained_config(module: nn.Module) -> dict[str, Any]:
    """timm's preprocessing configuration of a module; empty for modules of other origin."""
    config: Any = getattr(module, "pretrained_cfg", None)
    if hasattr(config, "to_dict"):  # a user may have set timm's own object
        config = config.to_dict()
    return config if isinstance(config, dict) and len(config.get("input_size") or ()) == 3 else {}


def has_fixed_input_size(architecture: str) -> bool:
    """Whether timm has to be told the image size when it builds a model."""
    import timm

    config = timm.get_pretrained_cfg(architecture)
    return config is not None and bool(config.fixed_input_size)
