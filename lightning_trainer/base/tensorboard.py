"""The writer that a project draws with."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger


def writer_of(trainer: pl.Trainer) -> Any:
    """The writer of the trainer's TensorBoard logger; a RuntimeError if it has none."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | DummyLogger):  # the latter in a fast_dev_run
            return logger.experiment
    raise RuntimeError(
        "`self.tensorboard` needs a TensorBoardLogger: the command line always has one, "
        "a `pl.Trainer` of your own takes it as `logger`"
    )
