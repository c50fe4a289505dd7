"""ChooseLoop: who runs the batches of an epoch."""

from typing import Any

import lightning.pytorch as pl

from lightning_trainer.internals_of_logging import leave_logged_in_place
from lightning_trainer.internals_of_steps import DirectLoop, why_lightnings
from lightning_trainer.run.state import RunCallback


class ChooseLoop(RunCallback):
    """Runs the batches by `DirectLoop` where it can: Lightning's own loop costs more a step.

    A step of a tiny network takes 1.4 times as long there (benchmarks/peers.py). The hooks, their
    order and all results are the same. A line says where Lightning's is taken. `self.log` costs
    less in both.
    """

    def setup(self, *_: Any, **__: Any) -> None:
        self.run.at_end(leave_logged_in_place())

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.run.fast_loop:
            return
        reason = why_lightnings(trainer)
        if not reason:
            self.run.at_end(DirectLoop(trainer).install())
        elif trainer.is_global_zero:
            print(f"Training loop: Lightning's, which is slower: {reason}", flush=True)
