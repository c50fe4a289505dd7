"""`look` starts TensorBoard with the sessions called by tag and time."""

import json
import os
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from folders import make_session

from lightning_trainer.commands import look
from lightning_trainer.commands.look import tensorboard_names
from lightning_trainer.session.record import Record


def records(*paths) -> list[Record]:
    return [Record.read(path) for path in paths]


def test_sessions_are_called_by_tag_and_time(tmp_path, capsys):
    a, b = (make_session(tmp_path, "a,b", second=n) for n in range(2))
    c = make_session(tmp_path / "x:y", "c")
    a, b = (path.rename(tmp_path / f"plain_{n}") for n, path in enumerate((a, b)))
    assert tensorboard_names(records(a, b, c)) == {
        "a.b 02-29 12.00": a,
        "a.b 02-29 12.00 (2)": b,
    }
    assert capsys.readouterr().err == f"{c} is left out: rename it without , and :\n"


def test_tensorboard_takes_the_place_of_the_process(run, tmp_path, monkeypatch):
    session = make_session(tmp_path, "wide")
    make_session(tmp_path, "other", second=1)
    calls = []
    monkeypatch.setattr(os, "execv", lambda *args: calls.append(args) or sys.exit(0))
    code, out, _ = run("look", tmp_path, "--tag", "wide", "--port", "7000")
    assert (code, out.splitlines()[0]) == (
        0,
        "Training and validation in one chart: http://localhost:7000/#custom_scalars",
    )
    spec = f"wide 02-29 12.00:{session}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir_spec", spec, "--port", "7000"]
    assert calls == [(sys.executable, command)]
    opened = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: opened.append(words[3:]))
    run("look", tmp_path, "--open", "--port", "7000")
    assert opened == [["http://localhost:7000/#custom_scalars", "7000"]]
    code, _, err = run("look", tmp_path, "--tag", "nothing")
    assert (code, "there are no such sessions" in err) == (2, True)


def test_more_sessions_than_a_command_line_holds_are_one_message(run, tmp_path, monkeypatch):
    make_session(tmp_path)
    many = {f"run {n}": tmp_path / ("x" * 100) for n in range(1200)}
    monkeypatch.setattr(look, "tensorboard_names", lambda _: many)
    code, out, err = run("look", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: 1200 sessions are too many for one command: choose some by `--tag"
    )


@pytest.mark.slow
def test_tensorboard_lists_them_so(whole):
    spec = ",".join(f"{name}:{path}" for name, path in tensorboard_names(records(whole)).items())
    command = [sys.executable, "-m", "tensorboard.main", "--logdir_spec", spec, "--port", "16123"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(120):
                try:
                    with urlopen("http://localhost:16123/data/runs") as answer:
                        names = json.load(answer)
                    if names:
                        break
                except URLError:
                    pass
                time.sleep(0.5)
        finally:
            process.kill()
    [name] = names
    assert name.startswith(next(iter(tensorboard_names(records(whole)))))
    assert name.startswith("tiny ")
