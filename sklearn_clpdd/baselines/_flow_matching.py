"""Statistical flow matching, a peer that learns images for the differences of class means."""

import torch.nn.functional as F
from torch import Tensor

from ..distill._gradient import GradientDistiller
from ..distill._objectives import class_means
from ._matching import LGM_PUBLISHED, Settings

SFM_PUBLISHED = Settings(
    **{
        **LGM_PUBLISHED,
        "augmentation": LGM_PUBLISHED["augmentation"].set_params(n_views=1),
        "real_batch_size": 10**9,
    }
)
SFM_PUBLISHED.__doc__ = """Settings of SFM's released code (arXiv 2602.05391, commit cb0746a) that differ from the defaults.

They are those of LGM's, with one view of each image in a step. Use them as
``SFMDistiller(FrozenEncoder(l2_normalize=False), **SFM_PUBLISHED)``. Differences that remain are those of `LGM_PUBLISHED`, except
that real images have no views in that code either.
"""


class FlowMatching:
    """Cosine distance between the class flows of synthetic and of real features (SFM, arXiv 2602.05391).

    The flow of a class is the mean of the other classes' mean features minus its own. Classes without a real feature in the
    batch are ignored.
    """

    def __call__(self, Z: Tensor, Y: Tensor, R: Tensor, r: Tensor) -> Tensor:
        Yr = F.one_hot(r, Y.shape[1]).to(R)
        present = (Yr.sum(0) > 0).to(Z)[:, None]
        synthetic, real = (_flows(class_means(*given), present) for given in ((Z, Y), (R, Yr)))
        return 1 - F.cosine_similarity(synthetic.flatten(), real.flatten(), dim=0)


def _flows(means: Tensor, present: Tensor) -> Tensor:
    """Flows ``(C, d)`` between those of the class means ``(C, d)`` that are present, ``(C, 1)``; zero for the others."""
    means = means * present
    others = (means.sum(0) - means) / (present.sum() - 1).clamp_min(1)
    return (others - means) * present


class SFMDistiller(GradientDistiller):
    """Statistical flow matching (SFM): images whose class means lie to one another as those of the real images do.

    The flow of a class leads from its mean feature to the mean of those of all other classes. The images are moved such that
    their flows, together, have the direction of those of the real images; the lengths of the features do not matter. Views,
    pyramid, loop and defaults are those of :class:`CLPDistiller`; as published, a step sees one random view of each image:
    ``SFMDistiller(FrozenEncoder(l2_normalize=False), **SFM_PUBLISHED)``.

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
    alpha : float, default=1.0
        Ridge strength of the probe, > 0, relative to the mean squared norm of its training features.
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
    ValueError, TypeError, FileNotFoundError, OSError, FloatingPointError
        As :class:`CLPDistiller`.

    See Also
    --------
    DMDistiller : Matches the class means themselves.
    LGMDistiller : Matches gradients of a linear head; with equal weights of all classes, they are flows.

    References
    ----------
    *Efficient Dataset Distillation for Pre-Trained Self-Supervised Models via Statistical Flow Matching*, arXiv 2602.05391;
    released code einsteinxia/SFM, commit cb0746a, ``distillation/linear_gm.py``, method ``"sfm"``. There, the sum of the other
    classes' means is divided by the number of synthetic images minus one, which is that of the classes only with one image per
    class; and the real means are those of all real images, which here is so unless `real_batch_size` is smaller than their
    number.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_clpdd.baselines import SFMDistiller
    >>> X, y = load_iris(return_X_y=True)
    >>> SFMDistiller(encoder=None, max_iter=100, random_state=0).fit(X, y).transform().shape
    (3, 4)
    """

    def _objective(self, random, temperatures):
        return FlowMatching()
