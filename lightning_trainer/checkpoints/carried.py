"""KeepTrainMetrics: the train score goes on over a restart."""

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torchmetrics import Metric

from lightning_trainer.base.metrics import named_metrics
from lightning_trainer.internals import set_update_count
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.checkpoint_header import KEY, layer_state


class KeepTrainMetrics(RunCallback):
    """Puts the metrics of the training batches since the last validation into each checkpoint.

    torchmetrics keeps its states out of a module's `state_dict`, where they would tie the weights
    to the choice of metrics. Each process goes on from its own states. If the number of processes
    has changed, the first one goes on from all states. Assumes a `BaseModule`.
    """

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """All processes meet here."""
        metrics = named_metrics(pl_module.train_metrics)
        states = {name: _state(metric) for name, metric in metrics.items()}
        checkpoint[KEY]["train_metrics"] = self.run.processes.gather(states)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        metrics = named_metrics(pl_module.train_metrics)
        processes = layer_state(checkpoint).get("train_metrics") or []
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
                # The same on all processes: it decides which of them compute the metric.
                set_update_count(metric, sum(state["n_updates"] for state in states))


def _state(metric: Metric) -> dict[str, Any]:
    state = metric.metric_state
    copy = apply_to_collection(state, torch.Tensor, lambda t: t.detach().cpu().clone())
    return {"n_updates": metric.update_count, "state": copy}


def _restore(metric: Metric, saved: dict[str, Any]) -> None:
    for name, value in saved["state"].items():
        setattr(metric, name, value)
    set_update_count(metric, saved["n_updates"])
    metric.to(metric.device)


def _merge(name: str, metric: Metric, states: list[dict[str, Any]]) -> None:
    _restore(metric, states[0])
    try:
        for state in states[1:]:
            metric.merge_state(move_data_to_device(state["state"], metric.device))
    except RuntimeError:  # torchmetrics can't merge the states of this metric
        metric.reset()
        warnings.warn(
            f"the train metric `{name}` can't be shared out to another number of processes: "
            "it starts anew",
            stacklevel=2,
        )
