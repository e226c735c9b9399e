"""Which encoder a saved probe or set belongs to, and building it again."""

import json
from typing import Any

from torch import nn

from ..encoder._encoder import FrozenEncoder, as_encoder

# Parameters of `FrozenEncoder` that `provenance` of its extractor has, too.
_PARAMETERS = ("pool", "layers", "l2_normalize", "image_size", "crop_pct", "mean", "std")
# Parameters that it has not.
_OTHERS = ("image_shape", "missing", "model_kwargs")
# What two encoders have to share for the same features.
_COMPARED = ("weights_sha256", *_PARAMETERS, "interpolation", "crop_mode")


def record_of(encoder: FrozenEncoder) -> dict[str, Any]:
    """Provenance of an encoder, and the parameters that are needed to build it again, as JSON-serialisable values.

    Raises
    ------
    TypeError
        If an option of the function that builds the network is of a type that JSON does not have.
    """
    record = encoder.load().provenance()
    record |= {name: getattr(encoder, name) for name in _OTHERS}
    record["exact"] = encoder.dtype == "float32"
    record["weights"] = encoder.weights if encoder.weights in ("auto", None) else "own"
    if isinstance(encoder.model, nn.Module) or record["model"] != encoder.model:  # a module, or files of this machine
        record["weights"] = "own"
    try:
        return json.loads(json.dumps(record))
    except TypeError as error:
        raise TypeError(
            f"model_kwargs={encoder.model_kwargs!r} cannot be saved as JSON ({error}); save the probe alone, pipeline[-1]"
        ) from error


def encoder_from(record: dict[str, Any], given: Any, source: str) -> FrozenEncoder:
    """The encoder of a record, or a given one, with the weights and the preprocessing that are recorded.

    Parameters
    ----------
    record : dict
        Of `record_of`, or an entry of ``manifest["encoders"]``.
    given : FrozenEncoder, str, torch.nn.Module or None
        None: the network is built by its recorded name.
    source : str
        What contains the record, for errors.

    Raises
    ------
    ValueError, OSError, ImportError
        If it cannot be built, or gives other features.
    """
    how = f"pass encoder=, a FrozenEncoder of the network that {source} was saved with"
    if given is None:
        if record.get("weights", "auto") == "own":
            raise ValueError(
                f"the encoder of {source}, {record['model']!r}, was a module, or had weights of a local file, and neither is in "
                f"it; {how}"
            )
        given = _built(record)
    encoder = as_encoder(given, **{name: record[name] for name in _PARAMETERS})
    try:
        found = encoder.load().provenance()
    except ValueError as error:
        raise ValueError(f"the encoder of {source}, {record['model']!r}, cannot be built ({error}); {how}") from error
    differ = [name for name in _COMPARED if found[name] != record[name]]
    if differ:
        shown = ", ".join(f"{name} is {found[name]!r} and was {record[name]!r}" for name in differ)
        raise ValueError(f"the encoder has other features than that of {source}: {shown}; {how}")
    return encoder


def _built(record: dict[str, Any]) -> FrozenEncoder:
    """An encoder by its recorded name."""
    parameters = {name: record[name] for name in (*_PARAMETERS, *_OTHERS) if name in record}
    weights = record.get("weights", "auto")
    if weights not in ("auto", None):
        raise TypeError(f"weights are {weights!r}")
    dtype = "float32" if record.get("exact") else "auto"
    return FrozenEncoder(record["model"], weights=weights, dtype=dtype, **parameters)
