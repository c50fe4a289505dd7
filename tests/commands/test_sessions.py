"""`sessions`: a table of all sessions, in a second, without torch, whatever lies there."""

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_process, start_process
from folders import make_checkpoint, make_session, scores
from living import living_run

from lightning_trainer.commands.table import Column, format_markdown, format_table
from lightning_trainer.session.lock import SessionLock

TABLE = """\
session                   state        iterations  score             best  at  learning_rate    hours  examples/s  commit
2024_02_29_12_00_00_base  finished        100/100  accuracy (max)  0.7500  20          0.001  0:30:00       500.0  0123456
2024_02_29_12_00_01_fast  interrupted      20/100  accuracy (max)  0.6000  20            0.1        -       200.0  0123456
2024_02_29_12_00_02_bad   failed            0/100  -                    -   -          0.001        -           -  0123456
"""  # noqa: E501


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """A folder of three sessions."""
    folder = tmp_path / "experiments"
    make_session(folder, "base", checkpoint=make_checkpoint(100), rows=scores(0.5, 0.7))
    make_session(folder, "fast", second=1, rows=scores(0.4, 0.6), settings={"learning_rate": 0.1})
    failed = {"state": "failed", "iteration": 0, "score": None, "times": {}}
    make_session(folder, "bad", second=2, run=failed)
    return folder


def tags(out: str) -> list[str]:
    """Of a csv, from the first row to the last."""
    return [row["tag"] for row in csv.DictReader(io.StringIO(out))]


def test_the_table_has_a_row_for_each_session_and_only_settings_that_differ(run, experiments):
    assert run("sessions", experiments) == (0, TABLE, "")


def test_what_the_class_of_another_session_does_not_have_is_no_difference(run, tmp_path):
    for second, (name, settings) in enumerate(
        [("A", {"width": 1}), ("A", {"width": 1, "decay": 0.1}), ("B", {"depth": 2})]
    ):
        path = make_session(tmp_path, name, second=second, settings=settings) / "config.yaml"
        path.write_text(path.read_text().replace("projects.a.A", f"projects.a.{name}"))
    title, *rows = run("sessions", tmp_path)[1].splitlines()
    assert title.split()[6:-3] == ["model", "decay"]
    assert [row.split()[6:-3] for row in rows] == [["A", "-"], ["A", "0.1"], ["B", "-"]]


def test_experiments_is_where_sessions_are_looked_for(run, experiments, monkeypatch):
    monkeypatch.chdir(experiments.parent)
    assert run("sessions") == (0, TABLE, "")


def test_neither_torch_nor_lightning_nor_numpy_is_imported(experiments):
    code = (
        "import sys; from lightning_trainer.main import main\n"
        f"try: main(['sessions', {str(experiments)!r}])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'numpy', 'jsonargparse'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("best", ["fast", "base", "bad"]),
        ("-best", ["base", "fast", "bad"]),  # the one without a score last, either way
        ("learning_rate", ["base", "bad", "fast"]),
        ("-model.learning_rate", ["fast", "base", "bad"]),
        ("tag", ["bad", "base", "fast"]),
        ("-started", ["bad", "fast", "base"]),
        ("-iterations", ["base", "fast", "bad"]),
    ],
)
def test_rows_are_sorted_by_a_column(run, experiments, column, order):
    code, out, err = run("sessions", experiments, "--sort", column, "--format", "csv")
    assert (code, tags(out), err) == (0, order, "")


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("-best", ["high", "low", "small", "large", "few", "many", "unknown", "none"]),
        ("best", ["low", "high", "large", "small", "many", "few", "unknown", "none"]),
    ],
)
def test_scores_of_other_names_and_directions_are_sorted_by_themselves(
    run, tmp_path, column, order
):
    sessions = {
        "small": ("val/mae", "min", 1.5),
        "high": ("val/accuracy", "max", 0.9),
        "many": ("val/night/loss", "min", 7.0),
        "low": ("val/accuracy", "max", 0.1),
        "few": ("val/night/loss", "min", 3.0),
        "large": ("val/mae", "min", 40.0),
    }
    for second, (tag, (name, mode, best)) in enumerate(sessions.items()):
        score = {"name": name, "mode": mode, "best": best, "iteration": 5}
        make_session(tmp_path, tag, second=second, run={"score": score})
    score = {"name": "val/other", "mode": None, "best": 0.5, "iteration": 5}
    settings = {"score_mode": None}
    make_session(tmp_path, "unknown", second=8, settings=settings, run={"score": score})
    make_session(tmp_path, "none", second=9, run={"score": None})
    assert tags(run("sessions", tmp_path, "--sort", column, "--format", "csv")[1]) == order
    table = run("sessions", tmp_path, "--sort", column)[1]
    assert "  accuracy (max)  " in table and "  night/loss (min)  " in table
    assert "  mae (min)  " in table and "  other  " in table


