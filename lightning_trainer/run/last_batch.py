"""WarnOfLastBatch: tells of a last batch of one sample, which batch norm can't take."""

import sys
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.utils.data import DataLoader

from lightning_trainer.run.state import RunCallback


class WarnOfLastBatch(RunCallback):
    """Warns at the start if an epoch ends with one sample on a process and a batch norm is there.

    torch refuses one value a channel; the norms of pictures have one for each pixel.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        n_batches, n_samples = trainer.num_training_batches, _n_samples(trainer.train_dataloader)
        loader: Any = trainer.train_dataloader
        if not n_samples or n_batches * loader.batch_size < n_samples:  # or it is left out
            return
        reached = self.run.n_iterations * trainer.accumulate_grad_batches >= n_batches
        norms = [
            name for name, layer in pl_module.named_modules() if isinstance(layer, nn.BatchNorm1d)
        ]
        if n_samples % loader.batch_size == 1 and reached and norms and trainer.is_global_zero:
            print(
                f"warning: the last batch of an epoch has one sample, of which `{norms[0]}` can't "
                f"take a mean: give another `--data.batch_size` than {loader.batch_size}, or leave "
                f"that batch out by `--trainer.limit_train_batches {n_batches - 1}`",
                file=sys.stderr,
            )


def _n_samples(loader: Any) -> int:
    """Of an epoch, on this process, of which the first has the smallest part; 0 if unknown."""
    if not isinstance(loader, DataLoader) or loader.drop_last or not loader.batch_size:
        return 0
    try:
        return len(loader.sampler)  # type: ignore[arg-type]
    except TypeError:  # a stream
        return 0
