"""Which checkpoints are written, and when."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint

from lightning_trainer.checkpoints.averaging import end_validation, share_buffers
from lightning_trainer.checkpoints.files import (
    AtomicCheckpointIO,
    give_second_name,
    publish,
    remove_unused,
    unused_name,
)
from lightning_trainer.checkpoints.finite import GuardAgainstNonFinite
from lightning_trainer.report.evaluation import RULE, ReportEvaluation
from lightning_trainer.run.processes import Agreement
from lightning_trainer.run.schedule import ValidationSchedule
from lightning_trainer.run.state import RunTimes
from lightning_trainer.session.folder import Session
from lightning_trainer.session.secrets import scrub


class SaveCheckpoints(Checkpoint):
    """Writes last.ckpt, to go on from, and best.ckpt, the best score.

    last.ckpt is written before the first iteration, after each validation, every `minutes` between
    two, and before a validation if a tenth of that has passed, so that one which crashes costs
    little. Each is a point from which a restart is right: one that was written before its
    validation has run runs it first. One that can't be written, e.g. on a full disk, is reported
    and tried again at the next of these points; a run that ends without its last one fails.

    Where the weights are on a GPU they are only copied to the host; a thread writes that copy while
    training goes on, and the next point begins by waiting for it. On the CPU that would take a
    second copy of them in memory.

    Lightning calls it after all other callbacks, because it derives from `Checkpoint`.

    Args:
        session: Where to write.
        config: The run's settings, which each checkpoint carries: a file alone is enough to go on.
        schedule: Tells when a validation is due.
        report: Tells whether a validation was the best.
        times: Gets the time that writing takes.
        agreement: Tells when the processes meet.
        guard: Keeps what is not finite out of last.ckpt.
        minutes: At most so many minutes of training are lost at a crash.
    """

    def __init__(
        self,
        session: Session,
        config: Mapping[str, Any],
        schedule: ValidationSchedule,
        report: ReportEvaluation,
        times: RunTimes,
        agreement: Agreement,
        guard: GuardAgainstNonFinite,
        minutes: float = 10.0,
    ) -> None:
        self.session = session
        self.config = config
        self.schedule = schedule
        self.report = report
        self.times = times
        self.agreement = agreement
        self.guard = guard
        self.interval_s = minutes * 60
        self._done = self._in_last = 0
        self._failure = ""
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[tuple[Path, ...], int, Future[Any]] | None = None
        guard.finish_checkpoint = self.finish

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the first one, or catches up on a validation that the run was stopped in.

        Raises:
            OSError: If the first one can't be written.
        """
        self._saved_s = perf_counter()
        self._done = self._in_last = trainer.global_step
        self._n_iterations = trainer.estimated_stepping_batches
        self.guard.note_saved(self._done)
        if not trainer.strategy.broadcast(self.session.best_checkpoint.exists()):
            self.report.forget()  # the best was of another session
        folder = self.session.last_checkpoint.parent
        if trainer.is_global_zero and folder.exists():
            remove_unused(folder)
        if not trainer.strategy.broadcast(self.session.last_checkpoint.exists()):
            # Whatever keeps it from being written or read is better known now than in an hour.
            self._write(trainer, self.session.last_checkpoint)
            self.finish(trainer)
            self._raise_failure()
        self.schedule.catch_up(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes last.ckpt where it is time."""
        if trainer.global_step == self._done:  # gradients are still being accumulated
            return
        self._done = trainer.global_step
        if self._is_time(trainer):
            self.save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the settings, and leaves secrets out of those that Lightning has added."""
        checkpoint["session_config"] = dict(self.config)
        for key in {"hyper_parameters", "datamodule_hyper_parameters"} & checkpoint.keys():
            checkpoint[key] = scrub(checkpoint[key])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits for the one that is being written: its score is the best only if it is kept."""
        self.finish(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes last.ckpt, and best.ckpt if the score is the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        share_buffers(trainer)
        # First the best, because last.ckpt says that it has been found.
        best, last = self.session.best_checkpoint, self.session.last_checkpoint
        if not self.report.improved or not self._write(trainer, best, last):
            self._write(trainer, last)
        if self.report.improved and trainer.is_global_zero:
            print(f"Model saved to: {best}")
        if trainer.is_global_zero:
            print(f"\n{RULE}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fails where the end of the run could not be saved.

        Raises:
            OSError: Says how far last.ckpt has come.
        """
        self._raise_failure()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Waits for the one that is being written, without the other processes."""
        self._writer.shutdown()

    def save(self, trainer: pl.Trainer) -> None:
        """Writes last.ckpt at the end of an iteration, or within a validation that ends by it."""
        self.schedule.note_whether_due(trainer)
        if trainer.validating:
            end_validation(trainer)
        else:
            self.guard.check(trainer)
        self._write(trainer, self.session.last_checkpoint)

    def save_end(self, trainer: pl.Trainer) -> None:
        """Saves the end of a run that has stopped in between."""
        self.finish(trainer)
        if self._in_last < trainer.global_step and not self._failure:
            self.guard.check(trainer)
            self._write(trainer, self.session.last_checkpoint)
            self.finish(trainer)

    def _is_time(self, trainer: pl.Trainer) -> bool:
        unsaved_s = perf_counter() - self._saved_s
        alone = trainer.world_size == 1
        before_last = self._done < self._n_iterations
        if alone and before_last and unsaved_s < self.interval_s / 10:
            return False
        due = self.schedule.is_due(trainer)
        if not before_last and not due:
            return True  # nothing comes after it that would be saved
        if not due and not self.agreement.meeting:
            return False
        (unsaved_s,) = self.agreement.highest(unsaved_s)
        return unsaved_s >= (self.interval_s / 10 if due else self.interval_s)

    def finish(self, trainer: pl.Trainer) -> bool:
        """Waits for the one that is being written; whether it succeeded, on all processes alike."""
        if self._pending is None:
            return True
        names, iteration, writing = self._pending
        self._pending = None
        failed, reason = next(filter(None, self.agreement.gather(writing.result())), (None, ""))
        if failed:
            self._failure = f"{failed} can't be written: {reason}"
            if trainer.is_global_zero:
                print(f"error: {self._failure}. {self._remedy()}", file=sys.stderr, flush=True)
            if failed == self.session.best_checkpoint:
                self.report.take_back()
        elif self.session.last_checkpoint in names:
            self._failure = ""
            self._in_last = iteration
            self.guard.note_saved(iteration)
        return not failed

    def _write(self, trainer: pl.Trainer, *names: Path) -> bool:
        """Writes a checkpoint under each name; whether that succeeded, or may still do."""
        self.finish(trainer)
        started_s = perf_counter()
        meanwhile = goes_on_meanwhile(trainer)
        io = trainer.strategy.checkpoint_io
        own = isinstance(io, AtomicCheckpointIO)
        part = trainer.strategy.broadcast(unused_name(names[0]))
        with io.put_off(meanwhile) if own else contextlib.nullcontext([]) as writes:  # type: ignore[attr-defined]
            trainer.save_checkpoint(part)
        steps = [(names[0], write) for write in (*writes, partial(publish, part, names[0]))]
        steps += [(name, partial(give_second_name, names[0], name)) for name in names[1:]]
        writing = self._writer.submit(_run, steps if trainer.is_global_zero else [])
        self._pending = names, trainer.global_step, writing
        written = meanwhile or self.finish(trainer)
        self._saved_s = perf_counter()
        self.times.add_checkpoint(self._saved_s - started_s)
        return written

    def _remedy(self) -> str:
        return (
            f"Training goes on and tries again later; last.ckpt is still that of iteration "
            f"{self._in_last}"
        )

    def _raise_failure(self) -> None:
        if self._failure:
            raise OSError(
                f"{self._failure}. Make room or give another `output_path`; what is saved is that "
                f"of iteration {self._in_last}"
            )


class SaveEnd(Callback):
    """Saves the end of a run before a project's callbacks end it, e.g. by averaging its weights.

    Args:
        checkpoints: Writes last.ckpt.
    """

    def __init__(self, checkpoints: SaveCheckpoints) -> None:
        self.checkpoints = checkpoints

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes last.ckpt, if the newest iteration is not in it."""
        self.checkpoints.save_end(trainer)


def goes_on_meanwhile(trainer: pl.Trainer) -> bool:
    """Whether training goes on while a checkpoint is written."""
    return trainer.strategy.root_device.type != "cpu"


def _run(steps: Sequence[tuple[Path, Callable[[], None]]]) -> tuple[Path, str] | None:
    """Takes the steps that make some files; returns which file can't be, and why."""
    for path, step in steps:
        try:
            step()
        except OSError as ex:
            return path, ex.strerror or str(ex)
    return None
