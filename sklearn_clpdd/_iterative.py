"""IterativeDistiller: synthetic samples found step by step, by the gradient of an objective."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from numbers import Integral, Real

import joblib
import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ._base import BaseDistiller, Task
from ._core.augmentations import AUGMENTATIONS, Augmentation
from ._core.loop import OuterLoss, State, distill, whole_features
from ._core.objectives import MeanOverEncoders, inner_weights
from ._core.parametrizations import PARAMETRIZATIONS, Parametrization
from ._core.real_features import RealFeatures, RealSet, held_out_counts, shuffled
from ._reals import central
from ._run import Checkpoint, Run
from ._spaces import Space

try:  # since scikit-learn 1.9, experimental
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """There are no callbacks."""

    def with_callbacks(method):
        """The method as it is."""
        return method


# Views in a step, and of one sample at most, where their number is not given.
_VIEWS, _MOST_VIEWS = 20, 8
# Balanced draws from the held-out samples, at most, where these are fewer.
_MOST_DRAWN = 10_000
# How many times as large as the smallest class the largest one is, at the least, for classes to be balanced.
_UNEQUAL = 2
# Noise on real samples that are started from once more, as a share of the standard deviation of their values.
_DITHER = 0.1


class IterativeDistiller(CallbackSupportMixin, BaseDistiller):
    """Move synthetic samples step by step along the gradient of an objective.

    A subclass fills `_objective`. The parameters are documented at :class:`CLPDistiller`.
    """

    _parameter_constraints = {
        **BaseDistiller._parameter_constraints,
        "parametrization": [StrOptions(set(PARAMETRIZATIONS)), type],
        "augmentation": [StrOptions(set(AUGMENTATIONS)), Augmentation, None],
        "progressive": ["boolean"],
        "n_views": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "whole_weight": [Interval(Real, 0, 1, closed="left")],
        "init": [StrOptions({"noise", "real", "centroid"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "warm_up": [Interval(Integral, 0, None, closed="left")],
        "decay": [Interval(Real, 0, 1, closed="both")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "real_batch_size": [Interval(Integral, 1, None, closed="left")],
        "sampling": [StrOptions({"auto", "uniform", "balanced"})],
        "encoder_batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "tol": [Interval(Real, 0, None, closed="left")],
        "checkpoint": [str, os.PathLike, None],
        "checkpoint_every": [Interval(Real, 0, None, closed="neither")],
        "warm_start": ["boolean"],
        "callback": [callable, None],
    }

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        images_per_class=1,
        n_synthetic=None,
        image_size=None,
        alpha=1.0,
        parametrization="pyramid",
        augmentation="dsa",
        n_views="auto",
        whole_weight=0.5,
        progressive=True,
        init="centroid",
        learning_rate=0.05,
        warm_up=10,
        decay=0.5,
        max_iter=600,
        time_budget=None,
        real_batch_size=4096,
        sampling="auto",
        encoder_batch_size="auto",
        n_iter_no_change=None,
        validation_fraction=0.1,
        tol=1e-4,
        checkpoint=None,
        checkpoint_every=60.0,
        warm_start=False,
        memory=None,
        device="auto",
        callback=None,
        random_state=None,
        verbose=0,
    ):
        self.encoder = encoder
        self.images_per_class = images_per_class
        self.n_synthetic = n_synthetic
        self.image_size = image_size
        self.alpha = alpha
        self.parametrization = parametrization
        self.augmentation = augmentation
        self.n_views = n_views
        self.whole_weight = whole_weight
        self.progressive = progressive
        self.init = init
        self.learning_rate = learning_rate
        self.warm_up = warm_up
        self.decay = decay
        self.max_iter = max_iter
        self.time_budget = time_budget
        self.real_batch_size = real_batch_size
        self.sampling = sampling
        self.encoder_batch_size = encoder_batch_size
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.warm_start = warm_start
        self.memory = memory
        self.device = device
        self.callback = callback
        self.random_state = random_state
        self.verbose = verbose

    @abstractmethod
    def _objective(self, random: torch.Generator) -> OuterLoss:
        """Outer loss of the run; ``random`` gives the random numbers that it may draw in each step."""

    def _whole_objective(self, objective: OuterLoss, classes: Tensor) -> OuterLoss:
        """The same for whole samples, whose class indices these are, as a probe is going to see them."""
        return objective

    def _learns_targets(self) -> bool:
        """Whether the targets of the inner problem are learned with the samples."""
        return False

    fit = with_callbacks(BaseDistiller.fit)

    def _find(self, task):
        space, y = task.space, task.labels
        if self.warm_start and self.checkpoint is not None:
            raise ValueError("warm_start=True goes on from the last fit and checkpoint= from a file; give one of the two")
        held_out = self._held_out_of(task)
        start = self._warm_start_from(task.classes[y], space.sample_shape)
        augmentation = self._augmentation(space)
        n_views = self._views(len(y)) if augmentation.is_random else 1
        whole_weight = float(self.whole_weight) if augmentation.is_random else 0.0
        n_all = len(y) * (n_views + (whole_weight > 0))
        given = None if self.encoder_batch_size == "auto" else self.encoder_batch_size
        passes = space.passes(n_all, given)
        checkpoint = None
        if self.checkpoint is not None:
            digests = {"y": joblib.hash(np.ascontiguousarray(task.y)), "groups": joblib.hash(task.groups)}
            checkpoint = Checkpoint(self, space.identity() | digests)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if checkpoint and checkpoint.info:
            seed = checkpoint.info["seed"]
        rng = np.random.RandomState(seed)
        if hasattr(self, "_init_callback_context"):
            self._init_callback_context(max_subtasks=self.max_iter).call_on_fit_task_begin(estimator=self, X=task.X, y=task.y)
        real = self._real_set(task, held_out, rng)
        if start is None:
            self.history_, self.n_iter_ = [], 0
        self.n_views_, self.encoder_batch_size_ = n_views, passes.chunk_size

        state = self._state(task, real, rng, start)
        outer = partial(self._outer, space, torch.from_numpy(y).to(space.device))
        # Images are chosen by what they are learned by.
        outer_of_held_out = partial(outer, whole=whole_weight > 0 or not augmentation.is_random)
        following = Run(
            self,
            state,
            score=self._held_out_score(space, real, state, passes.chunk_size, outer_of_held_out),
            checkpoint=checkpoint,
            seed=seed,
            views_per_step=n_all,
            data={"X": task.X, "y": task.y},
            attributes=lambda: self._fitted(space, state.parametrization(), y, real, state.targets),
        )
        steps = distill(
            state,
            _sampled(real.training, self.real_batch_size, space.device, state.targets.dtype),
            encode=space.encode,
            preprocessing=space.preprocessing_for if self.progressive else lambda detail: space.preprocessing,
            augmentation=augmentation,
            n_views=n_views,
            whole_weight=whole_weight,
            objective=outer(state.random["objective"], whole=not augmentation.is_random),
            whole_objective=outer(state.random["objective"], whole=True),
            learning_rate=self.learning_rate,
            warm_up=self.warm_up,
            decay=self.decay,
            progress=following.progress,
            passes=passes,
        )
        self._learn(following, steps, space, state, y, real)
        if hasattr(self, "_callback_fit_ctx"):
            self._callback_fit_ctx.call_on_fit_task_end(estimator=self, X=task.X, y=task.y)

    def _real_set(self, task: Task, held_out: tuple[np.ndarray, float | None], rng: np.random.RandomState) -> RealSet:
        """Features of the real samples in random order, those held out last, and what the draws are balanced over."""
        order, n_held_out = shuffled(*held_out, rng)
        strata = task.groups if task.groups is not None else task.codes if self._balances(task.codes) else None
        return replace(self._encode(task, order, n_held_out), strata=None if strata is None else strata[order])

    def _state(self, task: Task, real: RealSet, rng: np.random.RandomState, start: np.ndarray | None) -> State:
        """What the run begins with."""
        noise, *streams = (torch.Generator().manual_seed(int(seed)) for seed in rng.randint(2**31 - 1, size=4))
        random = dict(zip(("views", "batches", "objective"), streams, strict=True))
        parametrization = self._start(task, real, noise, rng, start)
        dtype = parametrization.parameters[0].dtype
        known = self.targets_ if self._learns_targets() and start is not None else np.eye(len(task.classes))[task.labels]
        targets = torch.tensor(known, dtype=dtype, device=task.space.device, requires_grad=self._learns_targets())
        return State(parametrization, targets, random)

    def _outer(self, space: Space, classes: Tensor, random: torch.Generator, *, whole: bool) -> OuterLoss:
        """The objective, of random views or of whole samples, for the features of all encoders."""
        objective = self._objective(random)
        if whole:
            objective = self._whole_objective(objective, classes)
        # No copy of the real features where there is one encoder.
        return objective if len(space.widths) == 1 else MeanOverEncoders(objective, space.widths)

    def _learn(
        self,
        following: Run,
        steps: Iterator[Tensor],
        space: Space,
        state: State,
        y: np.ndarray,
        real: RealSet,
    ) -> None:
        """Make the steps and become fitted, whatever ends them."""
        parametrization, targets = state.parametrization, state.targets
        self._present = lambda: space.to_user(parametrization().detach())
        try:
            following.follow(steps)
        except BaseException:
            if self.n_iter_:  # nothing computed so far is lost
                with suppress(Exception):
                    self.__dict__.update(self._fitted(space, parametrization(), y, real, targets))
            raise
        finally:
            del self._present
        with torch.no_grad():
            samples = parametrization()
        try:
            fitted = self._fitted(space, samples, y, real, targets)
        except KeyboardInterrupt:  # the images are worth the second that this takes
            fitted = self._fitted(space, samples, y, real, targets)
        self.__dict__.update(fitted)

    def _warm_start_from(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Synthetic samples of the last fit, where they are to be gone on with."""
        if not (self.warm_start and hasattr(self, "probe_")):
            return None
        if np.array_equal(labels, self.y_synthetic_) and self.X_synthetic_.shape[1:] == shape:
            return self.X_synthetic_
        were, are = (dict(islice(Counter(own.tolist()).items(), 10)) for own in (self.y_synthetic_, labels))
        raise ValueError(
            f"warm_start=True goes on with synthetic samples of shape {self.X_synthetic_.shape[1:]}, of the classes {were}; data "
            f"and parameters now ask for shape {shape} and the classes {are}. Give the same, or warm_start=False"
        )

    def _check(self, classes, counts, budget):
        self._parametrization_type()
        if self.init == "real":
            self._check_enough(classes, counts, budget, "init='real'")

    def _start(
        self, task: Task, real: RealSet, noise: torch.Generator, rng: np.random.RandomState, start: np.ndarray | None
    ) -> Parametrization:
        """θ at the beginning: of noise, of real samples, or of those that are to be gone on with."""
        space = task.space
        parametrization = space.start(self._parametrization_type(), int(task.budget.sum()), noise)
        if start is not None:
            parametrization.set(space.from_user(start))
        elif self.init != "noise":
            rows = [self._representatives(real, c, n, rng) for c, n in enumerate(task.budget)]
            samples = space.read(real.order[np.concatenate(rows)])
            again = np.concatenate([np.arange(n) >= len(own) for n, own in zip(task.budget, map(np.unique, rows), strict=True)])
            if again.any():  # where there are too few real ones they are taken again, and would stay the same without noise
                dither = torch.randn(samples.shape, generator=noise, dtype=samples.dtype)
                dither[torch.from_numpy(~again)] = 0
                samples = samples + _DITHER * samples.std() * dither.to(samples.device)
            parametrization.set(samples)
        return parametrization

    def _representatives(self, real: RealSet, c: int, n: int, rng: np.random.RandomState) -> np.ndarray:
        """Rows of ``n`` real samples of a class: random ones, or the nearest to the means of clusters of those not held out."""
        rows = np.flatnonzero(real.codes == c)  # in random order, those held out last
        if self.init == "centroid":
            rows = rows[rows < len(real.R) - real.n_held_out]
            if n < len(rows):
                rows = rows[central(real.R[rows], n, rng)]
        return np.resize(rows, n)

    def _held_out_score(
        self, space: Space, real: RealSet, state: State, chunk_size: int, outer: Callable[[torch.Generator], OuterLoss]
    ) -> Callable[[], Tensor] | None:
        """What gives loss and accuracy of the present samples on the held-out features, where there are some."""
        if not real.n_held_out:
            return None
        parametrization, Y = state.parametrization, state.targets
        dtype = Y.dtype
        # Balanced draws: so many that few samples are left out, where these are not many.
        n_drawn = real.n_held_out if real.strata is None else max(real.n_held_out, min(4 * real.n_held_out, _MOST_DRAWN))
        R, r = _sampled(real.held_out, n_drawn, space.device, dtype).sample(torch.Generator().manual_seed(0))

        @torch.no_grad()
        def score() -> Tensor:
            Z = whole_features(parametrization, len(Y), space.encode, space.preprocessing, chunk_size)
            predicted = (R @ inner_weights(Z, Y, self.alpha_)).argmax(dim=1)
            objective = outer(torch.Generator().manual_seed(0))  # the same at each score
            return torch.stack([objective(Z, Y, R, r), (predicted == r).to(dtype).mean()])

        return score

    def _held_out_of(self, task: Task) -> tuple[np.ndarray, float | None]:
        """What a share is held out of, and which: none where it would lack a group, for it would choose images that need none.

        Raises where some are needed and none are had.
        """
        within = task.codes if task.groups is None else task.groups
        counts = np.bincount(within)
        n = held_out_counts(counts, self.validation_fraction)
        enough = n.any() if task.groups is None else n.all()
        if self.n_iter_no_change is not None and not enough:
            of = f"classes of at most {counts.max()}" if task.groups is None else f"groups, the smallest one of {counts.min()}"
            raise ValueError(
                f"n_iter_no_change={self.n_iter_no_change} needs held-out real samples, and validation_fraction="
                f"{self.validation_fraction} of {of} samples is none; give more"
            )
        return within, self.validation_fraction if enough else None

    def _balances(self, codes: np.ndarray) -> bool:
        counts = np.bincount(codes)
        return self.sampling == "balanced" or (self.sampling == "auto" and counts.max() > _UNEQUAL * counts.min())

    def _views(self, m: int) -> int:
        return min(_MOST_VIEWS, -(-_VIEWS // m)) if self.n_views == "auto" else self.n_views

    def _augmentation(self, space: Space) -> Augmentation:
        if not space.is_image or self.augmentation is None:
            return Augmentation()
        return AUGMENTATIONS[self.augmentation]() if isinstance(self.augmentation, str) else self.augmentation

    def _parametrization_type(self) -> type[Parametrization]:
        if isinstance(self.parametrization, str):
            return PARAMETRIZATIONS[self.parametrization]
        if not issubclass(self.parametrization, Parametrization):
            raise TypeError(
                f"parametrization is one of {sorted(PARAMETRIZATIONS)} or a Parametrization class; got {self.parametrization}"
            )
        return self.parametrization

    def _synthetic(self):
        # While a callback is at work: the samples of the moment.
        return self._present() if "_present" in self.__dict__ else super()._synthetic()

    def __getstate__(self):
        # `_present` is there during `fit` only.
        return {name: value for name, value in super().__getstate__().items() if name != "_present"}


def _sampled(part: tuple, batch_size: int, device: torch.device, dtype: torch.dtype) -> RealFeatures:
    R, r, strata = part
    return RealFeatures(R, r, batch_size, strata, device, dtype)
