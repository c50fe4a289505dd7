"""What the README promises is what happens."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_process

README = (ROOT / "README.md").read_text()
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


def block_after(mark: str) -> str:
    """The code block that follows an HTML comment."""
    return re.search(rf"<!-- {mark} -->\s*```\w*\n(.*?)```", README, re.DOTALL)[1]


def commands() -> list[str]:
    """Every command line of cli.py in the README, without its comment."""
    lines = re.findall(r"^(?:.*&& )?python cli\.py (.*)$", README, re.MULTILINE)
    return [line.split("   ")[0].split(" #")[0].strip() for line in lines]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the main command leaves, run as the README has it in a process of its own."""
    output_path = tmp_path_factory.mktemp("readme")
    command = block_after("main command").strip().rpartition("&& ")[2]
    arguments = [*shlex.split(command)[1:], "--output_path", str(output_path)]
    process = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    (folder,) = output_path.iterdir()
    return folder


def test_the_main_command_ends_above_0_95_with_a_complete_session(session):
    log = (session / "log.txt").read_text()
    assert float(re.search(r"Best score: +(\S+)", log)[1]) > 0.95
    files = {str(path.relative_to(session)) for path in session.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events - {"uncommitted.patch", ".lock"} == FILES


def test_the_sample_is_the_project_that_the_main_command_runs():
    sample = block_after("sample project")
    assert sample == (ROOT / "projects/digits/__init__.py").read_text()


def test_the_test_command_installs_the_extra_and_runs_pytest():
    last = block_after("test command").splitlines()[-1]
    assert last == 'pip install -e ".[test]" && pytest -n auto --dist worksteal'


def test_each_line_of_the_log_excerpt_has_the_form_of_a_real_one(session):
    def form(line: str) -> str:
        line = re.sub(r"\S*session_\w+", "SESSION", line)
        line = re.sub(r"(cli.py look) .*", r"\1 FOLDER", line)
        return re.sub(r"\s+", " ", re.sub(r"-inf|\d[\d.]*", "N", line))

    real = {form(line) for line in (session / "log.txt").read_text().splitlines()}
    excerpt = [form(line) for line in block_after("log excerpt").splitlines()]
    assert [line for line in excerpt if line not in real] == []


@pytest.mark.parametrize("command", [c for c in commands() if "--ckpt_path" in c])
def test_every_command_on_a_session_works_on_the_main_commands_session(run, session, command):
    arguments = shlex.split(command.replace("experiments/session_...", str(session)))
    if arguments[0] == "fit":  # as it stands there is nothing left to do, or a lot
        arguments += ["--trainer.max_steps", "601"]
    if arguments[0] == "fit" and "601" in str(run("fit", "--ckpt_path", session)):
        arguments[-1] = "602"
    code, out, err = run(*arguments)
    assert code == 0, err
    assert str(session) in out


@pytest.fixture
def place(session, tmp_path, monkeypatch) -> Path:
    """The current folder, with cli.py and sessions of the tags that the README compares."""
    shutil.copy(ROOT / "cli.py", tmp_path)
    for tag in ("digits", "lr1e-3", "wide"):
        path = tmp_path / "experiments" / session.name.replace("digits", tag)
        shutil.copytree(session, path)
        config = path / "config.yaml"
        config.write_text(config.read_text().replace("tag: digits", f"tag: {tag}"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


LIGHT = ("sessions", "compare", "new", "look", "prune")


@pytest.mark.parametrize("command", [c for c in commands() if c.split()[0] in LIGHT])
def test_every_command_that_looks_at_sessions_or_starts_a_project_works(
    run, session, place, command, monkeypatch
):
    arguments = shlex.split(command.replace("experiments/session_...", str(session)))
    monkeypatch.setattr(os, "execv", lambda *args: sys.exit(0))  # TensorBoard would stay
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    shown = {"sessions": "lr1e-3", "compare": "Curves: ", "new": "configs/mine.yaml"}
    shown |= {"look": "/#custom_scalars", "prune": "last.ckpt"}
    over = "--over" in arguments  # one row for all three, of one seed
    assert ("1 of 3" if over else shown[arguments[0]]) in out


def test_the_excerpts_of_sessions_and_compare_have_the_form_of_real_ones(run, place):
    differing = ["width", "learning_rate"]
    title, *_ = block_after("sessions excerpt").splitlines()
    real_title, *_ = run("sessions")[1].splitlines()
    assert [word for word in title.split() if word not in differing] == real_title.split()
    rows = block_after("compare excerpt").splitlines()
    real_rows = run("compare", "digits", "lr1e-3", "wide")[1].splitlines()
    assert (rows[0].split(), rows[-1]) == (real_rows[0].split(), real_rows[-1])
    names = [row.split()[0] for row in rows]
    assert [n for n in names if n not in differing] == [row.split()[0] for row in real_rows]


def is_verify(command: str) -> bool:
    return command.split()[0] == "verify" and "--help" not in command


OTHERS = [c for c in commands() if "--ckpt_path" not in c and c.split()[0] not in LIGHT]


@pytest.mark.parametrize("command", [c for c in OTHERS if is_verify(c)])
def test_some_iterations_of_the_main_commands_project_are_verified(run, command, forking_verify):
    code, out, err = run(
        *shlex.split(command), "--trainer.max_steps=24", "--trainer.val_check_interval=8"
    )
    assert code == 0, out + err
    assert "EQUAL: bitwise as if it had never been killed." in out


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in OTHERS if is_verify(c)])
def test_it_is_verified_as_the_readme_has_it(command):
    process = run_process(*shlex.split(command), fork=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "EQUAL: bitwise as if it had never been killed." in process.stdout


@pytest.mark.parametrize("command", [c for c in OTHERS if not is_verify(c)])
def test_every_other_command_is_accepted(run, command):
    arguments = [word for word in shlex.split(command) if word != "..."]
    if "--help" not in arguments and not any(word.endswith(".help") for word in arguments):
        arguments += ["--print_config"]
    assert run(*arguments)[0] == 0
