"""Ctrl-C and its kin: finish the iteration, save, say how to go on."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_trainer.callbacks.checkpoints import SaveCheckpoints

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopOnSignal(Callback):
    """The first SIGINT, SIGTERM or SIGHUP ends the run after the iteration, with all of it saved.

    Within a validation it ends at once; the validation runs again when the run goes on. The exit
    code is 128 + the signal's number. A second Ctrl-C does not wait for the iteration. With several
    processes Lightning's own handling stays in place.

    Args:
        checkpoints: Writes last.ckpt.
    """

    def __init__(self, checkpoints: SaveCheckpoints | None) -> None:
        self.checkpoints = checkpoints
        self._received = 0
        self._done = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over, after Lightning has."""
        self._done = trainer.global_step
        if trainer.world_size == 1:
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stops, but not while gradients are being accumulated: they are in no checkpoint."""
        if self._received and trainer.global_step > self._done:
            self._stop(trainer)
        self._done = trainer.global_step

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stops within a validation."""
        if self._received:
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back, before Lightning does."""
        self._give_back()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the signals back."""
        self._give_back()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise SystemExit(128 + number)
        self._received = number

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(trainer)
        raise SystemExit(128 + self._received)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
