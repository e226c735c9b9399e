"""GradientDistiller: synthetic samples learned by gradient descent on an objective."""

import os
from abc import abstractmethod
from collections import Counter
from functools import partial
from itertools import islice
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils._ranks import Ranks, joined
from ..utils._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    StrOptions,
    finish_callbacks,
    has_callbacks,
    start_callbacks,
    with_callbacks,
)
from ._augmentations import AUGMENTATIONS, Augmentation
from ._base import BaseDistiller
from ._callbacks import CallbackNotifier
from ._checkpoint import Checkpoint
from ._fit_data import FitData, FitResult
from ._held_out import HeldOutScore
from ._identity import check_processes, checkpoint_file, seed_of_run
from ._loop import ChunkPlan, ViewPlan, optimize
from ._objectives import MeanOverEncoders, OuterLoss
from ._parametrizations import PARAMETRIZATIONS, Parametrization
from ._real_features import BatchSampler, RealFeatures, held_out_counts, split_order
from ._schedule import LinearSchedule
from ._start import real_start
from ._state import State
from ._trainer import Limits, Outcome, Trainer, retry_on_interrupt

# With sampling="auto", classes are balanced if the largest one is more than this many times as large as the smallest one.
_UNBALANCED = 2


class Temperatures(NamedTuple):
    """Temperatures of the outer loss; None for a loss without them."""

    scores: float | None = None  # τ
    distances: float | None = None  # τ'


