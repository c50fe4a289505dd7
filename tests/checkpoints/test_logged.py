"""Numbers of a project's own `self.log` are those of a run that was never stopped."""

import pytest
import torch
from conftest import TinyModule
from restarts import copy_at, result, same
from test_loggers import read_events
from torchmetrics import MaxMetric, MeanMetric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer.checkpoints.logged import shared_out

EPOCHS = ("--trainer.max_steps=-1", "--trainer.max_epochs=2")
BY_EPOCH = (*EPOCHS, "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0")


class LoggingModule(TinyModule):
    """Logs by each way that Lightning has, from each hook in which the numbers differ."""

    def create_metrics(self) -> None:
        super().create_metrics()
        accuracy = MulticlassAccuracy(2, average="micro", validate_args=False)
        self.mean, self.by_hand, self.best = MeanMetric(), SumMetric(), MaxMetric()
        self.of_both = MetricCollection({"a": accuracy.clone(), "b": accuracy.clone()})
        self.val_mean = MeanMetric()

    def on_train_epoch_start(self) -> None:
        self.log("own/start", float(self.current_epoch + 1))

    def on_train_batch_start(self, batch, batch_idx) -> None:
        self.log("own/before", float(batch_idx), on_epoch=True, reduce_fx="max")

    def training_step(self, batch, batch_idx):
        step = super().training_step(batch, batch_idx)
        loss = step["loss"].detach()
        for reduce_fx in ("mean", "sum", "min", "max"):
            self.log(f"own/{reduce_fx}", loss, on_step=False, on_epoch=True, reduce_fx=reduce_fx)
        self.log("own/both", loss, on_step=True, on_epoch=True)
        self.log("own/synced", loss, on_step=True, on_epoch=True, sync_dist=True)
        if self.global_step % 3 == 0:
            self.log("own/rare", loss, on_step=True)
        self.mean(loss)
        self.log("own/metric", self.mean, on_step=True, on_epoch=True)
        self.of_both.update(self.forward_model(batch).detach(), batch["label"])
        for name, metric in self.of_both.items():
            self.log(f"own/{name}", metric, on_step=False, on_epoch=True)
        self.by_hand.update(loss)
        return step

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.log("own/after", outputs["loss"].detach(), on_step=True)

    def on_train_epoch_end(self) -> None:
        self.log("own/by_hand", self.by_hand.compute())
        self.by_hand.reset()

    def validation_step(self, batch, batch_idx):
        step = super().validation_step(batch, batch_idx)
        self.val_mean.update(step["loss"])
        self.log("own/val_mean", self.val_mean)
        self.log("own/val", step["loss"])
        return step

    def on_validation_epoch_end(self) -> None:
        self.best.update(self.val_mean.compute())
        self.log("own/best", self.best.compute())
        self.log("own/seen", self.trainer.callback_metrics.get("own/mean", 0.0))


