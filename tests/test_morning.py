"""docs/morning.md: its commands work, and its tables have the form of real ones."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from folders import make_checkpoint, make_session
from test_groups import make_seeds

PAGE = (ROOT / "docs/morning.md").read_text()
COMMANDS = re.findall(r"^python cli\.py (.*)$", PAGE, re.MULTILINE)
sys.path.append(str(ROOT / "scripts"))


def block_after(mark: str) -> list[str]:
    return re.search(rf"<!-- {mark} -->\s*```\w*\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()


@pytest.fixture
def night(tmp_path, monkeypatch) -> Path:
    """Three seeds of two settings, one that failed and one that was stopped."""
    folder = tmp_path / "experiments"
    make_seeds(folder, "digits", [0.98, 0.97, 0.99])
    make_seeds(folder, "narrow", [0.92, 0.9, 0.94], width=4)
    for path in folder.glob("*/config.yaml"):
        path.write_text(re.sub(r"tag: (\w+)_s\d", r"tag: \1", path.read_text()))
        table = "index,label,predicted\n0,1,1\n1,2,1\n"
        path.with_name("predictions.csv").write_text(table)
    best = next(folder.iterdir()) / "checkpoints/best.ckpt"
    best.parent.mkdir()
    for name, iteration in (("best.ckpt", 30), ("last.ckpt", 40)):
        torch.save(make_checkpoint(iteration), best.with_name(name))
    failed = {"state": "failed", "iteration": 3, "score": None, "times": {}}
    make_session(folder, "too_fast", second=30, run=failed)
    make_session(folder, "long", second=31, run={**failed, "state": "interrupted"})
    shutil.copy(ROOT / "cli.py", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("command", [c for c in COMMANDS if "session_..." not in c])
def test_every_command_on_the_sessions_of_the_night_works(run, night, command, monkeypatch):
    words = shlex.split(command)
    if words[0] == "fit":
        monkeypatch.setattr("lightning_trainer.commands.seeds._Forwarder.run", lambda *_: 0)
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out


def test_the_tables_have_the_form_of_real_ones(run, night):
    fixed = ("group", "runs", "score", "mean", "std", "best", "worst", "hours")
    titles = block_after("over excerpt")[0].split()
    real = run("sessions", "--over", "seed_everything")[1]
    assert [name for name in titles if name in fixed] == [*fixed]
    assert [name for name in real.splitlines()[0].split() if name in fixed] == [*fixed]
    first = re.compile(
        r"Best mean \w+ \((max|min)\): \w+ \([\d.]+ \+- [\d.]+, 3 runs\)\. Against it"
    )
    assert first.search("\n".join(block_after("over excerpt"))) and first.search(real)
    pruned = block_after("prune excerpt")
    assert pruned[0].split() == run("prune")[1].splitlines()[0].split()


@pytest.mark.slow
def test_the_pictures_of_the_documents_are_those_of_the_code(tmp_path, monkeypatch):
    import figures

    monkeypatch.undo()  # curves are drawn here
    drawn = figures.draw(tmp_path, "--trainer.max_steps=2", "--trainer.val_check_interval=1")
    assert [path.name for path in drawn] == ["compare.png", *figures.OF_SESSION]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert (ROOT / "docs" / path.name).exists()
