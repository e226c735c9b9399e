"""Peers of :class:`CLPDistiller` with its interface: real images chosen in three ways, synthetic ones for other objectives."""

import re
from abc import abstractmethod
from collections.abc import Callable
from inspect import cleandoc, signature
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from ._base import BaseDistiller, Result, Task
from ._core.augmentations import LGM_DISTILLATION_VIEWS
from ._core.objectives import FeatureMatching, GradientMatching
from ._core.parametrizations import LGMPyramid
from ._distiller import CLPDistiller
from ._iterative import IterativeDistiller
from ._reals import central, nearest

#: Settings of LGM's released code (arXiv 2511.16674, commit 1d84ffd) that are not defaults:
#: ``LGMDistiller(encoder, **LGM_PUBLISHED)``, with ``FrozenEncoder(normalize=False)`` for `encoder`, and the number of views in a
#: step for `real_batch_size`. What remains different: there, real images are seen in random views too (a random crop of 224 of
#: 256 px, then those of the synthetic images), Adam begins anew when a level of the pyramid joins, all encoders get ImageNet's
#: mean and standard deviation, and features are computed under mixed precision.
LGM_PUBLISHED = {
    "learning_rate": 2e-3,
    "warm_up": 0,
    "decay": 0.0,
    "max_iter": 5000,
    "n_views": 10,
    "whole_weight": 0.0,
    "sampling": "uniform",
    "init": "noise",
    "parametrization": LGMPyramid,
    "augmentation": LGM_DISTILLATION_VIEWS,
    "progressive": False,
    "validation_fraction": None,
}


def _documented(cls: type) -> type:
    """Fill the sections of a class's docstring with what `CLPDistiller` says of the parameters and attributes that it shares.

    Parameters stand in the order of the signature. What the class documents itself stays; so does the order of attributes.
    """
    if cls.__doc__ is None or CLPDistiller.__doc__ is None:  # python -OO
        return cls
    sections, shared = (cleandoc(doc).split("\n\n") for doc in (cls.__doc__, CLPDistiller.__doc__))
    iterative = issubclass(cls, IterativeDistiller)
    for i, section in enumerate(sections):
        title = section.partition("\n")[0]
        if title not in ("Parameters", "Attributes"):
            continue
        entries = _entries(next(s for s in shared if s.startswith(title + "\n"))) | (own := _entries(section))
        names = list(signature(cls).parameters)
        if title == "Attributes":
            fitted = ["X_synthetic_", "y_synthetic_", "targets_", "probe_", "anchors_", "encoder_", "classes_"]
            fitted += ["class_count_", "data_digest_", "alpha_"]
            run = ["history_", "n_iter_", "best_iter_", "val_loss_", "val_accuracy_"] if iterative else []
            run += ["n_views_", "encoder_batch_size_"] if iterative else []
            names = [*(name for name in own if name not in fitted), *fitted, *run, "n_features_in_"]
        sections[i] = "\n".join([title, "-" * len(title), *(entries[name] for name in names)])
    cls.__doc__ = "\n\n".join(sections)
    return cls


def _entries(section: str) -> dict[str, str]:
    """Entries of a numpydoc section by their names; one that stands for several names is under each."""
    parts = re.split(r"\n(?=\S)", section)[2:]
    return {name: part for part in parts for name in re.split(r",\s*", part.partition(" :")[0])}


class RealSubset(BaseDistiller):
    """Choose real samples; a subclass says which."""

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        images_per_class=1,
        n_synthetic=None,
        image_size=None,
        alpha=1.0,
        memory=None,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.encoder = encoder
        self.images_per_class = images_per_class
        self.n_synthetic = n_synthetic
        self.image_size = image_size
        self.alpha = alpha
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _check(self, classes, counts, budget):
        self._check_enough(classes, counts, budget, type(self).__name__)

    def _find(self, task):
        # The order is that of no importance to the choice; the probe is calibrated on rows that are evenly spread over it.
        order = np.random.RandomState(0).permutation(len(task.codes))
        place = np.argsort(order)
        attributes = self._prepare(task)
        real = self._encode(task, order)
        chosen = self._choose(task, lambda rows: real.R[place[rows]], attributes)
        y, indices = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen]), np.concatenate(chosen)
        return Result(task.space.read(indices), y, real, attributes=attributes | {"indices_": indices})

    def _prepare(self, task: Task) -> dict[str, Any]:
        """Fitted attributes that come before the features."""
        return {}

    @abstractmethod
    def _choose(self, task: Task, features: Callable[[np.ndarray], np.ndarray], attributes: dict[str, Any]) -> list[np.ndarray]:
        """Positions of the samples chosen in each class; ``features`` gives those of some positions."""


