"""NameWaitingMetrics: tells which train metrics make the host wait for the GPU in each batch."""

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torchmetrics import Metric, MetricCollection

from lightning_trainer.base.metrics import named_metrics
from lightning_trainer.run.device import on_gpu
from lightning_trainer.run.state import RunCallback

_WAIT = "called a synchronizing CUDA operation"
_OF_DEBUG_MODE = (_WAIT, "Synchronization debug mode is a prototype feature")


class NameWaitingMetrics(RunCallback):
    """Watches one update of the train metrics on a GPU: that of the second batch after a start.

    A metric that reads a value back keeps the host from queueing the next step, in each batch. The
    first update also finds out which metrics share their state. Later ones cost nothing more. A
    hook that a project has set in the module itself, not in its class, is let alone.
    """

    _watches = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not (on_gpu(trainer) and trainer.is_global_zero):
            return
        if "update_metrics" in vars(pl_module):
            return
        update, updated = pl_module.update_metrics, 0

        def watched(metrics: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal updated
            updated += metrics is pl_module.train_metrics
            if updated < 2:
                update(metrics, *args, **kwargs)
                return
            del pl_module.update_metrics  # the class's own again
            if waiting := find_waiting(metrics, partial(update, metrics, *args, **kwargs)):
                print(_advice(pl_module, waiting), file=sys.stderr)

        pl_module.update_metrics, self._watches = watched, True

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self._watches:
            vars(pl_module).pop("update_metrics", None)  # there was no second batch


def find_waiting(metrics: Metric | MetricCollection, update: Callable[[], Any]) -> list[str]:
    """Calls `update`; returns the names of the metrics that waited for the GPU meanwhile.

    The last name is empty if `update` waited outside of any metric.
    """
    waits: Counter[str] = Counter()

    def count(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        before = len(caught)
        call(*args, **kwargs)
        waits[name] += sum(_WAIT in str(warning.message) for warning in caught[before:])

    updates = [(name, each, each.update) for name, each in named_metrics(metrics).items()]
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, each, own in updates:
            each.update = partial(count, name, own)  # type: ignore[method-assign]
        try:
            torch.cuda.set_sync_debug_mode("warn")
            count("", update)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            for _, each, own in updates:
                each.update = own  # type: ignore[method-assign]
    for warning in caught:
        if not str(warning.message).startswith(_OF_DEBUG_MODE):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    waits[""] -= sum(n for name, n in waits.items() if name)
    return sorted(filter(waits.get, waits), reverse=True)


def _advice(pl_module: Any, waiting: list[str]) -> str:
    hook = f"{type(pl_module).__name__}.update_metrics"
    names = ", ".join(f"`{name or hook}`" for name in waiting)
    return (
        f"warning: the train metrics wait for the GPU in each batch: {names}. Free of it are "
        'classification metrics with `average="micro"`, `validate_args=False` and no '
        '`ignore_index`, and means and sums with `nan_strategy="disable"`; or leave a metric to '
        "`val_metrics`"
    )
