"""When validation runs: every N iterations, and at the last one."""

import math
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_trainer.internals import (
    allow_iterations,
    decide_validation,
    run_validation,
    validation_is_due,
)
from lightning_trainer.run.epochs import resume_epoch
from lightning_trainer.run.state import RunCallback, RunState
from lightning_trainer.session.checkpoint_header import layer_state


class ValidationSchedule(RunCallback):
    """Makes `val_check_interval` count iterations, and validates once more at the last iteration.

    Lightning counts batches, which differ from iterations under gradient accumulation, and ends
    without a validation where the run is not a multiple of the interval. An interval given as a
    fraction of an epoch, in batches of it or as a time stays Lightning's; only the last validation
    is added, and one that is due while gradients are accumulated waits for the step: no checkpoint
    holds them.

    A run that was stopped before or in a validation runs it when it goes on.
    """

    _raised = _waits = False

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self.run.validated = layer_state(checkpoint).get("validated", True)

    def on_fit_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Lets Lightning start for a validation that is left, even if no iteration is.

        Raises:
            ValueError: If validations go by the clock, which differs between processes.
        """
        if trainer.world_size > 1 and not hasattr(trainer, "val_check_interval"):
            raise ValueError(
                "`trainer.val_check_interval` is a time, at which several processes would not "
                "meet: give a number of iterations"
            )
        self._raised = not self.run.validated and trainer.max_steps > 0
        if self._raised:
            allow_iterations(trainer, 1)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._raised:
            allow_iterations(trainer, -1)
            self._raised = False
        self.run.n_iterations = _n_iterations(trainer)
        self.on_train_epoch_start(trainer)  # Lightning leaves it out amid an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.run.spacing = trainer.val_check_batch
        self._every = trainer.check_val_every_n_epoch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Decides whether Lightning validates after this batch."""
        run = self.run
        before = run.iteration - run.stepped
        last = before < run.n_iterations <= run.iteration or _ends_epochs(trainer)
        if counts_iterations(trainer):
            interval = int(trainer.val_check_interval)
            decide_validation(trainer, last or run.iteration // interval > before // interval)
        elif last:
            trainer.check_val_every_n_epoch = 1
            if trainer.val_check_batch is None:  # by the clock, but always before a stop
                trainer.should_stop = True
            else:
                decide_validation(trainer, True)
        else:
            self._wait_for_step(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.val_check_batch, trainer.check_val_every_n_epoch = self.run.spacing, self._every

    def _wait_for_step(self, trainer: pl.Trainer) -> None:
        self.on_train_epoch_end(trainer)  # gives Lightning's own rule back
        due = self._waits or validation_is_due(trainer)
        self._waits = due and not (self.run.stepped or trainer.is_last_batch or trainer.should_stop)
        if self._waits:
            trainer.check_val_every_n_epoch = sys.maxsize
        elif due and self.run.spacing is not None:  # a time is still over
            decide_validation(trainer, True)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.run.validated = False

    def on_validation_end(self, *_: Any) -> None:
        self.run.validated = True


def catch_up(trainer: pl.Trainer, run: RunState) -> None:
    """Runs a validation that the run was stopped before or in; after all `on_train_start`."""
    if run.goes_on and not run.validated:
        run_validation(trainer)
    if run.goes_on:
        resume_epoch(trainer)
    if run.goes_on and counts_iterations(trainer):
        decide_validation(trainer, True)


def _ends_epochs(trainer: pl.Trainer) -> bool:
    """Whether this batch is the last one of a run by epochs."""
    return trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs


def _n_iterations(trainer: pl.Trainer) -> float:
    """Iterations of the whole run, of which some may be done; called before its first batch.

    Raises:
        ValueError: If only epochs end it, and the loader does not say how long one is.
    """
    batches, epochs = trainer.num_training_batches, trainer.max_epochs or -1
    if epochs > 0 and math.isinf(batches) and trainer.max_steps < 0:
        raise ValueError(
            f"`trainer.max_epochs` is {epochs}, but the training loader has no length, which says "
            "where an epoch ends: give `--trainer.max_steps N`, or its batches by "
            "`--trainer.limit_train_batches N`"
        )
    if epochs < 0 or math.isinf(batches):
        return trainer.estimated_stepping_batches
    schedules = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]

    def iterations(epoch: int, n_batches: float) -> int:
        accumulate = trainer.accumulate_grad_batches
        for schedule in schedules:
            accumulate = schedule.get_accumulate_grad_batches(epoch)
        return math.ceil(n_batches / accumulate)

    now = trainer.current_epoch
    n = trainer.global_step + iterations(now, batches - trainer.fit_loop.batch_idx - 1)
    n += sum(iterations(epoch, batches) for epoch in range(now + 1, epochs))
    return n if trainer.max_steps < 0 else min(n, trainer.max_steps)


def counts_iterations(trainer: pl.Trainer) -> bool:
    """Whether validations are due every so many iterations, across epochs."""
    interval = getattr(trainer, "val_check_interval", None)  # missing where it is a time
    return isinstance(interval, int) and trainer.check_val_every_n_epoch is None


def validations_left(trainer: pl.Trainer, run: RunState) -> int:
    """Validations from the one that may be due now to the one at the last iteration.

    Args:
        trainer: At the end of an iteration.
        run: Its `n_iterations` are finite; one that ends by epochs has whole epochs.
    """
    n_iterations, spacing = int(run.n_iterations), run.spacing
    if counts_iterations(trainer):
        interval = int(trainer.val_check_interval)
        return math.ceil(n_iterations / interval) - (trainer.global_step - 1) // interval
    epoch, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
    if spacing is None or math.isinf(epoch) or math.isinf(spacing):
        return 0  # by the clock, or of unknown length

    def within(batches: float) -> float:
        """Validations in the first batches of an epoch: each waits for an iteration's end."""
        windows = batches // accumulate
        return min(windows * accumulate // spacing, windows)

    last = epoch // spacing * spacing
    an_epoch = min(epoch // spacing, math.ceil(last / accumulate))

    def before(batches: int) -> int:
        epochs, rest = divmod(batches, int(epoch))
        every = trainer.check_val_every_n_epoch or 1
        in_this_one = within(rest) if (epochs + 1) % every == 0 else 0
        return int(epochs // every * an_epoch + in_this_one)

    # An epoch's last window of accumulated batches may be a smaller one.
    steps_an_epoch = math.ceil(epoch / accumulate)
    n_batches = n_iterations // steps_an_epoch * epoch
    n_batches += n_iterations % steps_an_epoch * accumulate
    end = int(n_batches)
    extra = before(end) == before(end - 1)  # the one at the last iteration
    return before(end) + extra - before(trainer.fit_loop.total_batch_idx)
