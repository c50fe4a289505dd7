"""When a project draws."""

import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from lightning_trainer.report.loggers import warn_of_disk


class CallVisualise(Callback):
    """Calls `visualise` every `vis_iterations` in training and on each validation's first batch.

    Once it has failed it is not called again.
    """

    def __init__(self) -> None:
        self._done = 0
        self._failed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to count iterations."""
        self._done = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draws where the training step has kept its output, once the optimiser has stepped."""
        stepped, self._done = trainer.global_step > self._done, trainer.global_step
        interval = pl_module.vis_iterations
        if stepped and interval and self._done % interval == 0:
            self._draw(trainer, pl_module, batch, outputs, "train")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the first batch, but not in Lightning's check before training."""
        if batch_idx == 0 and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer, pl_module, batch, outputs, "val")

    def _draw(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, outputs: Any, mode: str
    ) -> None:
        # A project's own step need not return the output.
        output = outputs.get("output") if isinstance(outputs, Mapping) else None
        if output is not None and trainer.is_global_zero and not self._failed:
            try:
                with torch.no_grad():
                    pl_module.visualise(batch, output, mode)
            except OSError as ex:
                warn_of_disk("TensorBoard's file", ex)
            except Exception:  # of the project's code, whatever it is: not worth the run
                hook = f"`{type(pl_module).__name__}.visualise`"
                self._failed = True
                warnings.warn(
                    f"{hook} failed, training goes on without it:\n{traceback.format_exc()}",
                    stacklevel=2,
                )
