"""Weights files: read without unpickling anything but tensors, and loaded without leaving a parameter at its initial value."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..utils._torch_compat import checkpoint_filter
from ..utils._warnings import warn

# Words in the name of one of several sets of weights, by preference: what the authors of the methods evaluate.
#
# ============================ ======================= ==========================================================================
# file of                      taken                   source
# ============================ ======================= ==========================================================================
# timm's trainer               ``state_dict_ema``      ``load_state_dict(use_ema=True)`` of timm 1.0
# DINO, iBOT                   ``teacher``             ``--checkpoint_key`` in eval_linear.py of facebookresearch/dino
# MSN, I-JEPA                  ``target_encoder``      logistic_eval.py of facebookresearch/msn
# MoCo, MoCo-v3                ``encoder_q``, ``base`` main_lincls.py of facebookresearch/moco and moco-v3 (at 2877a78)
# BYOL                         ``online``              the paper, section 3
# ============================ ======================= ==========================================================================
_PREFERENCE = (
    {"ema", "teacher", "averaged", "average", "avg", "swa", "polyak", "shadow"},
    {"online"},
    {"target"},
    {""},  # all others
    {"student", "momentum", "k"},
)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What trainers keep beside networks.
_NO_NETWORKS = ("optimizer", "optim", "exp_avg", "grad")


class StateDict(NamedTuple):
    """Tensors by name, and where they are in a file: empty if they are the file."""

    place: str
    tensors: Mapping[str, Tensor]


def load_strictly(module: nn.Module, candidates: list[StateDict], source: str) -> None:
    """Load weights that have all parameters of a module; further entries of the file are ignored.

    A file may hold several sets of weights, such as those of a student and a teacher. The one that fits is loaded; if several
    fit, it is the one that the authors of such files evaluate, and a warning names them. timm's filter for the architecture
    resamples position embeddings and translates the original authors' layouts.

    Raises
    ------
    ValueError
        If a parameter is not in the file, or has another shape, or if several sets fit and none is preferred.
    """
    own = module.state_dict()
    state: Mapping[str, Tensor] = _chosen(candidates, own, source).tensors
    to_timm = checkpoint_filter(module)
    if to_timm is not None:
        state = _translated(to_timm, state, module, source)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    misfits = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or misfits:
        raise ValueError(
            f"the weights in {source} do not fit {type(module).__name__}: "
            f"{len(missing)} of {len(own)} parameters are not in the file{_abbreviated(missing)}, "
            f"{len(misfits)} have another shape{_abbreviated(misfits)}. The first keys of the file "
            f"are{_abbreviated(list(state))}; pass weights of this architecture"
        )
    quantised = [key for key in own if key in state and own[key].is_floating_point() and state[key].dtype not in _FLOATS]
    if quantised:
        kinds = sorted({str(state[key].dtype) for key in quantised})
        raise ValueError(f"the weights in {source} are {', '.join(kinds)}{_abbreviated(quantised)}; pass them as floats")
    broken = [key for key in own if key in state and state[key].is_floating_point() and not bool(state[key].isfinite().all())]
    if broken:
        raise ValueError(f"the weights in {source} contain NaN or infinity{_abbreviated(broken)}; pass another checkpoint")
    module.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def load_file(module: nn.Module, weights: object) -> None:
    """Load the weights of a file, if ``weights`` is one, and not ``"auto"``, None, or weights of torchvision."""
    if isinstance(weights, str) and weights != "auto":
        load_strictly(module, read_state_dicts(weights), weights)


def _translated(to_timm, state: Mapping[str, Tensor], module: nn.Module, source: str) -> Mapping[str, Tensor]:
    try:
        return to_timm(dict(state), module)
    except Exception as error:  # timm's filters fail in many ways on what they do not expect
        raise ValueError(
            f"the weights in {source} do not fit {type(module).__name__} ({type(error).__name__}: {error}). The first keys "
            f"of the file are{_abbreviated(list(state))}; pass weights of this architecture"
        ) from error


def _chosen(candidates: list[StateDict], own: Mapping[str, Tensor], source: str) -> StateDict:
    """The set of weights that fits a module best, without the prefix of its names."""
    found = [part for candidate in candidates for part in _fitting_parts(candidate, own)]
    if found:
        scores = [_score(part.tensors, own) for part in found]
        best = [part for part, score in zip(found, scores, strict=True) if score == max(scores)]
        preferred = [part for part, score in zip(found, scores, strict=True) if 2 * score[0] > max(scores)[0] > score[0]]
        for part in preferred:
            if _rank(part.place) < min(_rank(one.place) for one in best):
                warn(f"{source} contains weights in {part.place!r} that lack parameters; {best[0].place!r} is loaded instead")
    else:  # the names are those of another layout
        largest = max(len(candidate.tensors) for candidate in candidates)
        best = [candidate for candidate in candidates if 2 * len(candidate.tensors) > largest]
    best.sort(key=lambda part: _rank(part.place))
    equal = [part for part in best if _rank(part.place) == _rank(best[0].place)]
    places = [repr(part.place or "(the file itself)") for part in best]
    if any(not _are_equal(part.tensors, equal[0].tensors) for part in equal[1:]):
        raise ValueError(
            f"{source} contains {len(best)} sets of weights that fit, {', '.join(places)}, and it is not known which one its "
            "authors evaluate; save the right one alone"
        )
    if len(best) > len(equal):
        warn(
            f"{source} contains {len(best)} sets of weights that fit, {', '.join(places)}; {places[0]} is loaded, which is what "
            "the authors of such files evaluate"
        )
    return best[0]


def _fitting_parts(candidate: StateDict, own: Mapping[str, Tensor]) -> Iterator[StateDict]:
    """Parts of a state dict whose names, without a prefix such as ``module.``, are those of a module."""
    first_key = next(iter(own))
    prefixes = {key.removesuffix(first_key) for key in candidate.tensors if key.endswith(first_key)}
    for prefix in sorted(prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")):
        part = {key.removeprefix(prefix): value for key, value in candidate.tensors.items() if key.startswith(prefix)}
        yield StateDict(".".join(filter(None, (candidate.place, prefix.removesuffix(".")))), part)


def _rank(place: str) -> int:
    words = {word.casefold() for word in re.split(r"[._]|(?<=[a-z])(?=[A-Z])", place)}
    return next((i for i, preferred in enumerate(_PREFERENCE) if words & preferred), _PREFERENCE.index({""}))


def _score(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many parameters are in a state dict, and how many of them have the same shape."""
    there = [key for key in own if key in tensors and not key.endswith("num_batches_tracked")]
    return len(there), sum(tensors[key].shape == own[key].shape for key in there)


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def read_state_dicts(path: str) -> list[StateDict]:
    """All state dicts of a safetensors file or a torch checkpoint, without unpickling anything but tensors.

    Raises
    ------
    ValueError
        If the file cannot be read, or contains no tensors.
    """
    try:
        with open(path, "rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors or str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return [StateDict("", load_file(path))]
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise errors of many types
        reason = re.sub(r"\x1b\[\d*m", "", str(error)).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as safetensors or as a torch checkpoint of tensors alone: {reason}. "
            "Save its state dict with safetensors, or with torch.save(module.state_dict(), path)"
        ) from error
    found = list(_state_dicts(content, ""))
    if not found:
        raise ValueError(f"{path} does not contain a state dict of tensors; save one with torch.save(module.state_dict(), path)")
    return found


def _state_dicts(content: Any, place: str, depth: int = 0) -> Iterator[StateDict]:
    if not isinstance(content, Mapping) or depth > 8:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield StateDict(place, tensors)
    for key, value in content.items():
        if not str(key).casefold().startswith(_NO_NETWORKS):
            yield from _state_dicts(value, f"{place}.{key}" if place else str(key), depth + 1)


def _abbreviated(items: list, n: int = 8) -> str:
    shown = ", ".join(map(str, items[:n]))
    return f" ({shown}{', …' if len(items) > n else ''})" if items else ""
