"""Which encoder a saved probe or set belongs to, and building it again."""

from enum import Enum
from typing import Any

from ..encoder._encoder import FrozenEncoder, as_encoder

# Parameters of `FrozenEncoder` that `provenance` of its extractor has, too.
_PARAMETERS = ("pool", "layers", "l2_normalize", "image_size", "crop_pct", "mean", "std")
# What two encoders have to share for the same features.
_COMPARED = ("weights_sha256", *_PARAMETERS, "interpolation", "crop_mode")


def record_of(encoder: FrozenEncoder) -> dict[str, Any]:
    """Provenance of an encoder, and the parameters that are needed to build it again, as JSON-serialisable values."""
    record = encoder.load().provenance()
    model, weights = encoder.model, encoder.weights
    if isinstance(model, str) and isinstance(weights, Enum) and "/" not in model:  # of torchvision
        record["model"], model, weights = (f"{model}/{weights.name}",) * 2 + ("auto",)
    # A module, files of this machine, and options, which could run code, are not recorded.
    is_known = record["model"] == model and weights in ("auto", None) and not encoder.model_kwargs
    shape = encoder.image_shape
    return record | {
        "weights": weights if is_known else "own",
        "exact": encoder.dtype == "float32",
        "missing": encoder.missing,
        "image_shape": None if shape is None else [int(side) for side in shape],
    }


def encoder_from(record: dict[str, Any], given: Any, source: str, how: str) -> FrozenEncoder:
    """The encoder of a record, or a given one, with the weights and the preprocessing that are recorded.

    Parameters
    ----------
    record : dict
        Of `record_of`, or an entry of ``manifest["encoders"]``.
    given : FrozenEncoder, str, torch.nn.Module or None
        None: the network is built by its recorded name.
    source : str
        What contains the record, for errors.
    how : str
        What to do about errors.

    Raises
    ------
    ValueError, OSError, ImportError
        If it cannot be built, or gives other features.
    """
    if given is None and record.get("weights", "auto") == "own":
        raise ValueError(
            f"the encoder of {source}, {record['model']!r}, was a module, or had weights of a local file or options of its own, "
            f"and none of these is in it; {how}"
        )
    encoder = recorded_encoder(record) if given is None else as_encoder(given, **{name: record[name] for name in _PARAMETERS})
    try:
        found = encoder.load().provenance()
    except ValueError as error:
        raise ValueError(f"the encoder of {source}, {record['model']!r}, cannot be built ({error}); {how}") from error
    differ = [name for name in _COMPARED if found[name] != record[name]]
    if differ:
        shown = ", ".join(f"{name} is {found[name]!r} and was {record[name]!r}" for name in differ)
        raise ValueError(f"the encoder has other features than that of {source}: {shown}; {how}")
    return encoder


def recorded_encoder(record: dict[str, Any], **changes) -> FrozenEncoder:
    """An encoder with the recorded name and parameters, some of which may be changed."""
    parameters = {name: record[name] for name in (*_PARAMETERS, "image_shape", "missing") if name in record}
    weights = record.get("weights", "auto")
    dtype = "float32" if record.get("exact") else "auto"
    known = {"model": str(record["model"]), "weights": None if weights is None else "auto", "dtype": dtype}
    return FrozenEncoder(**{**known, **parameters, **changes})