def test_a_small_score_has_four_digits_in_the_table(run, tmp_path):
    for second, best in enumerate((3.35e-05, 0.0, 0.05)):
        score = {"name": "val/error", "mode": "min", "best": best, "iteration": 5}
        make_session(tmp_path, "a", second=second, run={"score": score})
    out = run("sessions", tmp_path)[1]
    assert all(f"  {shown}  " in out for shown in ("3.350e-05", "0.0000", "0.0500"))


def test_the_tag_filters(run, experiments):
    _, out, _ = run("sessions", experiments, "--tag", "ba", "--format", "csv")
    assert tags(out) == ["base", "bad"]
    assert run("sessions", experiments, "--tag", "none") == (
        0,
        "",
        f"{experiments} has no sessions with 'none' in the tag\n",
    )


def test_a_state_filters(run, experiments):
    assert tags(run("sessions", experiments, "--state", "failed", "--format", "csv")[1]) == ["bad"]
    assert run("sessions", experiments, "--state", "running", "--tag", "a") == (
        0,
        "",
        f"{experiments} has no running sessions with 'a' in the tag\n",
    )


def test_callbacks_are_shown_by_the_names_of_their_classes_where_these_differ(run, tmp_path):
    def session(second: int, *callbacks: str) -> None:
        path = make_session(tmp_path, "a", second=second) / "config.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["trainer"]["callbacks"] = [
            {"class_path": name, "init_args": {"n": n}} for n, name in enumerate(callbacks)
        ]
        path.write_text(yaml.safe_dump(settings))

    session(0, "a.Average", "b.Show")
    session(1, "b.Show")
    title, *rows = run("sessions", tmp_path)[1].splitlines()
    assert title.split()[6] == "callbacks"
    assert ["  Average, Show  " in rows[0], "  Show  " in rows[1]] == [True, True]
    session(2, "c.Show")  # alike by its name
    assert '"class_path": "c.Show"' in run("sessions", tmp_path)[1]


def test_json_and_csv_have_every_column_in_full(run, experiments):
    rows = json.loads(run("sessions", experiments, "--format", "json")[1])
    assert rows[0] == {
        "session": str(experiments / "session_node1_2024_02_29_12_00_00_base"),
        "tag": "base",
        "started": "2024-02-29T12:00:00+00:00",
        "state": "finished",
        "silent_hours": None,
        "iterations": 100,
        "max_steps": 100,
        "score": "val/accuracy",
        "mode": "max",
        "best": 0.75,
        "at": 20,
        "examples_per_s": 500.0,
        "hours": 0.5,
        "commit": "0123456",
        "model.learning_rate": 0.001,
    }
    text = run("sessions", experiments, "--format", "csv")[1]
    in_csv = list(csv.DictReader(io.StringIO(text)))
    as_text = {name: "" if value is None else str(value) for name, value in rows[2].items()}
    assert in_csv[2] == as_text


def test_json_is_valid_where_a_setting_is_no_number(run, tmp_path):
    make_session(tmp_path, settings={"clip": float("inf")})
    make_session(tmp_path, second=1, settings={"clip": 1.0})
    rows = json.loads(run("sessions", tmp_path, "--format", "json")[1], parse_constant=pytest.fail)
    assert [row["model.clip"] for row in rows] == ["inf", 1.0]


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_a_secret_in_a_folder_from_elsewhere_is_not_shown(run, tmp_path, form):
    for second, password in enumerate(("hunter2", "hunter3")):
        url = f"https://me:{password}@example.org"
        settings = {"password": password, "url": url, "width": second}
        make_session(tmp_path, second=second, settings=settings)
    code, out, _ = run("sessions", tmp_path, "--format", form)
    assert code == 0
    assert "password" in out and "width" in out
    assert "hunter" not in out


