"""GuessValidation: how long a validation takes, before there was one."""

import math
from time import perf_counter
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.internals_of_hooks import skip_hooks
from lightning_trainer.run.device import settle
from lightning_trainer.run.state import RunCallback, RunState

_FORWARD = 1 / 3  # of a step: backward takes twice as long (Kaplan et al. 2020, section 2.1)


class GuessValidation(RunCallback):
    """Measures the last batch of the sanity check, which is a small validation.

    The batches before it wait for workers to start and for the device to warm up.
    """

    _before_s = 0.0

    def on_sanity_check_start(self, *_: Any) -> None:
        self._before_s = perf_counter()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        settle(trainer, self.run)
        now = perf_counter()
        self.run.guessed_batch_s, self._before_s = now - self._before_s, now

    def on_train_start(self, *_: Any) -> None:
        skip_hooks(self, ("on_validation_batch_end",))


def guess_validation_s(trainer: pl.Trainer, run: RunState, iteration_s: float) -> float:
    """Seconds of a validation, by the sanity check's batch, else by an iteration's forward."""
    n_batches = sum(trainer.num_val_batches)
    batch_s = run.guessed_batch_s or iteration_s / trainer.accumulate_grad_batches * _FORWARD
    return n_batches * batch_s if math.isfinite(n_batches) else 0.0
