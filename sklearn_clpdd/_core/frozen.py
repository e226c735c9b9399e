"""Layers of a frozen network, which keep what the gradient of their input needs and nothing else.

torch keeps a convolution's input for the gradient of its weights, whether these are frozen or not, and beside it what a rectifier
was given, in a copy where it works in place. Here a convolution keeps nothing, and a rectifier its output: half of the memory,
and a copy less to make. The numbers are the same.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input


def frugal(module: nn.Module) -> None:
    """Have the convolutions and rectifiers of a frozen module keep less, in place.

    Their class is changed, and nothing else: whoever reads their attributes finds them.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
            child.__class__ = FrozenConv2d
        elif type(child) is nn.ReLU:
            child.__class__ = FrozenReLU
        elif type(child) in (nn.ReLU6, nn.Hardtanh):
            child.__class__ = FrozenHardtanh


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weights get no gradient."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return frozen_conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class FrozenReLU(nn.ReLU):
    """A rectifier."""

    def forward(self, input: Tensor) -> Tensor:
        return _clamp(input, 0.0, math.inf, self.inplace)


class FrozenHardtanh(nn.Hardtanh):
    """A rectifier with two bounds, such as ReLU6."""

    def forward(self, input: Tensor) -> Tensor:
        return _clamp(input, self.min_val, self.max_val, self.inplace)


def frozen_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> Tensor:
    """`torch.conv2d`, differentiable in ``x`` only, which it does not keep."""
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
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        if dy.device.type != "cpu":  # for depthwise gradients torch has kernels of its own
            return conv2d_input(ctx.shape, weight, dy, *ctx.settings), None, None, None, None, None, None
        # The same as a transposed convolution, which is up to twice as fast here and asks for no input. There may be rows and
        # columns at the end that no kernel has reached.
        left = [
            side - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for side, out, s, p, d, k in zip(
                ctx.shape[-2:], dy.shape[-2:], stride, padding, dilation, weight.shape[-2:], strict=True
            )
        ]
        dx = torch.conv_transpose2d(dy, weight, None, stride, padding, left, groups, dilation)
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
        if high == math.inf:  # at infinity the gradient is 1
            return torch.ops.aten.threshold_backward(dy, y, low), None, None, None
        return torch.ops.aten.hardtanh_backward(dy, y, low, high), None, None, None
