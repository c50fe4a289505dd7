"""Which checkpoints are written, and when."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_trainer.callbacks.agreement import Agreement
from lightning_trainer.callbacks.evaluation import RULE, ReportEvaluation
from lightning_trainer.callbacks.losses import GuardAgainstNonFinite
from lightning_trainer.callbacks.schedule import ValidationSchedule
from lightning_trainer.callbacks.times import RunTimes
from lightning_trainer.checkpoint_io import (
    AtomicCheckpointIO,
    give_second_name,
    publish,
    remove_unused,
    unused_name,
)
from lightning_trainer.secrets import scrub
from lightning_trainer.session import CONFIG_KEY, Session


class SaveCheckpoints(Checkpoint):
    """Writes last.ckpt, to go on from, and best.ckpt, the best score.

    last.ckpt is written before the first iteration, after each validation, every `minutes` between
    two, and before a validation if a tenth of that has passed, so that one which crashes costs
    little. Each is a point from which a restart is right: one that was written before its
    validation has run runs it first. One that can't be written, e.g. on a full disk, is reported
    and tried again at the next of these points; a run that ends without its last one fails.

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
        checkpoint[CONFIG_KEY] = dict(self.config)
        for key in {"hyper_parameters", "datamodule_hyper_parameters"} & checkpoint.keys():
            checkpoint[key] = scrub(checkpoint[key])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes last.ckpt, and best.ckpt if the score is the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # First the best, because last.ckpt says that it has been found.
        best, last = self.session.best_checkpoint, self.session.last_checkpoint
        if self.report.improved and self._write(trainer, best):
            full = False
            if trainer.is_global_zero:
                print(f"Model saved to: {best}")
                try:
                    give_second_name(best, last)
                except OSError:  # no links, and no room for a copy
                    full = True
            if self.agreement.any(full):
                self._write(trainer, last)
            else:
                self._note_saved(trainer)
        else:
            if self.report.improved:
                self.report.take_back()
            self._write(trainer, last)
        if trainer.is_global_zero:
            print(f"\n{RULE}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end of a run that has stopped in between, and fails where that can't be.

        Raises:
            OSError: Says how far last.ckpt has come.
        """
        if self._in_last < trainer.global_step and not self._failure:
            self.guard.check(trainer)
            self._write(trainer, self.session.last_checkpoint)
        self._raise_failure()

    def save(self, trainer: pl.Trainer) -> None:
        """Writes last.ckpt at the end of an iteration, or within a validation."""
        self.schedule.note_whether_due(trainer)
        if not trainer.validating:
            self.guard.check(trainer)
        self._write(trainer, self.session.last_checkpoint)

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

    def _write(self, trainer: pl.Trainer, path: Path) -> bool:
        """Writes a checkpoint; whether that succeeded, on all processes alike."""
        started_s = perf_counter()
        io = trainer.strategy.checkpoint_io
        errors: list[OSError] = []
        own = isinstance(io, AtomicCheckpointIO)
        part = trainer.strategy.broadcast(unused_name(path))
        with io.errors_collected(errors) if own else contextlib.nullcontext():  # type: ignore[attr-defined]
            trainer.save_checkpoint(part)
            if trainer.is_global_zero and not errors:
                try:
                    publish(part, path)
                except OSError as ex:
                    errors.append(ex)
        self._saved_s = perf_counter()
        self.times.add_checkpoint(self._saved_s - started_s)
        reasons = self.agreement.gather(errors[0].strerror or str(errors[0]) if errors else None)
        if any(reasons):
            self._failure = f"{path} can't be written: {next(filter(None, reasons))}"
            if trainer.is_global_zero:
                print(f"error: {self._failure}. {self._remedy()}", file=sys.stderr, flush=True)
            return False
        if path == self.session.last_checkpoint:
            self._note_saved(trainer)
        return True

    def _note_saved(self, trainer: pl.Trainer) -> None:
        self._failure = ""
        self._in_last = trainer.global_step
        self.guard.note_saved(self._in_last)

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
