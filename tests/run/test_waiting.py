"""NameWaitingMetrics, with a debug mode and metrics that act as torch's do on a GPU."""

import warnings
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyData, TinyModule
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer.base.metrics import update_metrics
from lightning_trainer.run.state import RunState
from lightning_trainer.run.waiting import NameWaitingMetrics, find_waiting
from lightning_trainer.session.folder import Session


class FakeMode:
    """torch's debug mode, and what it says when the host waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode = 0
        self.set_to: list[Any] = []
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)

    def set(self, mode: Any) -> None:
        if mode:
            warnings.warn(
                "Synchronization debug mode is a prototype feature and does not yet detect all "
                "synchronizing operations (Triggered internally at Module.cpp:1.)",
                stacklevel=2,
            )
        self.mode = {"warn": 1, "default": 0}.get(mode, mode)
        self.set_to.append(mode)

    def wait(self) -> None:
        if self.mode == 1:
            warnings.warn(
                "called a synchronizing CUDA operation (Triggered internally at "
                "CUDAFunctions.cpp:1.)",
                stacklevel=2,
            )


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> FakeMode:
    return FakeMode(monkeypatch)


def metric(mode: FakeMode | None = None, raises: bool = False) -> MulticlassAccuracy:
    """An accuracy; with `mode` each of its updates waits."""

    class Metric(MulticlassAccuracy):
        def update(self, output: Tensor, label: Tensor) -> None:
            if raises:
                raise ValueError("a fault of the metric")
            if mode:
                mode.wait()
            super().update(output, label)

    return Metric(2, average="micro", validate_args=False)


BATCH = {"x": torch.zeros(4, 4), "label": torch.tensor([0, 1, 1, 1])}
OUTPUT = torch.tensor([[1.0, 0.0]] * 4)


def found(metrics: Any, **kwargs: Any) -> list[str]:
    return find_waiting(metrics, lambda: metrics.update(OUTPUT, BATCH["label"], **kwargs))


def test_the_metrics_that_wait_are_told_from_those_that_do_not(mode):
    metrics = MetricCollection(
        {"f1": metric(mode), "free": metric(), "auroc": metric(mode)}, compute_groups=False
    )
    assert found(metrics) == ["f1", "auroc"]
    assert found(metric()) == []
    assert found(metric(mode)) == ["metric"]
    assert metrics.compute()["free"] == 0.25  # it was updated, once


def test_of_metrics_that_share_their_state_the_one_that_is_updated_is_named(mode):
    metrics = MetricCollection({"a": metric(mode), "b": metric(mode), "c": metric()})
    update_metrics(metrics, OUTPUT, BATCH["label"])
    waiting = find_waiting(metrics, lambda: update_metrics(metrics, OUTPUT, BATCH["label"]))
    assert waiting == ["a"]
    assert {name: value.item() for name, value in metrics.compute().items()} == {
        name: 0.25 for name in "abc"
    }
    assert [each.update_count for each in metrics.values()] == [2, 2, 2]


def test_a_hook_that_waits_by_itself_is_told_from_its_metrics(mode):
    metrics = metric(mode)

    def update() -> None:
        mode.wait()
        metrics.update(OUTPUT, BATCH["label"])

    assert find_waiting(metrics, update) == ["metric", ""]


def test_mode_warnings_and_metrics_are_given_back(mode):
    metrics = metric()
    mode.mode = 2
    filters, own = [*warnings.filters], metrics.update
    assert found(metrics) == []
    assert (mode.mode, mode.set_to) == (2, ["warn", 2])
    assert warnings.filters == filters
    assert metrics.update is own
    broken = metric(raises=True)
    own = broken.update
    with pytest.raises(ValueError, match="a fault of the metric"):
        found(broken)
    assert (mode.mode, broken.update) == (2, own)


def test_other_warnings_are_shown(mode):
    metrics = metric(mode)

    def update() -> None:
        warnings.warn("of the project", UserWarning, stacklevel=1)
        mode.wait()

    with pytest.warns(UserWarning) as shown:
        assert find_waiting(metrics, update) == [""]
    assert [str(warning.message) for warning in shown] == ["of the project"]


# In a run -----------------------------------------------------------------------------------------


def started(module: TinyModule, device: str = "cuda", rank: int = 0) -> NameWaitingMetrics:
    """The callback after the start of training on this device."""
    callback = NameWaitingMetrics(RunState(Session()))
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer: Any = SimpleNamespace(strategy=strategy, is_global_zero=rank == 0)
    callback.on_train_start(trainer, module)
    return callback


def module_of(metrics: Any) -> TinyModule:
    module = TinyModule()
    module.train_metrics, module.val_metrics = metrics, metric()
    return module


def test_the_second_training_batch_is_watched_and_no_other(mode, capsys):
    module = module_of(metric(mode))
    started(module)
    for metrics in (module.train_metrics, module.val_metrics, module.val_metrics):
        module.update_metrics(metrics, BATCH, OUTPUT)
        assert mode.set_to == []
    module.update_metrics(module.train_metrics, BATCH, OUTPUT)
    assert mode.set_to == ["warn", 0]
    assert capsys.readouterr().err == (
        "warning: the train metrics wait for the GPU in each batch: `metric`. Free of it are "
        'classification metrics with `average="micro"`, `validate_args=False` and no '
        '`ignore_index`, and means and sums with `nan_strategy="disable"`; or leave a metric to '
        "`val_metrics`\n"
    )
    assert "update_metrics" not in vars(module)
    module.update_metrics(module.train_metrics, BATCH, OUTPUT)
    assert mode.set_to == ["warn", 0]
    assert module.train_metrics.update_count == 3


def test_a_project_whose_hook_waits_is_named(mode, capsys):
    class Waits(TinyModule):
        def update_metrics(self, metrics: Any, batch: Any, output: Tensor) -> None:
            mode.wait()
            super().update_metrics(metrics, batch, output)

    module = Waits()
    module.train_metrics = metric()
    started(module)
    for _ in range(2):
        module.update_metrics(module.train_metrics, batch=BATCH, output=OUTPUT)
    assert "in each batch: `Waits.update_metrics`. " in capsys.readouterr().err


def test_nothing_is_said_where_nothing_waits(mode, capsys):
    module = module_of(metric())
    started(module)
    for _ in range(3):
        module.update_metrics(module.train_metrics, BATCH, OUTPUT)
    assert (mode.set_to, capsys.readouterr().err) == (["warn", 0], "")


@pytest.mark.parametrize(("device", "rank"), [("cpu", 0), ("mps", 0), ("cuda", 1)])
def test_only_the_first_process_on_a_gpu_watches(mode, device, rank):
    module = module_of(metric())
    started(module, device, rank)
    assert "update_metrics" not in vars(module)


def test_a_run_of_one_batch_leaves_nothing_behind(mode):
    module = module_of(metric())
    callback = started(module)
    module.update_metrics(module.train_metrics, BATCH, OUTPUT)
    callback.teardown(SimpleNamespace(), module, "fit")
    assert "update_metrics" not in vars(module)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_hook_in_the_module_itself_is_let_alone(mode, device):
    module = module_of(metric())
    module.update_metrics = own = lambda *args: None
    callback = started(module, device)
    module.update_metrics(module.train_metrics, BATCH, OUTPUT)
    module.update_metrics(module.train_metrics, BATCH, OUTPUT)
    callback.teardown(SimpleNamespace(), module, "fit")
    assert (module.update_metrics, mode.set_to) == (own, [])


class AsOnGpu(NameWaitingMetrics):
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        strategy = SimpleNamespace(root_device=torch.device("cuda"))
        super().on_train_start(SimpleNamespace(strategy=strategy, is_global_zero=True), pl_module)


def test_a_run_names_its_metric_once_and_trains_as_one_that_is_not_watched(mode, capsys):
    scores = []
    for callbacks in ([], [AsOnGpu(RunState(Session()))]):
        pl.seed_everything(7, verbose=False)
        module = TinyModule()
        module.configure_model()
        module.train_metrics = metric(mode)
        trainer = pl.Trainer(
            max_steps=9,
            val_check_interval=1,
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=TinyData())
        scores.append((trainer.callback_metrics, module.model[0].weight.tolist()))
    assert scores[0] == scores[1]
    assert capsys.readouterr().err.count("warning: the train metrics wait") == 1
    assert mode.set_to == ["warn", 0]


@pytest.mark.gpu
def test_on_a_gpu_a_macro_average_waits_and_a_micro_average_does_not():
    def accuracy(average: str) -> MulticlassAccuracy:
        return MulticlassAccuracy(2, average=average, validate_args=False).cuda()

    output, label = OUTPUT.cuda(), BATCH["label"].cuda()
    metrics = MetricCollection({"macro": accuracy("macro"), "micro": accuracy("micro")})
    metrics.update(output, label)
    assert find_waiting(metrics, lambda: metrics.update(output, label)) == ["macro"]
    assert torch.cuda.get_sync_debug_mode() == 0
