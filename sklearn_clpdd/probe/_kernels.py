"""Kernel matrices."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..utils._arrays import tensor_from_numpy


def variance_gamma(Z: Tensor, weight: Tensor) -> float:
    """``1 / (d · var)`` for the weighted variance of all numbers of ``Z`` ``(n, d)``; 1 if they are all equal."""
    share = (weight / weight.sum()).to(Z)
    variance = (share @ (Z - share @ Z.mean(1)).square().mean(1)).item()
    rounding = (64 * torch.finfo(Z.dtype).eps) ** 2 * (share @ Z.square().mean(1)).item()
    return 1 / (Z.shape[1] * variance) if variance > rounding else 1.0


def rbf(A: Tensor, B: Tensor, *, gamma: float, **_) -> Tensor:
    """``exp(−gamma · ‖a − b‖²)``."""
    center = B.mean(0)  # does not change distances, but keeps the precision of their squares
    A, B = A - center, B - center
    squares = A.square().sum(1)[:, None] + B.square().sum(1)
    return squares.addmm_(A, B.T, alpha=-2).clamp_min_(0).mul_(-gamma).exp_()


def poly(A: Tensor, B: Tensor, *, gamma: float, degree: float, coef0: float) -> Tensor:
    """``(gamma · aᵀb + coef0) ** degree``."""
    return (A @ B.T).mul_(gamma).add_(coef0).pow_(degree)


KERNELS: dict[str, Callable[..., Tensor]] = {"rbf": rbf, "poly": poly}


def kernel_matrix(kernel: str | Callable, A: Tensor, B: Tensor, **parameters) -> Tensor:
    """Kernel of every row of ``A`` ``(n, d)`` with every row of ``B`` ``(m, d)``, ``(n, m)``.

    Raises
    ------
    ValueError
        If a callable returns another shape, or numbers that are not finite.
    """
    if isinstance(kernel, str):
        K = KERNELS[kernel](A, B, **parameters)
        if kernel == "poly" and not K.isfinite().all():
            raise ValueError(f"the polynomial kernel is not finite with {parameters}; use an integer degree, or another gamma")
        return K
    values = np.asarray(kernel(A.cpu().numpy(), B.cpu().numpy()), dtype=str(A.dtype).removeprefix("torch."))
    if values.shape != (len(A), len(B)):
        raise ValueError(
            f"the kernel returned an array of shape {values.shape} for {len(A)} and {len(B)} samples; "
            f"it has to return one of shape {(len(A), len(B))} for two matrices, as SVC's kernels do"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"the kernel returned {np.count_nonzero(~np.isfinite(values))} numbers that are not finite, of {values.size}; it has "
            "to return finite ones, so check its parameters and the scale of the features"
        )
    return tensor_from_numpy(values).to(A.device, copy=True)
