"""ResumeEpoch: a run that goes on takes up the epoch where it was left, in the same data."""

from typing import Any

import lightning.pytorch as pl

from lightning_trainer.base.data import SessionLoader
from lightning_trainer.internals import end_epoch, restore_loaders
from lightning_trainer.internals_of_logging import count_steps
from lightning_trainer.run.state import RunCallback


class ResumeEpoch(RunCallback):
    """Makes a restart exact at each batch of an epoch, its last one included."""

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        settle_progress(checkpoint["loops"]["fit_loop"])
        trainer.num_sanity_val_steps = 0  # Lightning would check again between two epochs

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Another batch size, or number of samples, makes another number of batches an epoch."""
        if not self.run.goes_on:
            return
        restore_loaders(trainer)
        loader, whole = trainer.train_dataloader, trainer.num_training_batches
        if isinstance(loader, SessionLoader) and whole == len(loader):
            _set_batches_done(trainer, len(loader) - loader.n_batches_left())

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begins an epoch of the data too: `limit_train_batches` has cut off the one before."""
        if isinstance(trainer.train_dataloader, SessionLoader):
            trainer.train_dataloader.sampler.begin_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.fit_loop.epoch_loop.restarting = False  # Lightning leaves it without a batch to do


def resume_epoch(trainer: pl.Trainer) -> None:
    """Takes up the epoch that `settle_progress` left; after a validation that was left."""
    epoch_loop = trainer.fit_loop.epoch_loop
    if epoch_loop.batch_progress.is_last_batch:
        end_epoch(trainer)
    elif epoch_loop.batch_progress.current.ready == 0:
        epoch_loop.restarting = False
    count_steps(trainer)


def settle_progress(progress: dict[str, Any]) -> None:
    """Brings the progress in a checkpoint, at `loops.fit_loop`, into a form that is gone on from.

    Lightning 2.6 saves other counts before, in and after a validation, and at the end of a run.
    From some it skips the end of the epoch, and then counts one epoch too few. Here an epoch is in
    its midst, or all its batches are done but not its end, or its end is done too.
    """
    batches, epochs = progress["epoch_loop.batch_progress"], progress["epoch_progress"]
    if epochs["total"]["started"] < epochs["total"]["ready"]:  # in a hook of the epoch's start
        for count in (epochs["total"], epochs["current"]):
            count["ready"] -= 1
    if not epochs["total"]["ready"]:  # the checkpoint before the first epoch
        return
    in_midst = not batches["is_last_batch"]
    ended = not in_midst and epochs["current"]["processed"] == epochs["current"]["ready"]
    for count in (epochs["total"], epochs["current"]):
        count["started"] = count["ready"]
        count["processed"] = count["completed"] = count["ready"] - (not ended)
    for count in (batches["total"], batches["current"]):
        count["ready"] = count["started"] = count["processed"]
        count["completed"] = count["processed"] - in_midst  # Lightning adds it
    if ended:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False


def _set_batches_done(trainer: pl.Trainer, n_done: int) -> None:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    count: Any = progress.current
    if count.ready and not progress.is_last_batch:
        count.ready = count.started = count.processed = n_done
        count.completed = n_done - 1  # Lightning adds it
