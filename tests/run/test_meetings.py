"""The meetings of all processes on the CPU."""

from datetime import timedelta
from types import SimpleNamespace

import torch.distributed as dist

from lightning_trainer.run.processes import Processes


def test_a_meeting_waits_as_long_as_the_settings_say(run, config, monkeypatch):
    asked, start = [], Processes.start
    monkeypatch.setattr(dist, "new_group", lambda **arguments: asked.append(arguments))
    monkeypatch.setattr(
        Processes, "start", lambda self, trainer: start(self, SimpleNamespace(world_size=2))
    )
    flags = ("--timeout_minutes=0.5", "--trainer.max_steps=1")
    assert run("fit", "--config", config, *flags)[0] == 0
    assert asked == [{"timeout": timedelta(seconds=30), "backend": "gloo"}]