@_documented
class RandomSubset(RealSubset):
    """Random real images of each class.

    Parameters
    ----------
    images_per_class : int or dict, default=1
        Real images of each class; a dict has a number for each label.
    n_synthetic : int, default=None
        Real images in all, instead of `images_per_class`: at least one of each class, and else as equal as can be; what is left
        over goes to the largest classes.
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
    random_state : int, RandomState instance or None, default=None
        Seed of the choice.

    Attributes
    ----------
    indices_ : ndarray of shape (n_synthetic,), int64
        Positions in ``X`` of the samples chosen, in the order of `X_synthetic_`.
    alpha_ : float
        The ridge strength used.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        In `fit`, before any long work: parameters, images, labels or an encoder that cannot be used; too few samples of a class.

    See Also
    --------
    ClassCentroids : The most typical ones.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import RandomSubset
    >>> X, y = load_iris(return_X_y=True)
    >>> subset = RandomSubset(encoder=None, random_state=0).fit(X, y)
    >>> X[subset.indices_].shape == subset.transform().shape
    True
    """

    def _choose(self, task, features, attributes):
        rng = check_random_state(self.random_state)
        return [rng.choice(members, n, replace=False) for members, n in zip(task.members, task.budget, strict=True)]


@_documented
class ClassCentroids(RealSubset):
    """The real image of each class whose features are nearest to their mean; of several, one for each k-means cluster.

    Parameters
    ----------
    images_per_class : int or dict, default=1
        Real images of each class; a dict has a number for each label.
    n_synthetic : int, default=None
        Real images in all, instead of `images_per_class`: at least one of each class, and else as equal as can be; what is left
        over goes to the largest classes.
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
    random_state : int, RandomState instance or None, default=None
        Seed of k-means.

    Attributes
    ----------
    indices_ : ndarray of shape (n_synthetic,), int64
        Positions in ``X`` of the samples chosen, in the order of `X_synthetic_`.
    alpha_ : float
        The ridge strength used.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        In `fit`, before any long work: parameters, images, labels or an encoder that cannot be used; too few samples of a class.

    See Also
    --------
    RandomSubset : Random ones.
    NearestReals : Those nearest to synthetic ones.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import ClassCentroids
    >>> X, y = load_iris(return_X_y=True)
    >>> ClassCentroids(encoder=None).fit(X, y).transform().shape
    (3, 4)
    """

    def _choose(self, task, features, attributes):
        rng = check_random_state(self.random_state)
        return [own[central(features(own), n, rng)] for own, n in zip(task.members, task.budget, strict=True)]


