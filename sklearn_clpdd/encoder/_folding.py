"""Fold the batch norms and asymmetric paddings of a frozen network into its convolutions."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils._torch_compat import fuse_conv_bn_weights, is_conv2d_same
from ._copying import copy_module
from ._frozen_layers import frozen_conv2d


def fold(module: nn.Module, *, paddings: bool) -> nn.Module:
    """A folded copy of a module in eval mode; the module itself if there is nothing to fold.

    The copy may compute something else, because the order of registration need not be that of execution; that has to be
    verified.

    Parameters
    ----------
    module : nn.Module
    paddings : bool
        Whether to fold paddings too, which avoids copies of the activations; only measured on CPUs.
    """
    try:
        copied = copy_module(module)
        n_folded = fold_batch_norms(copied)
        if paddings:
            n_folded += fold_paddings(copied)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return module  # layers that cannot be copied or folded
    return copied.requires_grad_(False) if n_folded else module


def fold_batch_norms(module: nn.Module) -> int:
    """Fold, in place, every batch norm that directly follows a convolution among the children of one module; return their number.

    Assumes that the order of registration is that of execution. The activation of a batch norm that has
    one (timm's ``BatchNormAct2d``) is kept.
    """
    count = 0
    for parent in list(module.modules()):
        previous = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d) and child.track_running_stats:
                mean, variance = child.get_buffer("running_mean"), child.get_buffer("running_var")
                previous.weight, previous.bias = fuse_conv_bn_weights(
                    previous.weight, previous.bias, mean, variance, child.eps, child.weight, child.bias
                )
                setattr(parent, name, getattr(child, "act", nn.Identity()))
                count += 1
            previous = child
    return count


def fold_paddings(module: nn.Module) -> int:
    """Replace, in place, convolutions with TensorFlow's "same" padding by ones that copy nothing; return their number."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and is_conv2d_same(child) and child.dilation == (1, 1):
                setattr(parent, name, SameConv2d(child))
                count += 1
    return count


class SameConv2d(nn.Module):
    """A convolution with TensorFlow's "same" padding, which puts the extra pixel of an odd total at the end.

    A row and a column of zeros at the start of the kernel make the padding symmetric, so that the convolution can apply it
    itself, without a padded copy of the input. The result is the same.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution
        self.register_buffer("shifted_weight", F.pad(convolution.weight.detach(), (1, 0, 1, 0)))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.convolution
        totals = [
            max(0, (-(-n // stride) - 1) * stride + kernel - n)
            for n, stride, kernel in zip(x.shape[-2:], conv.stride, conv.kernel_size, strict=True)
        ]
        parities = {total % 2 for total in totals}
        if len(parities) > 1:
            return conv(x)  # height and width would need different kernels
        weight = self.get_buffer("shifted_weight") if parities.pop() else conv.weight
        padding = [-(-total // 2) for total in totals]
        return frozen_conv2d(x, weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
