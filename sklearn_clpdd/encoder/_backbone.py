"""A frozen network with its preprocessing: images → features."""

from functools import cached_property
from importlib.metadata import version

import joblib
import torch
from joblib.hashing import NumpyHasher
from torch import Tensor, nn

from ..utils._torch_modes import standard_torch_modes
from ._folding import SameConv2d
from ._precision import Precisions
from ._preprocessing import Preprocessing


class Backbone:
    """A frozen network and its preprocessing: images ``(n, 3, s, s)`` in [0, 1] → features ``(n, n_features)``."""

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        n_features: int,
        device: torch.device,
        weights_sha256: str = "",
        layout: torch.memory_format = torch.channels_last,
        precisions: Precisions | None = None,
    ):
        self.module = module
        self.precisions = precisions or Precisions(module, device)
        self.preprocessing = preprocessing
        self.n_features = n_features
        self.device = device
        self.weights_sha256 = weights_sha256  # of the weights as loaded, before folding
        self.layout = layout
        self._graph_bytes: dict[str, int] = {}  # by precision
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
        )

    def __call__(self, images: Tensor, precision: str = "float32") -> Tensor:
        normalized = (images - self._mean.to(images.dtype)) / self._std.to(images.dtype)
        features = self.precisions.run(normalized.contiguous(memory_format=self.layout), precision)
        if features.shape != (len(images), self.n_features):
            raise ValueError(
                f"{type(self.module).__name__} returned features of shape {tuple(features.shape)} for {len(images)} images; "
                f"a batch of any size has to give one row of {self.n_features} for each of its images"
            )
        return features

    @cached_property
    def digest(self) -> str:
        """Digest of the network, its weights, and its preprocessing."""
        try:
            network = _ContentHasher("md5").hash(self.module)
        except Exception as error:  # pickling a user's module can fail in many ways
            raise ValueError(
                f"memory= and checkpoint= recognise a network by its pickle, but a {type(self.module).__name__} cannot be "
                f"pickled ({type(error).__name__}: {error}). Remove from it what cannot be pickled, or leave both at None"
            ) from error
        return joblib.hash((network, self.preprocessing))

    @cached_property
    def library_versions(self) -> dict[str, str]:
        """Versions of the libraries, apart from torch and timm, whose layers the network has."""
        packages = {"transformers": "transformers", "open_clip": "open_clip_torch", "torchvision": "torchvision"}
        roots = {type(module).__module__.partition(".")[0] for module in self.module.modules()}
        return {root: version(packages[root]) for root in sorted(roots & packages.keys())}

    def with_preprocessing(self, preprocessing: Preprocessing) -> "Backbone":
        """The same network with another crop or normalisation."""
        own = (self.n_features, self.device, self.weights_sha256, self.layout, self.precisions)
        return Backbone(self.module, preprocessing, *own)

    def fastest_precision(self, *, gradient: bool) -> str:
        """The fastest precision whose features, or gradients with respect to the images, agree with float32's."""
        return self.precisions.fastest(self, self.preprocessing, gradient=gradient)

    def graph_bytes(self, precision: str = "float32") -> int:
        """Bytes that autograd saves to backpropagate to one image, measured on a blank image.

        Raises
        ------
        ValueError
            If the features have no gradient with respect to the images.
        """
        if precision not in self._graph_bytes:
            self._graph_bytes[precision] = self._measured_graph_bytes(precision)
        return self._graph_bytes[precision]

    def _measured_graph_bytes(self, precision: str) -> int:
        size = self.preprocessing.image_size
        own = self.precisions.weights(precision)
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with standard_torch_modes(self.device):
            image = torch.zeros(1, 3, size, size, device=self.device, dtype=torch.float32, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                features = self(image, precision)  # keeps the saved tensors alive while they are counted
        if not features.requires_grad:
            raise ValueError(
                f"{type(self.module).__name__} returns features without a gradient with respect to its images, which "
                "learning synthetic images needs: remove what stops the gradient, such as no_grad(), detach() or numpy()"
            )
        del features
        return max(1, sum(saved.values()))


class _ContentHasher(NumpyHasher):
    """joblib's hash, with tensors hashed by value: torch's own pickles of equal modules differ.

    Folded paddings, which exist on CPUs only, hash like the original convolution, so that a CPU can resume a run from a GPU.
    """

    def save(self, obj):
        """Replace tensors by arrays."""
        if isinstance(obj, SameConv2d):
            obj = obj.convolution
        if isinstance(obj, torch.jit.ScriptModule):
            code = [(name, getattr(module, "code", "")) for name, module in obj.named_modules()]
            obj = ("script", code, dict(obj.state_dict()))
        if isinstance(obj, Tensor):
            obj = (str(obj.dtype), obj.shape, obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        super().save(obj)
