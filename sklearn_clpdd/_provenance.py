"""Where a distilled set comes from, in words and as data that other machines can read."""

import platform
from datetime import datetime, timezone
from importlib.metadata import version
from numbers import Integral, Real
from typing import Any

import numpy as np

from ._base import BaseDistiller
from ._run import spelled

# Parameters that say something of one machine only, or are told otherwise.
_LOCAL = {"encoder", "memory", "device", "verbose", "callback", "checkpoint", "checkpoint_every"}
_PACKAGES = ("sklearn-clpdd", "torch", "timm", "scikit-learn", "numpy")


def held_out_accuracy(distiller: BaseDistiller) -> float | None:
    """Accuracy of the kept images on held-out real features, where some were held out."""
    return getattr(distiller, "val_accuracy_", None)


def in_words(distiller: BaseDistiller) -> str:
    """One line: method, encoders, number of images, steps and seconds."""
    names = [f"{entry['model']} at {entry['image_size']} px" for entry in distiller._encoder_entries]
    parts = [type(distiller).__name__, *(names or ["features"]), f"{len(distiller.y_synthetic_)} images"]
    if getattr(distiller, "n_iter_", 0):
        parts.append(f"{distiller.n_iter_} steps in {distiller.history_[-1]['seconds']:.0f} s")
    return ", ".join(parts)


def manifest_of(distiller: BaseDistiller) -> dict[str, Any]:
    """Method, parameters, encoders, data and versions, of values that JSON has."""
    fitted = ("alpha_", "temperature_", "neighbor_temperature_", "n_iter_", "n_views_")
    seconds = {"seconds": distiller.history_[-1]["seconds"]} if getattr(distiller, "history_", None) else {}
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": type(distiller).__name__,
        "parameters": _parameters(distiller),
        "fitted": {name[:-1]: _plain(getattr(distiller, name)) for name in fitted if hasattr(distiller, name)} | seconds,
        "encoders": distiller._encoder_entries,
        "data": {
            "n_samples": int(distiller.class_count_.sum()),
            "class_counts": distiller.class_count_.tolist(),
            "digest": distiller.data_digest_,
        },
        "versions": {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
    }


def _parameters(distiller: BaseDistiller) -> dict[str, Any]:
    given = distiller.get_params(deep=False)
    return {name: _plain(value) for name, value in given.items() if name not in _LOCAL}


def _plain(value: Any) -> Any:
    """A value that JSON has: of a distiller its parameters, of others their `repr`."""
    if isinstance(value, BaseDistiller):
        return {"method": type(value).__name__, **_parameters(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and np.isfinite(float(value)):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(own) for key, own in value.items()}
    return spelled(value)
