"""The meetings of all processes on the CPU."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from lightning_trainer.internals import set_timeout
from lightning_trainer.run.processes import Processes
from lightning_trainer.start import cli


def test_a_meeting_waits_as_long_as_the_settings_say(run, config, monkeypatch):
    asked, start = [], Processes.start
    monkeypatch.setattr(dist, "new_group", lambda **arguments: asked.append(arguments))
    monkeypatch.setattr(
        Processes, "start", lambda self, trainer: start(self, SimpleNamespace(world_size=2))
    )
    flags = ("--timeout_minutes=0.5", "--trainer.max_steps=1")
    assert run("fit", "--config", config, *flags)[0] == 0
    assert asked == [{"timeout": timedelta(seconds=30), "backend": "gloo"}]


def test_the_group_of_the_meetings_has_that_timeout(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    processes = Processes(timedelta(seconds=7))
    try:
        processes.start(SimpleNamespace(world_size=2))
        timeout = processes._group._get_backend(torch.device("cpu")).options._timeout
        assert timeout == timedelta(seconds=7)
    finally:
        processes.close()
        dist.destroy_process_group()


STRATEGIES = "lightning.pytorch.strategies"


@pytest.mark.parametrize(
    ("strategy", "seconds"),
    [
        *[("auto", 30), ("ddp", 30), ("ddp_find_unused_parameters_true", 30)],
        (f"{{class_path: {STRATEGIES}.DDPStrategy}}", 30),
        (f"{{class_path: {STRATEGIES}.ModelParallelStrategy}}", 30),
        (f"{{class_path: {STRATEGIES}.DDPStrategy, init_args: {{timeout: 0:01:00}}}}", 60),
    ],
)
def test_so_has_the_group_of_any_strategy_that_has_none_of_its_own(
    run, config, monkeypatch, strategy, seconds
):
    made = []

    def set_and_end(strategy, timeout) -> None:
        set_timeout(strategy, timeout)
        made.append(strategy)
        raise SystemExit

    monkeypatch.setattr(cli, "set_timeout", set_and_end)
    flags = ("--timeout_minutes=0.5", f"--trainer.strategy={strategy}", "--trainer.devices=2")
    run("fit", "--config", config, *flags)
    assert made[0]._timeout == timedelta(seconds=seconds)
