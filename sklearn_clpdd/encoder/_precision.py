"""The precision in which a frozen network computes: float32, or the fastest one whose features or gradients agree with float32's.

Both are measured, once for each network and device in a process, on crops of the two photos that come with scikit-learn. The
network stays in float32; for half precision there is a copy of it whose convolutions and linear layers have half the weights,
so that autocast need not convert them in each pass.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import RLock

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..utils._device import has_fast_bfloat16
from ..utils._torch_modes import float32_products, standard_torch_modes
from ._copying import copy_module
from ._folding import SameConv2d
from ._frozen_layers import FrozenConv2d
from ._preprocessing import Preprocessing

# From the most exact to the least exact; the type of the products, where it is not float32.
PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "tf32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Least cosine with float32, of the features and of the input gradient of each image. Gradients of networks with rectifiers agree
# less than those of transformers, because derivatives near zero flip, and images learn from them as well step by step:
# at 0.7 in the case of EfficientNet-Lite0 (``benchmarks/precision.py``).
FEATURES_AGREE, GRADIENTS_AGREE = 0.9995, 0.6
# A precision replaces a more exact one if it takes at most this fraction of its time.
_WORTHWHILE = 0.9
# Networks with fewer parameters stay in float32 without a look, for the same results everywhere. (A guess, not a measurement.)
_MIN_PARAMETERS = 1_000_000
# Images whose features are compared; images in a timed pass on CPUs and on GPUs; timed passes.
_N_LOOK, _N_TIMED, _N_TIMED_GPU, _ROUNDS = 6, 2, 32, 2
_CASTABLE = nn.Linear, nn.Conv2d, FrozenConv2d, SameConv2d

Run = Callable[[Tensor, str], Tensor]


def check_precision(precision: str, device: torch.device) -> None:
    """Raise if a device cannot compute in a precision.

    Raises
    ------
    ValueError
        If that is so.
    """
    needed = {"tf32": ("cuda",), "float16": ("cuda", "mps")}.get(precision, (device.type,))
    if device.type not in needed:
        raise ValueError(
            f"dtype={precision!r} is a precision of GPUs, and the network is on {str(device)!r}; choose 'auto', 'float32' or "
            "'bfloat16', or another device"
        )


def candidates(device: torch.device) -> list[str]:
    """Precisions that a device computes in by itself and faster than in float32, from the most exact to the least exact."""
    if device.type == "cuda":
        generation = torch.cuda.get_device_capability(device)[0]
        return [*(["tf32", "bfloat16"] if generation >= 8 else []), *(["float16"] if generation >= 7 else [])]
    if device.type == "cpu" and has_fast_bfloat16(torch.get_num_threads()):
        return ["bfloat16"]
    return []


class Precisions:
    """A frozen network in any precision, and the precisions that serve best.

    Parameters
    ----------
    module : nn.Module
        Frozen, in float32.
    device : torch.device
    """

    def __init__(self, module: nn.Module, device: torch.device):
        self.module = module
        self.device = device
        self._casts: dict[str, nn.Module] = {"float32": module, "tf32": module}
        self._chosen: dict[bool, str] = {}
        self._lock = RLock()

    def run(self, images: Tensor, precision: str) -> Tensor:
        """Output of the network in a precision, as float32, for normalised float32 images.

        Where ``"tf32"`` and ``"float32"`` differ, the caller has to be in `float32_products`, for the backward pass too.
        """
        dtype = PRECISIONS[precision]
        if dtype is None:
            with torch.autocast(self.device.type, enabled=False):
                return self.module(images)
        module = self._cast(precision, dtype)
        if dtype != torch.float16 or not (torch.is_grad_enabled() and images.requires_grad):
            with torch.autocast(self.device.type, dtype):
                return _as_float(module(images))
        scale = _GradientScale()
        with torch.autocast(self.device.type, dtype):
            output = module(_WithGradient.apply(images, scale.undo))
        return _WithGradient.apply(_as_float(output), scale.scale)

    def weights(self, precision: str) -> set[int]:
        """Addresses of the weights and buffers that the network has in a precision."""
        dtype = PRECISIONS[precision]
        module = self.module if dtype is None else self._cast(precision, dtype)
        return {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}

    def _cast(self, precision: str, dtype: torch.dtype) -> nn.Module:
        with self._lock:
            if precision not in self._casts:
                with torch.inference_mode(False):  # tensors that are created in it never have gradients
                    self._casts[precision] = with_weights_of(self.module, dtype)
            return self._casts[precision]

    def fastest(self, run: Run, preprocessing: Preprocessing, *, gradient: bool) -> str:
        """The most exact precision that no other one beats noticeably, among those that agree with float32.

        Parameters
        ----------
        run : callable
            ``(images in [0, 1], precision) → features``.
        preprocessing : Preprocessing
            How photos become these images.
        gradient : bool
            Whether the gradient with respect to the images is meant, or the features.
        """
        with self._lock:
            if gradient not in self._chosen:
                with standard_torch_modes(self.device):
                    self._chosen[gradient] = self._measured(run, preprocessing, gradient)
            return self._chosen[gradient]

    def _measured(self, run: Run, preprocessing: Preprocessing, gradient: bool) -> str:
        if sum(parameter.numel() for parameter in self.module.parameters()) < _MIN_PARAMETERS:
            return "float32"
        others = candidates(self.device)
        if not others:
            return "float32"
        images = photo_crops(preprocessing, _N_LOOK).to(self.device)
        try:
            seen = partial(_gradients, directions=_directions(run, images)) if gradient else _features
            wanted = seen(run, images, "float32")
        except Exception:  # features without a gradient, or too little memory, which the user is told elsewhere
            return "float32"
        agreeing = [
            one for one in others if _agrees(seen, run, images, one, wanted, GRADIENTS_AGREE if gradient else FEATURES_AGREE)
        ]
        timed = images.repeat(_N_TIMED_GPU // _N_LOOK + 1, 1, 1, 1)[: _N_TIMED if self.device.type == "cpu" else _N_TIMED_GPU]
        seconds = {one: float("inf") for one in ("float32", *agreeing)}
        for _ in range(_ROUNDS if agreeing else 0):
            for one in seconds:
                seconds[one] = min(seconds[one], self._seconds(_gradients if gradient else _features, run, timed, one))
        best = "float32"
        for one in agreeing:
            if seconds[one] < _WORTHWHILE * seconds[best]:
                best = one
        for one in set(self._casts) - {"float32", "tf32", *self._chosen.values(), best}:
            del self._casts[one]  # copies that nobody will use
        return best

    def _seconds(self, seen: Callable, run: Run, images: Tensor, precision: str) -> float:
        begin = time.perf_counter()
        try:
            seen(run, images, precision)
        except torch.cuda.OutOfMemoryError:
            return float("inf")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin


def _features(run: Run, images: Tensor, precision: str) -> Tensor:
    with torch.inference_mode(), products_of(precision, images.device):
        return run(images, precision).float()


def _directions(run: Run, images: Tensor) -> Tensor:
    """From the features of each image to those of the next one: what losses of distillation are made of."""
    Z = F.normalize(_features(run, images, "float32"), dim=1)
    return Z.roll(1, 0) - Z


def _gradients(run: Run, images: Tensor, precision: str, directions: Tensor | None = None) -> Tensor:
    """Gradients ``(n, ·)`` of the normalised features along directions, by default their sum."""
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad(), products_of(precision, images.device):
        Z = F.normalize(run(images, precision).float(), dim=1)
        (gradient,) = torch.autograd.grad(Z, images, torch.ones_like(Z) if directions is None else directions.clone())
    return gradient.flatten(1)


def _agrees(seen: Callable, run: Run, images: Tensor, precision: str, wanted: Tensor, least: float) -> bool:
    """Whether what is seen in a precision has at least this cosine with what is wanted, for each image."""
    try:
        found = seen(run, images, precision)
    except Exception:  # a module that fails in this precision, or too little memory
        return False
    return bool((cosines(found, wanted) >= least).all())  # False for NaN


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of each pair of rows, however small they are; NaN for zeros."""
    one, other = (rows.double() / torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True) for rows in (one, other))
    return (one * other).sum(dim=1)


