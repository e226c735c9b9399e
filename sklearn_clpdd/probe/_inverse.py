"""One factorisation of a matrix for many penalties."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

Candidates = Sequence[int]


class RidgedInverse:
    """``(A + penalty·I)⁻¹`` for several penalties: by Cholesky for one, by eigenvalues for more.

    For penalty number ``j`` it is ``basis · diag(gains[:, j]) · basisᵀ``. The gains, and every solution, are NaN for a penalty
    with which the matrix is singular to working precision.

    Parameters
    ----------
    A : Tensor of shape (k, k)
        Positive semi-definite.
    penalties : sequence of P floats

    Raises
    ------
    ValueError
        If ``A`` has negative eigenvalues beyond rounding errors.
    """

    gains: Tensor  # (k, P)
    smallest: float  # lower bound of the smallest eigenvalue of A + penalty·I over the penalties

    def __init__(self, A: Tensor, penalties: Sequence[float]):
        # Eigenvalues have errors of about k·eps times the largest one, which have to be at most a hundredth of the smallest one.
        error = 100 * len(A) * torch.finfo(A.dtype).eps
        p = torch.tensor(penalties, dtype=A.dtype, device=A.device)
        self._L: Tensor | None = None
        if len(penalties) == 1:
            ridged = A.clone()
            ridged.diagonal().add_(p)
            self._L, info = torch.linalg.cholesky_ex(ridged)
            # Each pivot is compared with its own column, because Cholesky is accurate for columns of different scales.
            regular = (info == 0) & (self._L.diagonal().square() > error * ridged.diagonal()).all()
            gains, self.smallest = torch.ones_like(A[:, :1]), min(penalties)
        else:
            eigenvalues, self.basis = torch.linalg.eigh(A)
            lowest, highest = eigenvalues[0].item(), eigenvalues[-1].item()
            if lowest < -error * max(highest, -lowest):
                raise ValueError(
                    f"the kernel is not positive semi-definite: its matrix has eigenvalues from {lowest:.3g} to {highest:.3g}; "
                    "use a kernel that is an inner product"
                )
            self.smallest = max(lowest, 0.0) + min(penalties)
            regular = max(lowest, 0.0) + p > error * highest
            gains = 1 / (eigenvalues.clamp_min_(0)[:, None] + p)
        self.gains = torch.where(regular, gains, torch.nan)

    @cached_property
    def basis(self) -> Tensor:  # (k, k); set in __init__ for several penalties
        assert self._L is not None
        return torch.linalg.solve_triangular(self._L, torch.eye(len(self._L)).to(self._L), upper=False).T

    def solve(self, B: Tensor, candidates: Candidates) -> Tensor:
        """The inverses times ``B`` ``(k, C)`` for some penalties, ``(k, P', C)``."""
        if self._L is not None:
            return (self.gains[:1] * torch.cholesky_solve(B, self._L))[:, None]
        targets = self.gains[:, candidates, None] * (self.basis.T @ B)[:, None]
        return (self.basis @ targets.flatten(1)).view(len(B), len(candidates), -1)
