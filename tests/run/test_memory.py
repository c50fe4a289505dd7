"""Memory that is freed on a CPU serves the next iteration, and is not asked of the system again."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from lightning_trainer.run.memory import VARIABLES, ReuseMemory, reuse_memory
from lightning_trainer.run.state import RunState

GIVEN_BACK = """
import resource
import torch
from lightning_trainer.run.memory import reuse_memory

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20

def step():
    blocks = [torch.ones(2**20) for _ in range(6)]  # 24 MB
    return resident_mb()

def given_back_mb():
    return max(step() - resident_mb() for _ in range(5))

print(given_back_mb(), reuse_memory(), given_back_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is meant")
def test_what_a_step_frees_is_not_given_back_to_the_system():
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", GIVEN_BACK]
    child = subprocess.run(command, env=own, text=True, stdout=subprocess.PIPE, check=True)
    before, changed, after = child.stdout.split()
    assert changed == "True"
    assert int(before) >= 16
    assert int(after) <= 1


@pytest.mark.parametrize("name", [*VARIABLES, "GLIBC_TUNABLES"])
def test_whoever_sets_the_same_for_glibc_is_let_alone(name, monkeypatch):
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=1")
    assert not reuse_memory()


@pytest.mark.parametrize(
    ("device", "is_called", "changes"),
    [("cpu", False, True), ("cuda", False, False), ("mps", False, False), ("cpu", True, False)],
)
def test_it_is_for_a_process_that_trains_on_a_cpu(device, is_called, changes, monkeypatch):
    called = []
    monkeypatch.setattr("lightning_trainer.run.memory.reuse_memory", lambda: called.append(1))

    class Trainer:
        class strategy:  # noqa: N801 - as Lightning names it
            root_device = torch.device(device)

    ReuseMemory(RunState(session=None, is_called=is_called)).setup(Trainer())
    assert bool(called) == changes


def test_a_run_of_the_command_line_does_so(fit, monkeypatch):
    called = []
    monkeypatch.setattr("lightning_trainer.run.memory.reuse_memory", lambda: called.append(1))
    fit("--trainer.max_steps=1")
    assert called == [1]
