"""IterativeDistiller: synthetic samples found step by step, by the gradient of an objective."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ._base import BaseDistiller, Result, Task
from ._core.augmentations import AUGMENTATIONS, Augmentation
from ._core.loop import OuterLoss, State, distill, whole_features
from ._core.objectives import MeanOverEncoders, inner_weights
from ._core.parametrizations import PARAMETRIZATIONS, Parametrization
from ._core.real_features import RealFeatures, RealSet, held_out_counts, shuffled
from ._reals import central
from ._run import Checkpoint, Limits, Outcome, Run, insist, spelled
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
# Parameters that a run and its continuation need not share.
_FREE = {"encoder", "memory", "device", "verbose", "callback", "checkpoint", "checkpoint_every", "random_state"}
# Noise on real samples that are started from once more, as a share of the standard deviation of their values.
_DITHER = 0.1


class Temperatures(NamedTuple):
    """Of the outer loss; None where it has none."""

    of_scores: float | None = None  # τ
    of_distances: float | None = None  # τ'


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
    def _objective(self, random: torch.Generator, temperatures: Temperatures) -> OuterLoss:
        """Outer loss of the run; ``random`` gives the random numbers that it may draw in each step."""

    def _whole_objective(self, objective: OuterLoss, classes: Tensor, temperatures: Temperatures) -> OuterLoss:
        """The same for whole samples, whose class indices these are, as a probe is going to see them."""
        return objective

    def _temperatures(self, task: Task, real: RealSet) -> Temperatures:
        """Temperatures of the outer loss, for these data."""
        return Temperatures()

    def _temperature_attributes(self, temperatures: Temperatures) -> dict[str, Any]:
        """Fitted attributes that say them."""
        return {}

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
        checkpoint = self._checkpoint_of(task)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if checkpoint and checkpoint.info:
            seed = checkpoint.info["seed"]
        rng = np.random.RandomState(seed)
        if hasattr(self, "_init_callback_context"):
            self._init_callback_context(max_subtasks=self.max_iter).call_on_fit_task_begin(estimator=self, X=task.X, y=task.y)

        real = self._real_set(task, held_out, rng)
        temperatures = self._temperatures(task, real)
        state = self._state(task, real, rng, start)
        outer = partial(self._outer, space, torch.from_numpy(y).to(space.device), temperatures)
        history = [] if start is None else [dict(record) for record in self.history_]
        attributes = self._temperature_attributes(temperatures) | {
            "n_views_": n_views,
            "encoder_batch_size_": passes.chunk_size,
        }

        def result_of(outcome: Outcome) -> Result:
            """What has come of the run, by the θ that the state holds."""
            with torch.no_grad():
                samples = state.parametrization().detach()
            of_run: dict[str, Any] = {"history_": [dict(record) for record in outcome.history]}
            of_run |= {"n_iter_": len(outcome.history), "best_iter_": outcome.best_iter}
            loss, accuracy = (None, None) if outcome.best is None else outcome.best
            of_run |= {"val_loss_": loss, "val_accuracy_": accuracy}
            n = outcome.interrupted_after
            warning = None if n is None else f"interrupted after {n} of {self.max_iter} steps; the images so far are kept"
            return Result(samples, y, real, state.targets, attributes | of_run, warning, outcome.error)

        moment = _Moment(self, task, state, history, result_of, attributes)
        # Images are chosen by what they are learned by.
        outer_of_held_out = partial(outer, whole=whole_weight > 0 or not augmentation.is_random)
        following = Run(
            state,
            Limits(self.max_iter, self.time_budget, self.n_iter_no_change, self.tol),
            history,
            score=self._held_out_score(space, real, state, passes.chunk_size, outer_of_held_out),
            tell=moment.tell,
            checkpoint=checkpoint,
            seed=seed,
            views_per_step=n_all,
            strengths=self._strengths(),
            verbose=bool(self.verbose),
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
        outcome = following.follow(steps)
        try:
            if outcome.error is not None and not outcome.n_steps:
                raise outcome.error  # there is nothing to keep
            return insist(partial(result_of, outcome))
        finally:
            del outcome  # an error holds the frames that it has come through, and must not be held by one of them

    def _has_fitted(self, task):
        if hasattr(self, "_callback_fit_ctx"):
            self._callback_fit_ctx.call_on_fit_task_end(estimator=self, X=task.X, y=task.y)

    def _checkpoint_of(self, task: Task) -> Checkpoint | None:
        """The file of the run, if it has one."""
        if self.checkpoint is None:
            return None
        parameters = {"method": type(self), **self.get_params(deep=False)}
        free = _FREE - {"random_state"} if isinstance(self.random_state, Real) else _FREE
        parameters = {name: spelled(value) for name, value in parameters.items() if name not in free}
        digests = {"y": joblib.hash(np.ascontiguousarray(task.y)), "groups": joblib.hash(task.groups)}
        data = task.space.identity() | digests
        return Checkpoint(Path(self.checkpoint), self.checkpoint_every, parameters, data, task.space.versions())

    def _strengths(self) -> str:
        """Parameters that bear on whether losses stay finite, in words."""
        given = {name: getattr(self, name, None) for name in ("alpha", "temperature", "learning_rate")}
        return ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)

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

    def _outer(
        self, space: Space, classes: Tensor, temperatures: Temperatures, random: torch.Generator, *, whole: bool
    ) -> OuterLoss:
        """The objective, of random views or of whole samples, for the features of all encoders."""
        objective = self._objective(random, temperatures)
        if whole:
            objective = self._whole_objective(objective, classes, temperatures)
        # No copy of the real features where there is one encoder.
        return objective if len(space.widths) == 1 else MeanOverEncoders(objective, space.widths)

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
        """Rows of ``n`` real samples of a class that are not held out: random ones, or the nearest to the means of clusters."""
        rows = np.flatnonzero(real.codes[: len(real.R) - real.n_held_out] == c)  # in random order
        if self.init == "centroid" and n < len(rows):
            rows = rows[central(real.R[rows], n, rng)]
        return np.resize(rows, n)

    def _held_out_score(
        self, space: Space, real: RealSet, state: State, chunk_size: int, outer: Callable[[torch.Generator], OuterLoss]
    ) -> Callable[[], Tensor] | None:
        """What gives loss and accuracy of the present samples on the held-out features, where there are some."""
        if not real.n_held_out:
            return None
        parametrization, Y, alpha = state.parametrization, state.targets, float(self.alpha)
        dtype = Y.dtype
        held_out, codes, strata = real.held_out
        seed = torch.Generator().manual_seed(0)
        # The accuracy is that of all of them.
        every, classes = _sampled((held_out, codes, None), len(codes), space.device, dtype).sample(seed)
        weights = torch.from_numpy(_equal_weights(codes, strata))
        R, r = every, classes
        if strata is not None:  # the loss is that of balanced draws: so many that few are left out, where these are not many
            n_drawn = max(len(codes), min(4 * len(codes), _MOST_DRAWN))
            R, r = _sampled(real.held_out, n_drawn, space.device, dtype).sample(seed)

        @torch.no_grad()
        def score() -> Tensor:
            Z = whole_features(parametrization, len(Y), space.encode, space.preprocessing, chunk_size)
            right = (every @ inner_weights(Z, Y, alpha)).argmax(dim=1) == classes
            loss = outer(torch.Generator().manual_seed(0))(Z, Y, R, r)  # with the same random numbers at each score
            return torch.stack([loss.cpu().double(), (weights * right.cpu()).sum() / weights.sum()])

        return score

    def _held_out_of(self, task: Task) -> tuple[np.ndarray, float | None]:
        """What a share is held out of, and which: none where it would lack a group, for it would choose images that need none.

        Raises where some are needed and none are had.
        """
        within = task.codes if task.groups is None else task.groups
        counts = np.bincount(within)
        n = held_out_counts(counts, self.validation_fraction)
        enough = n.any() if task.groups is None else n.all()
        if self.init == "real":
            of_class = np.bincount(task.codes)
            first = np.unique(within, return_index=True)[1]  # a sample of each group
            held = np.bincount(task.codes[first], weights=n, minlength=len(of_class)).astype(int) if enough else 0
            what = "init='real', which leaves held-out samples aside,"
            self._check_enough(task.classes, of_class - held, task.budget, what)
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
        # In a copy that a callback gets: the samples of the moment.
        return self._present() if "_present" in vars(self) else super()._synthetic()

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "_present"}


class _Moment:
    """A run's distiller as it is at the moment, for callbacks: a copy, for the distiller itself is changed by its `fit` only."""

    def __init__(
        self,
        distiller: IterativeDistiller,
        task: Task,
        state: State,
        history: list[dict[str, float]],
        result_of: Callable[[Outcome], Result],
        attributes: dict[str, Any],
    ):
        self._distiller, self._task, self._history, self._result_of = distiller, task, history, result_of
        self._copy: Any = object.__new__(type(distiller))
        self._copy.__dict__.update(distiller._unfitted(), classes_=task.classes, history_=history, **attributes)

        def present() -> np.ndarray:
            with torch.no_grad():
                return task.space.to_user(state.parametrization().detach())

        self._copy._present = present

    def tell(self, records: list[dict[str, float]]) -> None:
        """Tell the callbacks of records; one of scikit-learn's ends the run by what it returns."""
        distiller = self._distiller
        self._copy.n_iter_ = len(self._history)
        for record in records:
            if distiller.callback is not None:
                distiller.callback(self._copy, dict(record))
            if getattr(distiller, "_skl_callbacks", None):
                step = distiller._callback_fit_ctx.subcontext(task_name="step")
                hooks = {"X": self._task.X, "y": self._task.y, "reconstruction_attributes": self._fitted}
                # These know the estimator by its identity, and get a fitted copy of their own.
                step.call_on_fit_task_begin(estimator=distiller, **hooks)
                if step.call_on_fit_task_end(estimator=distiller, **hooks):
                    raise StopIteration

    def _fitted(self) -> dict[str, Any]:
        now = Outcome(self._history, len(self._history), None, None, None, None)
        return self._distiller._fitted(self._task, self._result_of(now))


def _equal_weights(codes: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """Weights of samples, with sum 1: all the same or, with strata, equal for classes, and for the strata of a class."""
    if strata is None:
        return np.full(len(codes), 1 / len(codes))
    pairs, which, counts = np.unique(np.stack([codes, strata]), axis=1, return_inverse=True, return_counts=True)
    of_class = np.bincount(pairs[0])[codes]  # strata of the sample's class
    return 1 / (len(np.unique(codes)) * of_class * counts[which.reshape(-1)])


def _sampled(part: tuple, batch_size: int, device: torch.device, dtype: torch.dtype) -> RealFeatures:
    R, r, strata = part
    return RealFeatures(R, r, batch_size, strata, device, dtype)
