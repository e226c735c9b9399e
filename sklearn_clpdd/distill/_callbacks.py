"""What callbacks are told during a run."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..utils._sklearn_compat import call_step_callbacks
from ._fit_data import FitData, FitResult
from ._state import State
from ._trainer import Outcome


class CallbackNotifier:
    """Calls the callbacks with a copy of the distiller in its current state; `fit` sets the attributes of the distiller itself.

    Parameters
    ----------
    distiller : GradientDistiller
    data : FitData
    state : State
        Of the run.
    history : list of dict
        Records of the run, which grows.
    result_of : callable
        ``outcome → FitResult``, for the present state.
    attributes : dict
        Fitted attributes of the run that are already known.
    everywhere : bool
        Whether all processes of the run have callbacks; only then can these see the images, which the processes share.
    """

    def __init__(
        self,
        distiller: Any,
        data: FitData,
        state: State,
        history: list[dict[str, float]],
        result_of: Callable[[Outcome], FitResult],
        attributes: dict[str, Any],
        *,
        everywhere: bool = True,
    ):
        self._everywhere = everywhere
        self._distiller, self._data, self._history, self._result_of = distiller, data, history, result_of
        self._copy: Any = object.__new__(type(distiller))
        known = {"classes_": data.classes, "history_": history, **attributes}
        self._copy.__dict__.update(distiller._without_fitted_attributes(), **known)

        def present_samples() -> np.ndarray:
            self._check_everywhere()
            return data.adapter.to_user(state.samples())

        self._copy._present_samples = present_samples

    def __call__(self, records: list[dict[str, float]]) -> None:
        """Pass records on to the callbacks. A ``StopIteration``, or what a callback of scikit-learn returns, ends the run."""
        distiller = self._distiller
        self._copy.n_iter_ = len(self._history)
        for record in records:
            if distiller.callback is not None:
                distiller.callback(self._copy, dict(record))
            if call_step_callbacks(distiller, self._data.X, self._data.y, self._fitted_attributes):
                raise StopIteration

    def _check_everywhere(self) -> None:
        if not self._everywhere:
            raise RuntimeError(
                "each process has some of the images, so that a callback sees them only if all processes have one that asks for "
                "them; set the callback in all of them"
            )

    def _fitted_attributes(self) -> dict[str, Any]:
        self._check_everywhere()
        now = Outcome(self._history, len(self._history))
        return self._distiller._fitted_attributes(self._data, self._result_of(now))
