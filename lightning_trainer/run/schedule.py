"""When validation runs: every N iterations, and at the last one."""

import math
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
    without a validation where the run is no multiple of the interval. An interval given as a
    fraction of an epoch or as a time stays Lightning's; only the last validation is added.

    A run that was stopped before or in a validation runs it when it goes on.

    Attributes:
        validated: False while the iteration that is done lacks a validation that is due.
    """

    def __init__(self) -> None:
        self.validated = True
        self._restored = self._raised = False
        self._done = 0

    def state_dict(self) -> dict[str, Any]:
        """Whether the iteration of the checkpoint needs no validation any more."""
        return {"validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Notes it for when training starts."""
        self.validated = state_dict["validated"]
        self._restored = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets Lightning start although no iteration is left, where a validation is.

        Raises:
            ValueError: If validations go by the clock, which differs between processes.
        """
        if trainer.world_size > 1 and not hasattr(trainer, "val_check_interval"):
            raise ValueError(
                "`trainer.val_check_interval` is a time, at which several processes would not "
                "meet: give a number of iterations"
            )
        if self._restored and not self.validated and trainer.max_steps > 0:
            trainer.fit_loop.epoch_loop.max_steps += 1
            self._raised = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to count iterations."""
        if self._raised:
            trainer.fit_loop.epoch_loop.max_steps -= 1
            self._raised = False
        self._done = trainer.global_step
        self._n_iterations = trainer.estimated_stepping_batches

    def catch_up(self, trainer: pl.Trainer) -> None:
        """Runs a validation that the run was stopped before or in; call it last of all callbacks.

        Private to Lightning: a restored loop can only finish a validation that was begun, and would
        do so with the number of batches that were left but from the start of the data. Where the
        validation has run here, the loops are told that it was not they who ran it: else an epoch
        that ended with it would never be followed by another.
        """
        if not self._restored:
            return
        self._restored = False
        if not self.validated:
            val_loop = trainer.fit_loop.epoch_loop.val_loop
            val_loop.restarting = False
            trainer.validating = True
            val_loop.run()
            trainer.training = True
            val_loop._has_run = False
            val_loop.reset_restart_stage()
        if counts_iterations(trainer):
            trainer.val_check_batch = _NOW

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
        before, self._done = self._done, step
        last = before < self._n_iterations <= step
        if counts_iterations(trainer):
            interval = int(trainer.val_check_interval)
            due = last or step // interval > before // interval
            trainer.val_check_batch = _NOW if due else _NOT_NOW
        elif last:
            trainer.check_val_every_n_epoch = 1
            if trainer.val_check_batch is None:  # by the clock, but always before a stop
                trainer.should_stop = True
            else:
                trainer.val_check_batch = _NOW

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on the iteration lacks its validation."""
        if not trainer.sanity_checking:
            self.validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Now it does not."""
        self.validated = True

    def note_whether_due(self, trainer: pl.Trainer) -> None:
        """Sets `validated` for a checkpoint at the end of a batch, or within a validation."""
        if not trainer.validating:
            self.validated = not self.is_due(trainer)

    @staticmethod
    def is_due(trainer: pl.Trainer) -> bool:
        """Whether a validation follows the batch that ends; for callbacks that come after this one.

        Private to Lightning, because only it knows of all that can ask for a validation.
        """
        fit_loop = trainer.fit_loop
        return bool(fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher))  # type: ignore[arg-type]


def counts_iterations(trainer: pl.Trainer) -> bool:
    """Whether validations are due every so many iterations, across epochs."""
    interval = getattr(trainer, "val_check_interval", None)  # missing where it is a time
    return isinstance(interval, int) and trainer.check_val_every_n_epoch is None


def validations_left(trainer: pl.Trainer, n_iterations: int) -> int:
    """Validations from the one that may be due now to the one at the last iteration.

    Args:
        trainer: At the end of an iteration.
        n_iterations: Of the whole run; one that ends by epochs has whole epochs.
    """
    done = trainer.global_step
    if counts_iterations(trainer):
        interval = int(trainer.val_check_interval)
        return math.ceil(n_iterations / interval) - (done - 1) // interval
    epoch, spacing = trainer.num_training_batches, trainer.val_check_batch
    if spacing is None or math.isinf(epoch) or math.isinf(spacing):
        return 0  # by the clock, or of unknown length

    def before(batches: int) -> int:
        epochs, rest = divmod(batches, int(epoch))
        every = trainer.check_val_every_n_epoch or 1
        in_this_one = rest // spacing if (epochs + 1) % every == 0 else 0
        return int(epochs // every * (epoch // spacing) + in_this_one)

    # An epoch's last window of accumulated batches may be a smaller one.
    steps_an_epoch = math.ceil(epoch / trainer.accumulate_grad_batches)
    n_batches = n_iterations // steps_an_epoch * epoch
    n_batches += n_iterations % steps_an_epoch * trainer.accumulate_grad_batches
    end = int(n_batches)
    extra = before(end) == before(end - 1)  # the one at the last iteration
    return before(end) + extra - before(trainer.fit_loop.total_batch_idx)
