"""What happens around the steps of a distillation: history, held-out score, stopping, checkpoints, callbacks, progress."""

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ._core.checkpoints import read_checkpoint, write_checkpoint
from ._core.loop import State

# Steps between two scores of the held-out features; each costs a forward pass of the images without views.
_SCORE_EVERY = 20
# Steps between two looks at the losses, each of which waits for a GPU; a divisor of the above.
_LOOK_EVERY, _LOOK_EVERY_CPU = 10, 1
# Frames between the user and `Run.follow`: `fit`, `_find`, `_learn`, and since scikit-learn 1.9 a wrapper of `fit`.
_USER = 6 if find_spec("sklearn.callback") else 5
# Parameters that a run and its continuation need not share.
_FREE = {"encoder", "memory", "device", "verbose", "callback", "checkpoint", "checkpoint_every", "random_state"}


class Checkpoint:
    """The file that a run is written to, and goes on from if it is there.

    Parameters
    ----------
    distiller : BaseDistiller
    data : dict of str to str
        Digests of what it is fitted to.

    Attributes
    ----------
    tensors, info : dict
        What the file holds; empty if there is none.

    Raises
    ------
    ValueError
        If the file is no checkpoint, or that of another run.
    FileNotFoundError
        If its folder is not there.
    """

    def __init__(self, distiller, data: dict[str, str]):
        self.path = Path(distiller.checkpoint)
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint={str(self.path)!r} has to be a file in a folder that is there")
        parameters = {"method": type(distiller), **distiller.get_params(deep=False)}
        seed = {"random_state": spelled(parameters["random_state"])} if isinstance(parameters["random_state"], Real) else {}
        self._parameters = {name: spelled(value) for name, value in parameters.items() if name not in _FREE} | seed
        self._data = data
        self.tensors: dict[str, Tensor] = {}
        self.info: dict[str, Any] = {}
        if self.path.exists():
            self.tensors, self.info = read_checkpoint(self.path)
            differ = [f"{name} differ" for name in _differing(self.info["data"], data)]
            was = self.info["parameters"]
            differ += [
                f"{name} was {was.get(name)} and is {self._parameters.get(name)}" for name in _differing(was, self._parameters)
            ]
            if differ:
                raise ValueError(
                    f"checkpoint={str(self.path)!r} is that of another run: {'; '.join(differ)}. "
                    "Go on with what it was started with, give another path, or delete the file"
                )

    def write(self, tensors: dict[str, Tensor], info: dict) -> None:
        """Replace the file; a failure is a warning, for the run is worth more."""
        try:
            write_checkpoint(self.path, tensors, {**info, "data": self._data, "parameters": self._parameters})
        except OSError as error:
            warnings.warn(f"the checkpoint could not be written, the run goes on: {error}", RuntimeWarning, stacklevel=2)


