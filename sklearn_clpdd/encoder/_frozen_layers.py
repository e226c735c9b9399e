"""Layers of a frozen network that save only what the gradient with respect to their input needs.

torch saves the input of a convolution for the gradient with respect to its weights, even if they are frozen, and the input of a
rectifier, as a copy if it works in place. Here a convolution saves nothing and a rectifier its output, which halves the memory
and avoids the copy. The results are the same.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ..utils._torch_compat import clamp_backward


def save_less_for_backward(module: nn.Module) -> None:
    """Make the convolutions and rectifiers of a frozen module save less for the gradient, in place.

    Only their class is changed, so that their attributes can still be read.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
            child.__class__ = FrozenConv2d
        elif type(child) is nn.ReLU:
            child.__class__ = FrozenReLU
        elif type(child) in (nn.ReLU6, nn.Hardtanh):
            child.__class__ = FrozenHardtanh


class FrozenConv2d(nn.Conv2d):
    """A convolution without a gradient with respect to its weights."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return frozen_conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class FrozenReLU(nn.ReLU):
    """ReLU that saves its output."""

    def forward(self, input: Tensor) -> Tensor:
        return _clamp(input, 0.0, math.inf, self.inplace)


class FrozenHardtanh(nn.Hardtanh):
    """Clamp between two bounds, such as ReLU6, that saves its output."""

    def forward(self, input: Tensor) -> Tensor:
        return _clamp(input, self.min_val, self.max_val, self.inplace)


def frozen_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> Tensor:
    """`torch.conv2d`, differentiable in ``x`` only, which it does not save."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Conv2d.apply(x, weight, bias, stride, padding, dilation, groups)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, (stride, padding, dilation, groups)
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        weight = ctx.saved_tensors[0].to(dy.dtype)  # autocast may have computed in half precision
        stride, padding, dilation, groups = ctx.settings
        if dy.device.type != "cpu":  # torch has special kernels for depthwise gradients
            return conv2d_input(ctx.shape, weight, dy, *ctx.settings), None, None, None, None, None, None
        # The same as a transposed convolution, which is up to twice as fast on CPUs. The kernel may not have
        # covered the last rows and columns; `output_padding` restores them.
        output_padding = [
            side - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for side, out, s, p, d, k in zip(
                ctx.shape[-2:], dy.shape[-2:], stride, padding, dilation, weight.shape[-2:], strict=True
            )
        ]
        dx = torch.conv_transpose2d(dy, weight, None, stride, padding, output_padding, groups, dilation)
        return dx, None, None, None, None, None, None


def _clamp(x: Tensor, low: float, high: float, inplace: bool) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Clamp.apply(x, low, high, inplace)
    return x.clamp_(low, high) if inplace else x.clamp(low, high)


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        y = x.clamp_(low, high) if inplace else x.clamp(low, high)
        ctx.save_for_backward(y)
        ctx.bounds = low, high
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        (y,) = ctx.saved_tensors
        low, high = ctx.bounds
        return clamp_backward(dy, y, low, high), None, None, None
