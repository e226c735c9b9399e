"""FrozenEncoder: images → features of a frozen pre-trained network."""

import os
from enum import Enum
from numbers import Integral, Real

import joblib
import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_scalar
from torch import nn

from ..utils._device import resolve_devices
from ..utils._documented import DocumentedMixin
from ..utils._sklearn_compat import Interval, StrOptions, check_output_container
from ..utils._transformer import OutputCheckedTransformer
from ._extractor import FeatureExtractor
from ._loading import load_backbone, n_features_of
from ._precision import PRECISIONS, check_precision
from ._shared_module import SharedModuleMixin
from ._streams import features_of_stream
from .images._forms import as_images


class FrozenEncoder(DocumentedMixin, SharedModuleMixin, OutputCheckedTransformer, BaseEstimator):
    """Map images to the features of a frozen, pre-trained vision model.

    The encoder applies the preprocessing that the model was trained with: resizing, centre crop and normalisation. It is
    stateless, so `transform` works without `fit`. The network is built at first use and kept once per process, so that estimators
    are cheap to clone and to pickle; its batch norms are folded into the convolutions.

    Parameters
    ----------
    model : str or torch.nn.Module, default="tf_efficientnet_lite0"
        The name of a network, or a network. Names: any of `timm <https://huggingface.co/docs/timm>`_'s, with its tag;
        ``"hf-hub:OWNER/NAME"`` and ``"local-dir:FOLDER"`` in timm's format; ``"transformers:NAME"``, of the hub or a folder;
        ``"open_clip:NAME/PRETRAINED"``; ``"torchvision:NAME"`` or ``"torchvision:NAME/WEIGHTS"``; and the paper's
        ``"clip_vitb16"``, ``"dinov2_vitb14"``, ``"eva02_vitb14"``, ``"mocov3_vitb16"``. A network of these four libraries loses
        its classifier or projection, and is preprocessed as its library does. Any other module maps ``(n, 3, H, W)`` to
        ``(n, d)``. A module is copied and evaluated in eval mode. Changes to its weights or layers are noticed; changes to its
        other attributes are not. Clones share the module, and so do copies that are loaded from one pickle; each worker process
        receives it once. (As a value in a parameter grid, pass ``FrozenEncoder(module)``, because scikit-learn copies bare
        modules there.)
    weights : "auto", path, weights of torchvision or None, default="auto"
        ``"auto"``: the weights of an installed package if there is one (those of the default model come with this library),
        else the hub's; for a module, its own. A path: a safetensors file or a torch checkpoint, loaded strictly. ``None``:
        untrained weights from a fixed seed; for a module, its own. A member of one of torchvision's ``Weights``: these weights,
        with their transforms; for one of torchvision's modules, its own weights with these transforms.
    pool : {"auto", "token", "avg", "token+avg"}, default="auto"
        Which features of a vision transformer: of the class token, the average of the patch tokens, or both. ``"auto"`` is what
        its authors probe (the user guide has a table with sources), such as the class token of the DINO families, or what its
        library pools. Other networks have one feature only.
    layers : int, default=1
        Features of this many blocks of a vision transformer, the last ones, each after the final norm. The class tokens are side
        by side; with ``"token+avg"`` they are followed by the average of the last block, as in the linear probes of DINOv2.
    model_kwargs : dict, default=None
        Options of the function that builds a network by name, such as ``timm.create_model``. Those that may run code which comes
        with the weights, such as ``trust_remote_code``, are refused; load such a network by its library, and pass the module.
    image_size : int, default=None
        Side of the network's input in pixels. ``None``: that of the model's training; required for a module of unknown origin.
    crop_pct : float in (0, 1], default=None
        The shorter side of an image is resized to ``image_size / crop_pct``, and the centre is cropped; models that squash
        images, or pad them, resize both sides, or the longer one. ``None``: the model's own.
    l2_normalize : bool, default=True
        Whether to scale each feature vector to unit ℓ2 norm.
    image_shape : tuple (H, W) or (H, W, C), default=None
        Shape of the images if ``X`` contains them as rows.
    missing : {"error", "zero"}, default="error"
        What becomes of missing pictures (``None``, NaN): an error that names them, or features of zeros, for tables in which not
        every row has a picture. A distiller needs all of them.
    mean, std : tuple of 3 floats, default=None
        Normalisation of RGB values in [0, 1]. ``None``: the model's own; a module of unknown origin gets none.
    batch_size : int, default=64
        Images in one forward pass.
    dtype : {"auto", "float32", "tf32", "bfloat16", "float16"}, default="auto"
        Precision inside the network; features are always returned as float32. ``"auto"`` is the fastest one of the device whose
        features agree with float32's, to a cosine of at least 0.9995 on each of six crops of photos, measured once per network
        and process (`dtype_`). Distillers likewise choose the precision of their gradients, which have to agree to a cosine of
        at least 0.6. Networks of less than a million parameters, and devices without fast instructions for half precision,
        stay in float32. ``"tf32"`` and ``"float16"`` need a GPU. Any other value than ``"auto"`` is also that of the gradients.
    n_jobs : int, default=None
        Threads that decode image files. ``None`` is one. ``-1`` is one per core, but at most ``OMP_NUM_THREADS``, which
        joblib sets to one in each worker of a search that uses all cores.
    memory : str, path or joblib.Memory, default=None
        Folder in which the features of each image are cached, by image, model, weights, settings, and versions of torch, timm and
        this library. The splits and the processes of a search share them, and an interrupted encoding is resumed to within 1,024
        images. Features that were changed are computed anew. The cache only grows; ``joblib.Memory(memory).clear()`` empties it,
        and ``reduce_size(bytes_limit)`` removes the features of the encoders that were used least recently.
    device : str, torch.device or list of these, default="auto"
        ``"auto"`` is CUDA if it is available, else the CPU. Of several devices, such as ``["cuda:0", "cuda:1"]``, each encodes
        one batch at a time; gradients are computed on the first one.
    verbose : int, default=0
        Above 0: show a progress bar.

    Raises
    ------
    ValueError
        In `fit` and `transform`, if images cannot be used, the model is unknown, weights do not fit, or the device is not
        available. Image files that cannot be decoded are reported together in one error, which names the first ten.
    ImportError
        If the library of a name is not installed; the message names the extra.
    FileNotFoundError
        If image files, a weights file or a ``local-dir:`` do not exist. Image files are looked up before one is encoded.
    OSError
        If weights have to be downloaded and the hub cannot be reached; raised after the retries of the hub's client.

    See Also
    --------
    ClosedFormProbe : A classifier for these features.
    CLPDistiller : Learns synthetic images through this encoder.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_clpdd import FrozenEncoder
    >>> images = np.random.default_rng(0).random((2, 32, 32, 3))
    >>> FrozenEncoder(image_size=64).transform(images).shape
    (2, 1280)
    """

    _module_parameter = "model"
    _parameter_constraints = {
        "model": [str, nn.Module],
        "weights": [str, os.PathLike, Enum, None],
        "pool": [StrOptions({"auto", "token", "avg", "token+avg"})],
        "layers": [Interval(Integral, 1, None, closed="left")],
        "model_kwargs": [dict, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "crop_pct": [Interval(Real, 0, 1, closed="right"), None],
        "l2_normalize": ["boolean"],
        "image_shape": [tuple, list, None],
        "missing": [StrOptions({"error", "zero"})],
        "mean": ["array-like", None],
        "std": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "dtype": [StrOptions({"auto", *PRECISIONS})],
        "n_jobs": [Integral, None],
        "memory": [str, os.PathLike, joblib.Memory, None],
        "device": [str, torch.device, list, tuple],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model="tf_efficientnet_lite0",
        *,
        weights="auto",
        pool="auto",
        layers=1,
        model_kwargs=None,
        image_size=None,
        crop_pct=None,
        l2_normalize=True,
        image_shape=None,
        missing="error",
        mean=None,
        std=None,
        batch_size=64,
        dtype="auto",
        n_jobs=None,
        memory=None,
        device="auto",
        verbose=0,
    ):
        self.model = model
        self.weights = weights
        self.pool = pool
        self.layers = layers
        self.model_kwargs = model_kwargs
        self.image_size = image_size
        self.crop_pct = crop_pct
        self.l2_normalize = l2_normalize
        self.image_shape = image_shape
        self.missing = missing
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.memory = memory
        self.device = device
        self.verbose = verbose

    def fit(self, X=None, y=None):
        """Check the parameters and load the model; nothing is learned.

        Parameters
        ----------
        X : images, default=None
            Only its form is checked.
        y : ignored

        Returns
        -------
        FrozenEncoder
            The encoder itself.
        """
        self.load()
        if X is not None:
            as_images(X, self.image_shape, self.missing)
        return self

    def transform(self, X):
        """Encode images.

        Parameters
        ----------
        X : images
            ``(n, H, W)`` or ``(n, H, W, 1 or 3)`` arrays or ``(n, 1 or 3, H, W)`` tensors, uint8 or float in [0, 1]; rows, with
            `image_shape`; or a list, a column, a data set of Hugging Face or torch, or another sequence of pictures: paths, URLs,
            contents of files as bytes, ``{"bytes": ..., "path": ...}``, PIL images, or arrays and tensors of one image each; or
            pairs of a picture and its label. Pictures are seen as viewers show them: turned as their metadata say, and with white
            behind transparency.

        Returns
        -------
        ndarray of shape (n_samples, n_features), float32
            Features, of unit norm if `l2_normalize`; a data frame if `set_output` asks for one.
        """
        check_output_container(self)
        return self.encode(X)

    def encode(self, X) -> np.ndarray:
        """Encode images to an array, regardless of `set_output`.

        Parameters
        ----------
        X : images
            As in `transform`.

        Returns
        -------
        ndarray of shape (n_samples, n_features), float32
            Features.
        """
        extractor = self.load()
        return extractor.encode(as_images(X, self.image_shape, self.missing))

    def iter_transform(self, iterable, batch_size=None):
        """Encode a stream of pictures, block by block.

        While a block passes through the network, the next one is taken from the stream. No more than two are in memory.

        Parameters
        ----------
        iterable : iterable of pictures, or of pairs of a picture and its label
            Pictures of any kind, as in `transform`, such as those of a generator, a Hugging Face data set that is streamed, or
            webdataset; or batches of images, as a ``DataLoader`` yields them, which are the blocks.
        batch_size : int, default=None
            Pictures of a block; ``None``: `batch_size` of the encoder, for each of its devices. Nothing is cached.

        Yields
        ------
        features : ndarray of shape (n, n_features), float32
            Features of a block; with labels, a tuple of these and an array of the labels, for `ClosedFormProbe.partial_fit`.

        Raises
        ------
        TypeError, ValueError
            If an element is no picture, or cannot be decoded, with its number in the stream. The blocks before it have been
            yielded then.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_clpdd import ClosedFormProbe, FrozenEncoder
        >>> rng = np.random.default_rng(0)
        >>> stream = ((rng.random((32, 32)), "cat" if i % 2 else "dog") for i in range(10))
        >>> probe = ClosedFormProbe(alpha=1.0)
        >>> for Z, y in FrozenEncoder(image_size=64).iter_transform(stream, batch_size=5):
        ...     probe = probe.partial_fit(Z, y, classes=["cat", "dog"])
        >>> probe.coef_.shape
        (1, 1280)
        """
        extractor = self.load()
        if batch_size is None:
            batch_size = self.batch_size * (1 + len(extractor.replicas))
        check_scalar(batch_size, "batch_size", Integral, min_val=1)
        return features_of_stream(extractor, iterable, batch_size, self.missing)

    def load(self) -> FeatureExtractor:
        """Load the network, or reuse the one loaded in this process.

        Returns
        -------
        FeatureExtractor
            A callable from image tensors ``(n, 3, image_size, image_size)`` in [0, 1] to features ``(n, n_features)``, with the
            attributes ``n_features``, ``device`` and ``preprocessing``.
        """
        self._validate_params()
        if self.n_jobs == 0:
            raise ValueError("n_jobs=0 is no number of threads; pass None, a number above 0, or -1 for one per core")
        devices = resolve_devices(self.device)
        check_precision(self.dtype, devices[0])
        backbone, *replicas = (
            load_backbone(
                self.model,
                self.weights,
                device,
                image_size=self.image_size,
                pool=self.pool,
                layers=self.layers,
                model_kwargs=self.model_kwargs,
                crop_pct=self.crop_pct,
                mean=self.mean,
                std=self.std,
            )
            for device in devices
        )
        return FeatureExtractor(
            backbone,
            model=self.model if isinstance(self.model, str) else type(self.model).__name__,
            pool=self.pool,
            layers=self.layers,
            l2_normalize=self.l2_normalize,
            dtype=self.dtype,
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            memory=self.memory,
            verbose=self.verbose,
            replicas=tuple(replicas),
        )

    @property
    def dtype_(self) -> str:
        """Precision of the features; measured at the first use of the network in a process if `dtype` is ``"auto"``."""
        return self.load().dtype_

    @property
    def _n_features_out(self):
        known = None if isinstance(self.model, str) else n_features_of(self.model, self.image_size, self.pool, self.layers)
        return self.load().n_features if known is None else known

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def as_encoder(given, **parameters) -> FrozenEncoder:
    """A `FrozenEncoder` as it is; for a name or a module, one with these parameters."""
    if isinstance(given, FrozenEncoder):
        return given
    if isinstance(given, str | nn.Module):
        return FrozenEncoder(given, **parameters)
    raise TypeError(f"an encoder is a FrozenEncoder, the name of a network, or a torch module; got {given!r}")
