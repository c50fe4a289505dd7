"""torchmetrics by the names that the log uses."""

import re
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_trainer.internals import update_groups, was_updated


def named_metrics(metrics: Metric | MetricCollection) -> dict[str, Metric]:
    """The metrics by name, without a collection's prefix; `MulticlassAccuracy` is "accuracy"."""
    if isinstance(metrics, MetricCollection):
        return cast("dict[str, Metric]", dict(metrics.items(keep_base=True)))
    return {re.sub("^(Binary|Multiclass|Multilabel)", "", type(metrics).__name__).lower(): metrics}


def update_metrics(metrics: Metric | MetricCollection, *args: Any) -> None:
    """`metrics.update(*args)`, at one metric's cost for all metrics that share their state."""
    if isinstance(metrics, MetricCollection):
        update_groups(metrics, *args)
    else:
        metrics.update(*args)


def compute_metrics(metrics: Metric | MetricCollection, mode: str) -> dict[str, Tensor]:
    """Computes the metrics that were updated, over all processes, and resets all.

    Returns:
        The scalar results, named e.g. "val/accuracy" with `mode` "val".
    """
    values: dict[str, Any] = {}
    for name, metric in named_metrics(metrics).items():
        if was_updated(metric):
            value = metric.compute()
            values |= _present(metric, value) if isinstance(value, dict) else {name: value}
    metrics.reset()
    values = {  # a metric of one's own may compute a number of Python or numpy
        name: torch.tensor(value, dtype=torch.float32) if isinstance(value, int | float) else value
        for name, value in values.items()
    }
    return {
        f"{mode}/{name}": value
        for name, value in values.items()
        if isinstance(value, Tensor) and value.numel() == 1
    }


def _present(metric: Metric, values: dict[str, Any]) -> dict[str, Any]:
    """Without what the detection metric says of classes or sizes that no sample has.

    torchmetrics' MeanAveragePrecision gives -1 for these, and a list of the classes.
    """
    if type(metric).__name__ != "MeanAveragePrecision":
        return values
    absent = {name for name, value in values.items() if value.numel() == 1 and value == -1}
    return {n: v for n, v in values.items() if n not in (absent | {"classes"}) - {"map"}}
