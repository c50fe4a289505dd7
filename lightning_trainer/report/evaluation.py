"""ReportEvaluation: the results of each validation and test, and the best score."""

import math
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.base.results import LogResults, in_training
from lightning_trainer.base.scoring import describe_score, score_direction
from lightning_trainer.report.log_line import format_loss, print_title
from lightning_trainer.report.loggers import log_to_all
from lightning_trainer.run.state import Best, RunCallback, RunState, rule
from lightning_trainer.session.checkpoint_header import layer_state
from lightning_trainer.session.number import format_number


class ReportEvaluation(LogResults, RunCallback):
    """Prints and logs the results of each validation and test, and keeps the best score.

    NaN is never the best score, and an equal score is not better. Assumes a `BaseModule`, with its
    `score_key`.
    """

    _to_loggers = False

    def __init__(self, run: RunState) -> None:
        LogResults.__init__(self)
        RunCallback.__init__(self, run)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        best = layer_state(checkpoint).get("best")
        if best:  # 0.1.0 wrote neither name nor mode
            name = best["name"] or pl_module.score_key
            mode = best["mode"] or score_direction(pl_module)
            self.run.newest_best = Best(name, mode, best["score"], best["iteration"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forgets the best score of another session, whose weights are not in this folder.

        And that of another metric or direction, which can't be compared.
        """
        best, path = self.run.newest_best, self.run.session.best_checkpoint
        now = pl_module.score_key, score_direction(pl_module)
        if best and (best.name, best.mode) != now:
            self.run.newest_best = None
            if trainer.is_global_zero:
                print(
                    f"The score was {describe_score(best.name, best.mode)}, and is now "
                    f"{describe_score(*now)}: the next validation is the best so far"
                )
        if self.run.saves and not trainer.strategy.broadcast(path.exists()):
            self.run.newest_best = None

    def on_validation_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        super().on_validation_start(trainer)
        if not trainer.sanity_checking and trainer.is_global_zero:
            print_title("Validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        results = self.train_results | _results(trainer, "val/")
        score_key = pl_module.score_key
        if trainer.is_global_zero:
            self._print_loss(trainer, results, "val")
            print_title("Metrics")
            self._print_metrics(results, pl_module)
        if in_training(trainer):
            log_to_all(trainer, results, trainer.global_step)
            self._compare(trainer, score_key, results[score_key], score_direction(pl_module))

    def on_test_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        super().on_test_start(trainer)
        if trainer.is_global_zero:
            print_title("Test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        results = _results(trainer, "test/")
        if trainer.is_global_zero:
            self._print_loss(trainer, results, "test")
            self._print_metrics(results, pl_module)
            print(rule(), flush=True)
        log_to_all(trainer, results, self.run.restored_iteration)

    def _compare(self, trainer: pl.Trainer, name: str, score: float, mode: str | None) -> None:
        run, before = self.run, self.run.best
        worst = -math.inf if mode == "max" else math.inf
        highest = worst if before is None else before.score
        first = before is None and not math.isnan(score)
        run.improved = first or (score > highest if mode == "max" else score < highest)
        if run.improved:
            run.best_before = before
            run.newest_best = Best(name, mode, score, trainer.global_step)
            if trainer.is_global_zero:
                told = describe_score(name, mode)
                before_and_now = " -> ".join(format_number(x, 3) for x in (highest, score))
                print(f"New best score ({told}): {before_and_now}")

    def _print_loss(self, trainer: pl.Trainer, results: dict[str, float], mode: str) -> None:
        n, n_processes = self.n_evaluated, trainer.world_size
        shared = f" ({n:,} samples on {n_processes} processes)" if n_processes > 1 else ""
        for key, names in self.losses.items():
            parts = {name: results[f"{key}_{name}"] for name in names if f"{key}_{name}" in results}
            told = "loss" if key == f"{mode}/loss" else key.split("/", 1)[1]
            print(f"{mode.capitalize()} {told}: {format_loss(results[key], parts)}{shared}")
            shared = ""

    def _print_metrics(self, results: dict[str, float], pl_module: Any) -> None:
        """Prints the scores of training and evaluation, then all other metrics except losses."""
        score_name = pl_module.score_key.split("/", 1)[1]
        told = describe_score(pl_module.score_key, score_direction(pl_module))
        losses = {f"{key}_{name}" for key, names in self.losses.items() for name in names}
        others = []
        for key in sorted(results, key=lambda key: not key.startswith("train/")):
            mode, name = key.split("/", 1)
            value = format_number(results[key], 3)
            if name == score_name:
                direction = "" if mode == "train" else f" ({told})"
                print(f"{mode.capitalize()} score{direction}: {value}")
            elif key not in losses | self.losses.keys():
                others.append(f"{mode.capitalize()} {name}: {value}")
        print(*others, sep="\n", end="\n" if others else "")


def _results(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    # Waits for the device, once an evaluation.
    metrics = trainer.callback_metrics
    return {name: value.item() for name, value in metrics.items() if name.startswith(prefix)}
