"""Memory that is freed on a CPU serves the next iteration, and is not asked of the system again."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from lightning_trainer.run.memory import ReuseMemory, reuse_memory
from lightning_trainer.run.state import RunState

VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
GIVEN_BACK = """
import torch
from lightning_trainer.run.memory import reuse_memory

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

def step():
    blocks = [torch.ones(2**20) for _ in range(6)]  # 24 MB
    return resident_mb()

def given_back_mb():
    return max(step() - resident_mb() for _ in range(5))

print(given_back_mb(), reuse_memory(), given_back_mb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is meant")
def test_what_a_step_frees_is_not_given_back_to_the_system():
    own = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", GIVEN_BACK]
    child = subprocess.run(command, env=own, text=True, stdout=subprocess.PIPE)
    before, changed, after = child.stdout.split()
    assert changed == "True"
    assert int(before) >= 16
    assert int(after) <= 1


@pytest.mark.parametrize("name", VARIABLES)
def test_whoever_sets_glibcs_own_variables_is_let_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert not reuse_memory()


@pytest.mark.parametrize(("device", "changes"), [("cpu", True), ("cuda", False), ("mps", False)])
def test_it_is_for_training_on_a_cpu(device, changes, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr("lightning_trainer.run.memory.reuse_memory", lambda: called.append(1))

    class Trainer:
        class strategy:  # noqa: N801 - as Lightning names it
            root_device = torch.device(device)

    ReuseMemory(RunState(session=None)).setup(Trainer())  # type: ignore[arg-type]
    assert bool(called) == changes
