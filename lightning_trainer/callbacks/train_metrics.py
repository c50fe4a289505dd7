"""The train score goes on over a restart."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric

from lightning_trainer.metrics import named_metrics

_KEY = "train_metrics"


class KeepTrainMetrics(Callback):
    """Puts the metrics of the training batches since the last validation into each checkpoint.

    torchmetrics keeps its states out of a module's `state_dict`, where they would tie the weights
    to the choice of metrics. With several processes the states of all are merged and the first
    process goes on from them. Assumes a `BaseModule`.
    """

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the states; all processes meet here."""
        metrics = named_metrics(pl_module.train_metrics)
        checkpoint[_KEY] = {name: _state(metric) for name, metric in metrics.items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Puts them back."""
        metrics = named_metrics(pl_module.train_metrics)
        states = checkpoint.get(_KEY, {})
        if states.keys() != metrics.keys():
            return
        for name, metric in metrics.items():
            if trainer.is_global_zero:
                _restore(metric, states[name]["state"])
            # Private to torchmetrics, which offers no way to say that a state has been filled in.
            # Everywhere alike, because it decides who takes part when the metric is computed.
            metric._update_count = states[name]["n_updates"]


def _state(metric: Metric) -> dict[str, Any]:
    with metric.sync_context():
        state = {name: _copy(value) for name, value in metric.metric_state.items()}
    return {"n_updates": metric.update_count, "state": state}


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value.clone()


def _restore(metric: Metric, state: dict[str, Any]) -> None:
    for name, value in state.items():
        was_list = isinstance(getattr(metric, name), list) and not isinstance(value, list)
        setattr(metric, name, [value] if was_list else value)
    metric.to(metric.device)
