"""What a source of networks is, and what it returns: a network without its classifier, and what is known about it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Source(NamedTuple):
    """A library that networks come from.

    Parameters
    ----------
    prefix : str
        What its names begin with.
    create : callable
        ``(name, weights, image_size, options) → Network``: by name, with weights ``"auto"``, of a file, or none; the options are
        for the library's own function.
    owns : callable
        ``module → bool``: whether a module is one of the library's.
    adopt : callable
        ``(module, image_size, weights) → Network``: from a copy of such a module, which loses its classifier in place; with the
        weights of a file, if ``weights`` is one.
    """

    prefix: str
    create: "Callable[[str, Any, int | None, dict[str, Any]], Network]"
    owns: Callable[[nn.Module], bool]
    adopt: "Callable[[Any, int | None, Any], Network]"


@dataclass(frozen=True)
class Network:
    """A network of a library, and what the library and the network's authors do with it.

    Parameters
    ----------
    module : nn.Module
        Maps images ``(n, 3, s, s)`` to pooled features ``(n, d)``, as its library does.
    preprocessing : Mapping
        Fields of `Preprocessing` that it is evaluated with, as far as they are known; and its ``input_size``, channels first.
    problem : str
        Why this is not what its library does, if it is not; an error unless the user gives size, mean and standard deviation.
    own_pool : {"token", "avg", "other"}
        How the module pools: the class token, the average of the others, or in another way, such as by attention.
    probed : {"own", "token", "avg"}
        What its authors probe: ``pool="auto"``.
    tokens : callable or None
        ``(pool, layers) → TokenNetwork``; None for a network without tokens.
    """

    module: nn.Module
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    own_pool: str = "other"
    probed: str = "own"
    tokens: "Callable[[str, int], TokenNetwork] | None" = None


def unwrapped(module: nn.Module) -> nn.Module:
    """A network without what it is wrapped in here."""
    return module.network if isinstance(module, Wrapped) else module


def name_of(module: nn.Module) -> str:
    """Name of a network for messages."""
    return type(unwrapped(module)).__name__


class Wrapped(nn.Module):
    """A network of another library, whose attributes torch's types do not know."""

    network: Any


class TokenNetwork(Wrapped):
    """Features from the tokens of the last blocks of a vision transformer.

    A subclass implements `tokens`. With several blocks, the class tokens of all of them come first, and are followed by the
    average of the patch tokens of the last one, as in the linear probes of DINOv2 (``create_linear_input`` in
    dinov2/eval/linear.py of facebookresearch/dinov2 at 05c66df). With ``pool="avg"`` the averages of all blocks are side by side.

    Parameters
    ----------
    network : nn.Module
    pool : {"token", "avg", "token+avg"}
    layers : int
        Number of blocks, the last ones.
    n_prefix : int
        Tokens before those of the patches: the class token, which is the first one, and registers.
    has_class_token : bool
    n_blocks : int
        Blocks of the network.

    Raises
    ------
    ValueError
        If the network has no class token, or not so many blocks.
    """

    def __init__(self, network: Any, pool: str, layers: int, *, n_prefix: int, has_class_token: bool, n_blocks: int):
        super().__init__()
        name = type(network).__name__
        if "token" in pool and not has_class_token:
            raise ValueError(f"pool={pool!r} needs a class token, and {name} has none; pass pool='avg' or 'auto'")
        if layers > n_blocks:
            raise ValueError(f"layers={layers} is more than the {n_blocks} blocks of {name}")
        self.network, self.pool, self.layers, self.n_prefix = network, pool, layers, n_prefix

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens ``(n, n_prefix + patches, d)`` of each of the last blocks, as their authors normalise them."""
        raise NotImplementedError

    def normalized(self, pooled: Tensor) -> Tensor:
        """Pooled tokens ``(n, d)``, for networks that normalise after pooling."""
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        blocks = self.tokens(images)
        parts = [block[:, 0] for block in blocks] if "token" in self.pool else []
        if "avg" in self.pool:
            averaged = blocks if self.pool == "avg" else blocks[-1:]
            parts += [block[:, self.n_prefix :].mean(dim=1) for block in averaged]
        return torch.cat([self.normalized(part) for part in parts], dim=1)


# Outputs of the tapped blocks in the present forward pass of a thread.
_tapped = threading.local()


class _Tapped(nn.Module):
    """A block that notes its output. Unlike a hook it can be pickled, and unlike a traced graph it is the library's own code."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *arguments, **options):
        """Output of the block."""
        output = self.block(*arguments, **options)
        if hasattr(_tapped, "outputs"):
            _tapped.outputs.append(output[0] if isinstance(output, tuple) else output)
        return output

    def __getattr__(self, name: str) -> Any:
        """An attribute of the block."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def tap(blocks: Any, n: int) -> None:
    """Let the last ``n`` of a list or a sequence of blocks note their outputs."""
    for i in range(len(blocks) - n, len(blocks)):
        blocks[i] = _Tapped(blocks[i])


def tapped_outputs(call: Callable[[], Any]) -> list[Tensor]:
    """Outputs of the tapped blocks during a call."""
    outputs: list[Tensor] = []
    _tapped.outputs = outputs
    try:
        call()
    finally:
        del _tapped.outputs
    return outputs


def pooled(network: Network, pool: str, layers: int) -> nn.Module:
    """A module that maps images to features as ``pool`` and ``layers`` of `FrozenEncoder` say.

    Raises
    ------
    ValueError
        If the network cannot be pooled in this way.
    """
    name = name_of(network.module)
    kind = network.probed if pool == "auto" else pool
    if kind == "own" and layers > 1 and network.tokens is not None:
        kind = network.own_pool
    if layers == 1 and kind in ("own", network.own_pool):
        return network.module
    if network.tokens is None:
        accepted = "pool='auto'" + (" or 'avg'" if network.own_pool == "avg" else "")
        raise ValueError(
            f"{f'layers={layers}' if layers > 1 else f'pool={pool!r}'} needs the tokens of a vision transformer, and {name} has "
            f"none that are known here; pass {accepted} and layers=1"
        )
    if kind not in ("token", "avg", "token+avg"):
        raise ValueError(f"layers={layers} needs to know which tokens; pass pool='token', 'avg' or 'token+avg' for {name}")
    return network.tokens(kind, layers)