@contextmanager
def products_of(precision: str, device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices in TF32 if that is the precision, and not otherwise."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(float32_products(tf32=precision == "tf32"))
        yield


def photo_crops(preprocessing: Preprocessing, n: int) -> Tensor:
    """``n`` different squares of scikit-learn's two photos, as the network gets images: ``(n, 3, s, s)`` in [0, 1]."""
    photos = load_sample_images().images
    rng = np.random.RandomState(0)
    crops = []
    for i in range(n):
        photo = photos[i % len(photos)]
        side = rng.randint(200, min(photo.shape[:2]) + 1)
        top, left = (rng.randint(length - side + 1) for length in photo.shape[:2])
        pixels = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)
        crops.append(preprocessing(pixels[None].to(torch.float32) / 255))
    return torch.cat(crops)


def with_weights_of(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose convolutions and linear layers have weights of a half-precision type, as autocast would convert them."""
    copied = copy_module(module)
    for layer in copied.modules():
        if type(layer) in _CASTABLE:
            for own in layer.modules():
                for name, weight in own.named_parameters(recurse=False):
                    setattr(own, name, nn.Parameter(weight.to(dtype), requires_grad=False))
                for name, buffer in own.named_buffers(recurse=False):
                    setattr(own, name, buffer.to(dtype))
    return copied


def _as_float(output: Tensor) -> Tensor:
    return output.float() if isinstance(output, Tensor) else output


class _GradientScale:
    """Scales the gradient of each image inside a network to a largest entry of about 1: float16 has no small numbers."""

    factor: Tensor

    def scale(self, gradient: Tensor) -> Tensor:
        """The gradient ``(n, d)`` of features, scaled."""
        largest = gradient.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        self.factor = torch.exp2(-torch.floor(torch.log2(largest)))  # powers of two, so that nothing is rounded
        return gradient * self.factor

    def undo(self, gradient: Tensor) -> Tensor:
        """The gradient ``(n, 3, H, W)`` of the images, scaled back."""
        return gradient / self.factor[..., None, None]


class _WithGradient(torch.autograd.Function):
    """A tensor as it is, whose gradient is changed by a function."""

    @staticmethod
    def forward(ctx, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.change(gradient), None