def test_markdown_is_a_table_whatever_a_setting_holds(run, tmp_path):
    make_session(tmp_path, "a", settings={"pattern": "a|b"})
    make_session(tmp_path, "b", second=1)
    lines = run("sessions", tmp_path, "--format", "markdown")[1].splitlines()
    assert [line.replace("\\|", "").count("|") for line in lines] == [11] * 4
    assert "| a\\|b |" in lines[2]


def test_nothing_in_a_folder_is_said_and_no_error(run, tmp_path):
    assert run("sessions", tmp_path) == (0, "", f"{tmp_path} has no sessions\n")
    assert json.loads(run("sessions", tmp_path, "--format", "json")[1]) == []


def test_what_is_no_session_is_ignored_and_one_below_or_renamed_is_not(run, experiments):
    for name in (".hidden", "empty", "session_old"):
        experiments.joinpath(name).mkdir(parents=True)
    experiments.joinpath("session_node1_2024_02_29_12_00_09_file").touch()
    experiments.joinpath("config.yaml").write_text("tag: no session")
    make_session(experiments / "sweep", "below", second=3)
    make_session(experiments, "named", second=4).rename(experiments / "the_good_one")
    archived = make_session(experiments / "archive/2024/march", "old", second=5)
    make_session(experiments / "a/b/c/d", "too_deep", second=6)
    make_session(experiments / ".trash", "hidden", second=7)
    _, out, _ = run("sessions", experiments, "--format", "csv")
    assert tags(out) == ["base", "fast", "bad", "below", "named", "old"]
    table = run("sessions", experiments)[1]
    assert "the_good_one  " in table
    assert f"archive/2024/march/{archived.name.removeprefix('session_')}  " in table


@pytest.mark.parametrize("lost", ["environment.yaml", "run.json", "config.yaml", "metrics.csv"])
def test_a_renamed_session_is_known_by_what_it_holds(run, tmp_path, lost):
    session = make_session(tmp_path, "known", rows=scores(0.5), run={})
    session = session.rename(tmp_path / "renamed")
    (session / lost).unlink()
    assert "renamed" in run("sessions", tmp_path)[1]


def test_a_folder_of_other_programs_logs_is_no_session(run, tmp_path):
    (tmp_path / "logs").mkdir()
    for name in ("metrics.csv", "log.txt", "config.yaml"):
        (tmp_path / "logs" / name).touch()
    assert run("sessions", tmp_path)[1] == ""


def test_a_session_is_its_own_list(run, experiments):
    _, out, _ = run("sessions", next(experiments.glob("*_fast")), "--format", "csv")
    assert tags(out) == ["fast"]


