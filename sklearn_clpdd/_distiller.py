"""CLPDistiller: closed-form linear-probe dataset distillation."""

import math
from numbers import Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from ._core.objectives import OBJECTIVES, WithNeighbors, spread_of_proximities, spread_of_scores
from ._iterative import IterativeDistiller, Temperatures

# Real samples by which the temperatures are chosen, at most; and the least that is chosen.
_SPREAD_ROWS = 20_000
_LEAST_TEMPERATURE = 1e-3


class CLPDistiller(IterativeDistiller):
    """Distil a labelled image set into a few synthetic images, for linear probes on a frozen encoder.

    CLP-DD: at each step the probe of the synthetic features is had in closed form, and the images are improved through it by the
    softmax cross-entropy of its scores of the real features. The real images pass the encoder once.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder, list of these or None, default="tf_efficientnet_lite0"
        What turns images into features; a name or a module stands for ``FrozenEncoder(encoder)``. Several: the objective is the
        mean over them, and the probe has the features of all of them. ``None``: ``X`` holds features, and points of feature
        space are learned; the parameters of images below then have no part.
    images_per_class : int or dict, default=1
        Synthetic images of each class; a dict has a number for each label.
    n_synthetic : int, default=None
        Synthetic images in all, instead of `images_per_class`: at least one of each class, and else as equal as can be; what is
        left over goes to the largest classes. None has more than its real images while another could take them.
    image_size : int, default=None
        Side of the synthetic images in pixels. ``None``: to which the encoder resizes, before its centre crop.
    objective : {"probe_and_neighbors", "cross_entropy", "cosine_cross_entropy", "mse"} or callable, default="probe_and_neighbors"
        Outer loss. ``"cross_entropy"``: the softmax cross-entropy of the probe's scores, in units of the root mean square norm of
        its columns. ``"probe_and_neighbors"``: the same for random views; for whole images a quarter of it, and three quarters
        of the cross-entropy of a soft nearest-neighbour classifier, so that each image stands for its class by itself, too.
        ``"cosine_cross_entropy"``: that of the cosines to the anchors, which is the paper's. ``"mse"``: the squared error of the
        probe. A callable ``(Z, Y, R, r) -> scalar`` gets synthetic features ``(m·k, d)``, their targets (one-hot labels), real
        features ``(B, d)`` and their class indices, as tensors, and is differentiated in ``Z``: in each step those of the random
        views, and those ``(m, d)`` of the whole images; on held-out real features the latter.
    alpha : float, default=1.0
        Ridge strength of the inner problem, > 0, relative to the mean squared norm of the synthetic features.
    temperature : "auto" or float, default="auto"
        Temperature of the softmax of the probe's scores in the outer loss, > 0. ``"auto"``: as far as the scores of the classes
        lie apart, which is a property of encoder and data: the standard deviation of the cosines between real features and the
        anchors of the class means, about their mean over the classes; over the square root of the images per class, on average.
        It has no part in the neighbours' loss.
    learn_labels : bool, default=False
        Whether the targets of the inner problem are learned with the images, from one-hot ones: real numbers, `targets_`, for
        probes in closed form. Other probes are to be trained with `y_synthetic_`.
    parametrization : {"pyramid", "pixels"} or class, default="pyramid"
        What the optimiser moves: a sum of upsampled levels, in a decorrelated colour space, or single pixels. From noise, the
        levels join one after the other, coarse to fine.
    augmentation : "dsa", DSA or None, default="dsa"
        Random views of the synthetic images in each step. ``None``: the image as the probe sees it.
    n_views : "auto" or int, default="auto"
        Random views of each synthetic image per step. ``"auto"``: as many as make 20 in all, at least one and eight at most.
    whole_weight : float in [0, 1), default=0.5
        Weight of the loss of the whole images, as a probe sees them, beside that of their random views. 0: random views only, and
        no neighbours.
    progressive : bool, default=True
        Whether views pass the encoder at half their side while the pyramid has no level finer than a quarter of the image's
        pixels, which it does only from noise; where the encoder takes that (convolutional networks do) and is left with 48 px.
    init : {"noise", "real", "centroid"}, default="centroid"
        What the images start from: noise, random real images of their class, as many of which there have to be, or those nearest
        to the means of the class's clusters (k-means, as many as there are images; where there are fewer real ones, these again,
        with some noise). Held-out images are no start. Images that start from real ones can still be told to come from them:
        where that must not be, take noise.
    learning_rate : float, default=0.05
        Adam's rate, > 0.
    warm_up : int, default=10
        Steps, the first of each `fit`, over which the rate rises linearly, while Adam knows little of the gradients. 0: none.
    decay : float in [0, 1], default=0.5
        Share of the run, its last, over which the rate falls linearly to zero. 0: it is constant.
    max_iter : int, default=600
        Steps, at most.
    time_budget : float, default=None
        Seconds of the steps, at most; those of encoding the real images do not count. Learning rate and pyramid follow whichever
        of the two limits is nearer, so that a short run ends as a long one does.
    real_batch_size : int, default=4096
        Real samples in the outer loss of a step; all of them where there are no more.
    sampling : {"auto", "uniform", "balanced"}, default="auto"
        Whether all real samples are equally likely to be in it, or all classes. ``"auto"``: classes, where the largest has more
        than twice as many samples as the smallest.
    encoder_batch_size : "auto" or int, default="auto"
        Views that pass the encoder together. Where a step has more they pass it twice: once for the features, once for their
        gradient, which is the same. ``"auto"``: as many as keep a quarter of a GiB for their gradient, by what one image is
        seen to keep; and of these chunks as many pass once as keep 640 MiB together. On a GPU both limits are a quarter of its
        memory.
    n_iter_no_change : int, default=None
        The run ends when the loss on held-out real features has not fallen by more than `tol` in so many steps.
    validation_fraction : float in (0, 1) or None, default=0.1
        Share of each class's real features, rounded down (10,000 in all, at most), that the images are not learned from. Every 20
        steps and at the end they are scored on them, and those with the least loss are kept. ``None``: the last ones are; so they
        are with `groups` in `fit` of which one is too small.
    tol : float, default=1e-4
        See `n_iter_no_change`.
    checkpoint : path, default=None
        A file that the run is written to, whole at any moment. A `fit` that finds the file of the same run (same data,
        parameters and versions of torch, timm and this library; an objective of your own counts by its code and by the values
        that it reads) goes on from it; on the same CPU, with as many threads and no `time_budget`, to bit-identical images.
    checkpoint_every : float or int, default=60.0
        Between two writings: seconds if it is a float, steps if it is an integer.
    warm_start : bool, default=False
        Whether `fit` goes on from the images of the last one, with up to `max_iter` steps more, instead of starting anew.
    memory : str, path or joblib.Memory, default=None
        Cache of the real features, for an encoder given by name or as a module.
    device : str or torch.device, default="auto"
        Where to compute, for an encoder given by name or as a module; a `FrozenEncoder` brings its own.
    callback : callable, default=None
        Called as ``callback(distiller, record)`` with each record of `history_` and a copy of the distiller, which itself is
        fitted at the end only: the copy's ``transform()`` gives the images of the moment, `n_iter_` and `history_` how far it
        is. ``StopIteration`` ends the run. On a GPU records come in tens. scikit-learn's own callbacks are taken by
        `set_callbacks` where scikit-learn has them (1.9).
    random_state : int, RandomState instance or None, default=None
        Seed of the start, the views, the batches and what is held out.
    verbose : int, default=0
        Above 0: progress bars.

    Attributes
    ----------
    X_synthetic_ : ndarray of shape (n_synthetic, image_size, image_size, 3), float32
        Synthetic images in [0, 1], grouped by class; ``(n_synthetic, n_features)`` when ``encoder=None``.
    y_synthetic_ : ndarray of shape (n_synthetic,)
        Their labels.
    targets_ : ndarray of shape (n_synthetic, n_classes)
        What the probe is fitted to: one-hot labels, or learned ones.
    probe_ : ClosedFormProbe
        The probe of the synthetic set: the inner problem's solution, its temperature calibrated on the real training features.
    anchors_ : ndarray of shape (n_classes, n_features)
        Class anchors: unit vectors in feature space.
    encoder_ : FrozenEncoder, list of FrozenEncoder or None
        The encoder used, or encoders.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    class_count_ : ndarray of shape (n_classes,), int64
        Real samples of each class.
    data_digest_ : str
        Digest of ``X`` and ``y``, the same on another machine with the same numpy and joblib: of arrays and PIL images by their
        content, of files by their names and sizes.
    alpha_, temperature_ : float
        The ridge strength and the temperature used.
    neighbor_temperature_ : float or None
        The temperature τ' of ``exp(-d² / 2τ')`` in the loss of the neighbours, for a distance ``d`` of features, centred and
        scaled to a mean squared norm of 1 when ``encoder=None``: the standard deviation of half the squared distances between
        real features and class means, about their mean over the classes. ``None`` for an objective without neighbours.
    history_ : list of dict
        One record per step: ``step``, ``loss`` before it, ``seconds`` in the loop; every 20th, and the last, also ``val_loss``
        and ``val_accuracy`` on the held-out real features, as the loss of the images before the step. Those of the last record
        are of the images after it, unless the images before it were scored, too, and did better.
        ``pandas.DataFrame(history_)`` is a table.
    n_iter_ : int
        Steps done.
    best_iter_ : int or None
        Step, and position in `history_`, of the record that has the score of the images that are kept: those with the least loss
        on the held-out real features. ``None`` where none are held out, and the last images are kept.
    val_loss_, val_accuracy_ : float or None
        That score: loss of the images that are kept, and accuracy of their probe, on the held-out real features. The accuracy is
        the mean over all of them; where the loss balances classes or groups (see `sampling`), each class has the same weight in
        it, and each group in its class.
    n_views_ : int
        Random views of each synthetic image per step.
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
    An error before the first step is made leaves the estimator as it was. All fitted attributes are of one fit, always.

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
        **IterativeDistiller._parameter_constraints,
        "objective": [StrOptions(set(OBJECTIVES)), callable],
        "temperature": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "learn_labels": ["boolean"],
    }

    def __init__(
        self,
        encoder="tf_efficientnet_lite0",
        *,
        images_per_class=1,
        n_synthetic=None,
        image_size=None,
        objective="probe_and_neighbors",
        alpha=1.0,
        temperature="auto",
        learn_labels=False,
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
        super().__init__(
            encoder,
            images_per_class=images_per_class,
            n_synthetic=n_synthetic,
            image_size=image_size,
            alpha=alpha,
            parametrization=parametrization,
            augmentation=augmentation,
            n_views=n_views,
            whole_weight=whole_weight,
            progressive=progressive,
            init=init,
            learning_rate=learning_rate,
            warm_up=warm_up,
            decay=decay,
            max_iter=max_iter,
            time_budget=time_budget,
            real_batch_size=real_batch_size,
            sampling=sampling,
            encoder_batch_size=encoder_batch_size,
            n_iter_no_change=n_iter_no_change,
            validation_fraction=validation_fraction,
            tol=tol,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            warm_start=warm_start,
            memory=memory,
            device=device,
            callback=callback,
            random_state=random_state,
            verbose=verbose,
        )
        self.objective = objective
        self.temperature = temperature
        self.learn_labels = learn_labels

    def _learns_targets(self):
        return self.learn_labels

    def _temperatures(self, task, real):
        rows = np.unique(np.linspace(0, len(real.R) - real.n_held_out - 1, _SPREAD_ROWS).astype(int))

        def mean_over_encoders(spread, *parameters):
            R, r = torch.from_numpy(real.R[rows]).float(), torch.from_numpy(real.codes[rows])
            blocks = (math.sqrt(len(task.space.widths)) * R).split(task.space.widths, dim=1)
            return float(np.mean([spread(block, r, len(task.classes), *parameters) for block in blocks]))

        if self.temperature == "auto":
            # The more images a class has, the finer its boundary can be, and the nearer to it are the scores that matter.
            apart = mean_over_encoders(spread_of_scores, float(self.alpha)) / math.sqrt(task.budget.mean())
            of_scores = max(apart, _LEAST_TEMPERATURE)
        else:
            of_scores = float(self.temperature)
        objective = OBJECTIVES[self.objective] if isinstance(self.objective, str) else self.objective
        if not getattr(objective, "with_neighbors", False):
            return Temperatures(of_scores)
        return Temperatures(of_scores, max(mean_over_encoders(spread_of_proximities), _LEAST_TEMPERATURE**2))

    def _temperature_attributes(self, temperatures):
        return {"temperature_": temperatures.of_scores, "neighbor_temperature_": temperatures.of_distances}

    def _objective(self, random, temperatures):
        if isinstance(self.objective, str):
            return OBJECTIVES[self.objective](float(self.alpha), temperatures.of_scores)
        return self.objective

    def _whole_objective(self, objective, classes, temperatures):
        if temperatures.of_distances is None:
            return objective
        return WithNeighbors(objective, classes, temperatures.of_distances)
