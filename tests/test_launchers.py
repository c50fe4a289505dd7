"""The same run whoever starts its processes, and however many they are."""

import contextlib
import csv
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
import yaml
from conftest import ROOT, TinyData, TinyDataset, TinyModule, run_process
from forks import ForkedProcess, make_python
from restarts import result, same
from torch import nn

FLAGS = ["--data.n_samples=28", "--trainer.max_steps=8"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(command: list[str], **variables: object) -> "subprocess.Popen[str]":
    """Forks what runs a script; starts Python for a module, which here is torchrun."""
    # As many threads as Lightning takes for two processes on a machine: the order of sums depends
    # on their number.
    variables |= {"OMP_NUM_THREADS": 1}
    popen = subprocess.Popen if command[0] == "-m" else ForkedProcess
    return popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(*options: str) -> list[str]:
    return ["-m", "torch.distributed.run", *options, "cli.py"]


def start_torchrun(fit: list[str]) -> list["subprocess.Popen[str]"]:
    command = [*torchrun("--standalone", "--nproc_per_node=2"), *fit]
    return [start(command, PYTHON_EXEC=sys.executable)]


def start_two_nodes(fit: list[str]) -> list["subprocess.Popen[str]"]:
    place = f"--rdzv_endpoint=127.0.0.1:{free_port()}"
    options = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=1", place]
    return [start([*torchrun(*options), *fit]) for _ in range(2)]


def start_slurm(fit: list[str]) -> list["subprocess.Popen[str]"]:
    """What srun sets for a job of two nodes with a task each."""
    variables = {
        "JOB_ID": 4711,
        "JOB_NAME": "train",
        "NTASKS": 2,
        "NTASKS_PER_NODE": 1,
        "NNODES": 2,
    }
    variables |= {"LOCALID": 0, "NODELIST": "127.0.0.1"}
    port = free_port()
    return [
        start(
            ["cli.py", *fit],
            MASTER_PORT=port,
            **{f"SLURM_{name}": value for name, value in variables.items()},
            SLURM_PROCID=rank,
            SLURM_NODEID=rank,
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def by_lightning(tmp_path_factory) -> Path:
    """The session of two processes that Lightning itself has started."""
    folder = tmp_path_factory.mktemp("by_lightning")
    flags = ["--model=conftest.TinyModule", "--data=conftest.TinyData", *FLAGS]
    flags += ["--trainer.accelerator=cpu", "--trainer.val_check_interval=5"]
    flags += ["--trainer.log_every_n_steps=4", f"--output_path={folder}", "--trainer.devices=2"]
    ended = run_process("fit", *flags, fork=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("(10 samples on 2 processes)\n") == 2
    [session] = folder.iterdir()
    return session


@pytest.mark.long
@pytest.mark.parametrize(
    "start_all",
    [start_torchrun, pytest.param(start_two_nodes, marks=pytest.mark.slow), start_slurm],
)
def test_whoever_starts_the_processes_there_is_one_session_and_the_same_result(
    config, sessions, by_lightning, start_all, tmp_path, monkeypatch
):
    make_python(tmp_path / "python")
    monkeypatch.setenv("PYTHON_EXEC", str(tmp_path / "python"))  # for torchrun
    processes = start_all(["fit", "--config", str(config), *FLAGS])
    texts = ["\n".join(process.communicate(timeout=120)) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    [session] = sessions()
    assert same(result(session), result(by_lightning))
    assert yaml.safe_load((session / "environment.yaml").read_text())["n_processes"] == 2
    logs = {path.name for path in session.glob("log*")}
    assert logs == {"log.txt", "log_rank1.txt"}
    assert "Finished at iteration 8" in (session / "log.txt").read_text()


class PlainModule(TinyModule):
    """Nothing in it depends on how a batch is cut: no batch norm, no dropout."""

    def create_model(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class OddData(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.val_dataset = TinyDataset(11)


def numbers(session: Path) -> dict[str, list[float]]:
    with (session / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


@pytest.mark.long
def test_two_processes_train_what_one_does_with_the_same_global_batch(config, sessions):
    flags = [f"--model={__name__}.PlainModule", f"--data={__name__}.OddData"]
    for n, batch_size in ((1, 8), (2, 4)):
        ended = run_process(
            "fit", "--config", config, *flags, f"--trainer.devices={n}",
            f"--data.batch_size={batch_size}",
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    one, two = (numbers(session) for session in sessions())
    assert len(one["train/loss"]) == len(two["train/loss"]) == 5
    for name in ("train/loss", "val/loss"):
        # Up to the order of sums in float32.
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    for name in ("train/accuracy", "val/accuracy"):
        assert two[name] == one[name]


def test_another_number_of_processes_goes_on_with_a_warning(by_lightning, tmp_path):
    moved = tmp_path / "session_moved"
    by_lightning.rename(moved)
    try:
        ended = run_process(
            "fit", "--ckpt_path", moved, "--trainer.devices=1", "--trainer.max_steps=12",
            "--data.batch_size=8",
        )  # fmt: skip
    finally:
        moved.rename(by_lightning)
    assert ended.returncode == 0, ended.stderr
    assert (
        "warning: this restart is not bitwise exact: 1 processes take part instead of 2"
        in ended.stderr
    )
    last = torch.load(by_lightning / "checkpoints/last.ckpt")
    samples = last["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["samples"]
    # 8 a batch, 4 in the last batch of an epoch of 28.
    assert (last["global_step"], samples) == (12, 3 * 28)


@pytest.mark.long
def test_a_process_that_never_starts_is_waited_for_no_longer_than_asked(config):
    waiting = start(
        ["cli.py", "fit", "--config", str(config), *FLAGS, "--timeout_minutes=0.05"],
        MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port(),
        WORLD_SIZE=2, RANK=0, LOCAL_RANK=0, LOCAL_WORLD_SIZE=2, TORCHELASTIC_RUN_ID="x",
    )  # fmt: skip
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert re.search("^error: another process did not start, or does not answer", err, re.MULTILINE)


class HangingModule(TinyModule):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1 and self.global_step == 5:
            Path(os.environ["HANGING"]).write_text(str(os.getpid()))
            time.sleep(1000)
        return super().training_step(batch, batch_idx)


def ends(pid: int) -> bool:
    """Within the time that it takes whoever adopts a process to notice its end."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def hanging(config, tmp_path):
    """A run of two processes of which the second hangs, and where that leaves its number."""
    file = tmp_path / "pid"
    flags = [*FLAGS, "--trainer.devices=2", f"--model={__name__}.HangingModule"]

    def start_(*more: str) -> tuple["subprocess.Popen[str]", Path]:
        return start(["cli.py", "fit", "--config", str(config), *flags, *more], HANGING=file), file

    yield start_
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.long
def test_a_process_that_hangs_ends_the_run_after_the_time_asked_for(hanging):
    process, _ = hanging("--timeout_minutes=0.05")
    _, err = process.communicate(timeout=60)  # waits for all that could still write
    assert process.returncode != 0
    assert re.search("^error: another process did not start, or does not answer", err, re.MULTILINE)


@pytest.mark.long
def test_a_process_that_hangs_ends_with_the_first_if_that_is_killed(hanging):
    process, pid = hanging()
    while not pid.exists():
        time.sleep(0.1)
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)
    assert ends(int(pid.read_text()))


@pytest.mark.long
def test_the_sbatch_file_runs_what_it_is_given(tmp_path):
    make_python(tmp_path / "python")
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    flags = ["--trainer.max_steps=5", f"--output_path={tmp_path}", "--tag=sbatch"]
    ended = subprocess.run(
        ["bash", "scripts/train.sbatch", "--config", "configs/digits.yaml", *flags],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Finished at iteration 5" in ended.stdout
    options = re.findall(
        r"^#SBATCH (\S+)$", (ROOT / "scripts/train.sbatch").read_text(), re.MULTILINE
    )
    assert {"--requeue", "--signal=USR1@180"} <= {*options}
