"""Metrics that share their state are updated once."""

import pytest
import torch
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassPrecision,
)

from lightning_trainer.base.metrics import compute_metrics, update_metrics


def collection(**options) -> MetricCollection:
    """Two groups and one that has none: the first three share counts, the last a list."""
    kinds = [MulticlassF1Score, MulticlassPrecision, MulticlassAccuracy, MulticlassAUROC]
    return MetricCollection([kind(3, validate_args=False) for kind in kinds], **options)


def batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(8, 3), torch.randint(0, 3, (8,))) for _ in range(n)]


@pytest.mark.parametrize(
    "options",
    [{}, {"compute_groups": False}, {"prefix": "a_"}],
    ids=["groups", "no groups", "a prefix"],
)
def test_the_results_are_those_of_torchmetrics(options):
    own, reference = collection(**options), collection(**options)
    for n, batch in enumerate(batches(9)):
        update_metrics(own, *batch)
        reference.update(*batch)
        if n in (1, 4, 5):  # read in between, which hands the state out
            assert own.compute() == reference.compute()
            counts = [m.update_count for m in own.values()]
            assert counts == [m.update_count for m in reference.values()]
        if n == 6:
            assert compute_metrics(own, "val") == compute_metrics(reference, "val")
    assert own.compute() == reference.compute()


def test_a_clone_goes_on_by_itself():
    own, reference = collection(), collection()
    first, second, third = batches(3)
    update_metrics(own, *first)
    clone = own.clone()
    for batch in (second, third):
        update_metrics(clone, *batch)
        reference.update(*batch)
    own.reset()
    clone.reset()
    for batch in (second, third):
        update_metrics(clone, *batch)
    assert clone.compute() == reference.compute()


def test_one_of_those_that_share_is_updated(monkeypatch):
    metrics = MetricCollection({str(i): MulticlassAccuracy(3) for i in range(50)})
    first, second = batches(2)
    update_metrics(metrics, *first)
    handed_out = []
    original = MetricCollection._compute_groups_create_state_ref
    monkeypatch.setattr(
        MetricCollection,
        "_compute_groups_create_state_ref",
        lambda *args, **kwargs: handed_out.append(1) or original(*args, **kwargs),
    )
    update_metrics(metrics, *second)
    assert handed_out == []


class Plain(SumMetric):
    def compute(self):
        value = super().compute().item()
        return {"sum": value, "n": int(value), "name": "plain"} if value > 1 else value


def test_a_number_of_python_is_a_result():
    metric = Plain()
    metric.update(0.5)
    assert compute_metrics(metric, "val") == {"val/plain": torch.tensor(0.5)}
    metric.update(1.5)
    assert compute_metrics(metric, "val") == {"val/sum": torch.tensor(1.5), "val/n": 1}
