"""What happens around the steps of a run: history, held-out score, stopping, checkpoints, progress."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils._progress import progress_bar
from ._checkpoint import CheckpointFile
from ._state import State

# Steps between two scores on the held-out features; each score costs a forward pass of the unaugmented images.
_SCORE_EVERY = 20
# Steps between two reads of the losses. A read waits for the GPU. Both numbers have to divide _SCORE_EVERY.
_READ_EVERY, _READ_EVERY_CPU = 10, 1
# What a process tells the others about its callbacks.
_GOING_ON, _STOPPED, _INTERRUPTED, _FAILED = range(4)


class Limits(NamedTuple):
    """When a run ends: parameters of :class:`CLPDistiller`."""

    max_iter: int
    time_budget: float | None
    n_iter_no_change: int | None
    tol: float


@dataclass(frozen=True)
class Outcome:
    """How a run has ended; its `State` contains the θ to keep.

    Parameters
    ----------
    history : list of dict
        Records of the steps, including those of earlier fits that it continued.
    n_steps : int
        Steps made, including those before an interruption.
    best_iter : int or None
        Step of the record with the score of the θ to keep; None if nothing was scored.
    best : tuple of 2 floats, or None
        That score: loss and accuracy on the held-out features.
    interrupted_after : int or None
        Steps after which Ctrl-C ended it.
    error : BaseException or None
        The error that ended it; the θ to keep is then the best one so far.
    """

    history: list[dict[str, float]]
    n_steps: int
    best_iter: int | None = None
    best: tuple[float, float] | None = None
    interrupted_after: int | None = None
    error: BaseException | None = None


class Trainer:
    """Run the optimisation from its present step to its end.

    Parameters
    ----------
    state : State
        Changed by the steps. At the end it contains the θ to keep: the one with the least held-out loss, if there is one.
    limits : Limits
    history : list of dict
        Records of fits that this one continues; those of its steps are appended.
    score : callable or None
        ``() → (2,)`` tensor: loss and accuracy of the present state on the held-out features.
    notify : callable
        Called with the records of the steps since its last call; a ``StopIteration`` ends the run.
    has_callbacks : bool
        Whether there are callbacks in any process, which may end the run.
    checkpoint : CheckpointFile or None
    seed : int
        Seed of the run, which its continuation needs.
    views_per_step : int
        For the progress bar.
    advice : str
        What may help if losses are not finite, for error messages.
    verbose : bool
        Whether to show a progress bar.
    """

    def __init__(
        self,
        state: State,
        limits: Limits,
        history: list[dict[str, float]],
        *,
        score: Callable[[], Tensor] | None,
        notify: Callable[[list[dict[str, float]]], None],
        has_callbacks: bool,
        checkpoint: CheckpointFile | None,
        seed: int,
        views_per_step: int,
        advice: str,
        verbose: bool,
    ):
        self._state, self._limits, self.history = state, limits, history
        self._score, self._notify, self._checkpoint, self._seed = score, notify, checkpoint, seed
        self._views_per_step, self._advice, self._verbose = views_per_step, advice, verbose
        self._ranks = state.ranks
        self._theta = state.parameters
        # θ with the least held-out loss; without held-out features, the last one with a finite loss.
        self._best_theta = [theta.detach().clone() for theta in self._theta]
        self._best_stage = state.parametrization.stage
        self._best, self._best_accuracy, self._improved_at_step = float("inf"), float("nan"), 0
        self._best_iter: int | None = None
        self._finished = False
        self._pending: list[tuple[Tensor, float]] = []
        self._read_every = _READ_EVERY_CPU if self._theta[0].device.type == "cpu" else _READ_EVERY
        self._seconds_before_resuming = 0.0
        self._n_earlier_records = len(history)
        self._seconds_of_earlier_fits = history[-1]["seconds"] if history else 0.0
        if checkpoint is not None and checkpoint.info:
            self._resume(checkpoint.tensors, checkpoint.info)
            checkpoint.tensors = {}
        self._agreed_seconds = self._seconds_before_resuming
        self._is_interrupted = False
        self._agreed_failure: BaseException | None = None
        self._has_callbacks = has_callbacks
        self._started_at = time.perf_counter()
        self._written_at = self.seconds
        self._written_at_step = self._first_step = state.step

    @property
    def seconds(self) -> float:
        """Time in the loop, including that before an interruption; several processes agree on that of the last step."""
        return self._own_seconds if self._ranks.size == 1 else self._agreed_seconds

    @property
    def _own_seconds(self) -> float:
        return self._seconds_before_resuming + time.perf_counter() - self._started_at

    def progress(self) -> float:
        """Fraction of the run that is done, by steps or by time, whichever is larger."""
        if self._finished:
            return 1.0
        by_steps = self._state.step / self._limits.max_iter
        budget = self._limits.time_budget
        return by_steps if budget is None else max(by_steps, self.seconds / budget)

    def run(self, steps: Iterator[Tensor]) -> Outcome:
        """Make the steps, and write `history` and checkpoints.

        Ctrl-C and errors end the run and are part of the outcome. A ``StopIteration`` of a callback ends it, too.

        Raises
        ------
        BaseException
            What only this one of several processes has raised: without the others, there is no outcome.
        """
        interrupted, error = None, None
        done, total = self._state.step, self._limits.max_iter
        hidden = not self._verbose or self._ranks.rank > 0
        bar = progress_bar(initial=done, total=total, desc="distilling", unit="step", hidden=hidden)
        try:
            try:
                for loss in steps:
                    self._pending.append((loss, self.seconds))
                    if self._state.step % self._read_every == 0:
                        self._read_losses(bar)
                        self._write_if_due()
                        if self._finished:
                            break
                self._finished = True
                self._read_losses(bar)
            except StopIteration:
                pass
            except KeyboardInterrupt:
                if self._ranks.size > 1 and not self._is_interrupted:
                    raise  # only here, at any moment
                interrupted = self._state.step
            self._finish(bar)
        except BaseException as caught:
            if self._ranks.size > 1 and caught is not self._agreed_failure:
                bar.close()
                raise
            error = caught
            retry_on_interrupt(self._restore_best)
        with suppress(KeyboardInterrupt):
            bar.close()
        try:
            return self._outcome(interrupted, error)
        finally:
            del error  # it references the frames that it has passed through

    def agree(self) -> None:
        """Agree with the other processes on the time, and on whether Ctrl-C was pressed, at one moment of each step."""
        if self._ranks.size > 1:
            own = torch.tensor([self._own_seconds, self._ranks.was_interrupted], dtype=torch.float64, device="cpu")
            seconds, interrupted = self._ranks.gather(own, self._ranks.size, k=2).view(-1, 2).T
            self._agreed_seconds = seconds[0].item()
            self._is_interrupted |= bool(interrupted.any())

    def _failure(self, error: BaseException) -> BaseException:
        """An error that all processes raise, so that they go on together."""
        self._agreed_failure = error
        return error

    def _tell(self, records: list[dict[str, float]]) -> None:
        """Call the callbacks. What ends the run in one of several processes ends it in all of them.

        Raises
        ------
        StopIteration, KeyboardInterrupt
            If a callback, or Ctrl-C, ends the run.
        Exception
            What a callback has raised; in the other processes a RuntimeError.
        """
        if self._ranks.size == 1:
            self._notify(records)
            return
        if self._has_callbacks:
            self._tell_in_all(records)
        if self._is_interrupted:
            raise KeyboardInterrupt

    def _tell_in_all(self, records: list[dict[str, float]]) -> None:
        caught: BaseException | None = None
        try:
            self._notify(records)
        except BaseException as error:
            caught = error
        kinds = {StopIteration: _STOPPED, KeyboardInterrupt: _INTERRUPTED}
        own = _GOING_ON if caught is None else kinds.get(type(caught), _FAILED)
        codes = self._ranks.gather(torch.tensor([own], device="cpu"), self._ranks.size).tolist()
        if _FAILED in codes:
            told = RuntimeError(f"a callback of process {codes.index(_FAILED)} has raised an error; see its output")
            raise self._failure(caught if own == _FAILED and caught is not None else told)
        self._is_interrupted |= _INTERRUPTED in codes
        if _STOPPED in codes and not self._is_interrupted:
            raise StopIteration

    def _outcome(self, interrupted: int | None, error: BaseException | None) -> Outcome:
        best = None if self._best_iter is None else (self._best, self._best_accuracy)
        if best is not None and self.history and self._best_iter == len(self.history):
            # A resumed run has ended before it repeated a step whose score is in the checkpoint: the last record gets that score.
            self._best_iter -= 1
            self.history[-1] |= {"val_loss": self._best, "val_accuracy": self._best_accuracy}
        return Outcome(self.history, self._state.step, self._best_iter, best, interrupted, error)

    def _read_losses(self, bar: Any) -> None:
        """Transfer the pending losses from the device, and score the present state if it is time to."""
        if not self._pending:
            return
        records: list[dict[str, float]] = []
        losses = torch.stack([loss for loss, _ in self._pending]).tolist()  # if interrupted here, no loss is lost
        pending, self._pending = self._pending, []
        for loss, (_, seconds) in zip(losses, pending, strict=True):
            if not math.isfinite(loss):
                what = f"the loss of step {len(self.history)} is {loss}; the last valid images are kept"
                raise self._failure(FloatingPointError(f"{what}. {self._advice}"))
            records.append({"step": len(self.history), "loss": loss, "seconds": self._seconds_of_earlier_fits + seconds})
            self.history.append(records[-1])
        if self._score is None:
            self._keep_as_best()
        elif self._state.step % _SCORE_EVERY == 0 and len(self.history) - self._n_earlier_records == self._state.step + 1:
            self._score_into(records[-1])
            patience = self._limits.n_iter_no_change
            if patience is not None and self._state.step - self._improved_at_step >= patience:
                self._finished = True
        self._show(bar, records)
        self._tell(records)

    def _score_into(self, record: dict[str, float]) -> None:
        """Score the present state, and write the score to a record unless the record already has a better one.

        The last record may be scored twice: before the last step, if that is a 20th step, and after it.
        """
        assert self._score is not None
        loss, accuracy = self._score().tolist()
        if "val_loss" not in record or loss < record["val_loss"]:
            record |= {"val_loss": loss, "val_accuracy": accuracy}
        if math.isnan(loss):
            what = f"the loss of held-out samples at step {record['step']} is nan; the last valid images are kept"
            raise self._failure(FloatingPointError(f"{what}. {self._advice}"))
        if loss < self._best - self._limits.tol:
            self._improved_at_step = self._state.step
        if loss < self._best:
            try:
                retry_on_interrupt(self._keep_as_best)  # a partial copy would mix two states
            finally:
                self._best, self._best_accuracy, self._best_iter = loss, accuracy, int(record["step"])

    def _show(self, bar: Any, records: list[dict[str, float]]) -> None:
        """Update the progress bar."""
        if bar.disable:
            return
        made = self._state.step - self._first_step + 1
        scored = [record for record in self.history[-_SCORE_EVERY:] if "val_accuracy" in record]
        shown = {"loss": f"{records[-1]['loss']:.3f}"}
        if scored:
            shown["held-out acc"] = f"{scored[-1]['val_accuracy']:.3f}"
        shown["img/s"] = f"{made * self._views_per_step / (self.seconds - self._seconds_before_resuming):.0f}"
        if self._limits.time_budget is not None:  # so that the bar estimates the remaining time
            bar.total = min(self._limits.max_iter, round((self._state.step + 1) / max(self.progress(), 1e-9)))
        bar.set_postfix(shown, refresh=False)
        bar.update(len(records))

    def _finish(self, bar: Any) -> None:
        """Score the last state, write the last checkpoint, and restore the best state."""
        with suppress(StopIteration):  # the run is ending; these are losses that an interrupt has left
            self._read_losses(bar)
        if not all(self._ranks.of_all(all(bool(theta.isfinite().all()) for theta in self._theta))):
            what = f"step {self._state.step} has led to images that are not finite; the last valid ones are kept"
            raise self._failure(FloatingPointError(f"{what}. {self._advice}"))
        # An unfinished run is saved before it is scored: without the interruption, there would be no score here.
        if not self._finished:
            self._write()
        if self._score is not None and len(self.history) > self._n_earlier_records:
            self._score_into(self.history[-1])
        if self._finished:
            self._write()
        if self._score is not None:
            self._restore_best()

    def _keep_as_best(self) -> None:
        for copy, theta in zip(self._best_theta, self._theta, strict=True):
            copy.copy_(theta.detach())
        self._best_stage = self._state.parametrization.stage

    def _restore_best(self) -> None:
        with torch.no_grad():
            for theta, copy in zip(self._theta, self._best_theta, strict=True):
                theta.copy_(copy)
        self._state.parametrization.stage = self._best_stage

    def _write_if_due(self) -> None:
        if self._checkpoint is None:
            return
        if self._checkpoint.is_due(self._state.step - self._written_at_step, self.seconds - self._written_at):
            self._write()

    def _write(self) -> None:
        """Write a checkpoint, unless an interrupt has come in the middle of an update."""
        if self._checkpoint is None or not self._state.between_updates:
            return
        tensors = self._state.tensors()
        if self._score is not None:
            tensors |= self._state.of_all_samples({f"best.{i}": theta for i, theta in enumerate(self._best_theta)})
        info = {
            "step": self._state.step,
            "progress": self._state.progress,
            "seed": self._seed,
            "seconds": self.seconds,
            "finished": self._finished,
            "best": self._best,
            "best_accuracy": self._best_accuracy,
            "best_iter": self._best_iter,
            "best_stage": self._best_stage,
            "improved": self._improved_at_step,
            "history": self.history if self._finished else self.history[: self._state.step],
        }
        self._checkpoint.write(tensors, info)
        self._written_at, self._written_at_step = self.seconds, self._state.step

    def _resume(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        tensors = self._state.load(tensors, info["step"], info["progress"])
        for i, (copy, theta) in enumerate(zip(self._best_theta, self._theta, strict=True)):
            copy.copy_(tensors.get(f"best.{i}", theta.detach()))
        self._best_stage = info["best_stage"]
        self._best, self._best_accuracy, self._best_iter = info["best"], info["best_accuracy"], info["best_iter"]
        self._improved_at_step, self._finished = info["improved"], info["finished"]
        self._seconds_before_resuming = info["seconds"]
        self.history[:] = info["history"]


def retry_on_interrupt(work: Callable[[], Any]) -> Any:
    """Do something short that must not be left half done: if Ctrl-C interrupts it, do it once more."""
    try:
        return work()
    except KeyboardInterrupt:
        return work()
