"""A printed command is one that works where it is pasted."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lightning_trainer.session.program import (
    called_by_code,
    code_folder,
    printed_command,
    program,
    recorded_command,
)

MODULE = str(ROOT / "lightning_trainer/__main__.py")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """An empty current folder, and a function that sets what Python was started with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return lambda script: monkeypatch.setattr(sys, "argv", [script, "fit"])


@pytest.mark.parametrize(
    ("script", "printed", "recorded"),
    [
        ("cli.py", "python cli.py fit", "python cli.py fit"),
        ("my code/cli.py", "python 'my code/cli.py' fit", "python 'my code/cli.py' fit"),
        ("{here}/cli.py", "python cli.py fit", "python {here}/cli.py fit"),
        ("../cli.py", "python ../cli.py fit", "python ../cli.py fit"),
        (MODULE, "python -m lightning_trainer fit", "python -m lightning_trainer fit"),
        (MODULE.replace("__main__", "main"), *["python -m lightning_trainer fit"] * 2),
        ("{here}/bin/lightning-trainer", "bin/lightning-trainer fit", "lightning-trainer fit"),
        ("/no/lightning-trainer", "/no/lightning-trainer fit", "lightning-trainer fit"),
        ("-c", *["python -m lightning_trainer fit"] * 2),
        ("", *["python -m lightning_trainer fit"] * 2),
        ("/x/ipykernel_launcher.py", *["python -m lightning_trainer fit"] * 2),
        ("/x/pytest/__main__.py", *["python -m lightning_trainer fit"] * 2),
        ("/usr/bin/pytest", *["python -m lightning_trainer fit"] * 2),
    ],
)
def test_the_way_that_was_used_is_named(started, tmp_path, script, printed, recorded):
    started(script.format(here=tmp_path))
    assert printed_command("fit") == printed
    assert recorded_command("fit") == recorded.format(here=tmp_path)


def test_a_console_command_on_the_path_is_called_by_its_name(started, tmp_path, monkeypatch):
    (tmp_path / "lightning-trainer").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    started(str(tmp_path / "lightning-trainer"))
    assert printed_command("test", "a b") == "lightning-trainer test 'a b'"
    assert program() == [str(tmp_path / "lightning-trainer")]
    assert code_folder() == Path()


def test_code_that_calls_a_function_is_no_command_line(started, tmp_path):
    started("train.py")
    assert program() == ["train.py"]
    with called_by_code():
        assert program() == ["-m", "lightning_trainer"]
        Path("cli.py").write_text("import click")
        assert program() == ["-m", "lightning_trainer"]
        Path("cli.py").write_text("from lightning_trainer.main import main")
        assert program() == ["cli.py"]


@pytest.mark.parametrize("path", ["", "/usr/bin:/bin"])
def test_a_python_that_the_path_does_not_find_is_called_by_its_path(started, monkeypatch, path):
    monkeypatch.setenv("PATH", path)
    started("cli.py")
    python, *words = shlex.split(printed_command("--version"))
    assert words == ["cli.py", "--version"] and os.path.samefile(python, sys.executable)
    ran = subprocess.run([python, ROOT / "cli.py", "--version"], capture_output=True, text=True)
    assert ran.stdout.startswith("lightning_trainer ")
