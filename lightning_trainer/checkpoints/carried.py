"""The train score goes on over a restart."""

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torchmetrics import Metric

from lightning_trainer.base.metrics import named_metrics
from lightning_trainer.run.processes import Agreement

_KEY = "train_metrics"


class KeepTrainMetrics(Callback):
    """Puts the metrics of the training batches since the last validation into each checkpoint.

    torchmetrics keeps its states out of a module's `state_dict`, where they would tie the weights
    to the choice of metrics. Each process goes on from its own; where their number has changed, the
    first one goes on from all of them. Assumes a `BaseModule`.

    Args:
        agreement: Gathers the states of all processes.
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the states; all processes meet here."""
        metrics = named_metrics(pl_module.train_metrics)
        states = {name: _state(metric) for name, metric in metrics.items()}
        checkpoint[_KEY] = self.agreement.gather(states)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Puts them back."""
        metrics = named_metrics(pl_module.train_metrics)
        processes = checkpoint.get(_KEY, [])
        if not processes or processes[0].keys() != metrics.keys():
            return
        same = len(processes) == trainer.world_size
        for name, metric in metrics.items():
            states = [process[name] for process in processes]
            if same:
                _restore(metric, states[trainer.global_rank])
            elif trainer.is_global_zero:
                _merge(name, metric, states)
            if not same:
                # Everywhere alike, because it decides who takes part when the metric is computed.
                metric._update_count = sum(state["n_updates"] for state in states)


def _state(metric: Metric) -> dict[str, Any]:
    copy = apply_to_collection(
        metric.metric_state, torch.Tensor, lambda t: t.detach().cpu().clone()
    )
    return {"n_updates": metric.update_count, "state": copy}


def _restore(metric: Metric, saved: dict[str, Any]) -> None:
    for name, value in saved["state"].items():
        setattr(metric, name, value)
    # Private to torchmetrics, which offers no way to say that a state has been filled in.
    metric._update_count = saved["n_updates"]
    metric.to(metric.device)


def _merge(name: str, metric: Metric, states: list[dict[str, Any]]) -> None:
    _restore(metric, states[0])
    try:
        for state in states[1:]:
            metric.merge_state(move_data_to_device(state["state"], metric.device))
    except RuntimeError:  # what torchmetrics says of a metric whose states can't be merged
        metric.reset()
        warnings.warn(
            f"the train metric `{name}` can't be shared out to another number of processes: "
            "it starts anew",
            stacklevel=2,
        )
