"""The private parts of scikit-learn that are used here, and their public replacements, if any.

``tests/test_compat.py`` checks them; a failure names the version of scikit-learn that broke them.

================================== ===========================================================================
private name                       public replacement
================================== ===========================================================================
``_param_validation``, with
``BaseEstimator._validate_params`` none; :func:`sklearn.utils.check_scalar` covers single numbers
``_check_sample_weight``           none; :func:`~sklearn.utils.validation.check_array` lacks the defaults
``_check_partial_fit_first_call``  none
``_safe_indexing``                 none, but scikit-learn documents it for other libraries
``RequestMethod``                  none; ``set_<method>_request`` is only generated for scikit-learn's methods
``check_matplotlib_support``       none
``_array_api.get_namespace``       none
``_get_output_config``, with
``_sklearn_output_config``         none; ``ADAPTERS_MANAGER`` lists the containers that it may name
``_repr_html_inner``               none; ``_repr_mimebundle_`` is IPython's own protocol
``CallbackSupportMixin`` and hooks public since scikit-learn 1.9, still experimental
================================== ===========================================================================
"""

from importlib.util import find_spec
from typing import Any

from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._array_api import get_namespace
from sklearn.utils._metadata_requests import RequestMethod
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config
from sklearn.utils.multiclass import _check_partial_fit_first_call as check_partial_fit_first_call
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

try:  # scikit-learn 1.9 and later
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Placeholder: scikit-learn before 1.9 has no callbacks."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


__all__ = [
    "CallbackSupportMixin",
    "HasMethods",
    "HtmlAppendixMixin",
    "Interval",
    "RequestMethod",
    "StrOptions",
    "call_step_callbacks",
    "check_matplotlib_support",
    "check_output_container",
    "check_partial_fit_first_call",
    "check_sample_weight",
    "finish_callbacks",
    "get_namespace",
    "safe_indexing",
    "start_callbacks",
    "with_callbacks",
]


def check_output_container(estimator) -> None:
    """Raise if the container selected by `set_output` or `set_config` is unknown, or its library is not installed."""
    name = _get_output_config("transform", estimator)["dense"]
    adapter = ADAPTERS_MANAGER.adapters.get(name)
    if adapter is not None and find_spec(adapter.container_lib) is None:
        raise ImportError(f"set_output(transform={name!r}) needs {adapter.container_lib}: pip install {adapter.container_lib}")


class HtmlAppendixMixin:
    """Append HTML to what a notebook shows of an estimator."""

    def _html_appendix(self) -> str:
        raise NotImplementedError

    def _repr_html_inner(self):
        return super()._repr_html_inner() + self._html_appendix()  # type: ignore[misc]

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        return {kind: text + self._html_appendix() if kind == "text/html" else text for kind, text in bundle.items()}


def start_callbacks(estimator, n_steps: int, X, y) -> None:
    """Notify scikit-learn's callbacks of the beginning of `fit`."""
    if hasattr(estimator, "_init_callback_context"):
        estimator._init_callback_context(max_subtasks=n_steps).call_on_fit_task_begin(estimator=estimator, X=X, y=y)


def has_callbacks(estimator) -> bool:
    """Whether scikit-learn's callbacks are set."""
    return bool(getattr(estimator, "_skl_callbacks", None))


def call_step_callbacks(estimator, X, y, fitted_attributes) -> bool:
    """Notify scikit-learn's callbacks of a step, and return whether one requests a stop.

    Parameters
    ----------
    estimator : estimator
        The one being fitted.
    X, y
        What it is fitted to.
    fitted_attributes : callable
        Returns the fitted attributes as they would be if `fit` ended now; called only if a callback needs them.
    """
    if not has_callbacks(estimator):
        return False
    step = estimator._callback_fit_ctx.subcontext(task_name="step")
    hooks: dict[str, Any] = {"X": X, "y": y, "reconstruction_attributes": fitted_attributes}
    step.call_on_fit_task_begin(estimator=estimator, **hooks)
    return bool(step.call_on_fit_task_end(estimator=estimator, **hooks))


def finish_callbacks(estimator, X, y) -> None:
    """Notify scikit-learn's callbacks of the end of `fit`."""
    if hasattr(estimator, "_callback_fit_ctx"):
        estimator._callback_fit_ctx.call_on_fit_task_end(estimator=estimator, X=X, y=y)
