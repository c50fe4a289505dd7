"""What loggers show of a run besides numbers: its settings, and in TensorBoard its files."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_trainer.callbacks.evaluation import ReportEvaluation
from lightning_trainer.session import Session


class LogHyperParameters(Callback):
    """Logs the settings of model, data and trainer with each new best score, and what was started.

    Args:
        session: The run's folder, whose config.yaml and environment.yaml are shown as texts.
        config: The run's settings as plain types.
        report: Tells whether a validation was the best.
    """

    def __init__(
        self, session: Session, config: Mapping[str, Any], report: ReportEvaluation
    ) -> None:
        self.session = session
        self._parameters = _flatten(config)
        self.report = report

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the files as they are at this start; to added loggers the settings, once."""
        first = not self.session.last_checkpoint.exists()  # MLflow refuses what has changed since
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                for path in filter(Path.is_file, (self.session.config, self.session.environment)):
                    text = indent(path.read_text(), " " * 4)  # a block of code, in markdown
                    logger.experiment.add_text(path.stem, text, trainer.global_step)
            elif first:
                logger.log_hyperparams(self._parameters)

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
            if name not in _HOW:
                parameters[f"{group}.{name}"] = value
    for name in _TRAINER_SETTINGS:
        parameters[f"trainer.{name}"] = config.get("trainer", {}).get(name)
    return {name: value for name, value in parameters.items() if value is not None}


# How a model is trained and shown, not what it learns: TensorBoard shows the first five names.
_HOW = ("n_workers", "vis_iterations", "score_name", "score_mode", "channels_last", "compile")
_TRAINER_SETTINGS = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
