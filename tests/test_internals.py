"""Each private part that is touched is still as it was read; one test for each."""

import argparse
import inspect
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from conftest import TinyData, TinyModule
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import nn
from torch.utils.tensorboard.summary import hparams
from torchmetrics import MeanMetric, MetricCollection, SumMetric
from torchmetrics.wrappers import MinMaxMetric, Running

from lightning_trainer.internals import (
    METRIC_COUNTERS,
    add_summary,
    allow_iterations,
    is_compiled,
    is_open,
    let_step_unscale,
    nccl_failure,
    option_names,
    prefer_whole_numbers,
    reopen,
    restore_loaders,
    root_cause,
    seed_gpu,
    set_timeout,
    set_update_count,
    stop_asking_for_sigterm,
    update_groups,
    was_updated,
)
from lightning_trainer.run.epochs import resume_epoch, settle_progress

# Lightning --------------------------------------------------------------------------------------


def trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, **options}
    return pl.Trainer(**quiet, **options)


class SaveAt(Callback):
    def __init__(self, iteration: int, path: Path) -> None:
        self.iteration, self.path = iteration, path

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.iteration:
            trainer.save_checkpoint(self.path)


def test_lightning_no_longer_asks_about_sigterm_until_that_is_given_back():
    source = inspect.getsource(training_epoch_loop._TrainingEpochLoop)
    assert source.count("self._broadcast_sigterm_tensor()") == 1
    loop = (own := trainer()).fit_loop.epoch_loop
    give_back = stop_asking_for_sigterm(own)
    assert "_broadcast_sigterm_tensor" in vars(loop)
    give_back()
    assert "_broadcast_sigterm_tensor" not in vars(loop)


def test_a_loop_runs_as_many_iterations_as_are_allowed():
    own = trainer(max_steps=2)
    allow_iterations(own, 1)
    own.fit(TinyModule(), datamodule=TinyData())
    assert own.global_step == 3


def test_tensorboards_file_is_opened_by_the_first_point_and_again_elsewhere(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    assert not is_open(logger)
    add_summary(logger, hparams({"width": 1}, {})[1])
    first = logger.experiment
    assert is_open(logger)
    reopen(logger, tmp_path / "elsewhere")
    assert not is_open(logger)
    assert logger.experiment is not first
    assert list((tmp_path / "elsewhere").rglob("events.out.*"))


def test_a_loader_that_was_made_too_early_gets_its_state_before_the_first_batch(tmp_path):
    class Early(TinyModule):
        def create_optimiser(self) -> None:
            assert self.trainer.estimated_stepping_batches == 7
            super().create_optimiser()

    path, positions = tmp_path / "three.ckpt", []
    trainer(callbacks=[SaveAt(3, path)], max_steps=3).fit(TinyModule(), datamodule=TinyData())

    class Restore(Callback):
        def on_train_start(self, trainer, module) -> None:
            positions.append(trainer.train_dataloader.sampler.position)
            restore_loaders(trainer)
            positions.append(trainer.train_dataloader.sampler.position)

    again = trainer(max_steps=-1, max_epochs=1, callbacks=[Restore()])
    again.fit(Early(), datamodule=TinyData(), ckpt_path=path, weights_only=True)
    assert positions == [0, 12]


def test_an_epoch_whose_batches_are_done_goes_to_its_end_without_a_validation(tmp_path):
    path, calls = tmp_path / "end.ckpt", []

    class End(Callback):
        def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
            settle_progress(checkpoint["loops"]["fit_loop"])

        def on_train_start(self, trainer, module) -> None:
            resume_epoch(trainer)  # calls end_epoch

        def on_train_epoch_end(self, trainer, module) -> None:
            calls.append(("end", trainer.global_step))
            trainer.fit_loop.epoch_loop.restarting = False

        def on_train_batch_start(self, trainer, *args) -> None:
            calls.append(("batch", trainer.global_step))

    trainer(max_steps=7, callbacks=[SaveAt(7, path)]).fit(TinyModule(), datamodule=TinyData())
    again = trainer(max_steps=9, callbacks=[End()])
    again.fit(TinyModule(), datamodule=TinyData(), ckpt_path=path, weights_only=True)
    assert calls[:2] == [("end", 7), ("batch", 7)]


@pytest.mark.parametrize("kind", [DDPStrategy, ModelParallelStrategy])
def test_a_strategy_makes_its_group_with_the_timeout_that_is_set_if_it_has_none_of_its_own(kind):
    strategies = kind(), kind(timeout=timedelta(minutes=2))
    for strategy in strategies:
        set_timeout(strategy, timedelta(minutes=5))
    assert [s._timeout for s in strategies] == [timedelta(minutes=5), timedelta(minutes=2)]
    assert '"timeout": self._timeout' in inspect.getsource(kind)
    set_timeout(SingleDeviceStrategy(), timedelta(minutes=5))  # which has no group


# torchmetrics and torch -------------------------------------------------------------------------


def test_a_metric_counts_as_updated_as_often_as_is_said():
    metric = MeanMetric()
    set_update_count(metric, 3)
    assert (metric.update_count, metric.update_called) == (3, True)


def test_a_metric_around_others_has_seen_a_batch_if_they_have():
    for metric in (MinMaxMetric(SumMetric()), Running(SumMetric()), SumMetric()):
        assert not was_updated(metric)
        metric.update(1.0)
        assert was_updated(metric)
        metric.reset()
        assert not was_updated(metric)


def test_the_numbers_that_a_metric_keeps_about_itself_are_known():
    metric = SumMetric()
    metric(1.0)
    metric.compute()
    assert vars(metric).keys() >= {*METRIC_COUNTERS}


def test_metrics_that_share_their_state_are_updated_once_and_read_right():
    names = [f"m{i}" for i in range(5)]
    slow, fast = (
        MetricCollection({name: SumMetric(nan_strategy="disable") for name in names})
        for _ in range(2)
    )
    for value in (1.0, 2.0, 4.0):
        slow.update(torch.tensor(value))
        update_groups(fast, torch.tensor(value))
        assert fast.compute() == slow.compute()
    assert len(fast.compute_groups) == 1
    assert fast["m3"].update_count == 3


def test_a_fused_optimiser_tells_a_scaler_what_its_step_does_by_the_attribute_that_is_set():
    weights = [nn.Parameter(torch.zeros(1))]
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        fused, plain = kind(weights, fused=True), kind(weights)
        let_step_unscale(plain, True)
        assert vars(fused).keys() >= {"_step_supports_amp_scaling"} <= vars(plain).keys()
        assert fused._step_supports_amp_scaling is plain._step_supports_amp_scaling is True
    assert "_step_supports_amp_scaling" in inspect.getsource(torch.amp.GradScaler.step)


def test_lightning_refuses_to_clip_by_the_attribute_of_a_fused_optimiser():
    weight = nn.Parameter(torch.ones(1))
    fused, plugin = torch.optim.Adam([weight], fused=True), MixedPrecision("bf16-mixed", "cpu")
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        plugin.clip_gradients(fused, 0.1)
    let_step_unscale(fused, False)
    plugin.clip_gradients(fused, 0.1)


def noticing(name: str) -> SimpleNamespace:
    return SimpleNamespace(get_error=lambda: SimpleNamespace(name=name))


@pytest.mark.parametrize(
    ("backends", "backend", "told"),
    [
        ("cpu:gloo,cuda:nccl", noticing("REMOTE_ERROR"), "REMOTE_ERROR"),
        ("cpu:gloo,cuda:nccl", noticing("SUCCESS"), ""),
        ("cpu:gloo,cuda:nccl", SimpleNamespace(), ""),  # torch 2.6
        ("cpu:gloo,cuda:gloo", noticing("REMOTE_ERROR"), ""),
    ],
)
def test_nccl_is_asked_for_its_failure(monkeypatch, backends, backend, told):
    assert nccl_failure() == ""  # there is no group
    group = SimpleNamespace(WORLD=SimpleNamespace(_get_backend=lambda device: backend))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "get_backend_config", lambda: backends)
    monkeypatch.setattr(dist, "group", group)
    assert nccl_failure() == told


