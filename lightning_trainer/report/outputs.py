"""WritePredictions: the outputs of `predict` in the session folder."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_trainer.run.state import RunState


class WritePredictions(BasePredictionWriter):
    """Writes the outputs of all batches to `predictions.pt`, a list in the order of the batches.

    Other processes write `predictions_rank1.pt` and so on.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(write_interval="epoch")
        self.run = run

    def write_on_epoch_end(
        self, trainer: pl.Trainer, pl_module: Any, predictions: Sequence[Any], *_: Any
    ) -> None:
        rank = trainer.global_rank
        name = f"predictions_rank{rank}.pt" if rank else "predictions.pt"
        path = self.run.session.path / name
        torch.save(predictions, path)
        print(f"Predictions saved to: {path}", flush=True)
