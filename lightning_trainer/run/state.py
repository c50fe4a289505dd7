"""RunState: the state that the callbacks of a run share."""

import atexit
import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_trainer.run.processes import Processes
from lightning_trainer.session.folder import Session
from lightning_trainer.session.notices import Notifier


@dataclass
class RunTimes:
    """Seconds of a run, over all its starts."""

    # PrintProgress; the times of checkpoints: checkpoints/writing.py
    elapsed_s: float = 0.0  # wall-clock time since training started
    data_s: float = 0.0  # waiting for batches
    update_s: float = 0.0  # forward, backward and optimiser step
    validation_s: float = 0.0
    checkpoints_s: float = 0.0
    iterations_s: float = 0.0  # wall-clock time of timed iterations, without the two above
    examples: int = 0  # of all processes in those iterations
    recent_validation_s: float = 0.0  # duration of the newest validation
    recent_checkpoint_s: float = 0.0


@dataclass(frozen=True)
class Best:
    """The best score so far."""

    name: str  # among the logged numbers, e.g. "val/accuracy"
    mode: str | None  # "max" if a higher score is better, "min", or None if nothing says so
    score: float
    iteration: int  # iterations done when it was reached


@dataclass(frozen=True)
class Progress:
    """The numbers of one log line."""

    iteration: int  # iterations done, i.e. optimiser steps
    n_iterations: float  # of the whole run; infinite if it has no end
    examples_per_s: float  # of all processes together
    loss: float  # mean over the iterations since the last line
    elapsed_s: float  # since training started, earlier starts of the run included
    left_s: float  # until the end of the run
    fetch_ms: float  # an iteration's wait for its batch, in the process that waits longest
    update_ms: float  # an iteration's forward, backward and optimiser step
    losses: Mapping[str, float] = field(default_factory=dict)  # the parts of the loss, by name
    unit: str = "examples"  # of what `examples_per_s` counts


@dataclass(frozen=True)
class Writing:
    """A checkpoint that is being written."""

    names: tuple[Path, ...]  # each path that it gets
    iteration: int  # iterations done
    # The path that can't be written, whether the file has another name instead, and the reason.
    result: Future[tuple[Path, bool, str] | None]


class LossSum:
    """The losses of this process's batches, on the device, since some iteration.

    The caller names that iteration. A sum since another one is out of date: it counts as empty, and
    the next loss begins a new sum.
    """

    def __init__(self) -> None:
        self._sum = torch.tensor(0.0, dtype=torch.float32)
        self._n_batches = self._since = 0

    def restore(self, loss_sum: float, n_batches: int) -> None:
        self._sum, self._n_batches, self._since = (
            torch.tensor(loss_sum, dtype=torch.float32),
            n_batches,
            0,
        )

    def is_empty(self, since: int) -> bool:
        return since != self._since or not self._n_batches

    def move_to(self, device: torch.device) -> None:
        self._sum = self._sum.to(device)

    def add(self, loss: Tensor, scale: int, since: int) -> None:
        """Adds `scale` times the loss of a batch, a tensor with one value."""
        if since != self._since:
            self._sum.zero_()
            self._n_batches, self._since = 0, since
        self._sum.add_(loss.reshape(()) if loss.ndim else loss, alpha=scale)
        self._n_batches += 1

    def total(self, since: int) -> tuple[float, int]:
        """The sum and the number of batches; waits for the device."""
        return (self._sum.item(), self._n_batches) if since == self._since else (0.0, 0)

    def mean(self, since: int) -> float:
        """The mean loss; waits for the device."""
        return (self._sum / max(self._n_batches, 1)).item() if since == self._since else 0.0


