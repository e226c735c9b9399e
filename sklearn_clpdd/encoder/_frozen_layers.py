"""Layers of a frozen network that save only what the gradient with respect to their input needs.

torch saves the input of a convolution for the gradient with respect to its weights, even if they are frozen. It also saves the
input of ReLU6 and Hardtanh, and a copy of it if they work in place. Here a convolution does not save its input, and those two
save their output instead, which halves the memory and avoids the copy. (torch's own ReLU only saves its output.) The results
are the same. Under autocast, layer norms save their float32 input in half precision, as the other layers do.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ..utils._torch_compat import clamp_backward, is_layer_norm, layer_norm_backward


def save_less_for_backward(module: nn.Module) -> None:
    """Make convolutions, layer norms, ReLU6 and Hardtanh of a frozen module save less for the backward pass, in place.

    Only their class is changed, so that their attributes can still be read.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
            child.__class__ = FrozenConv2d
        elif type(child) in (nn.ReLU6, nn.Hardtanh):
            child.__class__ = FrozenHardtanh
        elif is_layer_norm(child) and child.weight is not None:
            child.__class__ = FrozenLayerNorm


class FrozenConv2d(nn.Conv2d):
    """A convolution without a gradient with respect to its weights."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return frozen_conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class FrozenHardtanh(nn.Hardtanh):
    """Clamp between two bounds, such as ReLU6, that saves its output."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and input.requires_grad:
            return _Clamp.apply(input, self.min_val, self.max_val, self.inplace)
        return super().forward(input)


class FrozenLayerNorm(nn.LayerNorm):
    """A layer norm without a gradient with respect to its weights."""

    def forward(self, input: Tensor) -> Tensor:
        half = input.dtype == torch.float32 and torch.is_autocast_enabled(input.device.type)
        if half and torch.is_grad_enabled() and input.requires_grad:
            dtype = torch.get_autocast_dtype(input.device.type)
            return _LayerNorm.apply(input, self.normalized_shape, self.weight, self.bias, self.eps, dtype)
        return super().forward(input)


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
            dx = conv2d_input(ctx.shape, weight, dy, *ctx.settings)
        elif _is_of_patches(ctx.shape, weight, *ctx.settings):
            dx = _gradient_of_patches(dy, weight)
        else:
            # On CPUs the equivalent transposed convolution is up to twice as fast. The kernel may not have covered the last rows
            # and columns; `output_padding` restores them.
            output_padding = [
                side - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
                for side, out, s, p, d, k in zip(
                    ctx.shape[-2:], dy.shape[-2:], stride, padding, dilation, weight.shape[-2:], strict=True
                )
            ]
            dx = torch.conv_transpose2d(dy, weight, None, stride, padding, output_padding, groups, dilation)
        return dx, *[None] * 6


def _is_of_patches(shape, weight: Tensor, stride, padding, dilation, groups: int) -> bool:
    """Whether a convolution divides its input into patches, as the first layer of vision transformers does."""
    kernel = weight.shape[-2:]
    if len(shape) != 4 or tuple(kernel) == (1, 1):
        return False
    whole = all(side % k == 0 for side, k in zip(shape[-2:], kernel, strict=True))
    return whole and tuple(stride) == tuple(kernel) and not any(padding) and groups == 1 and all(d == 1 for d in dilation)


def _gradient_of_patches(dy: Tensor, weight: Tensor) -> Tensor:
    """Gradient ``(n, c, H, W)`` of a convolution of patches: one matrix product (``benchmarks/step.py patches``)."""
    n, features, rows, columns = dy.shape
    channels, height, width = weight.shape[1:]
    patches = dy.permute(0, 2, 3, 1).reshape(-1, features) @ weight.reshape(features, -1)
    patches = patches.view(n, rows, columns, channels, height, width)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, rows * height, columns * width)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, shape, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x.to(dtype), mean, rstd, weight)
        ctx.shape = shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, mean, rstd, weight = ctx.saved_tensors
        return layer_norm_backward(dy, x.to(dy.dtype), ctx.shape, mean, rstd, weight), *[None] * 5


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
