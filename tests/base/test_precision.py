"""Metrics and sums of losses are in float32 or better, whatever the precision of the model."""

import pytest
import torch
from conftest import TinyData, TinyModule
from restarts import copy_at, result, same
from tiny import logged
from torch import Tensor
from torchmetrics import MeanMetric, MeanSquaredError, Metric, MetricCollection

from lightning_trainer.base.precision import metrics_apart

NARROW = ("--model=test_precision.ErrorOfOne", "--trainer.precision=bf16-true")


class ManyData(TinyData):
    """Enough samples to saturate a sum in bfloat16, which ends at 256."""

    def create_data(self) -> None:
        super().create_data()
        self.val_dataset = [{"x": torch.ones(4), "label": i % 2} for i in range(1000)]


class ErrorOfOne(TinyModule):
    """Its error is one for each sample."""

    def create_metrics(self) -> None:
        self.train_metrics = MetricCollection({"error": MeanSquaredError()})
        self.val_metrics = MetricCollection({"error": MeanSquaredError()})
        self.own = torch.nn.ModuleDict({"mean": MeanMetric()})

    def update_metrics(self, metrics, batch: dict, output: Tensor) -> None:
        assert output.dtype == batch["x"].dtype == torch.float32
        metrics.update(torch.ones(len(output)), torch.zeros(len(output)))

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        states = [m for m in self.modules() if isinstance(m, Metric)]
        assert len(states) == 3
        for metric in states:
            assert all(value.itemsize >= 4 for value in metric.metric_state.values())
        assert all(p.dtype == torch.bfloat16 for p in self.model.parameters())


def test_a_score_of_one_is_told_as_one(run, config, sessions):
    flags = (*NARROW, "--data=test_precision.ManyData", "--trainer.max_steps=5")
    code, out, err = run("fit", "--config", config, *flags, "--data.batch_size=8")
    assert code == 0, err
    assert "Val score (error, lower is better): 1.000\n" in out
    assert "Train score: 1.000\n" in out
    assert logged(sessions()[0], "val/error") == {5: 1.0}


def test_with_narrow_weights_it_goes_on_bitwise(run, config, sessions, monkeypatch, tmp_path):
    flags = (*NARROW, "--save_minutes=0", "--trainer.max_steps=12")
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", (7,), tmp_path / "killed")
        assert run("fit", "--config", config, *flags)[0] == 0
    assert run("fit", "--ckpt_path", tmp_path / "killed" / "7")[0] == 0
    assert same(result(tmp_path / "killed" / "7"), result(sessions()[0]))


def test_a_module_is_converted_without_its_metrics():
    module = ErrorOfOne()
    module.configure_model()
    module.val_metrics.update(torch.ones(3), torch.zeros(3))
    module.val_metrics.update(torch.full((3,), 1.001), torch.zeros(3))
    order, total = [*module._modules], module.val_metrics["error"].sum_squared_error
    assert module.to(torch.bfloat16) is module
    assert module.dtype == torch.bfloat16
    assert [*module._modules] == order
    assert torch.equal(module.val_metrics["error"].sum_squared_error, total)


def test_metrics_are_given_back_after_a_failure():
    module = ErrorOfOne()
    module.configure_model()
    with pytest.raises(RuntimeError), metrics_apart(module):
        assert module.val_metrics is None
        raise RuntimeError
    assert isinstance(module.val_metrics, MetricCollection)
