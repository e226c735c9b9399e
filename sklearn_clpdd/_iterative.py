"""IterativeDistiller: synthetic samples found step by step, by the gradient of an objective."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from numbers import Integral, Real

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ._base import BaseDistiller
from ._core.augmentations import AUGMENTATIONS, Augmentation
from ._core.loop import Objective, State, distill, whole_features
from ._core.objectives import inner_weights
from ._core.parametrizations import PARAMETRIZATIONS, Parametrization
from ._core.real_features import SAMPLINGS, RealFeatures, RealSet, shuffled
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


class IterativeDistiller(CallbackSupportMixin, BaseDistiller):
    """Move synthetic samples step by step along the gradient of an objective.

    A subclass fills `_objective`. The parameters are documented at :class:`CLPDistiller`.
    """

    _parameter_constraints = {
        **BaseDistiller._parameter_constraints,
        "parametrization": [StrOptions(set(PARAMETRIZATIONS)), type],
        "augmentation": [StrOptions(set(AUGMENTATIONS)), Augmentation, None],
        "progressive": ["boolean"],
        "n_views": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"noise", "real"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "decay": [Interval(Real, 0, 1, closed="both")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "real_batch_size": [Interval(Integral, 1, None, closed="left")],
        "sampling": [StrOptions(set(SAMPLINGS))],
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
        image_size=None,
        alpha=1.0,
        parametrization="pyramid",
        augmentation="dsa",
        n_views=2,
        progressive=True,
        init="noise",
        learning_rate=0.1,
        decay=0.5,
        max_iter=600,
        time_budget=None,
        real_batch_size=4096,
        sampling="uniform",
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
        self.image_size = image_size
        self.alpha = alpha
        self.parametrization = parametrization
        self.augmentation = augmentation
        self.n_views = n_views
        self.progressive = progressive
        self.init = init
        self.learning_rate = learning_rate
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
    def _objective(self, random: torch.Generator) -> Objective:
        """Outer loss of the run; ``random`` gives the random numbers that it may draw in each step."""

    fit = with_callbacks(BaseDistiller.fit)

    def _find(self, task):
        space, classes, codes = task.space, task.classes, task.codes
        if self.warm_start and self.checkpoint is not None:
            raise ValueError("warm_start=True goes on from the last fit and checkpoint= from a file; give one of the two")
        y = np.repeat(np.arange(len(classes)), self.images_per_class)
        start = self._warm_start_from(classes, (len(y), *space.sample_shape))
        augmentation = self._augmentation(space)
        n_views = self.n_views if augmentation.is_random else 1
        given = None if self.encoder_batch_size == "auto" else self.encoder_batch_size
        passes = space.passes(n_views * len(y), given)
        digest = joblib.hash(np.ascontiguousarray(task.y))
        checkpoint = None if self.checkpoint is None else Checkpoint(self, {**space.identity(), "y": digest})
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if checkpoint is not None and checkpoint.info:
            seed = checkpoint.info["seed"]
        rng = np.random.RandomState(seed)
        if hasattr(self, "_init_callback_context"):
            self._init_callback_context(max_subtasks=self.max_iter).call_on_fit_task_begin(estimator=self, X=task.X, y=task.y)
        order, n_held_out = shuffled(codes, self.validation_fraction, rng)
        if self.n_iter_no_change is not None and not n_held_out:
            raise ValueError(
                f"n_iter_no_change={self.n_iter_no_change} needs held-out real samples, and validation_fraction="
                f"{self.validation_fraction} of classes of at most {np.bincount(codes).max()} samples is none; give more"
            )
        real = self._encode(task, order, n_held_out)
        if start is None:
            self.history_, self.n_iter_ = [], 0
        self.encoder_batch_size_ = passes.chunk_size

        noise, *streams = (torch.Generator().manual_seed(int(seed)) for seed in rng.randint(2**31 - 1, size=4))
        random = dict(zip(("views", "batches", "objective"), streams, strict=True))
        parametrization = self._start(space, real, len(y), noise, start)
        state = State(parametrization, random)
        labels = torch.from_numpy(y).to(space.device)
        following = Run(
            self,
            state,
            score=self._held_out_score(space, real, parametrization, labels, passes.chunk_size),
            checkpoint=checkpoint,
            seed=seed,
            views_per_step=n_views * len(y),
            data={"X": task.X, "y": task.y},
            attributes=lambda: self._fitted(space, parametrization(), y, real),
        )
        dtype = parametrization.parameters[0].dtype
        steps = distill(
            state,
            labels,
            RealFeatures(*real.training, self.real_batch_size, self.sampling, space.device, dtype),
            n_classes=len(classes),
            encode=space.encode,
            preprocessing=space.preprocessing_for if self.progressive else lambda detail: space.preprocessing,
            augmentation=augmentation,
            n_views=n_views,
            objective=self._objective(random["objective"]),
            learning_rate=self.learning_rate,
            decay=self.decay,
            progress=following.progress,
            passes=passes,
        )
        self._learn(following, steps, space, parametrization, y, real)
        if hasattr(self, "_callback_fit_ctx"):
            self._callback_fit_ctx.call_on_fit_task_end(estimator=self, X=task.X, y=task.y)

    def _learn(
        self,
        following: Run,
        steps: Iterator[Tensor],
        space: Space,
        parametrization: Parametrization,
        y: np.ndarray,
        real: RealSet,
    ) -> None:
        """Make the steps and become fitted, whatever ends them."""
        self._present = lambda: space.to_user(parametrization().detach())
        try:
            following.follow(steps)
        except BaseException:
            if self.n_iter_:  # nothing computed so far is lost
                with suppress(Exception):
                    self.__dict__.update(self._fitted(space, parametrization(), y, real))
            raise
        finally:
            del self._present
        with torch.no_grad():
            samples = parametrization()
        try:
            fitted = self._fitted(space, samples, y, real)
        except KeyboardInterrupt:  # the images are worth the second that this takes
            fitted = self._fitted(space, samples, y, real)
        self.__dict__.update(fitted)

    def _warm_start_from(self, classes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """Synthetic samples of the last fit, where they are to be gone on with."""
        if not (self.warm_start and hasattr(self, "probe_")):
            return None
        if np.array_equal(classes, self.classes_) and self.X_synthetic_.shape == shape:
            return self.X_synthetic_
        raise ValueError(
            f"warm_start=True goes on with synthetic samples of shape {self.X_synthetic_.shape} and classes "
            f"{self.classes_.tolist()[:10]}; data and parameters now ask for {shape} and {classes.tolist()[:10]}. "
            "Give the same, or warm_start=False"
        )

    def _check(self, classes, counts):
        self._parametrization_type()
        if self.init == "real":
            self._check_enough(classes, counts, "init='real'")

    def _start(self, space: Space, real: RealSet, m: int, noise: torch.Generator, start: np.ndarray | None) -> Parametrization:
        """θ at the beginning: of noise, of real samples, or of those that are to be gone on with."""
        parametrization = space.start(self._parametrization_type(), m, noise)
        if start is not None:
            parametrization.set(space.from_user(start))
        elif self.init == "real":
            # In random order, held-out samples last.
            rows = [real.order[real.codes == c][: self.images_per_class] for c in range(len(self.classes_))]
            parametrization.set(space.read(np.concatenate(rows)))
        return parametrization

    def _held_out_score(
        self, space: Space, real: RealSet, parametrization: Parametrization, labels: Tensor, chunk_size: int
    ) -> Callable[[], Tensor] | None:
        """What gives loss and accuracy of the present samples on the held-out features, where there are some."""
        if not real.n_held_out:
            return None
        dtype = parametrization.parameters[0].dtype
        R, r = (torch.from_numpy(values).to(space.device) for values in real.held_out)
        R, Y = R.to(dtype), F.one_hot(labels, len(self.classes_)).to(dtype)

        @torch.no_grad()
        def score() -> Tensor:
            Z = whole_features(parametrization, len(labels), space.encode, space.preprocessing, chunk_size)
            predicted = (R @ inner_weights(Z, Y, self.alpha_)).argmax(dim=1)
            objective = self._objective(torch.Generator().manual_seed(0))  # the same at each score
            return torch.stack([objective(Z, Y, R, r), (predicted == r).to(dtype).mean()])

        return score

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
