"""Provenance of a fitted distiller: in words, and as JSON-serialisable values."""

import platform
from datetime import datetime, timezone
from importlib.metadata import version
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from .._version import __version__
from ..utils._fingerprint import description
from ._base import BaseDistiller

# Parameters that only concern one machine, or are described elsewhere.
_LOCAL = {"encoder", "verbose", "callback", "checkpoint"}
_PACKAGES = ("torch", "timm", "scikit-learn", "numpy")


def one_line_summary(distiller: BaseDistiller) -> str:
    """Method, encoders, number of synthetic samples, steps and seconds."""
    return summary_of(provenance_of(distiller), len(distiller.y_synthetic_))


def summary_of(provenance: dict[str, Any], n_synthetic: int) -> str:
    """`one_line_summary` of a set with this provenance."""
    names = [f"{entry['model']} at {entry['image_size']} px" for entry in provenance["encoders"]]
    parts = [provenance["method"], *(names or ["features"]), f"{n_synthetic} {'images' if names else 'points'}"]
    fitted = provenance["fitted"]
    if fitted.get("n_iter"):
        parts.append(f"{fitted['n_iter']} steps in {fitted['seconds']:.0f} s")
    return ", ".join(parts)


def provenance_of(distiller: BaseDistiller) -> dict[str, Any]:
    """Method, parameters, encoders, data and versions, as JSON-serialisable values."""
    fitted = ("alpha_", "temperature_", "neighbor_temperature_", "n_iter_", "n_views_")
    seconds = {"seconds": distiller.history_[-1]["seconds"]} if getattr(distiller, "history_", None) else {}
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": type(distiller).__name__,
        "parameters": _parameters(distiller),
        "fitted": {name[:-1]: _to_json(getattr(distiller, name)) for name in fitted if hasattr(distiller, name)} | seconds,
        "encoders": distiller._encoder_provenance,
        "data": {
            "n_samples": int(distiller.class_count_.sum()),
            "class_counts": distiller.class_count_.tolist(),
            "digest": distiller.data_digest_,
        },
        "versions": {"python": platform.python_version(), "sklearn-clpdd": __version__}
        | {one: version(one) for one in _PACKAGES},
    }


def are_real(provenance: dict[str, Any]) -> bool:
    """Whether the images of a set were selected, not learned."""
    return "n_iter" not in provenance["fitted"]


def synthetic_images_of(distiller: BaseEstimator) -> np.ndarray:
    """The synthetic images of a fitted distiller; an error if it has points of feature space."""
    if not isinstance(distiller, BaseDistiller):
        raise TypeError(f"expected a distiller, such as CLPDistiller; got {distiller!r}")
    check_is_fitted(distiller)
    if distiller.X_synthetic_.ndim != 4:
        raise ValueError(
            f"this {type(distiller).__name__} was fitted to features (encoder=None): it has points of feature space, not images; "
            "pass a distiller that was fitted to images"
        )
    return distiller.X_synthetic_


def _parameters(distiller: BaseDistiller) -> dict[str, Any]:
    given = distiller.get_params(deep=False)
    return {name: _to_json(value) for name, value in given.items() if name not in _LOCAL}


def _to_json(value: Any) -> Any:
    """A JSON-serialisable value: for estimators their parameters, for other objects a description."""
    if isinstance(value, BaseDistiller):
        return {"method": type(value).__name__, **_parameters(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and np.isfinite(float(value)):
        return float(value)
    if isinstance(value, list | tuple):
        return [_to_json(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _to_json(own) for key, own in value.items()}
    if hasattr(value, "get_params"):
        given = value.get_params(deep=False)
        return {"class": type(value).__name__, **{name: _to_json(own) for name, own in given.items()}}
    return description(value)
