"""SeedEachStep: random numbers that depend on the position in the run alone."""

import os
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.base.sampling import derive_seed, seed_generators
from lightning_trainer.run.state import RunCallback


class SeedEachStep(RunCallback):
    """Seeds torch, numpy and Python's random before each batch by (seed, process, batch).

    A restart then needs no saved random state, a validation can't shift the random numbers of the
    training, and each process draws its own dropout. Costs about 20 us a batch.
    """

    def setup(self, *_: Any, **__: Any) -> None:
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # set by Lightning's seed_everything

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._seed_for(trainer, "train", trainer.fit_loop.total_batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._seed_for(trainer, "val", trainer.global_step)

    def _seed_for(self, trainer: pl.Trainer, purpose: str, position: int) -> None:
        seed = derive_seed(self._seed, purpose, trainer.global_rank, position)
        seed_generators(seed, trainer.strategy.root_device)
