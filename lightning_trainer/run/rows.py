"""PlaceRows: what Lightning and its callbacks log stands at its iteration."""

from typing import Any

import lightning.pytorch as pl

from lightning_trainer.internals_of_logging import is_accumulating, tell_iterations
from lightning_trainer.run.state import RunCallback


class PlaceRows(RunCallback):
    """Tells the session's loggers the iteration of a row of `self.log`, LearningRateMonitor, ...

    Lightning's own count is one less while a batch, its validation or its epoch's end is done. A
    test is of the iteration of its checkpoint. A step that a project gives to a logger stays.
    """

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        tell_iterations(trainer, lambda: self._iteration(trainer))

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.setup(trainer)  # a checkpoint has brought a plain number

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        state = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
        state["_batches_that_stepped"] = int(state["_batches_that_stepped"])

    def _iteration(self, trainer: pl.Trainer) -> int:
        """The iteration that is being done: the one of the newest batch."""
        if trainer.state.fn != "fit":
            return self.run.restored_iteration
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if batches.ready > batches.processed:  # before the end of the batch
            return self.run.iteration + 1
        return trainer.global_step + (trainer.training and is_accumulating(trainer))
