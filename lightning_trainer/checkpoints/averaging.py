"""Keeps Lightning's weight averaging right where the layer itself saves or goes back.

In a validation the model holds the average, and the callback holds the trained weights.
"""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging


def end_validation(trainer: pl.Trainer) -> None:
    """Gives the model its own weights back, within a validation that ends early."""
    for callback in _averaging(trainer):
        callback.on_validation_epoch_end(trainer, trainer.lightning_module)


def share_buffers(trainer: pl.Trainer) -> None:
    """Gives all processes the first one's buffers after a validation, as a checkpoint does.

    DDP does so at a validation's first batch, here with the average's buffers, and then not at the
    next batch of the training.
    """
    if trainer.world_size > 1 and _averaging(trainer):
        for buffer in trainer.lightning_module.buffers():
            torch.distributed.broadcast(buffer, 0)


def load_average(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Loads the average, and the model's own weights (`state_dict` holds the average)."""
    for callback in _averaging(trainer):
        callback.on_load_checkpoint(trainer, trainer.lightning_module, dict(checkpoint))


def _averaging(trainer: pl.Trainer) -> list[WeightAveraging]:
    return [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
