"""Weights files: read without unpickling anything but tensors, and loaded without leaving a parameter at its initial value."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..utils._torch_compat import checkpoint_filter


def load_strictly(module: nn.Module, state: Mapping, source: str) -> None:
    """Load a checkpoint that has all parameters of a module; further entries of the file are ignored.

    timm's filter for the architecture resamples position embeddings and translates the original authors' layouts.
    """
    own = module.state_dict()
    state = _strip_prefix(state, own)
    to_timm = checkpoint_filter(module)
    if to_timm is not None:
        state = to_timm(dict(state), module)
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
    module.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _strip_prefix(state: Mapping, own: Mapping) -> Mapping:
    """Remove a prefix such as ``module.`` or ``module.base_encoder.``: the one under which most of ``own`` is found."""
    first_key = next(iter(own))
    prefixes = [key.removesuffix(first_key) for key in state if key.endswith(first_key)]
    # Files of MoCo-v3 contain two encoders; its authors evaluate the base encoder (main_lincls.py of facebookresearch/moco-v3 at
    # 2877a78), not the momentum encoder.
    prefixes.sort(key=lambda p: (sum(p + key in state for key in own), "momentum" not in p), reverse=True)
    if not prefixes or not prefixes[0]:
        return state
    return {key.removeprefix(prefixes[0]): value for key, value in state.items() if key.startswith(prefixes[0])}


def read_state_dict(path: str) -> Mapping:
    """State dict of a safetensors file or a torch checkpoint, without unpickling anything but tensors."""
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise errors of many types
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as safetensors or as a torch checkpoint of tensors alone: {reason}. "
            "Save its state dict with safetensors, or with torch.save(module.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model", "teacher", "state_dict_ema"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} does not contain a state dict of tensors; save one with torch.save(module.state_dict(), path)")
    return state


def _abbreviated(items: list, n: int = 8) -> str:
    shown = ", ".join(map(str, items[:n]))
    return f" ({shown}{', …' if len(items) > n else ''})" if items else ""
