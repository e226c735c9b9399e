"""Ridge regression in closed form: pure, differentiable functions of tensors.

``W = argmin ‖ZW − Y‖² + penalty · ‖W‖²`` has two equal forms, and the one with the smaller linear system is solved:

* feature space (primal), ``(ZᵀZ + penalty·I)⁻¹ ZᵀY``, a ``(d, d)`` system;
* sample space (dual), ``Zᵀ(ZZᵀ + penalty·I)⁻¹ Y``, an ``(n, n)`` system.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def solve_ridged(A: Tensor, B: Tensor, penalty: Tensor | float) -> Tensor:
    """Solve ``(A + penalty·I) X = B`` for a symmetric positive semi-definite ``A`` by Cholesky."""
    return _Solve.apply(A + penalty * torch.eye(len(A), dtype=A.dtype, device=A.device), B)


class _Solve(torch.autograd.Function):
    """``X = K⁻¹ B``. The gradient, ``dB = K⁻¹ dX`` and ``dK = −dB Xᵀ``, reuses the factors instead of differentiating them."""

    @staticmethod
    def forward(ctx, K: Tensor, B: Tensor) -> Tensor:
        # `cholesky` would synchronise with the device to learn whether it failed. Here a failure shows as non-finite weights,
        # which every caller checks when it reads the result.
        L, info = torch.linalg.cholesky_ex(K)
        X = torch.cholesky_solve(B, L)
        X = torch.where(info == 0, X, torch.full_like(X, torch.nan))
        ctx.save_for_backward(L, X)
        return X

    @staticmethod
    @once_differentiable
    def backward(ctx, dX: Tensor) -> tuple[Tensor | None, Tensor | None]:
        L, X = ctx.saved_tensors
        dB = torch.cholesky_solve(dX, L)
        return -dB @ X.mT if ctx.needs_input_grad[0] else None, dB if ctx.needs_input_grad[1] else None


def ridge_primal(Z: Tensor, Y: Tensor, penalty: Tensor | float) -> Tensor:
    """Weights from the ``(d, d)`` system."""
    return solve_ridged(Z.T @ Z, Z.T @ Y, penalty)


def ridge_dual(Z: Tensor, Y: Tensor, penalty: Tensor | float) -> Tensor:
    """Weights from the ``(n, n)`` system."""
    return Z.T @ solve_ridged(Z @ Z.T, Y, penalty)


def ridge(Z: Tensor, Y: Tensor, penalty: Tensor | float) -> Tensor:
    """Weights ``(d, C)`` of the ridge regression of ``Y`` on ``Z``; NaN where the factorisation fails.

    Parameters
    ----------
    Z : Tensor of shape (n, d)
    Y : Tensor of shape (n, C), same dtype
    penalty : Tensor of shape () or float
        Absolute ridge strength, ≥ 0.

    References
    ----------
    CLP-DD, arXiv 2605.07194 (the inner problem).
    """
    return (ridge_dual if Z.shape[0] < Z.shape[1] else ridge_primal)(Z, Y, penalty)


def relative_penalty(Z: Tensor, alpha: float) -> Tensor:
    """``λ̃ = λ · tr(ZZᵀ)/n`` for λ = ``alpha``, which thus means the same for features of every scale.

    The result is positive even if all features are zero. They can be at the start of the pyramid, where images are constant and
    may activate no unit of the network.
    """
    penalty = alpha * Z.square().sum() / len(Z)
    return torch.where(penalty > 0, penalty, torch.finfo(torch.float64).eps)


def to_float64(Z: Tensor) -> Tensor:
    """``Z`` in float64; unchanged on a device without float64 (Apple's MPS)."""
    return Z if Z.device.type == "mps" else Z.double()
