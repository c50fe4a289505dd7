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
        self._parameters = _flatten(config)
        self.report = report

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs them where the score is the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.report.improved:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                score = {"score/best": self.report.best_score}
                logger.log_hyperparams(self._parameters, score, step=trainer.global_step)


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make runs differ, named as on the command line: `model.learning_rate`."""
    parameters = {"seed_everything": config.get("seed_everything")}
    for group in ("model", "data"):
        settings = config.get(group, {})
        parameters[group] = settings.get("class_path")
        for name, value in settings.get("init_args", {}).items():
            parameters[f"{group}.{name}"] = value
    for name in _TRAINER_SETTINGS:
        parameters[f"trainer.{name}"] = config.get("trainer", {}).get(name)
    return {name: value for name, value in parameters.items() if value is not None}


_TRAINER_SETTINGS = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
