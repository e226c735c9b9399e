"""Outer objectives: how well the probe of the synthetic features predicts the classes of real features.

Every objective is a callable ``(Z, Y, R, r) → scalar``, differentiable in ``Z``. To add one to `CLPDistiller`, write a subclass
of `Objective` and an entry in `OBJECTIVES`. The subclass defines the matrix that real features are multiplied by, and the mean
loss of the products.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..utils._ridge import relative_penalty, ridge, to_float64
from ..utils._torch_modes import has_full_float32_matmul

OuterLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Largest condition number for float32: gradients then have at least three correct digits, and usually five.
_WELL_CONDITIONED = 1024
# Entries of a matrix of real × synthetic samples whose graph is kept; larger ones are computed twice, part by part.
_ENTRIES = 2**23


def inner_weights(Z: Tensor, Y: Tensor, alpha: float) -> Tensor:
    """``W`` of the inner problem, ``(d, C)``, for λ relative to the mean squared norm of the features.

    Because ``tr(K) = mk · λ̃/λ``, the condition number of ``K + λ̃I`` is at most ``mk/λ + 1``. If that is too much for float32, or
    if torch multiplies in a lower precision, the system is solved in float64.
    """
    single = len(Z) / alpha <= _WELL_CONDITIONED and has_full_float32_matmul()
    Zs = Z if single else to_float64(Z)
    return ridge(Zs, Y.to(Zs), relative_penalty(Zs, alpha)).to(Z)


class Objective:
    """Base class of the objectives of `CLPDistiller`.

    Parameters
    ----------
    alpha : float
        λ, the ridge strength relative to the mean squared norm of the synthetic features, > 0.
    temperature : float
        τ, the temperature of the softmax, > 0.
    """

    with_neighbors = False  # whether unaugmented samples have the loss `WithNeighbors`

    def __init__(self, alpha: float, temperature: float):
        self.alpha = alpha
        self.temperature = temperature

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        return self.loss(scores(R, self.columns(Z, Y)), r)

    def probe(self, Z: Tensor, Y: Tensor) -> Tensor:
        """Weights ``W`` of the inner problem, ``(d, C)``."""
        return inner_weights(Z, Y, self.alpha)

    def columns(self, Z: Tensor, Y: Tensor) -> Tensor:
        """The matrix that real features are multiplied by, ``(d, C)``: a scaled ``W``."""
        raise NotImplementedError

    def loss(self, scores: Tensor, r: Tensor) -> Tensor:
        """Mean loss over the rows of these products, ``(B, C)``."""
        return F.cross_entropy(scores, r)


class CrossEntropy(Objective):
    """Softmax cross-entropy on real features, with the probe's weights divided by the root mean square norm of their columns.

    ``L = −mean log softmax(R W / (s τ))[r]`` with ``s² = mean ‖W_c‖²``. Unlike `CosineCrossEntropy`, it keeps the differences
    between the norms of the columns, on which the predictions of the probe depend.
    """

    def columns(self, Z: Tensor, Y: Tensor) -> Tensor:
        W = self.probe(Z, Y)
        norm = W.square().sum(dim=0).mean().sqrt().clamp_min(1e-12)
        return W / (norm * self.temperature)


class ProbeAndNeighbors(CrossEntropy):
    """`CrossEntropy` for random views, and `WithNeighbors` for unaugmented samples."""

    with_neighbors = True


class CosineCrossEntropy(Objective):
    """Softmax cross-entropy of real features over the class anchors (CLP-DD, arXiv 2605.07194).

    The anchors are the ℓ2-normalised columns of ``W``: ``L = −mean log softmax(R Ŵ / τ)[r]``.
    """

    def columns(self, Z: Tensor, Y: Tensor) -> Tensor:
        return anchors(self.probe(Z, Y)) / self.temperature


class MeanSquaredError(Objective):
    """Squared error of the probe's outputs, ``‖R W − onehot(r)‖² / B``: the paper's ablation, KIP's loss (arXiv 2011.00050)."""

    def columns(self, Z: Tensor, Y: Tensor) -> Tensor:
        return self.probe(Z, Y)

    def loss(self, scores: Tensor, r: Tensor) -> Tensor:
        return (scores - F.one_hot(r, scores.shape[1]).to(scores)).square().sum(dim=1).mean()