class ManualModule(LoggingModule):
    """Steps twice a batch: two iterations."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            step = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(step["loss"])
            self.optimizers().step()
        return {"loss": step["loss"].detach()}


OWN = (
    *("start", "before_epoch", "mean", "sum", "min", "max", "both_step", "both_epoch", "rare"),
    *("metric_step", "metric_epoch", "a", "b", "after", "by_hand", "val_mean", "val", "best"),
    *("seen", "synced_epoch"),
)


@pytest.fixture
def begin(run, config):
    def begin_(*flags: str) -> None:
        model = ("--model=test_logged.LoggingModule", "--save_minutes=0")
        monitor = "--trainer.callbacks=lightning.pytorch.callbacks.LearningRateMonitor"
        code, _, err = run("fit", "--config", config, *model, *flags, monitor)
        assert code == 0, err

    return begin_


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "stops"),
    [
        (
            ("--trainer.max_steps=9",),
            {"on_train_start": [0], "on_train_batch_end": [4, 7], "on_validation_batch_end": [5]},
        ),
        (BY_EPOCH, {"on_train_batch_end": [9], "on_validation_end": [7]}),
        (("--trainer.accumulate_grad_batches=3", *EPOCHS), {"on_train_batch_end": [1, 3]}),
        (
            ("--model=test_logged.ManualModule", "--trainer.max_steps=18"),
            {"on_train_batch_end": [6]},
        ),
    ],
    ids=["iterations", "epochs", "accumulation", "two steps a batch"],
)
def test_each_number_is_that_of_a_run_that_was_never_stopped(
    begin, run, sessions, monkeypatch, tmp_path, flags, stops
):
    with monkeypatch.context() as patch:
        for hook, iterations in stops.items():
            copy_at(patch, hook, iterations, tmp_path / hook)
        begin(*flags)
    expected = result(sessions()[0])
    points = read_events(sessions()[0])
    logged = {name for row in expected["numbers"] for name, value in row.items() if value}
    assert {f"own/{name}" for name in OWN} <= logged
    stopped = [tmp_path / hook / str(n) for hook, numbers in stops.items() for n in numbers]
    for session in stopped:
        code, _, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        for row, now in zip(expected["numbers"], result(session)["numbers"], strict=True):
            assert now == row, session
        assert same(result(session), expected), session
        for name, expected_points in points.items():
            differs = name.startswith(("timing", "usage"))
            assert differs or read_events(session)[name] == expected_points, name


def test_each_row_stands_at_its_iteration_and_once(begin, sessions):
    begin("--trainer.accumulate_grad_batches=3", *EPOCHS)
    # Three iterations an epoch, a log line every four, validated every five.
    rows = result(sessions()[0])["numbers"]
    assert [int(row["step"]) for row in rows] == [0, 3, 4, 5, 6]
    points = read_events(sessions()[0])
    assert all(len(found) == len({step for step, _ in found}) for found in points.values())
    for names, steps in {
        ("own/mean", "own/by_hand"): [3, 6],  # of epochs
        ("own/after", "own/metric_step", "train/loss"): [4],
        ("own/val", "own/best", "val/loss"): [5, 6],
        ("lr-Adam",): [0, 3, 4],  # an epoch's is logged at its start, too
    }.items():
        for name in names:
            assert [int(row["step"]) for row in rows if row[name]] == steps, name
            assert [step for step, _ in points[name]] == steps, name


def test_rows_of_a_test_stand_at_the_iteration_of_its_checkpoint(begin, run, sessions):
    begin("--trainer.max_steps=9")
    session = sessions()[0]
    assert run("test", "--ckpt_path", session / "checkpoints/best.ckpt")[0] == 0
    best = result(session)["best"][0]
    tested = [row for row in result(session)["numbers"] if row["test/loss"]]
    assert [(row["step"], bool(row["own/val"])) for row in tested] == [(str(best), True)]


class WithoutMean(LoggingModule):
    """Has lost a metric since the run began, and a result of its validations."""

    def create_metrics(self) -> None:
        super().create_metrics()
        del self.mean

    def training_step(self, batch, batch_idx):
        return TinyModule.training_step(self, batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        pass


def test_a_project_that_logs_otherwise_goes_on(begin, run, sessions):
    begin("--trainer.max_steps=3", "--trainer.val_check_interval=3")
    session = sessions()[0]
    flags = ("--model=test_logged.WithoutMean", "--trainer.max_steps=9")
    code, _, err = run("fit", "--ckpt_path", session, *flags)
    assert code == 0, err
    rows = {int(row["step"]): row for row in result(session)["numbers"]}
    assert rows[7]["own/start"] and rows[7]["own/mean"] == rows[3]["own/mean"]
    assert not rows[7]["own/metric_epoch"]


@pytest.mark.parametrize("reduce_fx", ["mean", "sum", "max", "min"])
def test_the_sums_of_all_processes_are_those_of_the_first_where_their_number_changes(reduce_fx):
    size = {"cumulated_batch_size": torch.tensor(2)} if reduce_fx == "mean" else {}

    def saved(value: float) -> dict:
        sums = {"value": torch.tensor(value), **{name: n.clone() for name, n in size.items()}}
        return {"epoch": {"step.x": {"reduce_fx": reduce_fx, "sums": sums}}}

    first, second = (
        shared_out([saved(1.0), saved(5.0)], is_first)["step.x"]["sums"]
        for is_first in (True, False)
    )
    assert first["value"] == {"max": 5.0, "min": 1.0}.get(reduce_fx, 6.0)
    assert second["value"] == {"max": 5.0, "min": 1.0}.get(reduce_fx, 0.0)
    if size:
        assert (first["cumulated_batch_size"], second["cumulated_batch_size"]) == (4, 0)
