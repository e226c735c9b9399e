"""Loss and accuracy of the synthetic samples on held-out real features."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ._adapters import DataAdapter
from ._loop import unaugmented_features
from ._objectives import OuterLoss, inner_weights
from ._real_features import BatchSampler, RealFeatures
from ._state import State

# Balanced draws for the loss, at most.
_MAX_DRAWN = 10_000


class HeldOutScore:
    """Scores the present samples; called without arguments, returns loss and accuracy as a tensor ``(2,)``.

    The loss is computed on one batch, which is drawn once, with the same random numbers in every call. The accuracy is that of
    all held-out samples, with the weights that classes and strata have in a batch.

    Parameters
    ----------
    adapter : DataAdapter
    held_out : RealFeatures
        The held-out samples.
    state : State
        Of the run.
    alpha : float
        Ridge strength of the inner problem.
    loss : callable
        ``generator → OuterLoss``: the loss for unaugmented samples, with random numbers from the generator.
    chunk_size : int
        Samples in one forward pass.
    """

    def __init__(
        self,
        adapter: DataAdapter,
        held_out: RealFeatures,
        state: State,
        *,
        alpha: float,
        loss: Callable[[torch.Generator], OuterLoss],
        chunk_size: int,
    ):
        self._adapter, self._state, self._alpha, self._loss, self._chunk_size = adapter, state, alpha, loss, chunk_size
        device, dtype, n = adapter.device, state.targets.dtype, len(held_out)
        seed = torch.Generator().manual_seed(0)
        self._all, self._classes = BatchSampler(replace(held_out, strata=None), n, device, dtype).sample(seed)
        self._weights = torch.from_numpy(balanced_weights(held_out.codes, held_out.strata))
        self._drawn = self._all, self._classes
        if held_out.strata is not None:  # enough balanced draws that few samples are missed
            n_drawn = min(4 * n, _MAX_DRAWN)
            self._drawn = BatchSampler(held_out, n_drawn, device, dtype).sample(seed)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        Y = self._state.targets
        Z = unaugmented_features(self._state, self._adapter.encode, self._adapter.preprocess, self._chunk_size)
        correct = (self._all @ inner_weights(Z, Y, self._alpha)).argmax(dim=1) == self._classes
        loss = self._loss(torch.Generator().manual_seed(0))(Z, Y, *self._drawn)
        score = torch.stack([loss.cpu().double(), (self._weights * correct.cpu()).sum() / self._weights.sum()])
        return self._state.ranks.tensor_of_first(score)  # what the processes decide by


def balanced_weights(codes: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """Weights of samples with sum 1: all equal or, with strata, equal for the classes and for the strata of a class."""
    if strata is None:
        return np.full(len(codes), 1 / len(codes))
    pairs, index, counts = np.unique(np.stack([codes, strata]), axis=1, return_inverse=True, return_counts=True)
    n_strata = np.bincount(pairs[0])[codes]  # in the class of the sample
    return 1 / (len(np.unique(codes)) * n_strata * counts[index.reshape(-1)])
