"""WritePredictions: the outputs of `predict` in the session folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_trainer.checkpoints.files import write_whole
from lightning_trainer.run.state import RunState


class WritePredictions(BasePredictionWriter):
    """Writes the outputs of all batches to `predictions.pt`, a list in the order of the batches.

    Other processes write `predictions_rank1.pt` and so on. Where a session may only be read,
    the file is in the current folder and has the session's name.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(write_interval="epoch")
        self.run = run

    def write_on_epoch_end(
        self, trainer: pl.Trainer, pl_module: Any, predictions: Sequence[Any], *_: Any
    ) -> None:
        rank, session = trainer.global_rank, self.run.session.path
        name = f"predictions_rank{rank}.pt" if rank else "predictions.pt"
        path = session / name
        try:
            write_whole(predictions, path)
        except OSError:
            if not self.run.is_guest:
                raise
            path = Path(f"{session.absolute().name}_{name}")
            write_whole(predictions, path)
        print(f"Predictions saved to: {path}", flush=True)
