"""One process at a time writes into a session folder."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import run_process
from living import contents, living_run

from lightning_trainer.session.lock import SessionLock


def go_on(process: subprocess.Popen, tmp_path: Path) -> str:
    """Lets the run end; what it shows from here on."""
    (tmp_path / "go_on").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_a_second_fit_is_refused_and_touches_nothing_of_the_first_which_ends_well(run, tmp_path):
    with living_run(tmp_path) as (process, session):
        before = contents(session)
        code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "99")
        assert (code, out) == (2, "")
        message, hint = err.splitlines()
        start, end = message.split(", since ")
        assert start == (
            f"error: {session} is in use by process {process.pid} on {socket.gethostname()} (fit"
        )
        assert end.split("): ")[1] == (
            "wait until that ends, stop it, or start a new session with `--config`"
        )
        assert hint.endswith("--help)")
        assert contents(session) == before
        assert "Finished at iteration 23\n" in go_on(process, tmp_path)
    code, _, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "24")
    assert code == 0, err


@pytest.mark.long
def test_results_beside_a_living_run_are_shown_and_leave_no_trace(run, tmp_path):
    with living_run(tmp_path) as (process, session):
        before = contents(session)
        result = run_process("test", "--ckpt_path", session)
        assert result.returncode == 0, result.stderr
        who = f"process {process.pid} on {socket.gethostname()} (fit, since "
        first, *lines = result.stdout.splitlines()
        assert first.startswith(f"{session} is in use by {who}")
        assert first.endswith("): results are shown but not logged")
        assert any(line.startswith("Test loss: ") for line in lines)
        code, out, err = run("validate", "--ckpt_path", session)
        assert code == 0, err
        assert "results are shown but not logged\n" in out
        assert "Val loss: " in out
        assert contents(session) == before
        code, _, err = run("predict", "--ckpt_path", session)
        assert code == 0, err
        new = contents(session).keys() - before.keys()
        assert new == {"predictions.pt", "predictions.csv"}
        torch.load(session / "predictions.pt")
        go_on(process, tmp_path)
    code, out, _ = run("test", "--ckpt_path", session)
    assert (code, "in use" in out) == (0, False)
    assert "test/loss" in (session / "metrics.csv").read_text()


def test_a_run_that_was_killed_goes_on_at_once_while_its_workers_still_live(run, tmp_path):
    with living_run(tmp_path, "--data.n_workers", "2") as (process, session):
        process.kill()
        process.wait()
        (tmp_path / "go_on").touch()
        code, out, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        assert "Going on with " in out


def test_a_run_that_has_ended_between_the_reading_and_the_lock_is_not_overwritten(
    run, config, sessions, monkeypatch
):
    assert run("fit", "--config", config)[0] == 0
    [session] = sessions()
    before = contents(session)
    later = torch.load(session / "checkpoints/last.ckpt")
    later["global_step"] = 40
    original = SessionLock.acquire

    def acquire(self, command):
        torch.save(later, session / "checkpoints/last.ckpt")
        return original(self, command)

    monkeypatch.setattr(SessionLock, "acquire", acquire)
    code, _, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "30")
    assert code == 2
    assert err.startswith(f"error: {session} has gone on meanwhile: try again\n")
    after = contents(session)
    assert {name for name in before if before[name] != after[name]} <= {
        *("checkpoints/last.ckpt", "checkpoints/best.ckpt", ".lock")
    }


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM]
)
def test_a_file_system_without_locks_is_told_of_and_used(
    run, config, sessions, monkeypatch, number
):
    def lockf(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    code, _, err = run("fit", "--config", config, "--trainer.max_steps", "3")
    [session] = sessions()
    assert code == 0
    assert err == (
        f"{session}/.lock can't be locked ({os.strerror(number)}): see to it that no second run "
        "goes on with this session meanwhile\n"
    )


def test_the_lock_is_given_back_and_leaves_no_open_file(run, config, sessions):
    before = os.listdir("/dev/fd")
    assert run("fit", "--config", config, "--trainer.max_steps", "3")[0] == 0
    assert len(os.listdir("/dev/fd")) == len(before)
    [session] = sessions()
    with (session / ".lock").open("r+") as file:
        # Where this process held it, another one would be refused.
        result = subprocess.run(
            [sys.executable, "-c", "import fcntl; fcntl.lockf(0, fcntl.LOCK_EX | fcntl.LOCK_NB)"],
            stdin=file,
        )
    assert result.returncode == 0
