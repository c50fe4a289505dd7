"""LogResults: from the batches of an evaluation to its losses, score and metrics."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_trainer.base.hook_checks import check_count, refuse_check
from lightning_trainer.base.losses import MeanLosses, loss_of, named_losses
from lightning_trainer.base.metrics import compute_metrics, named_metrics
from lightning_trainer.base.optimising import end_batch, step_plateaus
from lightning_trainer.base.scoring import check_direction, check_score
from lightning_trainer.internals import was_updated
from lightning_trainer.internals_of_optimising import count_batches


class LogResults(Callback):
    """Logs `val/loss`, the metrics of a validation, and `train/...` of the batches before it.

    Of several sets of data each has its own results, `val/NAME/loss`, and `val/loss` is their mean.
    A trainer without the command line's callbacks gets it from `BaseModule.configure_callbacks`.
    Assumes a `BaseModule`, and that a step returns the loss of its batch.
    """

    # ReportEvaluation logs by itself: Lightning's step is one less than the iterations done.
    _to_loggers: ClassVar[bool] = True

    def __init__(self) -> None:
        self.n_evaluated = 0  # samples of the newest evaluation, over all processes
        self.losses: dict[str, list[str]] = {}  # of it: the names of each loss's parts
        self.train_results: dict[str, float] = {}  # the newest `train/...`
        self._means = MeanLosses()
        self._updated: set[str] = set()  # names of the metrics that any evaluation has updated

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        check_direction(pl_module)
        if not pl_module.automatic_optimization:
            count_batches(trainer, partial(end_batch, pl_module))

    def on_validation_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._sets = set_names(trainer)
        self._n_done = self.n_evaluated = 0  # sets of data; samples
        self._results: dict[str, Tensor] = {}
        self.losses = {}

    on_test_start = on_validation_start

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes the results of a set of data before the first batch of the next one."""
        while self._n_done < dataloader_idx:
            self._take_results(trainer, pl_module)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Adds the losses, weighted by the examples of the batch."""
        loss = loss_of(outputs)
        if loss is not None:
            parts = {f"loss_{name}": part for name, part in named_losses(outputs).items()}
            n_examples = pl_module.count_examples(batch)
            check_count(pl_module, n_examples)
            self._means.update({"loss": loss, **parts}, n_examples)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Logs the results, and steps a plateau scheduler.

        Lightning would step it after this validation's checkpoint, and need the score again at a
        restart.
        """
        results = self._all_results(trainer, pl_module)
        train_results = compute_metrics(pl_module.train_metrics, "train")
        if in_training(trainer):
            self._tell_never_updated(pl_module)
            step_plateaus(pl_module, results[pl_module.score_key])
        pl_module.log_dict(results | train_results, logger=self._to_loggers)
        self.train_results = {name: value.item() for name, value in train_results.items()}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.log_dict(self._all_results(trainer, pl_module), logger=self._to_loggers)

    def _tell_never_updated(self, pl_module: Any) -> None:
        never = [n for n in named_metrics(pl_module.val_metrics) if n not in self._updated]
        self._updated.update(never)  # told once
        if never:
            rank_zero_warn(
                f"`val_metrics` has {', '.join(never)}, which the log leaves out: let "
                f"`{type(pl_module).__name__}.update_metrics` update it"
            )

    def _take_results(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Notes the results of the set of data that is done, and begins anew for the next one."""
        mode = "test" if trainer.testing else "val"
        prefix = "/".join([mode, *self._sets[self._n_done : self._n_done + 1]])
        metrics = named_metrics(pl_module.val_metrics)
        self._updated |= {name for name, metric in metrics.items() if was_updated(metric)}
        means, n_examples = self._means.compute(trainer)
        self._results |= self._computed(trainer, pl_module, prefix)
        self._results |= {f"{prefix}/{name}": mean for name, mean in means.items()}
        if means:
            parts = [name.removeprefix("loss_") for name in means if name != "loss"]
            self.losses[f"{prefix}/loss"] = parts
        self.n_evaluated += n_examples
        self._n_done += 1

    def _computed(self, trainer: pl.Trainer, pl_module: Any, prefix: str) -> dict[str, Tensor]:
        try:
            return compute_metrics(pl_module.val_metrics, prefix)
        except Exception as ex:
            if trainer.sanity_checking:
                refuse_check(pl_module, trainer.num_sanity_val_steps, ex)
            raise

    def _all_results(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
        while self._n_done < max(len(self._sets), 1):
            self._take_results(trainer, pl_module)
        mode, results = "test" if trainer.testing else "val", self._results
        if self._sets:
            names = {key: key.rpartition("/")[2] for key in results}
            for name in dict.fromkeys(names.values()):
                of_sets = [results[key].float() for key, own in names.items() if own == name]
                results[f"{mode}/{name}"] = torch.stack([*map(torch.squeeze, of_sets)]).mean()
            parts = dict.fromkeys(part for own in self.losses.values() for part in own)
            self.losses = ({f"{mode}/loss": [*parts]} if self.losses else {}) | self.losses
        check_score(pl_module, results, mode)
        return results


def set_names(trainer: pl.Trainer) -> list[str]:
    """The names of an evaluation's sets of data; empty where there is one, without a name."""
    loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        return [str(name) for name in loaders]
    return [str(i) for i in range(len(loaders))] if isinstance(loaders, list | tuple) else []


def in_training(trainer: pl.Trainer) -> bool:
    """Whether this is `fit`, and not the sanity check before training."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking
