"""Two processes on gloo that Lightning's launcher makes: signals, crashes."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import run_process, start_process
from restarts import result, same
from test_pair import FLAGS

# A run of two processes that lasts until it is stopped.
ENDLESS = (*FLAGS, "--trainer.max_steps=100000", "--trainer.val_check_interval=10")


def start_two(config: Path, *flags: str, fork: bool = True) -> tuple[subprocess.Popen[str], int]:
    """A run in a process group of its own once it trains, and its second process."""
    process = start_process(
        "fit", "--config", config, *ENDLESS, *flags, start_new_session=True, fork=fork
    )
    lines = iter(process.stdout.readline, "")
    assert any("Iteration     20/" in line for line in lines), process.stderr.read()
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return process, next(pid for pid in map(int, children.stdout.split()) if is_of_cli(pid))


def is_of_cli(pid: int) -> bool:
    """By its command line, or by its name if it was forked."""
    return any("cli.py" in Path(f"/proc/{pid}/{file}").read_text() for file in ("cmdline", "comm"))


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(") ", 1)[1][0] != "Z"


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "target", "fork"),
    [
        (signal.SIGTERM, "group", True),
        (signal.SIGINT, "first", True),
        pytest.param(signal.SIGTERM, "group", False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "second", True, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "group", True, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "group", True, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, "group", True, marks=pytest.mark.slow),
    ],
)
def test_both_processes_stop_at_the_same_iteration_whoever_gets_the_signal(
    config, sessions, number, target, fork
):
    process, second = start_two(config, fork=fork)
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


@pytest.mark.long
def test_two_processes_stopped_by_a_signal_go_on_bitwise(config, sessions):
    process, _ = start_two(config)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=20)
    session = sessions()[0]
    n = torch.load(session / "checkpoints/last.ckpt")["global_step"] + 10
    for start in (["--ckpt_path", session], ["--config", config, *ENDLESS]):
        ended = run_process("fit", *start, f"--trainer.max_steps={n}")
        assert ended.returncode == 0, ended.stderr
    assert same(result(session), result(sessions()[1]))


CRASH = """
from conftest import TinyModule

class CrashingModule(TinyModule):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == {rank} and self.global_step == 30:
            {what}
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.long
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


STUCK = """
import time
from conftest import TinyModule

class StuckModule(TinyModule):
    def cpu(self):
        time.sleep(1000)
"""


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_others_in_seconds(
    tmp_path, monkeypatch, config, sessions
):
    # A GPU that waits for the other process never comes to copy the weights to the host.
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    process, second = start_two(config, "--model=stuck.StuckModule")
    os.kill(second, signal.SIGKILL)
    started_s = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started_s < 15
    assert process.returncode != 0
    assert "contact with another process was lost" in err.splitlines()[-1]
    assert "Stopped at iteration" in out
    assert "contact with another process was lost" in (sessions()[0] / "log.txt").read_text()


@pytest.mark.long
def test_several_processes_refuse_to_validate_by_the_clock(config):
    ended = run_process(
        "fit", "--config", config, *FLAGS, "--trainer.val_check_interval=00:00:00:01"
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "error: `trainer.val_check_interval` is a time" in ended.stderr
