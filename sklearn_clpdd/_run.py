"""What happens around the steps of a distillation: history, held-out score, stopping, checkpoints, callbacks, progress."""

import dis
import math
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

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
# Of the information in a checkpoint; another one is refused.
_CHECKPOINT_FORMAT = 2


class Limits(NamedTuple):
    """When a run ends: parameters of :class:`CLPDistiller`."""

    max_iter: int
    time_budget: float | None
    n_iter_no_change: int | None
    tol: float


@dataclass(frozen=True)
class Outcome:
    """What a run has come to; its `State` holds the θ to keep.

    Parameters
    ----------
    history : list of dict
        Records of the steps, those of earlier fits that it went on from included.
    n_steps : int
        Steps that it has made, those before an interruption included.
    best_iter : int or None
        Step of the record with the score of the θ to keep; None where nothing was scored.
    best : tuple of 2 floats, or None
        That score: loss and accuracy on held-out features.
    interrupted_after : int or None
        Steps after which Ctrl-C has ended it.
    error : BaseException or None
        What has ended it, after which the θ to keep is the best so far.
    """

    history: list[dict[str, float]]
    n_steps: int
    best_iter: int | None
    best: tuple[float, float] | None
    interrupted_after: int | None
    error: BaseException | None


class Checkpoint:
    """The file that a run is written to, and goes on from if it is there.

    Parameters
    ----------
    path : Path
    every : float or int
        Between two writings: seconds if it is a float, steps if it is an integer.
    parameters : dict of str to str
        Parameters that a run and its continuation have to share, spelled.
    data : dict of str to str
        Digests of what it is fitted to.
    versions : dict of str to str
        Versions of the packages that compute the features.

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

    def __init__(self, path: Path, every: float, parameters: dict[str, str], data: dict[str, str], versions: dict[str, str]):
        self.path, self.every = path, every
        if path.is_dir() or not path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint={str(path)!r} has to be a file in a folder that is there")
        self._of_run: dict[str, Any] = {
            "parameters": parameters,
            "data": data,
            "versions": versions,
            "format": _CHECKPOINT_FORMAT,
        }
        self.tensors: dict[str, Tensor] = {}
        self.info: dict[str, Any] = {}
        if path.exists():
            self.tensors, self.info = read_checkpoint(path)
            differ = self._differences(self.info)
            if differ:
                raise ValueError(
                    f"checkpoint={str(path)!r} is that of another run: {'; '.join(differ)}. "
                    "Go on with what it was started with, give another path, or delete the file"
                )

    def _differences(self, info: dict[str, Any]) -> list[str]:
        """In what a file's run is another one, in words."""
        if info.get("format") != _CHECKPOINT_FORMAT:
            return [f"its format is {info.get('format', 1)}, and this version of the library writes {_CHECKPOINT_FORMAT}"]
        differ = [f"{name} differ" for name in _differing(info["data"], self._of_run["data"])]
        for kind in ("versions", "parameters"):
            was, now = info[kind], self._of_run[kind]
            differ += [f"{name} was {was.get(name)} and is {now.get(name)}" for name in _differing(was, now)]
        return differ

    def write(self, tensors: dict[str, Tensor], info: dict) -> None:
        """Replace the file; a failure is a warning, for the run is worth more."""
        try:
            write_checkpoint(self.path, tensors, info | self._of_run)
        except OSError as error:
            warnings.warn(f"the checkpoint could not be written, the run goes on: {error}", RuntimeWarning, stacklevel=2)