class Run:
    """Follow a run from where it is to its end.

    Parameters
    ----------
    distiller : BaseDistiller
        Brings the parameters; its `history_` and `n_iter_` are kept up to date.
    state : State
        What the steps change. At the end it holds θ to keep: the best on the held-out features, where there are some.
    score : callable or None
        ``() → (2,)`` tensor: loss and accuracy of the present state on held-out features.
    checkpoint : Checkpoint or None
    seed : int
        Of the run, for whoever goes on with it.
    views_per_step : int
        For the progress bar.
    data : dict
        ``X`` and ``y`` of `fit`, for scikit-learn's callbacks.
    attributes : callable
        ``() → dict``: the fitted attributes of the present state, for those of them that ask.
    """

    def __init__(
        self,
        distiller,
        state: State,
        *,
        score: Callable[[], Tensor] | None,
        checkpoint: Checkpoint | None,
        seed: int,
        views_per_step: int,
        data: dict[str, Any],
        attributes: Callable[[], dict],
    ):
        self._distiller, self._state, self._score = distiller, state, score
        self._checkpoint, self._seed = checkpoint, seed
        self._views_per_step = views_per_step
        self._hooks = {**data, "reconstruction_attributes": attributes}
        self._theta = state.parameters
        # The best θ on the held-out features; without such, the last one whose loss was finite.
        self._good = [theta.detach().clone() for theta in self._theta]
        self._good_stage = state.parametrization.stage
        self._best, self._improved = float("inf"), 0
        self._finished = False
        self._pending: list[tuple[Tensor, float]] = []
        self._look_every = _LOOK_EVERY_CPU if self._theta[0].device.type == "cpu" else _LOOK_EVERY
        self._seconds_before = 0.0
        self._earlier = distiller.history_[-1]["seconds"] if distiller.history_ else 0.0  # of fits that this one goes on from
        distiller.best_iter_ = None
        if checkpoint is not None and checkpoint.info:
            self._resume(checkpoint.tensors, checkpoint.info)
            checkpoint.tensors = {}
        self._begin = self._written = time.perf_counter()
        self._written_step = self._first_step = state.step

    @property
    def seconds(self) -> float:
        """Time in the loop, that before an interruption included."""
        return self._seconds_before + time.perf_counter() - self._begin

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is more."""
        if self._finished:
            return 1.0
        by_steps = self._state.step / self._distiller.max_iter
        budget = self._distiller.time_budget
        return by_steps if budget is None else max(by_steps, self.seconds / budget)

    def follow(self, steps: Iterator[Tensor]) -> None:
        """Make the steps; write `history_` and checkpoints.

        Ctrl-C ends them with a warning, a callback's ``StopIteration`` without one. An error leaves the best θ behind, too.

        Raises
        ------
        FloatingPointError
            When a loss is not finite.
        """
        done, total = self._state.step, self._distiller.max_iter
        with tqdm(initial=done, total=total, desc="distilling", unit="step", disable=not self._distiller.verbose) as bar:
            try:
                try:
                    for loss in steps:
                        self._pending.append((loss, self.seconds))
                        if self._state.step % self._look_every == 0:
                            self._look(bar)
                            self._write_if_due()
                            if self._finished:
                                break
                    self._finished = True
                    self._look(bar)
                except StopIteration:
                    pass
                except KeyboardInterrupt:
                    warnings.warn(
                        f"interrupted after {self._state.step} of {total} steps; the images so far are kept",
                        stacklevel=_USER,
                    )
                self._end(bar)
            except BaseException:
                self._restore()
                raise

    def _look(self, bar: tqdm) -> None:
        """Take the pending losses off the device; score the present state where it is time to."""
        if not self._pending:
            return
        distiller, records = self._distiller, []
        losses = torch.stack([loss for loss, _ in self._pending]).tolist()  # an interrupt while this waits loses none
        pending, self._pending = self._pending, []
        for loss, (_, seconds) in zip(losses, pending, strict=True):
            if not math.isfinite(loss):
                strengths = {name: vars(distiller).get(name) for name in ("alpha", "temperature", "learning_rate")}
                seen = ", ".join(f"{name}={value}" for name, value in strengths.items() if value is not None)
                raise FloatingPointError(
                    f"the loss of step {distiller.n_iter_} is {loss} ({seen}); the last good images are kept. "
                    "A larger alpha or temperature, or a smaller learning_rate, may help"
                )
            records.append({"step": distiller.n_iter_, "loss": loss, "seconds": self._earlier + seconds})
            distiller.history_.append(records[-1])
            distiller.n_iter_ += 1
        if self._score is None:
            self._keep()
        elif self._state.step % _SCORE_EVERY == 0:
            self._score_into(records[-1])
            patience = distiller.n_iter_no_change
            if patience is not None and self._state.step - self._improved >= patience:
                self._finished = True
        self._show(bar, records)
        for record in records:
            self._tell(record)

    def _score_into(self, record: dict) -> None:
        assert self._score is not None
        loss, accuracy = self._score().tolist()
        record |= {"val_loss": loss, "val_accuracy": accuracy}
        if math.isnan(loss):
            raise FloatingPointError(
                f"the loss of held-out samples at step {record['step']} is nan; the last good images are kept. "
                "A larger alpha or temperature may help, or an objective that takes any number of views"
            )
        if loss < self._best - self._distiller.tol:
            self._improved = self._state.step
        if loss < self._best:
            try:
                self._keep()
            except KeyboardInterrupt:
                self._keep()  # half a copy would be of neither
                raise
            finally:
                self._best = loss
                self._distiller.best_iter_ = record["step"]

    def _show(self, bar: tqdm, records: list[dict]) -> None:
        if bar.disable:
            return
        made = self._state.step - self._first_step + 1
        scored = [record for record in self._distiller.history_[-_SCORE_EVERY:] if "val_accuracy" in record]
        shown = {"loss": f"{records[-1]['loss']:.3f}"}
        if scored:
            shown["held out"] = f"{scored[-1]['val_accuracy']:.3f}"
        shown["img/s"] = f"{made * self._views_per_step / (self.seconds - self._seconds_before):.0f}"
        if self._distiller.time_budget is not None:  # for the time left
            bar.total = min(self._distiller.max_iter, round((self._state.step + 1) / max(self.progress(), 1e-9)))
        bar.set_postfix(shown, refresh=False)
        bar.update(len(records))

    def _tell(self, record: dict) -> None:
        """Tell the callbacks; one of scikit-learn's ends the run by what it returns."""
        distiller = self._distiller
        if distiller.callback is not None:
            distiller.callback(distiller, dict(record))
        if getattr(distiller, "_skl_callbacks", None):
            step = distiller._callback_fit_ctx.subcontext(task_name="step")
            step.call_on_fit_task_begin(estimator=distiller, **self._hooks)
            if step.call_on_fit_task_end(estimator=distiller, **self._hooks):
                raise StopIteration

    def _end(self, bar: tqdm) -> None:
        """Score the last state; leave the one to keep."""
        with suppress(StopIteration):  # it is the end; what an interrupt has left
            self._look(bar)
        if not all(bool(theta.isfinite().all()) for theta in self._theta):
            raise FloatingPointError(
                f"step {self._state.step} has led to images that are not finite; the last good ones are kept"
            )
        # Whoever goes on from here must not see the score of a moment at which an uninterrupted run has none.
        if not self._finished:
            self._write()
        if self._score is not None and self._distiller.history_:
            self._score_into(self._distiller.history_[-1])
        if self._finished:
            self._write()
        if self._score is not None:
            self._restore()

    def _keep(self) -> None:
        for copy, theta in zip(self._good, self._theta, strict=True):
            copy.copy_(theta.detach())
        self._good_stage = self._state.parametrization.stage

    def _restore(self) -> None:
        with torch.no_grad():
            for theta, copy in zip(self._theta, self._good, strict=True):
                theta.copy_(copy)
        self._state.parametrization.stage = self._good_stage

    def _write_if_due(self) -> None:
        if self._checkpoint is None:
            return
        every = self._distiller.checkpoint_every
        since = self._state.step - self._written_step if isinstance(every, Integral) else time.perf_counter() - self._written
        if since >= every:
            self._write()

    def _write(self) -> None:
        if self._checkpoint is None or not self._state.between_updates:
            return
        tensors = self._state.tensors()
        if self._score is not None:
            tensors |= {f"good.{i}": theta for i, theta in enumerate(self._good)}
        info = {
            "step": self._state.step,
            "progress": self._state.progress,
            "seed": self._seed,
            "seconds": self.seconds,
            "finished": self._finished,
        }
        history = self._distiller.history_ if self._finished else self._distiller.history_[: self._state.step]
        info |= {"best": self._best, "best_stage": self._good_stage, "improved": self._improved, "history": history}
        self._checkpoint.write(tensors, info)
        self._written, self._written_step = time.perf_counter(), self._state.step

    def _resume(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        self._state.load(tensors, info["step"], info["progress"])
        for i, (copy, theta) in enumerate(zip(self._good, self._theta, strict=True)):
            copy.copy_(tensors.get(f"good.{i}", theta.detach()))
        self._good_stage = info["best_stage"]
        self._best, self._improved, self._finished = info["best"], info["improved"], info["finished"]
        self._seconds_before = info["seconds"]
        self._distiller.history_, self._earlier = info["history"], 0.0
        self._distiller.n_iter_ = len(info["history"])
        scored = [record for record in info["history"] if "val_loss" in record]
        self._distiller.best_iter_ = min(scored, key=lambda record: record["val_loss"])["step"] if scored else None


def spelled(value: Any) -> str:
    """A parameter in words that are the same in another process, and others for another value."""
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, dict):
        return repr(sorted((spelled(key), spelled(own)) for key, own in value.items()))
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    words = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    if words == repr(value):
        return words
    try:
        return f"{words} {joblib.hash(_content(value))}"
    except Exception:  # whatever pickling a user's object raises
        return words


def _content(value: Any) -> Any:
    """What tells two functions, or two objects without a `repr` of their own, apart: the same in another process."""
    if isinstance(value, MethodType):
        return _content(value.__func__), _content(value.__self__)
    if isinstance(value, FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return [_content(part) for part in (value.__code__, enclosed, value.__defaults__, value.__kwdefaults__)]
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, _content(value.co_consts)
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {name: _content(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_content(own) for own in value]
    if isinstance(value, str | bytes | Real | np.ndarray | None):
        return value
    kind = value if isinstance(value, type | ModuleType) else type(value)
    own = {} if value is kind else getattr(value, "__dict__", {})
    return kind.__name__, _content(own)  # of an iterator, say, no more than that it is one


def _differing(was: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
