"""Projects that the GPU programme trains, and how it runs and times them in one process."""

from typing import Any

import torch
from conftest import TinyData


class AugmentedData(TinyData):
    """Augments on the device, where Lightning documents it, without a seed of its own."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training:
            batch["x"] = batch["x"] + 0.1 * torch.rand_like(batch["x"])
        return batch
