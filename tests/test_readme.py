"""What README.md and the pages in docs/ promise of commands and sessions is what happens."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from conftest import ROOT, run_process
from pages import PAGES, block_after, commands

FILES = {
    "config.yaml",
    "log.txt",
    "environment.yaml",
    "packages.txt",
    "run.json",
    "metrics.csv",
    "curves.png",
    "confusion_matrix.png",
    "mistakes.png",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
}
TAGS = ("digits", "lr1e-3", "wide")  # what docs/looking.md compares
OWN_TESTS = (
    "morning.md",
    "python.md",
    "walks.md",
)  # pages whose commands have a place of their own
PAGES_HERE = [str(page.relative_to(ROOT)) for page in PAGES if page.name not in OWN_TESTS]


def on_digits(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command with a config that exists in place of one of your own."""
    return tuple(
        re.sub(r"configs/(NAME|mine|digits_mlflow)\.", "configs/digits.", w) for w in words
    )


ALONE = ("sessions", "look", "prune")  # those that need no further word; others are only named
COMMANDS = [
    *dict.fromkeys(on_digits(w) for w in commands(*PAGES_HERE) if len(w) > 1 or w[0] in ALONE)
]
ON_SESSION = [words for words in COMMANDS if "--ckpt_path" in words or words[0] == "export"]
ON_FOLDER = ("sessions", "compare", "new", "look", "prune", "report")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of the main command, run as the README has it in a process of its own."""
    output_path = tmp_path_factory.mktemp("readme")
    command = block_after("README.md", "main command").strip().rpartition("&& ")[2]
    arguments = [*shlex.split(command)[1:], "--output_path", str(output_path)]
    process = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    (folder,) = output_path.iterdir()
    return folder, process.stdout


@pytest.fixture(scope="module")
def session(first_run) -> Path:
    """The folder that the main command leaves."""
    return first_run[0]


def test_the_main_command_ends_above_0_95_with_a_complete_session(session):
    log = (session / "log.txt").read_text()
    assert float(re.search(r"Best score: +(\S+)", log)[1]) > 0.95
    files = {str(path.relative_to(session)) for path in session.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events - {"uncommitted.patch", ".lock"} == FILES


def test_the_sample_is_the_project_that_the_main_command_runs():
    sample = block_after("README.md", "sample project")
    assert sample == (ROOT / "projects/digits/__init__.py").read_text()


def test_the_test_command_installs_the_extra_and_runs_pytest():
    last = block_after("README.md", "test command").splitlines()[-1]
    assert last == 'pip install -e ".[test]" && pytest -n auto --dist worksteal'


def form(line: str) -> str:
    """A line of a log without its numbers and names."""
    line = re.sub(r"\S*session_\w+", "SESSION", line)
    line = re.sub(r"(cli.py look) .*", r"\1 FOLDER", line)
    return re.sub(r"\s+", " ", re.sub(r"-inf|\d[\d.]*", "N", line))


def test_each_line_of_the_log_excerpt_has_the_form_of_a_real_one(session):
    real = {form(line) for line in (session / "log.txt").read_text().splitlines()}
    excerpt = [form(line) for line in block_after("docs/start.md", "log excerpt").splitlines()]
    assert [line for line in excerpt if line not in real] == []


def test_each_line_of_the_picture_of_a_terminal_has_the_form_of_a_real_one(first_run):
    picture = unescape((ROOT / "docs/terminal.svg").read_text())
    lines = re.findall(r"<text .*?>(.*)</text>", picture)
    typed, *shown = [line for line in lines if line != "..."]
    assert typed == "$ " + block_after("README.md", "main command").strip().rpartition("&& ")[2]
    real = {form(line) for line in first_run[1].splitlines()}
    assert [line for line in map(form, shown) if line not in real] == []


@pytest.mark.parametrize("words", ON_SESSION, ids=" ".join)
def test_every_command_on_a_session_works_on_the_main_commands_session(run, session, words):
    arguments = [str(session) if "session_" in word else word for word in words]
    arguments = [str(session) if word == "FOLDER" else word for word in arguments]
    if arguments[0] == "fit":  # as it stands there is nothing left to do, or a lot
        done = json.loads((session / "run.json").read_text())["iteration"]
        arguments += ["--trainer.max_steps", str(done + 1)]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert str(session) in out


@pytest.fixture
def place(session, tmp_path, monkeypatch) -> Path:
    """The current folder, with cli.py and sessions of the tags that the pages compare."""
    shutil.copy(ROOT / "cli.py", tmp_path)
    for tag in TAGS:
        path = tmp_path / "experiments" / session.name.replace("digits", tag)
        shutil.copytree(session, path)
        config = path / "config.yaml"
        config.write_text(config.read_text().replace("tag: digits", f"tag: {tag}"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] in ON_FOLDER], ids=" ".join)
def test_every_command_that_looks_at_sessions_or_starts_a_project_works(
    run, session, place, words, monkeypatch
):
    arguments = [word.replace("experiments/session_...", str(session)) for word in words]
    there = {"fold": "lr", "interrupted": "finished", "far": "experiments"}
    arguments = [there.get(word, word.replace("/search", "")) for word in arguments]
    arguments = [str(session) if word.startswith("far/") else word for word in arguments]
    monkeypatch.setattr(os, "execv", lambda *args: sys.exit(0))  # TensorBoard would stay
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    shown = {"sessions": "lr1e-3", "compare": "Curves: "}
    shown |= {"new": ".yaml", "look": "/#custom_scalars", "prune": "last.ckpt", "report": ".html"}
    over = "--over" in arguments  # one row for all three, of one seed
    assert ("1 of 3" if over else shown[arguments[0]]) in out


def test_the_excerpts_of_sessions_and_compare_have_the_form_of_real_ones(run, place):
    differing = ["width", "learning_rate"]
    title, *_ = block_after("docs/looking.md", "sessions excerpt").splitlines()
    real_title, *_ = run("sessions")[1].splitlines()
    assert [word for word in title.split() if word not in differing] == real_title.split()
    rows = block_after("docs/looking.md", "compare excerpt").splitlines()
    real_rows = run("compare", *TAGS)[1].splitlines()
    assert (rows[0].split(), rows[-1]) == (real_rows[0].split(), real_rows[-1])
    names = [row.split()[0] for row in rows]
    assert [n for n in names if n not in differing] == [row.split()[0] for row in real_rows]


VERIFY = ("verify", "--config", "configs/digits.yaml")


@pytest.mark.long
def test_some_iterations_of_the_main_commands_project_are_verified(run, forking_verify):
    assert VERIFY in COMMANDS
    code, out, err = run(*VERIFY, "--trainer.max_steps=24", "--trainer.val_check_interval=8")
    assert code == 0, out + err
    assert "EQUAL: bitwise as if it had never been killed." in out


@pytest.mark.slow
def test_it_is_verified_as_the_readme_has_it():
    process = run_process(*VERIFY, fork=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "EQUAL: bitwise as if it had never been killed." in process.stdout


OTHERS = [words for words in COMMANDS if words not in ON_SESSION and words[0] not in ON_FOLDER]


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_every_other_command_is_accepted(run, session, words, monkeypatch):
    """`fit` stops before it makes a session."""
    arguments = [word for word in words if word not in ("...", "FILE")]
    config = "experiments/session_.../config.yaml"
    arguments = [str(session / "config.yaml") if word == config else word for word in arguments]
    if words[0] == "fit" and "--help" not in words and not any(w.endswith(".help") for w in words):
        arguments += [] if any("print_config" in word for word in words) else ["--print_config"]
    if words[0] == "schema":  # not beside the repository's own config
        arguments += ["--output", "-"]
    if words[0] == "verify":
        arguments = ["verify", "--help"]
    monkeypatch.setattr("lightning_trainer.commands.seeds._Forwarder.run", lambda *_: 0)
    code, _, err = run(*arguments)
    assert code == 0, err
