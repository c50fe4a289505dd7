"""Metrics are in float32 or better, whatever the precision of the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_trainer.base.hook_checks import call_hook, check_metrics, require


def make_metrics(module: Any) -> None:
    """Calls `create_metrics`.

    With `--trainer.precision bf16-true` and its like, where new tensors are narrower than float32,
    `update_metrics` gets batch and output in float32 from then on.

    Raises:
        TypeError: If it has not set both.
        ValueError: If they share a metric.
    """
    with _at_least_float32():
        call_hook(module, "create_metrics", "train_metrics", (Metric, MetricCollection))
    require(module, "create_metrics", "val_metrics", (Metric, MetricCollection))
    check_metrics(module)
    if _is_narrow():
        vars(module)["update_metrics"] = _widened(module.update_metrics)


@contextmanager
def metrics_apart(module: Any) -> Iterator[None]:
    """Leaves a module's metrics out where the module is converted; they only follow its device."""
    kinds = (Metric, MetricCollection)
    owners = [each for each in module.modules() if not isinstance(each, kinds)]
    children = [(owner, *child) for owner in owners for child in owner.named_children()]
    metrics = [child for child in children if isinstance(child[-1], kinds)]
    for owner, name, _ in metrics:
        setattr(owner, name, None)
    try:
        yield
    finally:
        for owner, name, metric in metrics:
            setattr(owner, name, metric.to(module.device))


def _is_narrow() -> bool:
    return torch.get_default_dtype().itemsize < 4


@contextmanager
def _at_least_float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if _is_narrow() else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _widened(update: Callable[..., None]) -> Callable[..., None]:

    def update_wide(metrics: Any, batch: Any, output: Any) -> None:
        with _at_least_float32():
            update(metrics, *apply_to_collection([batch, output], Tensor, _widen))

    return update_wide


def _widen(tensor: Tensor) -> Tensor:
    narrow = tensor.is_floating_point() and tensor.itemsize < 4
    return tensor.float() if narrow else tensor