@dataclass
class RunState:
    """The state that the callbacks of a run share; it is the only argument of each.

    The comment above a group of fields names their one writer; all callbacks may read them. A
    callback that needs something of another one reads a field here: no callback holds another.
    """

    # start/trainer.py, before the callbacks are made
    session: Session
    settings: Mapping[str, Any] = field(default_factory=dict)  # as plain types, without secrets
    secrets: Sequence[str] = ()  # texts that nothing in the session may show
    left_out: Sequence[str] = ()  # arguments of model and data that `settings` can't hold
    save_minutes: float = 10.0  # a crash loses at most so much training
    on_non_finite: Literal["stop", "skip"] = "stop"
    saves: bool = True  # whether any checkpoints are written
    fast_loop: bool = True  # whether batches run without Lightning's own loop, where they can
    is_guest: bool = False  # whether nothing may be written into the folder
    is_sessions_own: bool = True  # False for a test of a session that was trained
    predict_data: str | None = None  # what `predict` is given in place of `predict_dataset`
    restored_iteration: int = 0  # iterations done at the checkpoint that the run starts from
    processes: Processes = field(default_factory=Processes)
    at_end: Callable[[Callable[[], object]], object] = atexit.register  # registers a clean-up

    # start/cli.py, before the run
    notifier: Notifier | None = None  # where the command line asks for messages
    is_called: bool = False  # whether Python has called for the run, and no command line
    fail: Callable[[Exception], object] | None = None  # tells it, and ends the process

    # KeepState
    iteration: int = 0  # iterations, i.e. optimiser steps, that are done
    stepped: int = 0  # iterations that the newest batch has added
    losses: LossSum = field(default_factory=LossSum)  # since `window_start`
    named_losses: dict[str, LossSum] = field(default_factory=dict)  # the parts of the loss
    goes_on: bool = False  # whether training goes on from a checkpoint
    n_processes_before: int | None = None  # processes of the run that wrote that checkpoint
    failure: Exception | None = None  # the first error; ending the run may raise others

    # FollowLoaders
    loader_faults: Sequence[str] = ()  # why the training data does not go on where it stopped

    # run/device.py
    settled_s: float = 0.0  # by `perf_counter`, when a GPU had last done all its work

    # ValidationSchedule
    n_iterations: float = math.inf  # of the whole run
    spacing: float | None = None  # batches between validations, where Lightning counts them
    validated: bool = True  # False while `iteration` lacks a validation that is due

    # ReportEvaluation
    improved: bool = False  # whether the newest validation was the best
    newest_best: Best | None = None
    best_before: Best | None = None  # the one before `newest_best`

    # PrintProgress
    line: Progress | None = None  # the newest log line
    times: RunTimes = field(default_factory=RunTimes)

    # GuessValidation
    guessed_batch_s: float = 0.0  # of a validation, by the sanity check; 0 without one

    # MeasureUse
    used: Mapping[str, float] = field(default_factory=dict)  # memory_gb, gpu_percent, ...

    # RecordRun
    kept_rows: Sequence[Mapping[str, Any]] = ()  # of metrics.csv, in the checkpoint that is loaded

    # checkpoints/finite.py
    skipped_at: int = 0  # the newest iteration at which training went back to last.ckpt
    n_skips: int = 0  # how often it did so without a newer checkpoint

    # StopOnSignal
    stop_signal: int = 0  # the signal that ends the run, the same on all processes

    # SaveCheckpoints
    lacks_validation: bool = False  # whether the newest last.ckpt was written before one

    # checkpoints/writing.py
    writing: Writing | None = None
    saved_iteration: int = 0  # of last.ckpt
    save_failure: str = ""  # why the newest last.ckpt could not be written
    best_failure: str = ""  # why the newest best checkpoint could not be written
    unsaved_best: int | None = None  # iteration of a best checkpoint that could not be written
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))

    _of_trainer: ClassVar["WeakKeyDictionary[pl.Trainer, RunState]"] = WeakKeyDictionary()

    @property
    def best(self) -> Best | None:
        """The best score so far whose weights are kept."""
        newest = self.newest_best
        lost = newest is not None and newest.iteration == self.unsaved_best
        return self.best_before if lost else newest

    @property
    def complete(self) -> bool:
        """Whether no validation of `iteration` is left to run."""
        return self.validated and not self.lacks_validation

    @property
    def window_start(self) -> int:
        """The iteration since which losses count: of the newest line, or of going back."""
        return max(self.line.iteration if self.line else 0, self.skipped_at)

    def attach(self, trainer: pl.Trainer) -> None:
        """Lets `of` find this state by the trainer."""
        self._of_trainer[trainer] = self

    @classmethod
    def of(cls, trainer: pl.Trainer, reader: object) -> "RunState":
        """The state of a trainer's run, for a callback that a config adds.

        Raises:
            TypeError: If the trainer was not made by the command line.
        """
        if trainer not in cls._of_trainer:
            raise TypeError(
                f"`{type(reader).__name__}` needs a run of the command line: a `pl.Trainer` of "
                "your own has none of the callbacks that it reads"
            )
        return cls._of_trainer[trainer]


_RULE = 82  # characters


def rule() -> str:
    """What stands between the blocks of the log, no wider than the terminal is now.

    The variable COLUMNS may be another program's.
    """
    columns = 0
    with contextlib.suppress(AttributeError, OSError, ValueError):
        columns = os.get_terminal_size(sys.__stdout__.fileno()).columns  # type: ignore[union-attr]
    return "-" * min(_RULE, columns or _RULE)


class RunCallback(Callback):
    """A built-in callback."""

    def __init__(self, run: RunState) -> None:
        self.run = run
