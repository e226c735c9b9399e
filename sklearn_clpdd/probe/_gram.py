"""Gram matrices, computed in the upper triangle only."""

from torch import Tensor

# Number of blocks of a Gram matrix, and the least number of columns of a block.
_BLOCKS = 8
_MIN_BLOCK = 96


def add_gram_(out: Tensor, X: Tensor) -> None:
    """Add ``XᵀX`` to ``out`` ``(d, d)``, only in the blocks on and above the diagonal: little more than half the work."""
    block = max(_MIN_BLOCK, -(-X.shape[1] // _BLOCKS))
    for start in range(0, X.shape[1], block):
        out[start : start + block, start:].addmm_(X[:, start : start + block].T, X[:, start:])


def symmetric(upper: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle is given."""
    return upper.triu() + upper.triu(1).T
