"""LogResults: from the batches of an evaluation to its loss, score and metrics."""

from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import SumMetric

from lightning_trainer.base.metrics import compute_metrics
from lightning_trainer.base.scoring import check_direction, check_score


class LogResults(Callback):
    """Logs `val/loss`, the metrics of a validation, and `train/...` of the batches before it.

    A trainer without the command line's callbacks gets it from `BaseModule.configure_callbacks`.
    Assumes a `BaseModule`, and that a step returns the loss of its batch.
    """

    # ReportEvaluation logs by itself: Lightning's step is one less than the iterations done.
    _to_loggers: ClassVar[bool] = True

    def __init__(self) -> None:
        self.n_evaluated = 0  # samples of the newest evaluation, over all processes
        self.train_results: dict[str, float] = {}  # the newest `train/...`
        # A MeanMetric forgets its weights with "disable", without which it synchronises the device.
        self._loss, self._examples = (SumMetric(nan_strategy="disable") for _ in range(2))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        check_direction(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        for metric in (self._loss, self._examples):
            metric.reset()
            metric.to(trainer.strategy.root_device)

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Adds the loss, weighted by the examples of the batch."""
        loss = loss_of(outputs)
        if loss is not None:
            n_examples = torch.full_like(loss, pl_module.count_examples(batch), dtype=torch.float32)
            self._loss.update(loss * n_examples)
            self._examples.update(n_examples)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Logs the results, and steps a plateau scheduler.

        Lightning would step it after this validation's checkpoint, and need the score again at a
        restart.
        """
        results = self._results(pl_module, "val")
        train_results = compute_metrics(pl_module.train_metrics, "train")
        if in_training(trainer) and isinstance(pl_module.scheduler, ReduceLROnPlateau):
            pl_module.scheduler.step(results[pl_module.score_key])
        pl_module.log_dict(results | train_results, logger=self._to_loggers)
        self.train_results = {name: value.item() for name, value in train_results.items()}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.log_dict(self._results(pl_module, "test"), logger=self._to_loggers)

    def _results(self, pl_module: Any, mode: str) -> dict[str, Tensor]:
        results = compute_metrics(pl_module.val_metrics, mode)
        n_examples = self._examples.compute()
        self.n_evaluated = int(n_examples)
        if self.n_evaluated:
            results[f"{mode}/loss"] = self._loss.compute() / n_examples
        check_score(pl_module, results, mode)
        return results


def loss_of(outputs: Any) -> Tensor | None:
    """The loss among the outputs of a step: a tensor, or a mapping with "loss"; else None."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss if isinstance(loss, Tensor) else None


def in_training(trainer: pl.Trainer) -> bool:
    """Whether this is `fit`, and not the sanity check before training."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking
