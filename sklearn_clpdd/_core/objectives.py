"""Outer objectives: how well the probe of the synthetic features does on real features, one number.

Every objective is a callable ``(Z, Y, R, r) → scalar``, differentiable in ``Z``; nothing else about the images enters it.
A new one of `CLPDistiller` is a subclass of `Objective`, which says what real features are multiplied by, and what the mean loss
of these products is, plus an entry in `OBJECTIVES`; the peers' have estimators of their own.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .devices import multiplies_in_float32
from .ridge import in_double, relative_penalty, ridge

# Condition number up to which float32 leaves three digits of a gradient at the worst, and five as a rule.
_WELL_CONDITIONED = 1024
# Entries of a matrix of real against synthetic samples whose graph is kept; more are computed twice, part by part.
_ENTRIES = 2**23


def inner_weights(Z: Tensor, Y: Tensor, alpha: float) -> Tensor:
    """``W`` of the inner problem, ``(d, C)``, for λ relative to the mean squared norm of the features.

    ``tr(K) = mk · λ̃/λ`` bounds the condition number of ``K + λ̃I`` by ``mk/λ + 1``, known without a look at the numbers. Where
    that is too much for float32, or where torch was told to multiply in less than that, the system is solved in float64.
    """
    single = len(Z) / alpha <= _WELL_CONDITIONED and multiplies_in_float32()
    Zs = Z if single else in_double(Z)
    return ridge(Zs, Y.to(Zs), relative_penalty(Zs, alpha)).to(Z)


class Objective:
    """Base class: holds the two strengths that the objectives share.

    Parameters
    ----------
    alpha : float
        λ, the ridge strength relative to the mean squared norm of the synthetic features, > 0.
    temperature : float
        τ, the temperature of the softmax, > 0.
    """

    with_neighbors = False  # whether `WithNeighbors` joins it for whole samples

    def __init__(self, alpha: float, temperature: float):
        self.alpha = alpha
        self.temperature = temperature

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        return self.loss(scores(R, self.columns(Z, Y)), r)

    def probe(self, Z: Tensor, Y: Tensor) -> Tensor:
        """Weights ``W`` of the inner problem, ``(d, C)``."""
        return inner_weights(Z, Y, self.alpha)

    def columns(self, Z: Tensor, Y: Tensor) -> Tensor:
        """What real features are multiplied by, ``(d, C)``: ``W``, scaled."""
        raise NotImplementedError

    def loss(self, scores: Tensor, r: Tensor) -> Tensor:
        """The loss of these products, ``(B, C)``: a mean over their rows."""
        return F.cross_entropy(scores, r)


class CrossEntropy(Objective):
    """Softmax cross-entropy of the probe's scores of real features, in units of what its columns' norms are on average.

    ``L = −mean log softmax(R W / (s τ))[r]`` with ``s² = mean ‖W_c‖²``: the scores by which the probe will classify, where those
    of `CosineCrossEntropy` forget how the norms of the columns differ.
    """

    def columns(self, Z: Tensor, Y: Tensor) -> Tensor:
        W = self.probe(Z, Y)
        norm = W.square().sum(dim=0).mean().sqrt().clamp_min(1e-12)
        return W / (norm * self.temperature)


class ProbeAndNeighbors(CrossEntropy):
    """`CrossEntropy`, which for whole samples is one part of `WithNeighbors`."""

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
    """A quarter of an objective, and three quarters of the cross-entropy of the synthetic samples' soft nearest neighbours.

    ``L = ¼ L_probe − ¾ mean log p_r`` with ``p_c ∝ Σ_{i of class c} exp(−‖R − z_i‖² / 2τ')``, neighbourhood components analysis
    (Goldberger et al., NeurIPS 2004): each sample is to stand for its class by itself, where the probe needs their sum only.
    Real features are multiplied once for both.

    Parameters
    ----------
    objective : Objective
    classes : Tensor of shape (m,), int64
        Class indices of the synthetic samples, whatever their targets are; there is one of each class in ``r``.
    temperature : float
        τ', half of the squared distance over which a weight falls by a factor of e, > 0.
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


class GradientMatching:
    """Cosine distance between what synthetic and real features teach a linear head in its first step (LGM, arXiv 2511.16674).

    The gradient of the mean cross-entropy of a head ``V``, ``b`` is had in closed form, ``(softmax(ZVᵀ + b) − Y)ᵀZ / mk`` and the
    mean of ``softmax(ZVᵀ + b) − Y``, as a function of ``Z``: no gradient is differentiated again. The head is drawn anew at each
    call, as the released code draws it: normal weights of standard deviation `std`, no bias.

    Parameters
    ----------
    random : torch.Generator
        Where the heads come from.
    """

    std = 0.01

    def __init__(self, random: torch.Generator):
        self.random = random

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        V = (self.std * torch.randn(Y.shape[1], Z.shape[1], generator=self.random, device="cpu")).to(Z, non_blocking=True)
        ours, theirs = head_gradient(Z, Y, V), head_gradient(R, F.one_hot(r, Y.shape[1]).to(R), V)
        return 1 - F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)