class GradientDistiller(CallbackSupportMixin, BaseDistiller):
    """Learn synthetic samples by gradient descent.

    A subclass implements `_objective`. The parameters are documented in :class:`CLPDistiller`.
    """

    _parameter_constraints = {
        **BaseDistiller._parameter_constraints,
        "parametrization": [StrOptions(set(PARAMETRIZATIONS)), type],
        "augmentation": [StrOptions(set(AUGMENTATIONS)), Augmentation, None],
        "init": [StrOptions({"noise", "real", "kmeans"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), LinearSchedule],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "real_batch_size": [Interval(Integral, 1, None, closed="left")],
        "sampling": [StrOptions({"auto", "uniform", "balanced"})],
        "encoder_batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "tol": [Interval(Real, 0, None, closed="left")],
        "checkpoint": [str, os.PathLike, Checkpoint, None],
        "warm_start": ["boolean"],
        "callback": [callable, None],
        "distributed": ["boolean"],
    }

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        images_per_class=1,
        image_size=None,
        alpha=1.0,
        parametrization="pyramid",
        augmentation="dsa",
        init="kmeans",
        learning_rate=0.05,
        max_iter=600,
        time_budget=None,
        real_batch_size=4096,
        sampling="auto",
        encoder_batch_size="auto",
        n_iter_no_change=None,
        validation_fraction=0.1,
        tol=1e-4,
        checkpoint=None,
        warm_start=False,
        callback=None,
        distributed=True,
        random_state=None,
        verbose=0,
    ):
        self.encoder = encoder
        self.images_per_class = images_per_class
        self.image_size = image_size
        self.alpha = alpha
        self.parametrization = parametrization
        self.augmentation = augmentation
        self.init = init
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.time_budget = time_budget
        self.real_batch_size = real_batch_size
        self.sampling = sampling
        self.encoder_batch_size = encoder_batch_size
        self.n_iter_no_change = n_iter_no_change
        self.validation_fraction = validation_fraction
        self.tol = tol
        self.checkpoint = checkpoint
        self.warm_start = warm_start
        self.callback = callback
        self.distributed = distributed
        self.random_state = random_state
        self.verbose = verbose

    # What a subclass may define.

    @abstractmethod
    def _objective(self, random: torch.Generator, temperatures: Temperatures) -> OuterLoss:
        """The outer loss; ``random`` is for what it draws in each step."""

    def _unaugmented_objective(self, objective: OuterLoss, codes: Tensor, temperatures: Temperatures) -> OuterLoss:
        """The outer loss for unaugmented samples, whose class indices are ``codes``."""
        return objective

    def _temperatures(self, data: FitData, real: RealFeatures) -> Temperatures:
        """The temperatures of the outer loss for these data."""
        return Temperatures()

    def _temperature_attributes(self, temperatures: Temperatures) -> dict[str, Any]:
        """Fitted attributes with these temperatures."""
        return {}

    def _learns_targets(self) -> bool:
        """Whether the targets of the inner problem are learned with the samples."""
        return False

    # The fit.

    fit = with_callbacks(BaseDistiller.fit)

    def _validate_params(self):
        super()._validate_params()
        if self.n_iter_no_change is not None and self.validation_fraction is None:
            raise ValueError(
                f"n_iter_no_change={self.n_iter_no_change} needs held-out real samples, and validation_fraction=None holds out "
                "none; set a fraction, such as 0.1"
            )
        for nested in (self.augmentation, self.learning_rate, self.checkpoint):
            if isinstance(nested, Augmentation | LinearSchedule | Checkpoint):
                nested._validate_params()
        if self.warm_start and self.checkpoint is not None:
            raise ValueError("warm_start=True continues the last fit, and checkpoint= the run of a file; use one of the two")
        self._parametrization_type()  # raises for a class of another kind

    def _after_fit(self, data):
        finish_callbacks(self, data.X, data.y)

    def _distill(self, data):
        with joined(self.distributed, data.adapter.device) as ranks:
            data.adapter.agree_on_precision(ranks)
            check_processes(self, data, ranks)
            return self._distill_with(ranks, data)

    def _distill_with(self, ranks: Ranks, data: FitData) -> FitResult:
        adapter, m = data.adapter, len(data.synthetic_codes)
        within, fraction = self._held_out_split(data)
        start = self._last_samples(data)
        views = self._view_plan(data)
        given = None if self.encoder_batch_size == "auto" else self.encoder_batch_size
        chunk_plan = adapter.chunk_plan(m * views.per_sample, given, ranks.local_size)
        checkpoint = checkpoint_file(self, data, ranks)
        seed = seed_of_run(self, checkpoint, ranks)
        rng = np.random.RandomState(seed)
        start_callbacks(self, self.max_iter, data.X, data.y)

        order, n_held_out = split_order(within, fraction, rng)
        real = data.real_features(order, n_held_out, self._strata(data), ranks)
        temperatures = ranks.of_first(self._temperatures(data, real))
        state = self._initial_state(data, real, rng, start, ranks)
        loss = partial(self._loss, data, temperatures)
        history = [] if start is None else [dict(record) for record in self.history_]
        attributes = self._temperature_attributes(temperatures) | {
            "n_views_": views.n_random,
            "encoder_batch_size_": chunk_plan.chunk_size,
        }
        result_of = partial(self._result, data, real, state, attributes)
        with_callbacks = ranks.of_all(self.callback is not None or has_callbacks(self))
        # Samples are chosen by the loss that they are learned by.
        unaugmented = views.unaugmented_weight > 0 or not views.augmentation.is_random
        trainer = Trainer(
            state,
            Limits(self.max_iter, self.time_budget, self.n_iter_no_change, self.tol),
            history,
            score=self._held_out_score(
                data, real, state, max(1, chunk_plan.chunk_size // views.per_sample), partial(loss, unaugmented=unaugmented)
            ),
            notify=CallbackNotifier(self, data, state, history, result_of, attributes, everywhere=all(with_callbacks)),
            has_callbacks=any(with_callbacks),
            checkpoint=checkpoint,
            seed=seed,
            views_per_step=m * views.per_sample,
            advice=self._advice(),
            verbose=bool(self.verbose),
        )
        with ranks.deferred_interrupts():
            outcome = trainer.run(self._steps(data, real, state, views, loss, trainer, chunk_plan))
            try:
                if outcome.error is not None and not outcome.n_steps:
                    raise outcome.error  # there is nothing to keep
                return retry_on_interrupt(partial(result_of, outcome))
            finally:
                del outcome  # an error references the frames that it has passed through, of which this is one

    def _steps(
        self, data: FitData, real: RealFeatures, state: State, views: ViewPlan, loss, trainer: Trainer, chunk_plan: ChunkPlan
    ):
        """The steps of the run: an iterator over their losses."""
        adapter, random = data.adapter, state.random["objective"]
        return optimize(
            state,
            BatchSampler(real.training, self.real_batch_size, adapter.device, state.targets.dtype),
            encode=adapter.encode,
            preprocess=adapter.preprocess,
            views=views,
            objective=loss(random, unaugmented=not views.augmentation.is_random),
            unaugmented_objective=loss(random, unaugmented=True),
            learning_rate=self._schedule().rate,
            progress=trainer.progress,
            chunk_plan=chunk_plan,
            differentiating=adapter.differentiating,
            agree=trainer.agree,
        )

    def _result(self, data: FitData, real: RealFeatures, state: State, attributes: dict, outcome: Outcome) -> FitResult:
        """The result of a run, for the θ that its state contains."""
        samples = state.samples()
        loss, accuracy = (None, None) if outcome.best is None else outcome.best
        of_run: dict[str, Any] = {
            "history_": [dict(record) for record in outcome.history],
            "n_iter_": len(outcome.history),
            "best_iter_": outcome.best_iter,
            "val_loss_": loss,
            "val_accuracy_": accuracy,
        }
        n = outcome.interrupted_after
        warning = None if n is None else f"interrupted after {n} of {self.max_iter} steps; the images so far are kept"
        codes = data.synthetic_codes
        return FitResult(samples, codes, real, state.targets, attributes | of_run, warning, outcome.error)

    # What the fit is made of.

    def _advice(self) -> str:
        """What may help if losses are not finite, for error messages."""
        return f"A learning_rate smaller than {self.learning_rate} may help"

    def _initial_state(
        self, data: FitData, real: RealFeatures, rng: np.random.RandomState, start: np.ndarray | None, ranks: Ranks
    ) -> State:
        """What a run begins with: noise, real samples, or the synthetic samples of the last fit."""
        noise, *streams = (torch.Generator().manual_seed(int(seed)) for seed in rng.randint(2**31 - 1, size=4))
        random = dict(zip(("views", "batches", "objective"), streams, strict=True))
        adapter = data.adapter
        parametrization = adapter.initialize(self._parametrization_type(), len(data.synthetic_codes), noise)
        if start is not None:
            parametrization.set_samples(adapter.from_user(start))
        elif self.init != "noise":
            parametrization.set_samples(real_start(data, real, self.init, noise, rng, ranks))
        learned = self._learns_targets()
        known = self.targets_ if learned and start is not None else np.eye(len(data.classes))[data.synthetic_codes]
        dtype = parametrization.parameters[0].dtype
        targets = torch.tensor(known, dtype=dtype, device=adapter.device, requires_grad=learned)
        return State(parametrization, targets, random, ranks)

    def _loss(self, data: FitData, temperatures: Temperatures, random: torch.Generator, *, unaugmented: bool) -> OuterLoss:
        """The outer loss, for random views or for unaugmented samples, of the features of all encoders."""
        objective = self._objective(random, temperatures)
        if unaugmented:
            codes = torch.from_numpy(data.synthetic_codes).to(data.adapter.device)
            objective = self._unaugmented_objective(objective, codes, temperatures)
        # With one encoder, the real features are not copied.
        widths = data.adapter.widths
        return objective if len(widths) == 1 else MeanOverEncoders(objective, widths)

    def _held_out_score(self, data: FitData, real: RealFeatures, state: State, chunk_size: int, loss) -> HeldOutScore | None:
        if not real.n_held_out:
            return None
        return HeldOutScore(data.adapter, real.held_out, state, alpha=float(self.alpha), loss=loss, chunk_size=chunk_size)

    def _last_samples(self, data: FitData) -> np.ndarray | None:
        """Synthetic samples of the last fit, if this fit continues it."""
        if not (self.warm_start and hasattr(self, "probe_")):
            return None
        labels, shape = data.classes[data.synthetic_codes], data.adapter.sample_shape
        if np.array_equal(labels, self.y_synthetic_) and self.X_synthetic_.shape[1:] == shape:
            return self.X_synthetic_
        were, are = (dict(islice(Counter(own.tolist()).items(), 10)) for own in (self.y_synthetic_, labels))
        raise ValueError(
            f"warm_start=True continues with synthetic samples of shape {self.X_synthetic_.shape[1:]} and classes {were}; data "
            f"and parameters now need shape {shape} and classes {are}. Use the same, or warm_start=False"
        )

    def _held_out_split(self, data: FitData) -> tuple[np.ndarray, float | None]:
        """The classes or groups from which samples are held out, and the fraction.

        Nothing is held out if a group would be missing, because the score would then choose images that ignore it.

        Raises
        ------
        ValueError
            If held-out samples are needed and there are none, or too few samples are left to start from.
        """
        within = data.codes if data.groups is None else data.groups
        counts = np.bincount(within)
        n = held_out_counts(counts, self.validation_fraction)
        enough = n.any() if data.groups is None else n.all()
        if self.init == "real":
            first = np.unique(within, return_index=True)[1]  # one sample of each group
            held = np.bincount(data.codes[first], weights=n, minlength=len(data.classes)).astype(int) if enough else 0
            self._check_enough(data, data.class_counts - held, "init='real', which does not use held-out samples,")
        if self.n_iter_no_change is not None and not enough:
            which = f"largest class has {counts.max()}" if data.groups is None else f"smallest group has {counts.min()}"
            raise ValueError(
                f"n_iter_no_change={self.n_iter_no_change} needs held-out real samples, and validation_fraction="
                f"{self.validation_fraction} holds out none, because the {which} samples; use a larger fraction "
                "(at most 10,000 samples in total are held out), or n_iter_no_change=None"
            )
        return within, self.validation_fraction if enough else None

    def _strata(self, data: FitData) -> np.ndarray | None:
        """What batches are balanced over."""
        if data.groups is not None:
            return data.groups
        counts = data.class_counts
        unbalanced = counts.max() > _UNBALANCED * counts.min()
        balance = self.sampling == "balanced" or (self.sampling == "auto" and unbalanced)
        return data.codes if balance else None

    def _view_plan(self, data: FitData) -> ViewPlan:
        augmentation = self.augmentation
        if augmentation is None or not data.adapter.encoders:
            augmentation = Augmentation()
        elif isinstance(augmentation, str):
            augmentation = AUGMENTATIONS[augmentation]()
        weight = float(augmentation.unaugmented_weight) if augmentation.is_random else 0.0
        return ViewPlan(augmentation, augmentation.views_per_image(len(data.synthetic_codes)), weight)

    def _schedule(self) -> LinearSchedule:
        given = self.learning_rate
        return given if isinstance(given, LinearSchedule) else LinearSchedule(given)

    def _parametrization_type(self) -> type[Parametrization]:
        if isinstance(self.parametrization, str):
            return PARAMETRIZATIONS[self.parametrization]
        if not issubclass(self.parametrization, Parametrization):
            raise TypeError(
                f"parametrization has to be one of {sorted(PARAMETRIZATIONS)} or a Parametrization class; "
                f"got {self.parametrization}"
            )
        return self.parametrization

    def _synthetic_set(self):
        # The copy that callbacks get returns the samples of the moment.
        return self._present_samples() if "_present_samples" in vars(self) else super()._synthetic_set()

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "_present_samples"}
