"""When validation runs: every N iterations, and at the last one."""

import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

# What `trainer.val_check_batch` is set to. Lightning validates after each batch whose number is a
# multiple of it, so these two say "after this batch" and "not after this batch".
_NOW, _NOT_NOW = 1, sys.maxsize


class ValidationSchedule(Callback):
    """Makes `val_check_interval` count iterations, and validates once more at the last iteration.

    Lightning counts batches, which differ from iterations under gradient accumulation, and ends
    without a validation where `max_steps` is no multiple of the interval. An interval given as a
    fraction of an epoch or as a time stays Lightning's; only the last validation is added to it.
    """

    def __init__(self) -> None:
        self._done = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to count iterations."""
        self._done = trainer.global_step

    def skip_validation(self, trainer: pl.Trainer, already_run: bool) -> None:
        """Tells Lightning, as a run goes on, whether its last iteration has been validated."""
        if counts_iterations(trainer):
            trainer.val_check_batch = _NOW if already_run else _NOT_NOW

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Decides whether Lightning validates after this batch."""
        step = trainer.global_step
        stepped, self._done = step > self._done, step
        last = stepped and step == trainer.max_steps
        if counts_iterations(trainer):
            due = last or (stepped and step % int(trainer.val_check_interval) == 0)
            trainer.val_check_batch = _NOW if due else _NOT_NOW
        elif last:
            trainer.val_check_batch = _NOW

    @staticmethod
    def is_due(trainer: pl.Trainer) -> bool:
        """Whether a validation follows the batch that ends; for callbacks that come after this one.

        Private to Lightning, because only it knows of all that can ask for a validation.
        """
        fit_loop = trainer.fit_loop
        return bool(fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher))  # type: ignore[arg-type]


def counts_iterations(trainer: pl.Trainer) -> bool:
    """Whether validations are due every so many iterations, across epochs."""
    return isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch is None
