"""What is told of a validation or a test, and which validation was the best."""

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

RULE = "-" * 82


class ReportEvaluation(Callback):
    """Prints and logs the results of each validation and test, and keeps the best score.

    A score that is NaN is never the best, and an equal one is not better. Assumes a `BaseModule`,
    whose `score_key` names the score and whose `score_mode` says which way is better.

    Attributes:
        best_score: Best score so far; None before the first.
        best_iteration: Iterations done when it was reached.
        improved: Whether the newest validation was the best.
    """

    def __init__(self) -> None:
        self.best_score: float | None = None
        self.best_iteration = 0
        self.improved = False
        self._before: tuple[float | None, int] = None, 0

    def state_dict(self) -> dict[str, Any]:
        """The best score and when it was reached; no path, so that the folder may move."""
        return {"best_score": self.best_score, "best_iteration": self.best_iteration}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.best_score = state_dict["best_score"]
        self.best_iteration = state_dict["best_iteration"]

    def forget(self) -> None:
        """Starts anew."""
        self.best_score, self.best_iteration = None, 0

    def take_back(self) -> None:
        """Forgets the newest best, whose weights could not be kept."""
        self.best_score, self.best_iteration = self._before
        self.improved = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Announces the validation."""
        if not trainer.sanity_checking and trainer.is_global_zero:
            print_title("Validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prints loss, scores and other metrics; in training also logs and compares them."""
        if trainer.sanity_checking:
            return
        results = pl_module.train_results | _results(trainer, "val/")
        score_key = pl_module.score_key
        if trainer.is_global_zero:
            print(f"Val loss: {results['val/loss']:.4f}{_shared_by(trainer)}")
            print_title("Metrics")
            _print_metrics(results, score_key)
        if trainer.state.fn != "fit":
            return
        _log(trainer, results, trainer.global_step)
        self._compare(trainer, results[score_key], pl_module.score_mode)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Announces the test."""
        if trainer.is_global_zero:
            print_title("Test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prints loss, score and other metrics, and logs them at the weights' iteration."""
        results = _results(trainer, "test/")
        if trainer.is_global_zero:
            print(f"Test loss: {results['test/loss']:.4f}{_shared_by(trainer)}")
            _print_metrics(results, pl_module.score_key.replace("val/", "test/", 1))
            print(RULE, flush=True)
        _log(trainer, results, pl_module.restored_iteration)

    def _compare(self, trainer: pl.Trainer, score: float, mode: str) -> None:
        worst = -math.inf if mode == "max" else math.inf
        best = worst if self.best_score is None else self.best_score
        first = self.best_score is None and not math.isnan(score)
        self.improved = first or (score > best if mode == "max" else score < best)
        if self.improved:
            self._before = self.best_score, self.best_iteration
            self.best_score, self.best_iteration = score, trainer.global_step
            if trainer.is_global_zero:
                print(f"New best score: {best:.3f} -> {score:.3f}")


def _results(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    # Reading them waits for the device, once an evaluation.
    metrics = trainer.callback_metrics
    return {name: value.item() for name, value in metrics.items() if name.startswith(prefix)}


def _shared_by(trainer: pl.Trainer) -> str:
    """How many samples the processes have shared out, where there are several."""
    if trainer.world_size == 1:
        return ""
    return f" ({trainer.lightning_module.n_evaluated:,} samples on {trainer.world_size} processes)"


def _log(trainer: pl.Trainer, results: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(results, step=step)
        logger.save()


def print_title(title: str) -> None:
    """Prints `title` between two rules."""
    print(f"{RULE}\n{title}\n{RULE}", flush=True)


def _print_metrics(results: dict[str, float], score_key: str) -> None:
    """The score of training and evaluation first, then every other metric but the losses."""
    score_name = score_key.split("/", 1)[1]
    others = []
    for key in sorted(results, key=lambda key: not key.startswith("train/")):
        mode, name = key.split("/", 1)
        if name == score_name:
            print(f"{mode.capitalize()} score: {results[key]:.3f}")
        elif name != "loss":
            others.append(f"{mode.capitalize()} {name}: {results[key]:.3f}")
    print(*others, sep="\n", end="\n" if others else "")
