"""CallVisualise: calls a project's `visualise`."""

import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_trainer.base.results import in_training, set_names
from lightning_trainer.report.loggers import warn_of_disk
from lightning_trainer.run.state import RunCallback


class CallVisualise(RunCallback):
    """Calls `visualise` every `vis_iterations` in training and on each validation's first batch.

    Once it has failed it is not called again.
    """

    _failed = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        interval = pl_module.vis_iterations
        if self.run.stepped and interval and self.run.iteration % interval == 0:
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
        if batch_idx == 0 and in_training(trainer):
            of_set = set_names(trainer)[dataloader_idx : dataloader_idx + 1]
            self._draw(trainer, pl_module, batch, outputs, "/".join(["val", *of_set]))

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
            except Exception:  # an error of the project's drawing must not end the run
                hook = f"`{type(pl_module).__name__}.visualise`"
                self._failed = True
                warnings.warn(
                    f"{hook} failed, training goes on without it:\n{traceback.format_exc()}",
                    stacklevel=2,
                )