class Run:
    """Follow a run from where it is to its end.

    Parameters
    ----------
    state : State
        What the steps change. At the end it holds the θ to keep: the best on the held-out features, where there are some.
    limits : Limits
    history : list of dict
        Records of fits that this one goes on from; those of its steps are added.
    score : callable or None
        ``() → (2,)`` tensor: loss and accuracy of the present state on held-out features.
    tell : callable
        Called with the records of the steps since its last call; a ``StopIteration`` ends the run.
    checkpoint : Checkpoint or None
    seed : int
        Of the run, for whoever goes on with it.
    views_per_step : int
        For the progress bar.
    strengths : str
        Parameters that bear on whether losses stay finite, in words.
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
        tell: Callable[[list[dict[str, float]]], None],
        checkpoint: Checkpoint | None,
        seed: int,
        views_per_step: int,
        strengths: str,
        verbose: bool,
    ):
        self._state, self._limits, self.history = state, limits, history
        self._score, self._tell, self._checkpoint, self._seed = score, tell, checkpoint, seed
        self._views_per_step, self._strengths, self._verbose = views_per_step, strengths, verbose
        self._theta = state.parameters
        # The best θ on the held-out features; without such, the last one whose loss was finite.
        self._good = [theta.detach().clone() for theta in self._theta]
        self._good_stage = state.parametrization.stage
        self._best, self._best_accuracy, self._improved = float("inf"), float("nan"), 0
        self._best_iter: int | None = None
        self._finished = False
        self._pending: list[tuple[Tensor, float]] = []
        self._look_every = _LOOK_EVERY_CPU if self._theta[0].device.type == "cpu" else _LOOK_EVERY
        self._seconds_before = 0.0
        self._n_before = len(history)
        self._earlier = history[-1]["seconds"] if history else 0.0
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
        by_steps = self._state.step / self._limits.max_iter
        budget = self._limits.time_budget
        return by_steps if budget is None else max(by_steps, self.seconds / budget)

    def follow(self, steps: Iterator[Tensor]) -> Outcome:
        """Make the steps; write `history` and checkpoints.

        Ctrl-C and an error end them, and are noted in the outcome; so does a ``StopIteration`` of whoever is told of them.
        """
        interrupted, error = None, None
        done, total = self._state.step, self._limits.max_iter
        bar = tqdm(initial=done, total=total, desc="distilling", unit="step", disable=not self._verbose)
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
                interrupted = self._state.step
            self._end(bar)
        except BaseException as caught:
            error = caught
            insist(self._restore)
        with suppress(KeyboardInterrupt):
            bar.close()
        try:
            return self._outcome(interrupted, error)
        finally:
            del error  # it holds the frames that it has come through

    def _outcome(self, interrupted: int | None, error: BaseException | None) -> Outcome:
        best = None if self._best_iter is None else (self._best, self._best_accuracy)
        if best is not None and self.history and self._best_iter == len(self.history):
            # The state of an interruption at a step that was scored, and has not been made again.
            self._best_iter -= 1
            self.history[-1] |= {"val_loss": self._best, "val_accuracy": self._best_accuracy}
        return Outcome(self.history, self._state.step, self._best_iter, best, interrupted, error)

    def _look(self, bar: tqdm) -> None:
        """Take the pending losses off the device; score the present state where it is time to."""
        if not self._pending:
            return
        records: list[dict[str, float]] = []
        losses = torch.stack([loss for loss, _ in self._pending]).tolist()  # an interrupt while this waits loses none
        pending, self._pending = self._pending, []
        for loss, (_, seconds) in zip(losses, pending, strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of step {len(self.history)} is {loss} ({self._strengths}); the last good images are kept. "
                    "A larger alpha or temperature, or a smaller learning_rate, may help"
                )
            records.append({"step": len(self.history), "loss": loss, "seconds": self._earlier + seconds})
            self.history.append(records[-1])
        if self._score is None:
            self._keep()
        elif self._state.step % _SCORE_EVERY == 0 and len(self.history) - self._n_before == self._state.step + 1:
            self._score_into(records[-1])
            patience = self._limits.n_iter_no_change
            if patience is not None and self._state.step - self._improved >= patience:
                self._finished = True
        self._show(bar, records)
        self._tell(records)

    def _score_into(self, record: dict[str, float]) -> None:
        """Score the present state; its score is that of a record, unless the record has a better one already.

        The last step has two states, that before it, which was scored if it was time to, and that after it.
        """
        assert self._score is not None
        loss, accuracy = self._score().tolist()
        if "val_loss" not in record or loss < record["val_loss"]:
            record |= {"val_loss": loss, "val_accuracy": accuracy}
        if math.isnan(loss):
            raise FloatingPointError(
                f"the loss of held-out samples at step {record['step']} is nan; the last good images are kept. "
                "A larger alpha or temperature may help, or an objective that takes any number of views"
            )
        if loss < self._best - self._limits.tol:
            self._improved = self._state.step
        if loss < self._best:
            try:
                insist(self._keep)  # half a copy would be of neither
            finally:
                self._best, self._best_accuracy, self._best_iter = loss, accuracy, int(record["step"])

    def _show(self, bar: tqdm, records: list[dict[str, float]]) -> None:
        if bar.disable:
            return
        made = self._state.step - self._first_step + 1
        scored = [record for record in self.history[-_SCORE_EVERY:] if "val_accuracy" in record]
        shown = {"loss": f"{records[-1]['loss']:.3f}"}
        if scored:
            shown["held out"] = f"{scored[-1]['val_accuracy']:.3f}"
        shown["img/s"] = f"{made * self._views_per_step / (self.seconds - self._seconds_before):.0f}"
        if self._limits.time_budget is not None:  # for the time left
            bar.total = min(self._limits.max_iter, round((self._state.step + 1) / max(self.progress(), 1e-9)))
        bar.set_postfix(shown, refresh=False)
        bar.update(len(records))

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
        if self._score is not None and len(self.history) > self._n_before:
            self._score_into(self.history[-1])
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
        every = self._checkpoint.every
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
            "best": self._best,
            "best_accuracy": self._best_accuracy,
            "best_iter": self._best_iter,
            "best_stage": self._good_stage,
            "improved": self._improved,
            "history": self.history if self._finished else self.history[: self._state.step],
        }
        self._checkpoint.write(tensors, info)
        self._written, self._written_step = time.perf_counter(), self._state.step

    def _resume(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        self._state.load(tensors, info["step"], info["progress"])
        for i, (copy, theta) in enumerate(zip(self._good, self._theta, strict=True)):
            copy.copy_(tensors.get(f"good.{i}", theta.detach()))
        self._good_stage = info["best_stage"]
        self._best, self._best_accuracy, self._best_iter = info["best"], info["best_accuracy"], info["best_iter"]
        self._improved, self._finished = info["improved"], info["finished"]
        self._seconds_before = info["seconds"]
        self.history[:] = info["history"]
        self._earlier, self._n_before = 0.0, 0


def insist(work: Callable[[], Any]) -> Any:
    """Do something short that must not be left half done: once more, if Ctrl-C comes in the middle of it, and no third time."""
    try:
        return work()
    except KeyboardInterrupt:
        return work()


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
        return f"{words} {_Content().digest(value)}"
    except Exception:  # whatever hashing a user's object raises
        return words


class _Content:
    """What tells two functions, or two objects without a `repr` of their own, apart: the same in another process.

    Of a function its code, what it encloses, its defaults, and the values of the global names that it reads; of an object its
    attributes, and the code of its class. Code of installed packages stands for itself by its name: that is a matter of versions.
    """

    def __init__(self):
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no address is used again

    def digest(self, value: Any) -> str:
        """Of the content of a value."""
        return joblib.hash(repr(self.of(value)))  # not of the content itself: pickles tell equal objects from the same

    def of(self, value: Any) -> Any:
        """A value in words and numbers, tuples and lists of these."""
        if isinstance(value, str | bytes | Real | None):
            return value
        if isinstance(value, np.ndarray):
            return joblib.hash(value)
        if id(value) in self._met:
            return "met", self._met[id(value)]
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        try:
            return self._of_new(value)
        except Exception:  # whatever a user's object raises; the rest still tells
            return type(value).__qualname__

    def _of_new(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            return str(value.dtype), self.of((dense.float() if dense.dtype == torch.bfloat16 else dense).cpu().numpy())
        if isinstance(value, dict):
            return [(self.of(key), self.of(own)) for key, own in value.items()]
        if isinstance(value, list | tuple):
            return [self.of(own) for own in value]
        if isinstance(value, set | frozenset):
            return sorted(_Content().digest(own) for own in value)
        if isinstance(value, partial):
            return self.of([value.func, value.args, value.keywords])
        if isinstance(value, MethodType):
            return self.of([value.__func__, value.__self__])
        if isinstance(value, CodeType):
            return value.co_code, value.co_names, self.of(value.co_consts)
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, FunctionType):
            return self._of_function(value)
        if isinstance(value, type):
            return self._of_class(value)
        if _is_of(value, _STANDARD_LIBRARY):
            # Some say in words what they are; those that are of the moment, such as iterators, locks and loggers, do not count.
            says_nothing = hasattr(value, "__next__") or repr(value).startswith("<")
            return type(value).__qualname__ if says_nothing else repr(value)
        slots = [name for kind in type(value).__mro__ for name in _slots_of(kind) if hasattr(value, name)]
        return self.of([type(value), getattr(value, "__dict__", {}), [(name, getattr(value, name)) for name in slots]])

    def _of_function(self, function: FunctionType) -> Any:
        name = f"{function.__module__}.{function.__qualname__}"
        enclosed = [cell.cell_contents for cell in function.__closure__ or ()]
        parts = self.of([function.__code__, enclosed, function.__defaults__, function.__kwdefaults__])
        if _is_of(function, _INSTALLED):
            return name, parts
        names, attributes = _names_of(function.__code__)
        read = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
        values = [(name, self.of(own)) for name, own in read.items()]
        for module in [*read.values(), *enclosed]:
            if isinstance(module, ModuleType) and not _is_of(module, _INSTALLED):  # one of the user's own
                own = sorted(attributes & vars(module).keys())
                values += [(f"{module.__name__}.{name}", self.of(vars(module)[name])) for name in own]
        return parts, values

    def _of_class(self, kind: type) -> Any:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if _is_of(kind, _INSTALLED):
            return name
        unwrapped = {key: getattr(own, "__func__", getattr(own, "fget", None)) or own for key, own in vars(kind).items()}
        # Python keeps data of its own under such names.
        own = [(key, it) for key, it in unwrapped.items() if isinstance(it, FunctionType) or not key.startswith("__")]
        return kind.__qualname__, self.of(list(kind.__bases__)), self.of(own)


_STANDARD_LIBRARY = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_INSTALLED = (*_STANDARD_LIBRARY, Path(__file__).parent.resolve())
_SITES = {"site-packages", "dist-packages"}


def _is_of(value: Any, places: tuple[Path, ...]) -> bool:
    """Whether a module, function, class or object is of the standard library or, if asked, of an installed package."""
    kind = value if isinstance(value, ModuleType | FunctionType | type) else type(value)
    module = kind if isinstance(kind, ModuleType) else sys.modules.get(kind.__module__ or "")
    if module is None or module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return True  # built in
    here = Path(file).resolve()
    if _SITES & set(here.parts):
        return places is _INSTALLED
    return any(here.is_relative_to(place) for place in places)


def _slots_of(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _names_of(code: CodeType) -> tuple[set[str], set[str]]:
    """Global names that a function, and those that are defined in it, may read; and attributes that they read of something."""
    names, attributes = set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _names_of(constant)
            names, attributes = names | inner[0], attributes | inner[1]
    return names, attributes


def _differing(was: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