class WithNeighbors:
    """A quarter of an objective, and three quarters of the cross-entropy of a soft nearest-neighbour classifier.

    ``L = ¼ L_probe − ¾ mean log p_r`` with ``p_c ∝ Σ_{i of class c} exp(−‖R − z_i‖² / 2τ')``, as in neighbourhood components
    analysis (Goldberger et al., NeurIPS 2004). It makes each synthetic sample typical of its class, whereas the probe only
    depends on sums of samples. One multiplication of the real features serves both losses.

    Parameters
    ----------
    objective : Objective
    classes : Tensor of shape (m,), int64
        Class indices of the synthetic samples, even if their targets are learned; contains every class of ``r``.
    temperature : float
        τ', > 0: half of the squared distance over which a weight falls by a factor of e.
    """

    share = 0.75

    def __init__(self, objective: Objective, classes: Tensor, temperature: float):
        self.objective = objective
        self.classes = classes
        self.temperature = temperature

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        factors = torch.cat([self.objective.columns(Z, Y).T, Z / self.temperature])
        offsets = Z.square().sum(dim=1) / (2 * self.temperature)

        def loss(factors: Tensor, offsets: Tensor, R: Tensor, r: Tensor) -> Tensor:
            of_probe, of_neighbors = F.linear(R, factors).split([Y.shape[1], len(Z)], dim=1)
            neighbors = neighbor_cross_entropy(of_neighbors - offsets, self.classes, r)
            return (1 - self.share) * self.objective.loss(of_probe, r) + self.share * neighbors

        rows = max(1, _ENTRIES // len(factors))
        if len(R) <= rows:
            return loss(factors, offsets, R, r)
        parts = zip(R.split(rows), r.split(rows), strict=True)
        sums = [
            len(own_r) * checkpoint(loss, factors, offsets, own_R, own_r, use_reentrant=False, preserve_rng_state=False)
            for own_R, own_r in parts
        ]
        return torch.stack(sums).sum() / len(R)


def split_by_encoder(Z: Tensor, widths: list[int]) -> tuple[Tensor, ...]:
    """Features of each encoder, from the joint features that `MeanOverEncoders` describes."""
    return (math.sqrt(len(widths)) * Z).split(widths, dim=1)


class MeanOverEncoders:
    """Mean of an objective over several encoders, whose features are concatenated and divided by the square root of their number.

    Parameters
    ----------
    objective : callable
        ``(Z, Y, R, r) → scalar``.
    widths : list of int
        Number of features of each encoder.
    """

    def __init__(self, objective: OuterLoss, widths: list[int]):
        self.objective = objective
        self.widths = widths

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        parts = zip(split_by_encoder(Z, self.widths), split_by_encoder(R, self.widths), strict=True)
        return torch.stack([self.objective(encoder_Z, Y, encoder_R, r) for encoder_Z, encoder_R in parts]).mean()


def class_means(Z: Tensor, Y: Tensor) -> Tensor:
    """Mean features ``(C, d)`` of each class; zero for a class without features."""
    return Y.T @ Z / Y.sum(0).clamp(min=1)[:, None]


def scores(R: Tensor, W: Tensor) -> Tensor:
    """``R W``, in the memory layout of ``W`` that is fastest for few classes."""
    return F.linear(R, W.T.contiguous())


def neighbor_logits(R: Tensor, Z: Tensor) -> Tensor:
    """``−‖R − Z‖² / 2``, ``(B, m)``, up to a constant in each row."""
    return F.linear(R, Z) - Z.square().sum(dim=1) / 2


def neighbor_cross_entropy(logits: Tensor, classes: Tensor, r: Tensor) -> Tensor:
    """Mean cross-entropy of a soft nearest-neighbour classifier, whose class probabilities are sums of weights.

    Parameters
    ----------
    logits : Tensor of shape (B, m)
        Logarithms of the weights of the synthetic samples, up to a constant in each row.
    classes, r : Tensor of shape (m,) and (B,), int64
        Class indices of the columns and of the rows; ``classes`` contains every class of ``r``.
    """
    own = logits.masked_fill(r[:, None] != classes, -torch.inf)
    return (logits.logsumexp(dim=1) - own.logsumexp(dim=1)).mean()


def anchors(W: Tensor) -> Tensor:
    """Class anchors: the columns of ``W`` scaled to unit length, ``(d, C)``."""
    return F.normalize(W, dim=0)


def spread(values: Tensor) -> float:
    """Standard deviation of all entries about the mean of their row."""
    return (values - values.mean(dim=1, keepdim=True)).square().mean().sqrt().item()


def spread_of_scores(R: Tensor, r: Tensor, n_classes: int, alpha: float) -> float:
    """Spread of the scores of the classes if the class means were the synthetic samples: a scale for τ.

    The scores are the inner products of real features with the anchors of the normalised class means (cosines, for features of
    unit norm). The spread depends on encoder and data only, and is known before the first step.
    """
    means = F.normalize(class_means(R, F.one_hot(r, n_classes).to(R)), dim=1)
    return spread(scores(R, anchors(inner_weights(means, torch.eye(n_classes).to(R), alpha))))


def spread_of_neighbor_logits(R: Tensor, r: Tensor, n_classes: int) -> float:
    """Spread of half the squared distances to the means of the classes that occur: a scale for τ'."""
    means = class_means(R, F.one_hot(r, n_classes).to(R))
    return spread(neighbor_logits(R, means[torch.bincount(r, minlength=n_classes) > 0]))


OBJECTIVES: dict[str, type[Objective]] = {
    "probe_and_neighbors": ProbeAndNeighbors,
    "cross_entropy": CrossEntropy,
    "cosine_cross_entropy": CosineCrossEntropy,
    "mse": MeanSquaredError,
}