class FeatureMatching:
    """Squared distance between the mean features of each class, ``Σ_c ‖mean Z_c − mean R_c‖²`` (DM, arXiv 2110.04181).

    Classes without a real feature in the batch have no part in it.
    """

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        Yr = F.one_hot(r, Y.shape[1]).to(R)
        distances = (class_means(Z, Y) - class_means(R, Yr)).square().sum(1)
        return (distances * (Yr.sum(0) > 0)).sum()


class MeanOverEncoders:
    """Mean of an objective over several encoders, whose features stand side by side, over the square root of their number.

    Parameters
    ----------
    objective : callable
        ``(Z, Y, R, r) → scalar``.
    widths : list of int
        Number of features of each encoder.
    """

    def __init__(self, objective: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], widths: list[int]):
        self.objective = objective
        self.widths = widths

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        scale = math.sqrt(len(self.widths))
        parts = zip((scale * Z).split(self.widths, 1), (scale * R).split(self.widths, 1), strict=True)
        return torch.stack([self.objective(own_Z, Y, own_R, r) for own_Z, own_R in parts]).mean()


def class_means(Z: Tensor, Y: Tensor) -> Tensor:
    """Mean features ``(C, d)`` of each class; zero for one of which there is none."""
    return Y.T @ Z / Y.sum(0).clamp(min=1)[:, None]


def head_gradient(Z: Tensor, Y: Tensor, V: Tensor) -> Tensor:
    """Gradient ``(C, d + 1)`` of the mean cross-entropy of ``Z Vᵀ + b`` in ``V`` and, the last column, in ``b``, at ``b = 0``."""
    E = (torch.softmax(F.linear(Z, V), dim=1) - Y) / len(Z)
    return torch.cat([E.T @ Z, E.sum(0)[:, None]], dim=1)


def scores(R: Tensor, W: Tensor) -> Tensor:
    """``R W``, with the memory layout of ``W`` for which both passes are fastest when classes are few."""
    return F.linear(R, W.T.contiguous())


def proximities(R: Tensor, Z: Tensor) -> Tensor:
    """``−‖R − Z‖² / 2``, ``(B, m)``, but for what depends on the row only."""
    return F.linear(R, Z) - Z.square().sum(dim=1) / 2


def neighbor_cross_entropy(proximities: Tensor, classes: Tensor, r: Tensor) -> Tensor:
    """Mean cross-entropy of a soft nearest-neighbour classifier: the log of the share that the own class has of the weights.

    Parameters
    ----------
    proximities : Tensor of shape (B, m)
        Logarithms of the weights of the synthetic samples, but for what is the same in a row.
    classes, r : Tensor of shape (m,) and (B,), int64
        Class indices of the columns and of the rows; each of those in ``r`` is among ``classes``.
    """
    own = proximities.masked_fill(r[:, None] != classes, -torch.inf)
    return (proximities.logsumexp(dim=1) - own.logsumexp(dim=1)).mean()


def anchors(W: Tensor) -> Tensor:
    """Class anchors: the columns of ``W`` scaled to unit length, ``(d, C)``."""
    return F.normalize(W, dim=0)


def spread(values: Tensor) -> float:
    """Standard deviation, over rows and columns, about the mean of each row."""
    return (values - values.mean(dim=1, keepdim=True)).square().mean().sqrt().item()


def spread_of_scores(R: Tensor, r: Tensor, n_classes: int, alpha: float) -> float:
    """How far the scores of the classes lie apart where the class means are the synthetic samples: a scale for τ.

    The spread, over the classes, of the inner products of real samples (cosines, of features of unit norm) with the anchors of
    the normalised class means. It is a property of encoder and data, had before the first step.
    """
    means = F.normalize(class_means(R, F.one_hot(r, n_classes).to(R)), dim=1)
    return spread(scores(R, anchors(inner_weights(means, torch.eye(n_classes).to(R), alpha))))


def spread_of_proximities(R: Tensor, r: Tensor, n_classes: int) -> float:
    """The same of half the squared distances to the means of the classes that there are: a scale for τ'."""
    means = class_means(R, F.one_hot(r, n_classes).to(R))
    return spread(proximities(R, means[torch.bincount(r, minlength=n_classes) > 0]))


OBJECTIVES: dict[str, type[Objective]] = {
    "probe_and_neighbors": ProbeAndNeighbors,
    "cross_entropy": CrossEntropy,
    "cosine_cross_entropy": CosineCrossEntropy,
    "mse": MeanSquaredError,
}
