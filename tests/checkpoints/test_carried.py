"""Metrics go on over a restart: those within metrics, and numbers outside of their states."""

import csv

import pytest
from conftest import TinyModule
from restarts import copy_at, result, same
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import BootStrapper, MinMaxMetric, Running


def accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(2, average="micro", validate_args=False)


METRICS = {
    "minmax": lambda: MinMaxMetric(accuracy()),
    "boot": lambda: BootStrapper(accuracy(), num_bootstraps=3),
    "running": lambda: Running(accuracy(), window=3),
}


class WrappedModule(TinyModule):
    def __init__(self, kind: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.kind = kind

    def create_metrics(self) -> None:
        metrics = {"accuracy": accuracy(), "extra": METRICS[self.kind]()}
        self.train_metrics = MetricCollection(metrics)
        self.val_metrics = self.train_metrics.clone()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "names"),
    [("minmax", ["max", "min", "raw"]), ("boot", ["mean", "std"]), ("running", ["extra"])],
)
def test_metrics_within_metrics_are_logged_and_go_on_exactly(
    run, config, sessions, monkeypatch, tmp_path, kind, names
):
    flags = ("--model=test_carried.WrappedModule", f"--model.kind={kind}", "--save_minutes=0")
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", (3, 9), tmp_path / "killed")
        code, _, err = run("fit", "--config", config, *flags, "--trainer.max_steps=12")
        assert code == 0, err
    with (sessions()[0] / "metrics.csv").open(newline="") as file:
        validated = [row for row in csv.DictReader(file) if row["val/loss"]]
    for name in names:
        assert all(row[f"train/{name}"] and row[f"val/{name}"] for row in validated)
    for n in (3, 9):
        assert run("fit", "--ckpt_path", tmp_path / "killed" / str(n))[0] == 0
        assert same(result(tmp_path / "killed" / str(n)), result(sessions()[0])), n


def test_metrics_that_saw_no_batch_are_not_logged(run, config, sessions):
    flags = ("--model=test_carried.WrappedModule", "--model.kind=running")
    assert run("fit", "--config", config, *flags, "--trainer.max_steps=5")[0] == 0
    code, out, _ = run("validate", "--ckpt_path", sessions()[0])
    assert code == 0
    assert "Train" not in out.split("Val loss")[1]
