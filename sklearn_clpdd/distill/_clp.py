"""CLPDistiller: closed-form linear-probe dataset distillation."""

import math
from numbers import Real

import numpy as np
import torch

from ..utils._arrays import evenly_spaced
from ..utils._sklearn_compat import Interval, StrOptions
from ._gradient import GradientDistiller, Temperatures
from ._objectives import OBJECTIVES, WithNeighbors, split_by_encoder, spread_of_neighbor_logits, spread_of_scores

# Real samples from which the temperatures are chosen, at most; and the smallest τ that is chosen, whose square is that of τ'.
_TEMPERATURE_ROWS = 20_000
_MIN_TEMPERATURE = 1e-3


class CLPDistiller(GradientDistiller):
    """Distil a labelled image set into a few synthetic images, for linear probes on a frozen encoder.

    CLP-DD: each step computes the probe of the synthetic features in closed form, and improves the images by the gradient of the
    softmax cross-entropy of its scores on real features. The real images pass through the encoder only once.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder, list of these or None, default="tf_efficientnet_lite0"
        Maps images to features; a name or a module stands for ``FrozenEncoder(encoder)``. With several encoders, the objective
        is averaged over them, and the probe uses the features of all of them. ``None``: ``X`` contains features, and synthetic
        feature vectors are learned, on a GPU if there is one; the image parameters below are ignored.
    images_per_class : int, dict or callable, default=1
        Synthetic images of each class; a dict has a number for each label, and a function of ``y`` returns such a dict. For a
        given total, see :func:`allocate_images`.
    image_size : int, default=None
        Side of the synthetic images in pixels. ``None``: the size to which the encoder resizes images before its centre crop.
    objective : {"probe_and_neighbors", "cross_entropy", "cosine_cross_entropy", "mse"} or callable, \
            default="probe_and_neighbors"
        Outer loss. ``"cross_entropy"``: softmax cross-entropy of the probe's scores, with its weights divided by the root mean
        square norm of their columns. ``"probe_and_neighbors"``: the same for random views; for unaugmented images, a quarter of
        it plus three quarters of the cross-entropy of a soft nearest-neighbour classifier, which makes each image typical of its
        class. ``"cosine_cross_entropy"``: cross-entropy of the cosines to the class anchors, as in the paper. ``"mse"``: squared
        error of the probe. A callable ``(Z, Y, R, r) -> scalar`` gets tensors: synthetic features ``(m·k, d)``, their targets
        (one-hot, or learned), real features ``(B, d)`` and their class indices. It is differentiated in ``Z``. It is called in
        each step for the random views and, if they have a weight, for the ``(m, d)`` features of the unaugmented images, and
        for the held-out real features.
    alpha : float, default=1.0
        Ridge strength of the inner problem, > 0, relative to the mean squared norm of the synthetic features.
    temperature : "auto" or float, default="auto"
        Temperature of the softmax of the probe's scores in the outer loss, > 0. ``"auto"``: the standard deviation of the
        cosines between real features and the anchors of the class means, about their mean over the classes, divided by the
        square root of the mean number of images per class. It affects neither the nearest-neighbour loss, nor ``"mse"``, nor a
        callable.
    learn_targets : bool, default=False
        Whether to learn the targets of the inner problem with the images, starting from one-hot labels. Learned `targets_` are
        real-valued and only suit closed-form probes; train other probes with `y_synthetic_`.
    parametrization : {"pyramid", "pixels"} or class, default="pyramid"
        What the optimiser moves: a sum of upsampled levels in a decorrelated colour space, or individual pixels. From noise, the
        levels are added one after another, from coarse to fine.
    augmentation : "dsa", Augmentation or None, default="dsa"
        Random views of the synthetic images. ``"dsa"`` stands for ``DSA()``, whose parameters also set the number of views and
        the weight of the unaugmented images; a grid reaches them, as ``augmentation__n_views``, if an object is passed.
        ``None``: unaugmented images only.
    init : {"noise", "real", "kmeans"}, default="kmeans"
        What the images start from: noise; random real images of the class, which must have enough of them; or the real images
        nearest to the k-means centres of the class, one cluster per synthetic image, repeated with some noise if there are too
        few. Held-out images are never used. Images that start from real ones may remain recognisable; use ``"noise"`` if that
        is unacceptable.
    learning_rate : float or LinearSchedule, default=0.05
        Learning rate of Adam, > 0. A number stands for ``LinearSchedule(number)``: the rate rises to that number over ten
        steps, and falls to zero over the second half of the run. A grid reaches the parameters of a schedule that is passed, as
        ``learning_rate__peak``.
    max_iter : int, default=600
        Maximum number of steps.
    time_budget : float, default=None
        Maximum time of the steps in seconds, excluding the encoding of the real images. The learning rate decays, and the
        pyramid grows, with the limit that is closer, so that short runs follow the same schedule as long ones.
    real_batch_size : int, default=4096
        Maximum number of real samples per step.
    sampling : {"auto", "uniform", "balanced"}, default="auto"
        ``"uniform"``: all real samples are equally likely to be in a batch. ``"balanced"``: all classes are. ``"auto"``:
        balanced if the largest class has more than twice as many samples as the smallest.
    encoder_batch_size : "auto" or int, default="auto"
        Maximum number of views per forward pass of the encoder. A step with more views runs the encoder twice: once for the
        features, once for their gradient; the result is the same. ``"auto"``: as many as fit into 256 MiB, by a measurement
        with one image, and at most 20 for each thread; chunks that fit into 640 MiB together run once. On a GPU, both limits
        are a quarter of its memory, and nothing else limits them.
    n_iter_no_change : int, default=None
        Stop when the held-out loss has not improved by more than `tol` for this many steps.
    validation_fraction : float in (0, 1) or None, default=0.1
        Fraction of the real samples of each class that is held out (rounded down; at most 10,000 samples in total). The images
        are scored on them at every 20th step and at the end, and those with the least loss are kept. ``None``: nothing is
        held out, and the last images are kept. The same happens if one of the `groups` in `fit` is too small.
    tol : float, default=1e-4
        See `n_iter_no_change`.
    checkpoint : path, Checkpoint or None, default=None
        File in which the run is saved once a minute, or at the interval of a :class:`Checkpoint`. A `fit` that finds a file of
        the same run (same data, parameters, and versions of torch, timm and this library) resumes it. On the same CPU, with the
        same number of threads and without `time_budget`, the images are then bit-identical to those of an uninterrupted run.
        Your own objective is identified by its code, or by its name if it is imported from a module; a string attribute
        ``fingerprint`` of the objective replaces both.
    warm_start : bool, default=False
        Whether `fit` continues from the images of the last fit, for up to `max_iter` further steps, instead of starting over.
    callback : callable, default=None
        Called as ``callback(distiller, record)`` after each step, with its record of `history_`. ``distiller`` is a copy with
        `n_iter_` and `history_`, whose ``transform()`` returns the current images; the distiller itself is fitted at the end. A
        ``StopIteration`` ends the run. On a GPU, it is called for ten steps at a time. scikit-learn's own callbacks are set by
        `set_callbacks` (scikit-learn 1.9 and later).
    distributed : bool, default=True
        Whether the processes of ``torch.distributed`` work on one fit, if this process is one of several that torchrun has
        started, or that have called ``init_process_group``. All have to call `fit` with the same data and parameters; each
        learns some of the images, encodes some of the real ones, and ends with the same fitted distiller. ``False``: each
        process fits on its own.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial images, the views, the batches and the held-out samples.
    verbose : int, default=0
        Above 0: show progress bars.

    Attributes
    ----------
    X_synthetic_ : ndarray of shape (n_synthetic, image_size, image_size, 3), float32
        Synthetic images in [0, 1], grouped by class; ``(n_synthetic, n_features)``, in the dtype of ``X``, if ``encoder=None``.
    y_synthetic_ : ndarray of shape (n_synthetic,)
        Their labels.
    targets_ : ndarray of shape (n_synthetic, n_classes)
        Targets of the probe: one-hot labels, or learned ones.
    probe_ : ClosedFormProbe
        Probe of the synthetic set: the solution of the inner problem, with a temperature calibrated on the real training
        features.
    anchors_ : ndarray of shape (n_classes, n_features)
        Class anchors: unit vectors in feature space.
    encoder_ : FrozenEncoder, list of FrozenEncoder or None
        The encoder or encoders.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    class_count_ : ndarray of shape (n_classes,), int64
        Real samples of each class.
    data_digest_ : str
        Digest of ``X`` and ``y``, the same on another machine with the same numpy and joblib. Arrays and PIL images are
        digested by their content, files by their names and sizes.
    alpha_, temperature_ : float
        Ridge strength and temperature that were used.
    neighbor_temperature_ : float or None
        Temperature τ' of the nearest-neighbour loss, in which a neighbour at distance ``d`` has the weight ``exp(-d² / 2τ')``:
        the standard deviation of half the squared distances between real features and class means, about their mean over the
        classes. With ``encoder=None``, features are first centred and scaled to a mean squared norm of 1. ``None`` for an
        objective without neighbours.
    history_ : list of dict
        One record per step: ``step``, ``loss`` before the step, ``seconds`` in the loop; every 20th record and the last one
        also have ``val_loss`` and ``val_accuracy`` on the held-out real features. Like ``loss``, they describe the images
        before the step. In the last record, they describe the images after the step, unless those before it were also scored, and
        scored better.
        ``pandas.DataFrame(history_)`` is a table.
    n_iter_ : int
        Number of steps.
    best_iter_ : int or None
        Index in `history_` of the record whose score is that of the final images, those with the least loss on the held-out
        real features. ``None`` if none were held out, and the last images were kept.
    val_loss_, val_accuracy_ : float or None
        Loss of the final images, and accuracy of their probe, on the held-out real features. All held-out samples count the
        same, unless batches are balanced (see `sampling`, and `groups` in `fit`): then all classes do, and all groups of a class.
    n_views_ : int
        Random views of each synthetic image per step; 1 if there is only the unaugmented one.
    encoder_batch_size_ : int
        Maximum number of views per forward pass.
    n_features_in_ : int
        Number of features, if ``encoder=None``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError
        In `fit`, before any long work, if parameters, images, labels or an encoder cannot be used, or a checkpoint belongs to
        another run. Image files that cannot be decoded are found while they are encoded, and are all named in one error.
    FloatingPointError
        In `fit`, if the loss is no longer finite.

    Warns
    -----
    UserWarning
        If Ctrl-C ended the run early.
    RuntimeWarning
        If a checkpoint could not be written.

    Notes
    -----
    Interrupted work is kept. After Ctrl-C, the estimator is fitted. After an error during the steps it is fitted, too,
    with the images of the least held-out loss, or the last ones with a finite loss, and the error is raised. An error before the
    first step leaves the estimator unchanged. All fitted attributes always belong to the same fit.

    See Also
    --------
    ClosedFormProbe : The probe.
    FrozenEncoder : The encoder and its preprocessing.
    DSA : The default augmentation.

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
        **GradientDistiller._parameter_constraints,
        "objective": [StrOptions(set(OBJECTIVES)), callable],
        "temperature": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "learn_targets": ["boolean"],
    }

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        images_per_class=1,
        image_size=None,
        objective="probe_and_neighbors",
        alpha=1.0,
        temperature="auto",
        learn_targets=False,
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
        super().__init__(
            encoder,
            images_per_class=images_per_class,
            image_size=image_size,
            alpha=alpha,
            parametrization=parametrization,
            augmentation=augmentation,
            init=init,
            learning_rate=learning_rate,
            max_iter=max_iter,
            time_budget=time_budget,
            real_batch_size=real_batch_size,
            sampling=sampling,
            encoder_batch_size=encoder_batch_size,
            n_iter_no_change=n_iter_no_change,
            validation_fraction=validation_fraction,
            tol=tol,
            checkpoint=checkpoint,
            warm_start=warm_start,
            callback=callback,
            distributed=distributed,
            random_state=random_state,
            verbose=verbose,
        )
        self.objective = objective
        self.temperature = temperature
        self.learn_targets = learn_targets

    def _learns_targets(self):
        return self.learn_targets

    def _advice(self):
        return (
            f"A larger alpha than {self.alpha} or a smaller learning_rate than {self.learning_rate} may help, and a larger "
            "temperature with a cross-entropy"
        )

    def _temperatures(self, data, real):
        rows = evenly_spaced(len(real.training), _TEMPERATURE_ROWS)

        def mean_over_encoders(spread, *parameters):
            R, r = torch.from_numpy(real.values[rows]).float(), torch.from_numpy(real.codes[rows])
            blocks = split_by_encoder(R, data.adapter.widths)
            return float(np.mean([spread(block, r, len(data.classes), *parameters) for block in blocks]))

        if self.temperature == "auto":
            # With more images per class, class boundaries can be finer, and the scores that matter are closer to them.
            mean_spread = mean_over_encoders(spread_of_scores, float(self.alpha))
            of_scores = max(mean_spread / math.sqrt(data.images_per_class.mean()), _MIN_TEMPERATURE)
        else:
            of_scores = float(self.temperature)
        objective = OBJECTIVES[self.objective] if isinstance(self.objective, str) else self.objective
        if not getattr(objective, "with_neighbors", False):
            return Temperatures(of_scores)
        return Temperatures(of_scores, max(mean_over_encoders(spread_of_neighbor_logits), _MIN_TEMPERATURE**2))

    def _temperature_attributes(self, temperatures):
        return {"temperature_": temperatures.scores, "neighbor_temperature_": temperatures.distances}

    def _objective(self, random, temperatures):
        if isinstance(self.objective, str):
            return OBJECTIVES[self.objective](float(self.alpha), temperatures.scores)
        return self.objective

    def _unaugmented_objective(self, objective, codes, temperatures):
        if temperatures.distances is None:
            return objective
        return WithNeighbors(objective, codes, temperatures.distances)
