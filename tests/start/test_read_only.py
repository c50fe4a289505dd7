"""A session that may only be read shows its results, and is left as it is."""

import errno
import os
from pathlib import Path

import pytest
import torch
from tiny import contents

from lightning_trainer.session import lock


@pytest.fixture(params=["folder", "disk"])
def read_only(request, done, monkeypatch) -> tuple[Path, str]:
    """A session in a folder without permission to write, or on a disk that refuses; and why."""
    if request.param == "folder":
        access = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: Path(path) != done and access(path, mode)
        )
        return done, "the folder is read-only"
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if Path(path) == done / ".lock" and flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(lock.os, "open", refuse)
    return done, "Read-only file system"


@pytest.mark.parametrize("command", ["test", "validate"])
def test_results_are_shown_and_nothing_is_logged(run, read_only, command):
    session, why = read_only
    before = contents(session)
    code, out, err = run(command, "--ckpt_path", session)
    assert code == 0, err
    told = f"{session} can't be written to ({why}): results are shown but not logged\n"
    assert out.count(told) == 1
    assert " score (accuracy" in out
    assert contents(session) == before


def test_predictions_go_to_the_current_folder(run, read_only, monkeypatch, tmp_path):
    session, _ = read_only
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = contents(session)
    monkeypatch.setattr("lightning_trainer.report.outputs.write_whole", writes_only_to(elsewhere))
    code, out, err = run("predict", "--ckpt_path", session)
    assert code == 0, err
    assert out.splitlines()[-2:] == [
        "Predictions saved to: done_predictions.pt",
        "Table saved to: done_predictions.csv",
    ]
    assert len(torch.load(elsewhere / "done_predictions.pt")) == 3
    assert contents(session) == before


def writes_only_to(folder: Path):
    def write(value, path) -> None:
        if Path(path).absolute().parent != folder:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        torch.save(value, path)

    return write


def test_going_on_says_what_to_do(run, read_only, sessions, tmp_path):
    session, why = read_only
    before = contents(session)
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps", "25")
    assert (code, out) == (2, "")
    checkpoint = session / "checkpoints/last.ckpt"
    command = f"--config {session}/config.yaml --ckpt_path {checkpoint}"
    assert err.splitlines()[0] == (
        f"error: {session} can't be written to ({why}): make it writable, or start a new session "
        f"from its checkpoint with `fit {command} --output_path FOLDER`"
    )
    assert contents(session) == before
    told = command.split()
    more = ("--output_path", tmp_path / "experiments", "--trainer.max_steps", "25")
    code, out, err = run("fit", *told, *more)
    assert code == 0, err
    assert torch.load(sessions()[0] / "checkpoints/last.ckpt")["global_step"] == 25


def test_sessions_and_compare_show_it(run, read_only, monkeypatch, tmp_path):
    session, _ = read_only
    monkeypatch.chdir(tmp_path)
    before = contents(session)
    for command in (("sessions", session.parent), ("compare", session)):
        assert run(*command)[0] == 0
    assert contents(session) == before
