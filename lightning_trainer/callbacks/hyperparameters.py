"""TensorBoard's table of runs: hyper-parameters with the best score."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_trainer.callbacks.evaluation import ReportEvaluation


class LogHyperParameters(Callback):
    """Logs the settings of model, data and trainer with each new best score.

    Args:
        config: The run's settings as plain types.
        report: Tells whether a validation was the best.
    """

    def __init__(self, config: Mapping[str, Any], report: ReportEvaluation) -> None:
        groups = ("seed_everything", "model", "data")
        self._config = {name: config[name] for name in groups if config.get(name) is not None}
        self.report = report

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs them where the score is the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.report.improved:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                score = {"score/best": self.report.best_score}
                logger.log_hyperparams(self._config, score, step=trainer.global_step)