def test_nccl_has_the_method_and_the_names_of_its_failures():
    if not hasattr(getattr(dist, "ProcessGroupNCCL", None), "get_error"):
        pytest.skip("this torch has no NCCL, or is older than 2.7")
    names = set(torch._C._distributed_c10d.ErrorType.__members__)
    assert names == {"SUCCESS", "TIMEOUT", "COMM_ERROR", "REMOTE_ERROR"}


def test_a_compiled_module_is_known_however_it_was_compiled():
    plain = nn.Sequential(nn.Linear(1, 1))
    assert not is_compiled(plain)
    plain[0].compile()
    assert is_compiled(plain)
    assert is_compiled(nn.Sequential(torch.compile(nn.Linear(1, 1))))


def test_each_gpu_has_a_generator():
    assert isinstance(torch.cuda.default_generators, tuple)
    with pytest.raises(IndexError):  # where there is no GPU at all
        seed_gpu(torch.cuda.device_count(), 0)


# The command line: argparse and jsonargparse ----------------------------------------------------


def test_the_names_of_a_parser_are_its_options_its_commands_and_their_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", "--config")
    commands = parser.add_subparsers()
    commands.add_parser("fit").add_argument("--tag")
    assert option_names(parser) == {"h", "help", "c", "config", "fit", "tag"}


def test_an_option_of_whole_numbers_and_fractions_keeps_a_whole_one():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--limit", type=float | int | None)
    assert repr(parser.parse_args(["--limit=1"]).limit) == "1.0"  # else it is no longer needed
    prefer_whole_numbers(parser)
    read = [parser.parse_args([f"--limit={text}"]).limit for text in ("1", "1.0", "0.5", "null")]
    assert repr(read) == "[1, 1.0, 0.5, None]"


def test_a_null_is_refused_by_the_words_that_are_looked_for():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--depth", type=int)
    with pytest.raises(TypeError, match=r"depth\":\s+Expected a <class 'int'>"):
        parser.validate(parser.parse_object({"depth": None}), skip_unset=False)


def test_the_root_cause_is_below_what_the_parser_says_of_each_type_and_no_deeper():
    own = ValueError("own")
    own.__cause__ = KeyError("a reason that the project itself gives")
    outer = ValueError("Does not validate against any of the Union subtypes")
    outer.__cause__ = own
    assert root_cause(outer) is own
    assert root_cause(own) is own
