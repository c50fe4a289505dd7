"""Streams that are closed, full or gone end no run, and no command with a traceback."""

import contextlib
import itertools
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, start_process
from folders import make_session
from forks import ForkedProcess

from lightning_trainer.session.terminal import TerminalLog

WAYS = ["closed", "full", "gone"]
COMBINATIONS = [
    closed for n in (1, 2, 3) for closed in itertools.combinations(("<&-", ">&-", "2>&-"), n)
]


def shell(command: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a line of the shell in which `python cli.py` is $cli, and `args` are $1, $2, ..."""
    env = {**os.environ, "cli": f"{sys.executable} cli.py"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, "bash", *map(str, args)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """So much in a column that the table fills a pipe."""
    for second in range(2):
        make_session(tmp_path, second=second, run={}, settings={"note": f"{second}" * 100_000})
    return tmp_path


@pytest.mark.parametrize("closed", COMBINATIONS, ids=" ".join)
def test_commands_work_with_closed_streams(tmp_path, closed):
    session = make_session(tmp_path, run={}, rows=[{"step": 1, "train/loss": 1.0}])
    ended = shell(f"$cli sessions $1 {' '.join(closed)}", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (">&-" in closed) == (ended.stdout == "")
    ended = shell(f"$cli foo {' '.join(closed)}", session)
    assert ended.returncode == 2
    assert ("2>&-" in closed) == (ended.stderr == "")


def test_a_command_whose_reader_has_gone_ends_silently_as_others_do(experiments):
    ended = shell("$cli sessions $1 | true", experiments)
    assert (ended.returncode, ended.stderr) == (141, "")
    ended = shell("$cli sessions $1 --format csv | head -1", experiments)
    assert ended.returncode in (0, 141)  # by how much of it was written before
    assert (ended.stdout[:12], ended.stderr) == ("session,tag,", "")


@pytest.mark.parametrize("command", ["sessions $1 >", "--help >", "foo 2>"])
def test_a_command_that_can_not_write_its_output_says_why(experiments, command):
    ended = shell(f"$cli {command}/dev/full", experiments)
    message = "error: writing failed: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, "" if "2>" in command else message)


def test_a_command_whose_terminal_has_gone_leaves_no_traceback(experiments):
    screen, tty = pty.openpty()
    os.close(screen)
    for stderr in (tty, subprocess.PIPE):
        process = start_process("sessions", experiments, fork=False, stdout=tty, stderr=stderr)
        assert "Traceback" not in (process.communicate(timeout=60)[1] or "")
        assert process.returncode == 1
    os.close(tty)


# As Python starts where they are closed.
CLOSED = """
import os, sys
for fd, name in enumerate(("stdin", "stdout", "stderr")):
    if str(fd) in sys.argv[1]:
        os.close(fd)
        setattr(sys, name, None)
del sys.argv[1]
from lightning_trainer.main import main
main()
"""


def start(tmp_path: Path, closed: str, *args: object, **streams: int) -> subprocess.Popen:
    """Starts the program in a forked process, some of whose streams are closed."""
    (tmp_path / "closed.py").write_text(CLOSED)
    command = [sys.executable, str(tmp_path / "closed.py"), closed, *map(str, args)]
    return ForkedProcess(command, cwd=ROOT, stdin=subprocess.DEVNULL, **streams)


def hindered(stack: contextlib.ExitStack, way: str) -> tuple[str, dict[str, int]]:
    """The streams that are closed, and what the others are."""
    if way == "closed":
        return "012", {}
    if way == "full":
        full = os.open("/dev/full", os.O_WRONLY)
        stack.callback(os.close, full)
        return "", {"stdout": full, "stderr": full}
    (reader, writer), (screen, tty) = os.pipe(), pty.openpty()
    for ours in (reader, screen):
        os.close(ours)
    for its in (writer, tty):
        stack.callback(os.close, its)
    return "", {"stdout": writer, "stderr": tty}


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_saved_in_full_whatever_its_streams_are(tmp_path, config, sessions, way):
    with contextlib.ExitStack() as stack:
        closed, streams = hindered(stack, way)
        process = start(tmp_path, closed, "fit", "--config", config, **streams)
        assert process.wait(60) == 0
    log = (sessions()[0] / "log.txt").read_text()
    assert "Traceback" not in log
    assert re.search(r"\nFinished at iteration 23\n(.*\n)*To look: ", log)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("no helper")])
def test_a_run_without_a_log_says_so_and_goes_on(run, config, monkeypatch, error):
    def fail(self) -> None:
        raise error

    monkeypatch.setattr(TerminalLog, "start", fail)
    code, out, err = run("fit", "--config", config, "--trainer.max_steps=3")
    assert code == 0, err
    assert err.endswith(f"/log.txt is not written, the run goes on without it: {error}\n")
    assert "Finished at iteration 3\n" in out


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["test", "predict", "fit --trainer.max_steps=13"])
def test_what_follows_a_run_is_done_in_full_too(tmp_path, half, way, command):
    with contextlib.ExitStack() as stack:
        closed, streams = hindered(stack, way)
        process = start(tmp_path, closed, *command.split(), "--ckpt_path", half, **streams)
        assert process.wait(60) == 0
    assert "Traceback" not in (half / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12"])
def test_a_run_ends_well_with_any_streams_closed(tmp_path, config, sessions, closed):
    assert start(tmp_path, closed, "fit", "--config", config).wait(60) == 0
    assert "Finished at" in (sessions()[0] / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("<&- >&- 2>&-", 0), ("2>&1 | head -1", 141)])
def test_a_proof_without_streams_has_its_exit_code_and_leaves_nothing(tmp_path, config, how, code):
    ended = shell(f"TMPDIR=$1 $cli verify --config $2 {how}", tmp_path, config)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert not [*tmp_path.glob("verify_*")]
