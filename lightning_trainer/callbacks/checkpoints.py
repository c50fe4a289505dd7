"""Which checkpoints are written, and when."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_trainer.callbacks.evaluation import RULE, ReportEvaluation
from lightning_trainer.callbacks.schedule import ValidationSchedule
from lightning_trainer.callbacks.times import RunTimes
from lightning_trainer.checkpoint_io import replace
from lightning_trainer.session import CONFIG_KEY, Session


class SaveCheckpoints(Checkpoint):
    """Writes last.ckpt, to go on from, and best.ckpt, the best score.

    last.ckpt is written after each validation, every `minutes` between two, and before a validation
    if a tenth of that has passed, so that one which crashes costs little. Each is a point from
    which a restart is right: one that was written before its validation has run runs it first.

    Lightning calls it after all other callbacks, because it derives from `Checkpoint`.

    Args:
        session: Where to write.
        config: The run's settings, which each checkpoint carries: a file alone is enough to go on.
        schedule: Tells when a validation is due.
        report: Tells whether a validation was the best.
        times: Gets the time that writing takes.
        minutes: At most so many minutes of training are lost at a crash.
    """

    def __init__(
        self,
        session: Session,
        config: Mapping[str, Any],
        schedule: ValidationSchedule,
        report: ReportEvaluation,
        times: RunTimes,
        minutes: float = 10.0,
    ) -> None:
        self.session = session
        self.config = config
        self.schedule = schedule
        self.report = report
        self.times = times
        self.interval_s = minutes * 60
        self._done = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Catches up on a validation that the run was stopped before or in."""
        self._saved_s = perf_counter()
        self._done = trainer.global_step
        self._n_iterations = trainer.estimated_stepping_batches
        if not trainer.strategy.broadcast(self.session.best_checkpoint.exists()):
            self.report.forget()  # the best was of another session
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
        """Adds the settings."""
        checkpoint[CONFIG_KEY] = dict(self.config)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes last.ckpt, and best.ckpt if the score is the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.report.improved:
            # First the best, because last.ckpt says that it has been found.
            self._write(trainer, self.session.best_checkpoint)
            if trainer.is_global_zero:
                self._take_best_as_last()
        else:
            self._write(trainer, self.session.last_checkpoint)
        if trainer.is_global_zero:
            if self.report.improved:
                print(f"Model saved to: {self.session.best_checkpoint}")
            print(f"\n{RULE}", flush=True)

    def save(self, trainer: pl.Trainer) -> None:
        """Writes last.ckpt at the end of an iteration, or within a validation."""
        self.schedule.note_whether_due(trainer)
        self._write(trainer, self.session.last_checkpoint)

    def _is_time(self, trainer: pl.Trainer) -> bool:
        if self._done >= self._n_iterations and not self.schedule.is_due(trainer):
            return True  # nothing comes after it that would be saved
        several, interval = trainer.world_size > 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if several and self._done % (interval or 100):
            return False  # the processes agree on the time only where they print, and meet, anyway
        unsaved_s = perf_counter() - self._saved_s
        due = unsaved_s >= self.interval_s
        if not due and unsaved_s >= self.interval_s / 10:
            due = self.schedule.is_due(trainer)
        return trainer.strategy.reduce_boolean_decision(due, all=False) if several else due

    def _write(self, trainer: pl.Trainer, path: Path) -> None:
        started_s = perf_counter()
        trainer.save_checkpoint(path)
        self._saved_s = perf_counter()
        self.times.add_checkpoint(self._saved_s - started_s)

    def _take_best_as_last(self) -> None:
        last, best = self.session.last_checkpoint, self.session.best_checkpoint
        temporary = f"{last}.tmp"
        try:
            # One file with two names: it is never written to again, only replaced.
            os.link(best, temporary)
        except OSError:
            shutil.copyfile(best, temporary)
        replace(temporary, str(last))
