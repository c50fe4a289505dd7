"""torchmetrics by the names that the log uses."""

import re
from typing import Any, cast

from torch import Tensor
from torchmetrics import Metric, MetricCollection


def named_metrics(metrics: Metric | MetricCollection) -> dict[str, Metric]:
    """The metrics by name; a single one is named for its class, `MulticlassAccuracy` accuracy."""
    if isinstance(metrics, MetricCollection):
        return cast("dict[str, Metric]", dict(metrics.items()))
    return {re.sub("^(Binary|Multiclass|Multilabel)", "", type(metrics).__name__).lower(): metrics}


def update_metrics(metrics: Metric | MetricCollection, *args: Any) -> None:
    """`metrics.update(*args)`, whose cost does not grow with metrics that share their state.

    Of those torchmetrics updates one, but hands its state to the others each time, 20 us for each.
    It does so again where they are read, unless it believes that nothing has changed since.
    """
    # Private to torchmetrics: whether it knows who shares, and whether the state is handed out.
    if not isinstance(metrics, MetricCollection) or not metrics._groups_checked:
        metrics.update(*args)
        return
    for names in metrics.compute_groups.values():
        getattr(metrics, names[0]).update(*args)
    for metric in metrics._modules.values():
        vars(metric)["_computed"] = None  # what was computed before
    metrics._state_is_copy = False


def compute_metrics(metrics: Metric | MetricCollection, mode: str) -> dict[str, Tensor]:
    """Computes those that were updated, over all processes, and resets all.

    Args:
        metrics: What a project's `create_metrics` made.
        mode: "train", "val" or "test".

    Returns:
        The scalars among the results, named e.g. "val/accuracy".
    """
    values: dict[str, Any] = {}
    for name, metric in named_metrics(metrics).items():
        if metric.update_called:
            value = metric.compute()
            values |= value if isinstance(value, dict) else {name: value}
    metrics.reset()
    return {
        f"{mode}/{name}": value
        for name, value in values.items()
        if isinstance(value, Tensor) and value.numel() == 1
    }