@_documented
class NearestReals(RealSubset):
    """The real images whose features are nearest to those of a distilled set, each in its class.

    Parameters
    ----------
    distiller : CLPDistiller or another one, default=None
        Whose synthetic set it is; encoder, size and ridge strength are its own. A fitted one is taken as it is; else a clone is
        fitted first, and with ``memory=`` the real images are encoded once for both. As any estimator's, this parameter of a
        clone is not fitted, so in a search it is fitted anew. ``None`` is ``CLPDistiller()``.

    Attributes
    ----------
    distiller_ : CLPDistiller or another one
        The fitted distiller.
    indices_ : ndarray of shape (n_synthetic,), int64
        Positions in ``X`` of the samples chosen, in the order of `X_synthetic_`; none is chosen twice, and the sum of the
        distances is the least.
    alpha_ : float
        The ridge strength used.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        In `fit`, before any long work: parameters, images, labels or an encoder that cannot be used; a fitted distiller of other
        classes, or with more images of a class than there are samples.

    See Also
    --------
    ClassCentroids : Those nearest to the class means.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd import CLPDistiller
    >>> from sklearn_clpdd.baselines import NearestReals
    >>> X, y = load_iris(return_X_y=True)
    >>> distiller = CLPDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y)
    >>> NearestReals(distiller).fit(X, y).indices_.shape
    (3,)
    """

    _parameter_constraints = {"distiller": [BaseDistiller, None]}

    def __init__(self, distiller=None):
        self.distiller = distiller

    def _validate_params(self):
        super()._validate_params()
        if not self._given.__sklearn_is_fitted__():
            self._given._validate_params()

    @property
    def _given(self) -> BaseDistiller:
        return CLPDistiller() if self.distiller is None else self.distiller

    encoder = property(lambda self: self._given.encoder)
    images_per_class = property(lambda self: self._given.images_per_class)
    n_synthetic = property(lambda self: self._given.n_synthetic)
    image_size = property(lambda self: self._given.image_size)
    alpha = property(lambda self: self._given.alpha)
    memory = property(lambda self: self._given.memory)
    device = property(lambda self: self._given.device)
    verbose = property(lambda self: self._given.verbose)

    def _check(self, classes, counts, budget):
        given = self._given
        if not given.__sklearn_is_fitted__():  # its own `fit`, which comes first, checks the rest
            self._check_enough(classes, counts, budget, type(self).__name__)
            return
        if not np.array_equal(given.classes_, classes):
            raise ValueError(
                f"the fitted distiller has classes {given.classes_.tolist()[:10]} and y holds {classes.tolist()[:10]}; "
                "give the data that it was fitted to, or a distiller that is not fitted"
            )
        wanted = np.bincount(np.searchsorted(classes, given.y_synthetic_))
        if (counts < wanted).any():
            raise ValueError(
                f"the distilled set has up to {wanted.max()} images of a class, and y as few as {counts.min()}; "
                "give the data that it was distilled from"
            )

    def _prepare(self, task):
        given = self._given
        return {"distiller_": given if given.__sklearn_is_fitted__() else clone(given).fit(task.X, task.y, task.groups)}

    def _choose(self, task, features, attributes):
        distiller = attributes["distiller_"]
        y = np.searchsorted(task.classes, distiller.y_synthetic_)
        Z = task.space.features(distiller.X_synthetic_)
        return [members[nearest(Z[y == c], features(members))] for c, members in enumerate(task.members)]


@_documented
class LGMDistiller(IterativeDistiller):
    """Linear gradient matching (LGM): images whose features teach a random linear head what the real ones teach it.

    In each step a linear head is drawn at random, and the images are moved such that the gradient of its cross-entropy, in weight
    and bias, points where that of the real features does. That gradient is an explicit function of the features, so no gradient
    is differentiated again. Views, pyramid, loop and defaults are those of :class:`CLPDistiller`, and the real images pass the
    encoder once; `LGM_PUBLISHED` has the settings of the released code, which sees random views of random real images instead.

    Parameters
    ----------
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.

    Attributes
    ----------
    alpha_ : float
        The ridge strength used.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError, FloatingPointError
        As :class:`CLPDistiller`.

    See Also
    --------
    CLPDistiller : The probe in closed form instead of a step of a random one.
    DMDistiller : Class means instead of gradients.

    References
    ----------
    *Dataset Distillation for Pre-Trained Self-Supervised Vision Models*, arXiv 2511.16674, equations 1 to 3.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import LGMDistiller
    >>> X, y = load_iris(return_X_y=True)
    >>> LGMDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y).transform().shape
    (3, 4)
    """

    def _objective(self, random, temperatures):
        return GradientMatching(random)


@_documented
class DMDistiller(IterativeDistiller):
    """Feature-mean matching (DM): images whose mean features in each class are those of the real ones.

    Views, pyramid and loop are those of :class:`CLPDistiller`.

    Parameters
    ----------
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.

    Attributes
    ----------
    alpha_ : float
        The ridge strength used.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError, FloatingPointError
        As :class:`CLPDistiller`.

    See Also
    --------
    LGMDistiller : Gradients of a linear head instead of class means.

    References
    ----------
    *Dataset Condensation with Distribution Matching*, arXiv 2110.04181, equation 5, with one pre-trained encoder in the place of
    many random ones.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import DMDistiller
    >>> X, y = load_iris(return_X_y=True)
    >>> DMDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y).transform().shape
    (3, 4)
    """

    def _objective(self, random, temperatures):
        return FeatureMatching()
