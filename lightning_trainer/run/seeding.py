"""SeedEachStep: random numbers that depend on the position in the run alone."""

import os
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import RunningStage

from lightning_trainer.base.sampling import derive_seed, seed_generators
from lightning_trainer.run.state import RunCallback


class SeedEachStep(RunCallback):
    """Seeds torch, numpy and Python's random before each batch and each hook of an epoch.

    A seed depends on the run's seed, the process and the position. A restart then needs no saved
    random state, a validation can't shift the random numbers of the training, and each process
    draws its own dropout. A batch is seeded when the loader hands it over, before its transfer to
    the device. Costs about 12 us a batch.
    """

    _seed = _n_batches = 0

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # set by Lightning's seed_everything
        plugin: Any = trainer.precision_plugin
        convert = plugin.convert_input
        self._rank, self._device = trainer.global_rank, trainer.strategy.root_device
        loop = trainer.fit_loop

        def seed_and_convert(batch: Any) -> Any:
            """The first that is done with any batch, before the hooks of its transfer."""
            stage = trainer.state.stage
            if stage is RunningStage.TRAINING:
                self._seed_for(trainer, "train", loop.total_batch_idx + 1)
            elif stage is not RunningStage.SANITY_CHECKING:
                self._seed_for(trainer, "val batch", trainer.global_step, self._n_batches)
                self._n_batches += 1
            return convert(batch)

        plugin.convert_input = seed_and_convert
        self.run.at_end(lambda: vars(plugin).pop("convert_input", None))

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._seed_for(trainer, "start", trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._seed_for(trainer, "epoch", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._seed_for(trainer, "epoch's end", trainer.current_epoch)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._n_batches = 0
        self._seed_for(trainer, "val", trainer.global_step)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_validation_start(trainer)

    def on_predict_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_validation_start(trainer)

    def _seed_for(self, trainer: pl.Trainer, purpose: str, *position: int) -> None:
        seed = derive_seed(self._seed, purpose, self._rank, *position)
        seed_generators(seed, self._device)
