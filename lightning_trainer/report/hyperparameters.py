"""LogHyperParameters: settings for all loggers; files and charts for TensorBoard."""

import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_trainer.base.results import in_training
from lightning_trainer.base.scoring import describe_score, score_direction
from lightning_trainer.report.loggers import SessionTensorBoard
from lightning_trainer.run.state import RunCallback, RunState
from lightning_trainer.session.settings import flatten


class LogHyperParameters(RunCallback):
    """Logs the settings, the best score so far, and config.yaml and environment.yaml as texts."""

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        self._parameters = _chosen(run.settings)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A logger of the project gets the settings once: MLflow refuses changed ones.
        first = not self.run.session.last_checkpoint.exists()
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger):
                told = describe_score(pl_module.score_key, score_direction(pl_module))
                # A row for a run that has no score yet.
                logger.log_hyperparams({"score": told, **self._parameters})
                logger.experiment.add_custom_scalars(_charts(pl_module.score_key, told))
                files = (self.run.session.config, self.run.session.environment)
                for path in filter(Path.is_file, files):
                    text = indent(path.read_text("utf-8"), " " * 4)  # a block of code, in markdown
                    logger.experiment.add_text(path.stem, text, trainer.global_step)
            elif first:
                given = {name: v for name, v in self._parameters.items() if v is not None}
                logger.log_hyperparams(given)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Logs the best score so far as a curve: the table of runs shows its last point."""
        best = self.run.best
        for logger in trainer.loggers if in_training(trainer) else ():
            if best and isinstance(logger, TensorBoardLogger):
                logger.log_metrics({"score/best": best.score}, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        for logger in trainer.loggers if not self.run.save_failure else ():
            if isinstance(logger, SessionTensorBoard):
                logger.log_success()


def _charts(score_key: str, told: str) -> dict[str, dict[str, list[Any]]]:
    """The loss, and the score, of training, validation and test in one chart of all runs."""
    titles = {"loss": "loss", score_key.split("/", 1)[1]: told}
    # TensorBoard takes a tag as a pattern for the beginning of a curve's name.
    patterns = {title: f"(train|val|test)/{re.escape(name)}$" for name, title in titles.items()}
    charts = {title: ["Multiline", [pattern]] for title, pattern in patterns.items()}
    return {"train, val, test": charts}


def _chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make runs differ, named as on the command line: `model.learning_rate`."""
    settings = flatten(config)
    of_classes = {
        name.removesuffix(".class_path"): value
        for name, value in settings.items()
        if name.startswith(("model.", "data.")) and name.split(".")[1] not in _HOW
    }
    of_trainer = {f"trainer.{name}": settings.get(f"trainer.{name}") for name in _TRAINER_SETTINGS}
    return {"seed_everything": settings.get("seed_everything"), **of_classes, **of_trainer}


# Settings that do not change the trained model.
_HOW = (
    *("n_workers", "vis_iterations", "score_name", "score_mode"),
    *("channels_last", "compile", "fused"),
)
_TRAINER_SETTINGS = ("max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
