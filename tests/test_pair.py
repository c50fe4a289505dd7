"""Several processes on gloo that are killed go on bitwise."""

import os
import re
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, TinyModule
from forks import ForkedProcess
from torch import nn
from torch.distributed.fsdp import fully_shard

# 28 samples: in batch norm, the smallest batch of either process has more than one.
FLAGS = ("--trainer.devices=2", "--data.n_samples=28")
SEVERAL_OPTIMISERS = "--model=test_optimising.Adversaries"
SEVERAL_SETS = "--data=test_several_sets.SeveralData"
LOGS = "--model=test_logged.LoggingModule"  # logs in all ways that Lightning has


def start_pair(*args: object, n_processes: int = 2) -> list[subprocess.Popen[str]]:
    """tests/pair.py as processes that were started from outside, as torchrun or srun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n_processes),
    }
    return [
        ForkedProcess(
            [sys.executable, "tests/pair.py", *map(str, args)],
            cwd=ROOT,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n_processes)
    ]


class ShardedModule(TinyModule):
    """Its weights and those of its optimiser are shared out; no batch norm, which FSDP2 forbids."""

    def create_model(self) -> None:
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)
        )

    def configure_model(self) -> None:
        if self.model is None:
            super().configure_model()
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


class ManyWeights(TinyModule):
    """Enough layers for the order of their gradients to show; no batch norm for batches of one."""

    def create_model(self) -> None:
        layers = [nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.3), nn.Tanh()) for _ in range(4)]
        self.model = nn.Sequential(nn.Linear(4, 32), *layers, nn.Linear(32, 2))


SHARDED = """
class_path: lightning.pytorch.strategies.ModelParallelStrategy
init_args: {data_parallel_size: 2, tensor_parallel_size: 1}
"""


@pytest.mark.parametrize(
    ("hook", "kills", "flags"),
    [
        pytest.param(
            *("on_train_batch_end", (1, 23, 1), ["--save_minutes=0", "--model.schedule=cosine"]),
            marks=pytest.mark.slow,
        ),
        ("on_validation_batch_end", (10, 23, 10), [LOGS, "--model.schedule=plateau"]),
        (
            "on_train_batch_end",
            (12, 23, 11),
            [
                "--save_minutes=0",
                "--model=test_pair.ShardedModule",
                "--trainer.strategy",
                SHARDED,
            ],
        ),
        pytest.param(
            *("on_train_batch_end", (12, 23, 11)),
            ["--save_minutes=0", SEVERAL_OPTIMISERS, SEVERAL_SETS],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("on_validation_batch_end", (10, 23, 10), [SEVERAL_SETS, "--model=test_losses.Parts"]),
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        *("after each iteration", "within validations", "sharded"),
        *("several optimisers", "several sets"),
    ],
)
def test_two_processes_killed_anywhere_go_on_bitwise(tmp_path, config, hook, kills, flags):
    check(start_pair(config, tmp_path / "experiments", hook, *kills, *FLAGS, *flags), kills)


@pytest.mark.long
@pytest.mark.parametrize(
    ("n_processes", "kills"),
    [(3, (13, 23, 10)), pytest.param(4, (1, 23, 1), marks=pytest.mark.slow)],
)
def test_three_or_more_processes_killed_anywhere_go_on_bitwise(
    tmp_path, config, n_processes, kills
):
    flags = ("--data.n_samples=32", "--save_minutes=0", "--model=test_pair.ManyWeights")
    args = ("on_train_batch_end", *kills, f"--trainer.devices={n_processes}", *flags)
    told = check(
        start_pair(config, tmp_path / "experiments", *args, n_processes=n_processes), kills
    )
    assert "arning" not in told


def check(processes: list[subprocess.Popen[str]], kills: tuple[int, int, int]) -> str:
    """Waits for them; returns what they have printed."""
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert {process.returncode for process in processes} == {0}, "".join(printed)
    told = re.findall(r"^killed at (\d+): (\w+)$", printed[0], flags=re.MULTILINE)
    assert told == [(str(k), "equal") for k in range(*kills)]
    return "".join(printed)
