"""AverageWeights, and what averages need where the layer itself saves or goes back.

In a validation the model holds the average, and the callback holds the trained weights.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class AverageWeights(EMAWeightAveraging):
    """Keeps an exponential moving average of the weights, which validations and tests score.

    It is Lightning's EMAWeightAveraging, whose other options it takes and whose checkpoints it
    reads and writes, but all tensors are averaged at once, and no iteration waits for the device.
    Floating-point buffers, e.g. of batch norm, are averaged too. Whole numbers are copied:
    Lightning truncates their average, and with a decay of 0.9 an index of 7 becomes 6.

    Args:
        decay: Weight of the average so far, against 1 - `decay` of an iteration's weights.
    """

    def __init__(self, decay: float = 0.999, **kwargs: Any) -> None:
        super().__init__(decay=decay, **kwargs)
        self._add = get_ema_multi_avg_fn(decay)

    @property
    def state_key(self) -> str:
        """That of Lightning's callback in a checkpoint."""
        return EMAWeightAveraging.__qualname__

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes the average; its count stays on the host, where reading it waits for nothing."""
        super().setup(trainer, pl_module, stage)
        average = self._average_model
        if stage == "fit" and average is not None:
            average.n_averaged = torch.zeros_like(average.n_averaged, device="cpu")
            average.update_parameters = partial(_update, average, self._add)  # type: ignore[method-assign]


@torch.no_grad()
def _update(average: AveragedModel, add: Callable[..., None], model: nn.Module) -> None:
    """Adds the weights of `model` to the average; the first ones are copied."""
    begins = bool(average.n_averaged == 0)
    weights = zip(average.module.parameters(), model.parameters(), strict=True)
    buffers = zip(average.module.buffers(), model.buffers(), strict=True)
    alike: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for pairs, averaged in ((weights, not begins), (buffers, average.use_buffers and not begins)):
        for old, new in pairs:
            if averaged and (old.is_floating_point() or old.is_complex()):
                olds, news = alike[old.device, old.dtype]
                olds.append(old)
                news.append(new.to(old.device, old.dtype))
            else:
                old.copy_(new)
    for olds, news in alike.values():
        add(olds, news, average.n_averaged)
    average.n_averaged += 1


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
