"""Two processes on gloo: exact restarts, signals, crashes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TinyModule, run_process, start_process
from test_exact_restart import result, same
from torch import nn
from torch.distributed.fsdp import fully_shard

# 28 samples: in batch norm, the smallest batch of either process has more than one.
FLAGS = ("--trainer.devices=2", "--data.n_samples=28")


def start_pair(*args: object) -> list[subprocess.Popen[str]]:
    """tests/pair.py as two processes that were started from outside, as torchrun or srun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    return [
        subprocess.Popen(
            [sys.executable, "tests/pair.py", *map(str, args)],
            cwd=ROOT,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
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


SHARDED = """
class_path: lightning.pytorch.strategies.ModelParallelStrategy
init_args: {data_parallel_size: 2, tensor_parallel_size: 1}
"""


@pytest.mark.parametrize(
    ("hook", "kills", "flags"),
    [
        ("on_train_batch_end", (1, 23, 1), ["--save_minutes=0", "--model.schedule=cosine"]),
        ("on_validation_batch_end", (5, 23, 5), ["--model.schedule=plateau"]),
        (
            "on_train_batch_end",
            (3, 23, 9),
            [
                "--save_minutes=0",
                "--model=test_processes.ShardedModule",
                "--trainer.strategy",
                SHARDED,
            ],
        ),
    ],
    ids=["after each iteration", "within validations", "sharded"],
)
def test_two_processes_killed_anywhere_go_on_bitwise(tmp_path, config, hook, kills, flags):
    pair = start_pair(config, tmp_path / "experiments", hook, *kills, *FLAGS, *flags)
    first, second = (process.communicate(timeout=240)[0] for process in pair)
    assert [process.returncode for process in pair] == [0, 0], first + second
    told = re.findall(r"^killed at (\d+): (\w+)$", first, flags=re.MULTILINE)
    assert told == [(str(k), "equal") for k in range(*kills)]


# A run of two processes that lasts until it is stopped.
ENDLESS = (*FLAGS, "--trainer.max_steps=100000", "--trainer.val_check_interval=40")


def start_two(config: Path, *flags: str) -> tuple[subprocess.Popen[str], int]:
    """A run in a process group of its own once it trains, and its second process."""
    process = start_process("fit", "--config", config, *ENDLESS, *flags, start_new_session=True)
    lines = iter(process.stdout.readline, "")
    assert any("Iteration     80/" in line for line in lines), process.stderr.read()
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    commands = {
        int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children.stdout.split()
    }
    return process, next(pid for pid, command in commands.items() if "cli.py" in command)


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(") ", 1)[1][0] != "Z"


@pytest.mark.parametrize(
    ("number", "target"),
    [
        (signal.SIGTERM, "group"),
        (signal.SIGINT, "first"),
        pytest.param(signal.SIGTERM, "second", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "group", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "group", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, "group", marks=pytest.mark.slow),
    ],
)
def test_both_processes_stop_at_the_same_iteration_whoever_gets_the_signal(
    config, sessions, number, target
):
    process, second = start_two(config)
    if target == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if target == "first" else second, number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number, err
    assert not is_alive(second)
    assert "Traceback" not in out + err
    stopped = re.search(rf"Stopped by {number.name} at iteration (\d+)\n", out)
    last = sessions()[0] / "checkpoints/last.ckpt"
    assert torch.load(last)["global_step"] == int(stopped[1])


def test_two_processes_stopped_by_a_signal_go_on_bitwise(config, sessions):
    process, _ = start_two(config)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=20)
    session = sessions()[0]
    n = torch.load(session / "checkpoints/last.ckpt")["global_step"] + 30
    for start in (["--ckpt_path", session], ["--config", config, *ENDLESS]):
        ended = run_process("fit", *start, f"--trainer.max_steps={n}")
        assert ended.returncode == 0, ended.stderr
    assert same(result(session), result(sessions()[1]))


CRASH = """
from conftest import TinyModule

class CrashingModule(TinyModule):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == {rank} and self.global_step == 90:
            {what}
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_traceback_of_the_process_that_fails_is_the_last_thing_shown(
    tmp_path, monkeypatch, config, sessions, rank
):
    (tmp_path / "crash.py").write_text(CRASH.format(rank=rank, what="raise KeyError('boom')"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    process, second = start_two(config, "--model=crash.CrashingModule")
    started_s = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - started_s < 15
    assert process.returncode != 0
    assert not is_alive(second)
    assert err.rstrip().endswith("KeyError: 'boom'")
    assert f"Process {rank} of 2 on {socket.gethostname()} failed:\n" in err
    assert "KeyError: 'boom'" in (sessions()[0] / "log.txt").read_text()


def test_a_process_that_is_killed_ends_the_others_in_seconds(config, sessions):
    process, second = start_two(config)
    os.kill(second, signal.SIGKILL)
    started_s = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - started_s < 15
    assert process.returncode != 0
    assert "contact with another process was lost" in err


def test_several_processes_refuse_to_validate_by_the_clock(config):
    ended = run_process(
        "fit", "--config", config, *FLAGS, "--trainer.val_check_interval=00:00:00:01"
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "error: `trainer.val_check_interval` is a time" in ended.stderr
