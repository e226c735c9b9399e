"""CLPDistiller: closed-form linear-probe dataset distillation."""

import os
from collections.abc import Callable
from contextlib import suppress
from numbers import Integral, Real

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from ._base import BaseDistiller
from ._core.augmentations import AUGMENTATIONS, Augmentation
from ._core.loop import State, distill, whole_features
from ._core.objectives import OBJECTIVES, inner_weights
from ._core.parametrizations import PARAMETRIZATIONS, Parametrization
from ._core.real_features import SAMPLINGS, RealFeatures, RealSet
from ._encoder import FrozenEncoder
from ._spaces import Space


class CLPDistiller(BaseDistiller):
    """Distil a labelled image set into a few synthetic images, for linear probes on a frozen encoder.

    CLP-DD: at each step the probe of the synthetic features is had in closed form, its columns are taken as class anchors, and
    the images are improved through it by the softmax cross-entropy of the real features. The real images pass the encoder once.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder or None, default="tf_efficientnet_lite0"
        What turns images into features; a name or a module stands for ``FrozenEncoder(encoder)``. ``None``: ``X`` holds
        features, and points of feature space are learned; the parameters of images below then have no part.
    images_per_class : int, default=1
        Synthetic images of each class.
    image_size : int, default=None
        Side of the synthetic images in pixels. ``None``: to which the encoder resizes, before its centre crop.
    objective : {"cross_entropy", "mse"} or callable, default="cross_entropy"
        Outer loss. A callable ``(Z, Y, R, r) -> scalar`` gets synthetic features ``(m·k, d)``, their one-hot labels, real
        features ``(B, d)`` and their class indices, as tensors, and is differentiated in ``Z``. On held-out real features it is
        called with those ``(m, d)`` of the images themselves.
    alpha : float, default=1.0
        Ridge strength of the inner problem, > 0, relative to the mean squared norm of the synthetic features.
    temperature : float, default=0.1
        Temperature of the softmax in the outer loss, > 0.
    parametrization : {"pyramid", "pixels"} or class, default="pyramid"
        What the optimiser moves: a sum of upsampled levels, coarse to fine, in a decorrelated colour space, or single pixels.
    augmentation : "dsa", DSA or None, default="dsa"
        Random views of the synthetic images in each step. ``None``: the image as the probe sees it.
    n_views : int, default=2
        Views of each synthetic image per step.
    progressive : bool, default=True
        Whether views pass the encoder at half their side while the pyramid has no level finer than a quarter of the image's
        pixels, where the encoder takes that (convolutional networks do) and is left with 48 px at least.
    init : {"noise", "real"}, default="noise"
        What the images start from: noise, or random real images of their class.
    learning_rate : float, default=0.1
        Adam's rate; constant over the first half of the run, then falling linearly to zero.
    max_iter : int, default=600
        Steps, at most.
    time_budget : float, default=None
        Seconds of the steps, at most; those of encoding the real images do not count. Learning rate and pyramid follow whichever
        of the two limits is nearer, so that a short run ends as a long one does.
    real_batch_size : int, default=4096
        Real samples in the outer loss of a step; all of them where there are no more.
    sampling : {"uniform", "balanced"}, default="uniform"
        Whether all real samples are equally likely to be in it, or all classes.
    encoder_batch_size : "auto" or int, default="auto"
        Views that pass the encoder together. Where a step has more they pass it twice: once for the features, once for their
        gradient, which is the same. ``"auto"``: as many as keep a quarter of a GiB for their gradient, by what one image is
        seen to keep; and of these chunks as many pass once as keep 640 MiB together. On a GPU both limits are a quarter of its
        memory.
    n_iter_no_change : int, default=None
        The run ends when the loss on held-out real features has not fallen by more than `tol` in so many steps.
    validation_fraction : float in (0, 1) or None, default=0.1
        Share of each class's real features, rounded down (10,000 in all, at most), that the images are not learned from. Every 20
        steps and at the end they are scored on them, and those with the least loss are kept. ``None``: the last ones are.
    tol : float, default=1e-4
        See `n_iter_no_change`.
    checkpoint : path, default=None
        A file that the run is written to, whole at any moment. A `fit` that finds the file of the same run (same data, same
        parameters) goes on from it; on the same CPU, with as many threads and no `time_budget`, to bit-identical images.
    checkpoint_every : float or int, default=60.0
        Between two writings: seconds if it is a float, steps if it is an integer.
    warm_start : bool, default=False
        Whether `fit` goes on from the images of the last one, with up to `max_iter` steps more, instead of starting anew.
    memory : str or joblib.Memory, default=None
        Cache of the real features, for an encoder given by name or as a module.
    device : str or torch.device, default="auto"
        Where to compute, for an encoder given by name or as a module; a `FrozenEncoder` brings its own.
    callback : callable, default=None
        Called as ``callback(distiller, record)`` with each record of `history_`; ``distiller.transform()`` gives the images of
        the moment. ``StopIteration`` ends the run. On a GPU records come in tens. scikit-learn's own callbacks are taken by
        `set_callbacks` where scikit-learn has them (1.9).
    random_state : int, RandomState instance or None, default=None
        Seed of the start, the views, the batches and what is held out.
    verbose : int, default=0
        Above 0: progress bars.

    Attributes
    ----------
    X_synthetic_ : ndarray of shape (n_classes * images_per_class, image_size, image_size, 3), float32
        Synthetic images in [0, 1], grouped by class; ``(n_classes * images_per_class, n_features)`` when ``encoder=None``.
    y_synthetic_ : ndarray of shape (n_classes * images_per_class,)
        Their labels.
    probe_ : ClosedFormProbe
        The probe of the synthetic set: the inner problem's solution, its temperature calibrated on the real training features.
    anchors_ : ndarray of shape (n_classes, n_features)
        Class anchors: unit vectors in feature space.
    encoder_ : FrozenEncoder or None
        The encoder used.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    alpha_, temperature_ : float
        The ridge strength and the temperature used.
    history_ : list of dict
        One record per step: ``step``, ``loss`` before it, ``seconds`` in the loop; every 20th, and the last, also ``val_loss``
        and ``val_accuracy`` on the held-out real features. ``pandas.DataFrame(history_)`` is a table.
    n_iter_ : int
        Steps done.
    encoder_batch_size_ : int
        Views that passed the encoder together, at most.
    n_features_in_ : int
        Number of features, when ``encoder=None``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        In `fit`, before any long work: parameters, images, labels or an encoder that cannot be used; a checkpoint of another
        run, with what differs.
    FloatingPointError
        In `fit`, when the loss is no longer finite.

    Warns
    -----
    UserWarning
        When Ctrl-C has ended the steps early.
    RuntimeWarning
        When a checkpoint could not be written.

    Notes
    -----
    Nothing that was computed is lost. Ctrl-C leaves a fitted estimator; so does an error in the middle of the steps, which is
    raised all the same: with the best images so far, by the loss on held-out features, or the last ones whose loss was finite.

    See Also
    --------
    ClosedFormProbe : The probe.
    FrozenEncoder : The encoder and its preprocessing.

    References
    ----------
    CLP-DD: *Closed-Form Linear-Probe Dataset Distillation for Pre-trained Vision Models*, arXiv 2605.07194; the image pyramid
    is that of LGM, arXiv 2511.16674, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd import CLPDistiller
    >>> X, y = load_iris(return_X_y=True)
    >>> distiller = CLPDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y)
    >>> distiller.transform().shape
    (3, 4)
    """

    _parameter_constraints = {
        "encoder": [str, nn.Module, FrozenEncoder, None],
        "images_per_class": [Interval(Integral, 1, None, closed="left")],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "objective": [StrOptions(set(OBJECTIVES)), callable],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "parametrization": [StrOptions(set(PARAMETRIZATIONS)), type],
        "augmentation": [StrOptions(set(AUGMENTATIONS)), Augmentation, None],
        "progressive": ["boolean"],
        "n_views": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"noise", "real"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "real_batch_size": [Interval(Integral, 1, None, closed="left")],
        "sampling": [StrOptions(set(SAMPLINGS))],
        "encoder_batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
        "tol": [Interval(Real, 0, None, closed="left")],
        "checkpoint": [str, os.PathLike, None],
        "checkpoint_every": [Interval(Real, 0, None, closed="neither")],
        "warm_start": ["boolean"],
        "callback": [callable, None],
        "memory": [str, joblib.Memory, None],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        images_per_class=1,
        image_size=None,
        objective="cross_entropy",
        alpha=1.0,
        temperature=0.1,
        parametrization="pyramid",
        augmentation="dsa",
        n_views=2,
        progressive=True,
        init="noise",
        learning_rate=0.1,
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
        self.objective = objective
        self.alpha = alpha
        self.temperature = temperature
        self.parametrization = parametrization
        self.augmentation = augmentation
        self.n_views = n_views
        self.progressive = progressive
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
        self.checkpoint_every = checkpoint_every
        self.warm_start = warm_start
        self.memory = memory
        self.device = device
        self.callback = callback
        self.random_state = random_state
        self.verbose = verbose

    def _check(self, classes, counts):
        self._parametrization_type()
        if self.init == "real" and counts.min() < self.images_per_class:
            labels = classes.tolist()
            few = [f"{labels[c]!r} ({counts[c]})" for c in np.flatnonzero(counts < self.images_per_class)[:10]]
            raise ValueError(
                f"init='real' starts {self.images_per_class} images per class from as many real ones, and these classes "
                f"have fewer: {', '.join(few)}. Give a smaller images_per_class or init='noise'"
            )

    def _learn(self, space, real, rng, start, run):
        self.alpha_, self.temperature_ = float(self.alpha), float(self.temperature)
        n_classes = len(self.classes_)
        y = np.repeat(np.arange(n_classes), self.images_per_class)
        noise, views, batches = (torch.Generator().manual_seed(int(seed)) for seed in rng.randint(2**31 - 1, size=3))
        parametrization = self._start(space, real, len(y), noise, start)
        augmentation, objective = self._augmentation(space), self._objective()
        n_views = self.n_views if augmentation.is_random else 1
        given = None if self.encoder_batch_size == "auto" else self.encoder_batch_size
        passes = space.passes(n_views * len(y), given)
        self.encoder_batch_size_ = passes.chunk_size
        labels = torch.from_numpy(y).to(space.device)
        dtype = parametrization.parameters[0].dtype
        R_train, r_train = real.training
        state = State(parametrization, views, batches)
        following = run(
            state=state,
            score=self._held_out_score(space, real, parametrization, labels, objective, passes.chunk_size),
            views_per_step=n_views * len(y),
            attributes=lambda: self._fitted(space, parametrization(), y, real),
        )
        steps = distill(
            state,
            labels,
            RealFeatures(R_train, r_train, self.real_batch_size, self.sampling, space.device, dtype),
            n_classes=n_classes,
            encode=space.encode,
            preprocessing=space.preprocessing_for if self.progressive else lambda detail: space.preprocessing,
            augmentation=augmentation,
            n_views=n_views,
            objective=objective,
            learning_rate=self.learning_rate,
            progress=following.progress,
            passes=passes,
        )
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
        self, space: Space, real: RealSet, parametrization: Parametrization, labels: Tensor, objective, chunk_size: int
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
            return torch.stack([objective(Z, Y, R, r), (predicted == r).to(dtype).mean()])

        return score

    def _objective(self):
        if isinstance(self.objective, str):
            return OBJECTIVES[self.objective](self.alpha_, self.temperature_)
        return self.objective

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
