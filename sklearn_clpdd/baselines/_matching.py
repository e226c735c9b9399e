"""Peers that learn synthetic images for other objectives."""

from ..distill._augmentations import LGM_DISTILLATION_VIEWS
from ..distill._gradient import GradientDistiller
from ..distill._objectives import FeatureMatching, GradientMatching
from ..distill._parametrizations import LGMPyramid
from ..distill._schedule import LinearSchedule

# Settings of LGM's released code (arXiv 2511.16674, commit 1d84ffd) that differ from the defaults: ``LGMDistiller(encoder,
# **LGM_PUBLISHED)``, with ``FrozenEncoder(l2_normalize=False)`` as `encoder`, and the number of views in a step as
# `real_batch_size`. Remaining differences: there, real images are seen in random views too (a random crop of 224 of 256 px, then
# the views of the synthetic images), Adam is reset when a level of the pyramid is added, all encoders get ImageNet's mean and
# standard deviation, and features are computed in mixed precision.
LGM_PUBLISHED = {
    "learning_rate": LinearSchedule(2e-3, warmup_steps=0, decay_fraction=0.0),
    "max_iter": 5000,
    "sampling": "uniform",
    "init": "noise",
    "parametrization": LGMPyramid,
    "augmentation": LGM_DISTILLATION_VIEWS,
    "validation_fraction": None,
}