def test_a_broken_session_is_a_row_of_what_is_known(run, experiments):
    broken = experiments / "session_node1_2024_02_29_12_00_03_broken"
    broken.joinpath("checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "run.json", "checkpoints/last.ckpt"):
        broken.joinpath(name).write_bytes(b"\x00\xff{[\n" * 9)
    empty = experiments / "session_node1_2024_02_29_12_00_04_empty"
    empty.mkdir()
    code, out, err = run("sessions", experiments)
    assert code == 0
    assert [line.split(" ", 2)[1] for line in err.split("; ")]
    assert [line.split() for line in out.splitlines()[-2:]] == [
        ["2024_02_29_12_00_03_broken", "damaged", "?", *"-------"],
        ["2024_02_29_12_00_04_empty", "interrupted", "?", *"-------"],
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_session_that_may_not_be_read_is_a_row(run, experiments):
    hidden = next(experiments.glob("*_base"))
    hidden.chmod(0)
    try:
        code, out, _ = run("sessions", experiments, "--format", "csv")
    finally:
        hidden.chmod(0o755)
    assert code == 0
    assert "base" in tags(out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "'nowhere' can't be read (No such file or directory): give the folder"),
        (["--sort", "bset"], "`--sort` is 'bset': there is no such column. Did you mean `best`"),
        (["--sort"], "argument --sort: expected one argument"),
        (
            ["--srot=best"],
            "unrecognized arguments: --srot=best. Did you mean `--sort` or `--state`?",
        ),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
    ],
)
def test_a_mistake_is_one_message(run, experiments, monkeypatch, args, message):
    monkeypatch.chdir(experiments.parent)
    code, out, err = run("sessions", *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.splitlines()[1:] == ["(more: python cli.py sessions --help)"]


def test_a_misspelt_command_names_the_near_one(run):
    code, _, err = run("sesions")
    assert code == 2
    assert "Did you mean `sessions`?" in err


def test_help_of_the_program_names_the_commands(run):
    out = run("--help")[1]
    assert all(f"    {command} " in out for command in ("sessions", "compare", "new"))


def test_what_real_runs_leave_is_what_is_shown(run, config, sessions):
    code, log, _ = run("fit", "--config", config)
    assert code == 0
    failing = ["--tag=failing", "--model.learning_rate=1e38", "--trainer.max_steps=50"]
    assert run_process("fit", "--config", config, *failing).returncode == 1
    experiments = sessions()[0].parent
    # By tag: both may have started within one second.
    failed, tiny = json.loads(run("sessions", experiments, "--sort=tag", "--format=json")[1])
    assert (tiny["tag"], failed["tag"]) == ("tiny", "failing")
    assert (tiny["state"], failed["state"]) == ("finished", "failed")
    assert (tiny["iterations"], tiny["max_steps"]) == (23, 23)
    assert f"{tiny['best']:.4f} at iteration {tiny['at']}" in log
    assert [name for name in tiny if "." in name] == ["model.learning_rate"]


def test_a_real_run_is_running_until_it_is_killed(run, tmp_path):
    with living_run(tmp_path) as (process, session):
        before = run("sessions", session)[1]
        process.send_signal(signal.SIGKILL)
        process.wait()
    after = run("sessions", session)[1]
    assert "  running " in before
    assert "  interrupted  " in after
    assert " 12/23 " in before
    assert " 12/23 " in after


def test_a_run_that_has_written_nothing_for_long_is_said_to_be_silent(run, tmp_path, monkeypatch):
    session = make_session(tmp_path, "hangs", run={"state": "running"}, rows=scores(0.5))
    monkeypatch.setattr(SessionLock, "is_held_for", lambda self, command: True)
    assert "  running  " in run("sessions", tmp_path)[1]
    for path in session.iterdir():
        os.utime(path, (0, time.time() - 2.2 * 3600))
    assert "  running, silent for 2 h  " in run("sessions", tmp_path)[1]
    [row] = json.loads(run("sessions", tmp_path, "--format", "json")[1])
    assert row["silent_hours"] == pytest.approx(2.2, abs=0.01)
    os.utime(session / "log.txt", (0, time.time() - 40 * 60))
    assert "  running, silent for 40 min  " in run("sessions", tmp_path)[1]
    monkeypatch.undo()
    assert "  interrupted  " in run("sessions", tmp_path)[1]


# The table ----------------------------------------------------------------------------------------


def columns() -> list[Column]:
    names = Column("name", ["a_name_of_twenty_six_chars", "b"], is_text=True)
    return [names, Column("n", ["1", "200"]), Column("more", ["3.5", "-"])]


def test_a_table_is_as_wide_as_its_cells():
    assert format_table(columns(), 37) == (
        "name                          n  more\n"
        "a_name_of_twenty_six_chars    1   3.5\n"
        "b                           200     -\n",
        [],
    )


def test_in_a_narrow_terminal_text_is_shortened_where_names_are_alike():
    assert format_table(columns(), 30) == (
        "name                   n  more\n"
        ".._twenty_six_chars    1   3.5\n"
        "b                    200     -\n",
        [],
    )


def test_columns_without_room_are_left_out_and_numbers_never_shortened():
    assert format_table(columns(), 22) == (
        "name                 n\n..wenty_six_chars    1\nb                  200\n",
        ["more"],
    )
    assert format_table(columns(), 5)[1] == ["n", "more"]


def test_markdown_aligns_numbers_at_their_right():
    assert format_markdown(columns()).splitlines()[1] == "| --- | ---: | ---: |"


def test_in_a_terminal_no_line_is_wider_than_it(experiments, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # it would win over the terminal's own width
    environment = dict(os.environ)  # without what the readline library has put there behind Python
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 60, 0, 0))
    process = start_process(
        "sessions", experiments, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    out = b""
    with contextlib.suppress(OSError):  # the way in which a pty ends
        while data := os.read(leader, 2**16):
            out += data
    os.close(leader)
    assert process.wait() == 0
    *rows, note = out.decode().splitlines()
    assert len(rows) == 4
    assert max(len(row) for row in rows) <= 60
    assert note.startswith("Too wide for the terminal: ")
