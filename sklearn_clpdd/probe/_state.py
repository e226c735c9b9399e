"""A fitted probe as tensors and JSON, and back."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..utils._array_api import to_numpy
from ..utils._arrays import tensor_from_numpy
from ..utils._labels import labels_from_json, labels_to_json
from ._kernels import KERNELS
from ._probe import ClosedFormProbe

# Parameters that concern one machine only.
_LOCAL = {"device"}
_ARRAYS = ("coef_", "intercept_", "dual_coef_", "X_fit_", "alphas_", "loo_scores_")
# Numbers, of which a probe of several labels has one for each.
_NUMBERS = ("alpha_", "temperature_", "compression_")
_OPTIONAL_NUMBERS = ("loo_score_", "gamma_")


def state_of(probe: ClosedFormProbe) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `probe_from` needs, without what `partial_fit` keeps.

    Returns
    -------
    tensors : dict of str to Tensor
    info : dict
        JSON-serialisable values.

    Raises
    ------
    NotFittedError
        If the probe is not fitted.
    TypeError
        If its kernel is a function.
    """
    if probe._is_unsolved():
        probe._solve_stream()
    check_is_fitted(probe)
    parameters = {name: value for name, value in probe.get_params(deep=False).items() if name not in _LOCAL}
    if callable(parameters["kernel"]):
        raise TypeError("a probe whose kernel is a function cannot be saved without code; use skops or pickle, or a named kernel")
    tensors = {name: tensor_from_numpy(vars(probe)[name]) for name in _ARRAYS if name in vars(probe)}
    prior = parameters.pop("coef_prior")
    if prior is not None:
        tensors["coef_prior"] = tensor_from_numpy(np.array(to_numpy(prior)))
    if not isinstance(parameters["alpha"], str | int | float):
        parameters["alpha"] = np.asarray(parameters["alpha"], dtype=float).tolist()
    if isinstance(parameters["class_weight"], dict):
        weights = parameters["class_weight"].items()
        parameters["class_weight"] = [[_plain(label), float(own)] for label, own in weights]  # JSON's keys are strings
    info = {
        "parameters": {name: _plain(value) for name, value in parameters.items()},
        "classes": labels_to_json(probe.classes_),
        "label_dtype": "object" if probe.classes_.dtype == object else probe.classes_.dtype.str,
        "multilabel": bool(probe.multilabel_),
        "loss": probe.loss_,
        "n_features": int(probe.n_features_in_),
        "feature_names": probe.feature_names_in_.tolist() if hasattr(probe, "feature_names_in_") else None,
        **{name[:-1]: np.asarray(getattr(probe, name), dtype=float).tolist() for name in _NUMBERS},
    }
    info |= {name[:-1]: float(vars(probe)[name]) for name in _OPTIONAL_NUMBERS if name in vars(probe)}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, info


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def probe_from(tensors: dict[str, Tensor], info: dict[str, Any]) -> ClosedFormProbe:
    """The probe that `state_of` has described, with the same predictions.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the description is not complete, or its parts do not fit together.
    """
    parameters = dict(info["parameters"])
    if isinstance(parameters.get("class_weight"), list):
        parameters["class_weight"] = {label: float(own) for label, own in parameters["class_weight"]}
    if "coef_prior" in tensors:
        parameters["coef_prior"] = tensors["coef_prior"].numpy()
    probe = ClosedFormProbe(**parameters)
    probe._check_params()
    classes = labels_from_json(info["classes"], info["label_dtype"])
    attributes: dict[str, Any] = {"classes_": classes, "multilabel_": _checked(info["multilabel"], bool, "multilabel")}
    attributes["loss_"] = _checked(info["loss"], str, "loss")
    attributes["n_features_in_"] = _checked(info["n_features"], int, "n_features")
    if info["feature_names"] is not None:
        attributes["feature_names_in_"] = np.array(info["feature_names"], dtype=object)
    attributes |= {name: tensors[name].numpy() for name in _ARRAYS if name in tensors}
    for name in _NUMBERS:
        value = info[name[:-1]]
        attributes[name] = np.array(value, dtype=float) if attributes["multilabel_"] else float(value)
    attributes |= {name: float(info[name[:-1]]) for name in _OPTIONAL_NUMBERS if name[:-1] in info}
    _check_shapes(probe, attributes)
    probe.__dict__.update(attributes)
    return probe


def _checked(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r}")
    return value


def _check_shapes(probe: ClosedFormProbe, attributes: dict[str, Any]) -> None:
    """Raise unless the attributes are those of one fitted probe."""
    n_classes, n_features = len(attributes["classes_"]), attributes["n_features_in_"]
    is_multilabel = attributes["multilabel_"]
    if n_classes < 1 + (not is_multilabel) or n_features < 1 or attributes["loss_"] not in ("squared", "logistic"):
        raise ValueError(f"{n_classes} classes, {n_features} features and the loss {attributes['loss_']!r} are not a probe's")
    n_outputs = 1 if n_classes == 2 and not is_multilabel else n_classes
    n_kept = len(attributes.get("X_fit_", ()))
    shapes: dict[str, tuple] = {"intercept_": (n_outputs,)}
    if probe._solver.is_linear:
        shapes["coef_"] = (n_outputs, n_features)
    else:
        shapes |= {"dual_coef_": (n_kept, n_outputs), "X_fit_": (n_kept, n_features)}
    if is_multilabel:
        shapes |= dict.fromkeys(_NUMBERS, (n_classes,))
    if "feature_names_in_" in attributes:
        shapes["feature_names_in_"] = (n_features,)
    for name, shape in shapes.items():
        value = attributes[name]
        if value.shape != shape or (value.dtype.kind == "f" and name != "alpha_" and not np.isfinite(value).all()):
            raise ValueError(f"{name} is not an array {shape} of finite numbers")
        if value.dtype.kind != ("O" if name == "feature_names_in_" else "f"):
            raise TypeError(f"{name} is an array of {value.dtype}")
    ranges: dict[str, Callable] = {"temperature_": lambda value: value > 0, "compression_": lambda value: value >= 0}
    if probe.kernel in KERNELS:
        ranges["gamma_"] = lambda value: value > 0
    for name, is_valid in ranges.items():
        if not (np.isfinite(attributes[name]) & is_valid(attributes[name])).all():
            raise ValueError(f"{name} is {attributes[name]!r}")