class LGMDistiller(GradientDistiller):
    """Linear gradient matching (LGM): images whose features give a random linear head the gradient of the real ones.

    Each step draws a random linear head, and moves the images such that the gradient of its cross-entropy, in weights and bias,
    has the direction of that of the real features. This gradient is an explicit function of the features, so that no second
    derivatives are needed. Views, pyramid, loop and defaults are those of :class:`CLPDistiller`, and the real images pass
    through the encoder only once. `LGM_PUBLISHED` has the settings of the released code, in which batches are random views of
    random real images.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder, list of these or None, default="tf_efficientnet_lite0"
        Maps images to features; a name or a module stands for ``FrozenEncoder(encoder)``. With several encoders, the objective is
        averaged over them, and the probe uses the features of all of them. ``None``: ``X`` contains features, and points of
        feature space are learned; the parameters of images below are then ignored.
    images_per_class : int or dict, default=1
        Synthetic images of each class; a dict has a number for each label. For a given total, see :func:`allocate_images`.
    image_size : int, default=None
        Side of the synthetic images in pixels. ``None``: the size to which the encoder resizes images before its centre crop.
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
    parametrization : {"pyramid", "pixels"} or class, default="pyramid"
        What the optimiser moves: a sum of upsampled levels in a decorrelated colour space, or single pixels. From noise, the
        levels are added one after another, from coarse to fine.
    augmentation : "dsa", Augmentation or None, default="dsa"
        Random views of the synthetic images in each step. ``"dsa"`` stands for ``DSA()``, which also sets the number of views and
        the weight of the unaugmented images. ``None``: unaugmented images only.
    init : {"noise", "real", "kmeans"}, default="kmeans"
        What the images start from: noise; random real images of their class, of which there have to be enough; or those nearest
        to the k-means centres of the class, with as many clusters as images. If there are fewer real images, they are repeated
        with some noise. Held-out images are never used. Images that start from real ones may remain recognisable; where that
        must not happen, use noise.
    learning_rate : float or LinearSchedule, default=0.05
        Learning rate of Adam, > 0. A number stands for ``LinearSchedule(number)``: it is reached after ten steps and falls to
        zero over the second half of the run.
    max_iter : int, default=600
        Steps, at most.
    time_budget : float, default=None
        Seconds of the steps, at most, without those of encoding the real images. Learning rate and pyramid follow whichever of
        the two limits is closer, so that a short run has the same course as a long one.
    real_batch_size : int, default=4096
        Real samples in the outer loss of a step; all of them if there are not more.
    sampling : {"auto", "uniform", "balanced"}, default="auto"
        Whether a batch contains all real samples with equal probability, or all classes. ``"auto"``: all classes, if the largest
        class has more than twice as many samples as the smallest.
    encoder_batch_size : "auto" or int, default="auto"
        Views in one forward pass of the encoder. If a step has more, they pass twice: once for the features and once for their
        gradient, with the same result. ``"auto"``: as many as need a quarter of a GiB for their gradient, by the measured need of
        one image. As many chunks as need 640 MiB together pass only once. On a GPU, both limits are a quarter of its memory.
    n_iter_no_change : int, default=None
        The run ends when the loss on held-out real features has not fallen by more than `tol` in this many steps.
    validation_fraction : float in (0, 1) or None, default=0.1
        Fraction of the real features of each class (rounded down; 10,000 in total, at most) that images are not learned from. The
        images are scored on them at every 20th step and at the end, and those with the least loss are kept. ``None``: the last
        images are kept; the same happens with `groups` in `fit` if one of them is too small.
    tol : float, default=1e-4
        See `n_iter_no_change`.
    checkpoint : path, Checkpoint or None, default=None
        File in which the run is saved once a minute, or at the interval of a :class:`Checkpoint`. A `fit` that finds the file of
        the same run continues it: same data, parameters, and versions of torch, timm and this library. On the same CPU, with the
        same number of threads and without `time_budget`, the images are then bit-identical to those of an uninterrupted run.
    warm_start : bool, default=False
        Whether `fit` continues from the images of the last fit, with up to `max_iter` further steps, instead of starting over.
    callback : callable, default=None
        Called as ``callback(distiller, record)`` with each record of `history_` and a copy of the distiller, whose
        ``transform()`` returns the present images, and which has `n_iter_` and `history_`; the distiller itself is fitted at
        the end. A ``StopIteration`` ends the run. On a GPU, records come in groups of ten. scikit-learn's own callbacks are set
        by `set_callbacks` (scikit-learn 1.9 and later).
    random_state : int, RandomState instance or None, default=None
        Seed of start, views, batches and held-out samples.
    verbose : int, default=0
        Above 0: show progress bars.

    Attributes
    ----------
    X_synthetic_ : ndarray of shape (n_synthetic, image_size, image_size, 3), float32
        Synthetic images in [0, 1], grouped by class; ``(n_synthetic, n_features)`` if ``encoder=None``.
    y_synthetic_ : ndarray of shape (n_synthetic,)
        Their labels.
    targets_ : ndarray of shape (n_synthetic, n_classes)
        Targets of the probe: one-hot labels.
    probe_ : ClosedFormProbe
        Probe of the synthetic set, with a temperature calibrated on the real training features.
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
    alpha_ : float
        Ridge strength that was used.
    history_ : list of dict
        One record per step: ``step``, ``loss`` before the step, ``seconds`` in the loop; every 20th record and the last one also
        have ``val_loss`` and ``val_accuracy`` on the held-out real features. Like the loss, they belong to the images before the
        step, except in the last record: there they belong to the final images, unless those before the step were scored and were
        better. ``pandas.DataFrame(history_)`` is a table.
    n_iter_ : int
        Number of steps.
    best_iter_ : int or None
        Step, and position in `history_`, of the record with the score of the final images, which are those with the least loss on
        the held-out real features. ``None`` if none were held out, and the last images were kept.
    val_loss_, val_accuracy_ : float or None
        Loss of the final images, and accuracy of their probe, on the held-out real features. The accuracy is the mean over all of
        them. If the loss balances classes or groups (see `sampling`), all classes have equal weights in it, and all groups of a
        class.
    n_views_ : int
        Random views of each synthetic image per step.
    encoder_batch_size_ : int
        Views in one forward pass, at most.
    n_features_in_ : int
        Number of features, if ``encoder=None``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError, FloatingPointError
        As :class:`CLPDistiller`.

    See Also
    --------
    CLPDistiller : Uses the probe in closed form instead of one step of a random head.
    DMDistiller : Matches class means instead of gradients.

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


class DMDistiller(GradientDistiller):
    """Feature-mean matching (DM): images whose mean features in each class are those of the real ones.

    Views, pyramid and loop are those of :class:`CLPDistiller`.

    Parameters
    ----------
    encoder : str, torch.nn.Module, FrozenEncoder, list of these or None, default="tf_efficientnet_lite0"
        Maps images to features; a name or a module stands for ``FrozenEncoder(encoder)``. With several encoders, the objective is
        averaged over them, and the probe uses the features of all of them. ``None``: ``X`` contains features, and points of
        feature space are learned; the parameters of images below are then ignored.
    images_per_class : int or dict, default=1
        Synthetic images of each class; a dict has a number for each label. For a given total, see :func:`allocate_images`.
    image_size : int, default=None
        Side of the synthetic images in pixels. ``None``: the size to which the encoder resizes images before its centre crop.
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
    parametrization : {"pyramid", "pixels"} or class, default="pyramid"
        What the optimiser moves: a sum of upsampled levels in a decorrelated colour space, or single pixels. From noise, the
        levels are added one after another, from coarse to fine.
    augmentation : "dsa", Augmentation or None, default="dsa"
        Random views of the synthetic images in each step. ``"dsa"`` stands for ``DSA()``, which also sets the number of views and
        the weight of the unaugmented images. ``None``: unaugmented images only.
    init : {"noise", "real", "kmeans"}, default="kmeans"
        What the images start from: noise; random real images of their class, of which there have to be enough; or those nearest
        to the k-means centres of the class, with as many clusters as images. If there are fewer real images, they are repeated
        with some noise. Held-out images are never used. Images that start from real ones may remain recognisable; where that
        must not happen, use noise.
    learning_rate : float or LinearSchedule, default=0.05
        Learning rate of Adam, > 0. A number stands for ``LinearSchedule(number)``: it is reached after ten steps and falls to
        zero over the second half of the run.
    max_iter : int, default=600
        Steps, at most.
    time_budget : float, default=None
        Seconds of the steps, at most, without those of encoding the real images. Learning rate and pyramid follow whichever of
        the two limits is closer, so that a short run has the same course as a long one.
    real_batch_size : int, default=4096
        Real samples in the outer loss of a step; all of them if there are not more.
    sampling : {"auto", "uniform", "balanced"}, default="auto"
        Whether a batch contains all real samples with equal probability, or all classes. ``"auto"``: all classes, if the largest
        class has more than twice as many samples as the smallest.
    encoder_batch_size : "auto" or int, default="auto"
        Views in one forward pass of the encoder. If a step has more, they pass twice: once for the features and once for their
        gradient, with the same result. ``"auto"``: as many as need a quarter of a GiB for their gradient, by the measured need of
        one image. As many chunks as need 640 MiB together pass only once. On a GPU, both limits are a quarter of its memory.
    n_iter_no_change : int, default=None
        The run ends when the loss on held-out real features has not fallen by more than `tol` in this many steps.
    validation_fraction : float in (0, 1) or None, default=0.1
        Fraction of the real features of each class (rounded down; 10,000 in total, at most) that images are not learned from. The
        images are scored on them at every 20th step and at the end, and those with the least loss are kept. ``None``: the last
        images are kept; the same happens with `groups` in `fit` if one of them is too small.
    tol : float, default=1e-4
        See `n_iter_no_change`.
    checkpoint : path, Checkpoint or None, default=None
        File in which the run is saved once a minute, or at the interval of a :class:`Checkpoint`. A `fit` that finds the file of
        the same run continues it: same data, parameters, and versions of torch, timm and this library. On the same CPU, with the
        same number of threads and without `time_budget`, the images are then bit-identical to those of an uninterrupted run.
    warm_start : bool, default=False
        Whether `fit` continues from the images of the last fit, with up to `max_iter` further steps, instead of starting over.
    callback : callable, default=None
        Called as ``callback(distiller, record)`` with each record of `history_` and a copy of the distiller, whose
        ``transform()`` returns the present images, and which has `n_iter_` and `history_`; the distiller itself is fitted at
        the end. A ``StopIteration`` ends the run. On a GPU, records come in groups of ten. scikit-learn's own callbacks are set
        by `set_callbacks` (scikit-learn 1.9 and later).
    random_state : int, RandomState instance or None, default=None
        Seed of start, views, batches and held-out samples.
    verbose : int, default=0
        Above 0: show progress bars.

    Attributes
    ----------
    X_synthetic_ : ndarray of shape (n_synthetic, image_size, image_size, 3), float32
        Synthetic images in [0, 1], grouped by class; ``(n_synthetic, n_features)`` if ``encoder=None``.
    y_synthetic_ : ndarray of shape (n_synthetic,)
        Their labels.
    targets_ : ndarray of shape (n_synthetic, n_classes)
        Targets of the probe: one-hot labels.
    probe_ : ClosedFormProbe
        Probe of the synthetic set, with a temperature calibrated on the real training features.
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
    alpha_ : float
        Ridge strength that was used.
    history_ : list of dict
        One record per step: ``step``, ``loss`` before the step, ``seconds`` in the loop; every 20th record and the last one also
        have ``val_loss`` and ``val_accuracy`` on the held-out real features. Like the loss, they belong to the images before the
        step, except in the last record: there they belong to the final images, unless those before the step were scored and were
        better. ``pandas.DataFrame(history_)`` is a table.
    n_iter_ : int
        Number of steps.
    best_iter_ : int or None
        Step, and position in `history_`, of the record with the score of the final images, which are those with the least loss on
        the held-out real features. ``None`` if none were held out, and the last images were kept.
    val_loss_, val_accuracy_ : float or None
        Loss of the final images, and accuracy of their probe, on the held-out real features. The accuracy is the mean over all of
        them. If the loss balances classes or groups (see `sampling`), all classes have equal weights in it, and all groups of a
        class.
    n_views_ : int
        Random views of each synthetic image per step.
    encoder_batch_size_ : int
        Views in one forward pass, at most.
    n_features_in_ : int
        Number of features, if ``encoder=None``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, OSError, FloatingPointError
        As :class:`CLPDistiller`.

    See Also
    --------
    LGMDistiller : Matches gradients of a linear head instead of class means.

    References
    ----------
    *Dataset Condensation with Distribution Matching*, arXiv 2110.04181, equation 5, with one pre-trained encoder instead of many
    random ones.

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
