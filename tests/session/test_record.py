"""What is said of a session is what is so, whatever is missing or damaged."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from folders import make_checkpoint, make_session, scores

from lightning_trainer.session.record import Record

LOCK = """\
import sys, time
from pathlib import Path
from lightning_trainer.session.lock import SessionLock
SessionLock(Path(sys.argv[1])).acquire(sys.argv[2])
print("taken", flush=True)
time.sleep(60)
"""


def hold_lock(folder: Path, command: str) -> subprocess.Popen:
    """A process that has the lock of a session until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, folder, command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"taken\n"
    return process


RUNNING = {"state": "running"}


@pytest.mark.parametrize("written", [None, RUNNING])
def test_a_run_is_running_while_its_process_lives_and_interrupted_after_its_kill(tmp_path, written):
    checkpoint = make_checkpoint(10)
    session = make_session(tmp_path, rows=scores(0.5), checkpoint=checkpoint, run=written)
    with hold_lock(session, "fit") as process:
        assert Record.read(session).state == "running"
        process.kill()
        process.wait()
    assert session.joinpath(".lock").read_text().startswith("process ")  # what the kill left
    assert Record.read(session).state == "interrupted"


@pytest.mark.parametrize(
    ("written", "state"), [({}, "finished"), (RUNNING, "interrupted"), (None, "interrupted")]
)
def test_a_session_that_is_being_tested_is_not_running(tmp_path, written, state):
    session = make_session(tmp_path, checkpoint=make_checkpoint(40), run=written)
    with hold_lock(session, "test") as process:
        assert Record.read(session).state == state
        process.kill()


def test_a_session_of_a_test_is_running_while_its_process_lives(tmp_path):
    session = make_session(tmp_path, run={"command": "test", "state": "running"})
    assert Record.read(session).state == "interrupted"
    with hold_lock(session, "test") as process:
        assert Record.read(session).state == "running"
        process.kill()


def test_looking_does_not_take_a_lock_nor_make_one(tmp_path):
    session = make_session(tmp_path)
    before = sorted(session.iterdir())
    Record.read(session)
    assert sorted(session.iterdir()) == before


@pytest.mark.parametrize("state", ["finished", "interrupted", "failed"])
def test_a_run_has_ended_as_it_has_written_itself(tmp_path, state):
    session = make_session(tmp_path, run={"state": state}, checkpoint=make_checkpoint(30))
    assert Record.read(session).state == state


def test_failure_txt_stands_above_what_the_run_has_written(tmp_path):
    session = make_session(tmp_path, checkpoint=make_checkpoint(100), run={})
    session.joinpath("failure.txt").write_text("Process 1 of 2 failed")
    assert Record.read(session).state == "failed"


@pytest.mark.parametrize(
    ("checkpoint", "state"),
    [
        (make_checkpoint(100), "finished"),
        (make_checkpoint(100, validated=False), "interrupted"),
        (make_checkpoint(99), "interrupted"),
        (None, "interrupted"),
    ],
)
@pytest.mark.parametrize("written", [None, RUNNING])  # by an older version; killed at its end
def test_a_run_that_says_no_end_has_finished_with_its_last_validation(
    tmp_path, checkpoint, state, written
):
    session = make_session(tmp_path, checkpoint=checkpoint, run=written)
    assert Record.read(session).state == state


def test_iterations_are_those_done_even_where_the_checkpoint_is_older(tmp_path):
    def iteration(second: int, **parts) -> int | None:
        return Record.read(make_session(tmp_path, second=second, **parts)).iteration

    assert iteration(0, checkpoint=make_checkpoint(20)) == 20
    assert iteration(1, checkpoint=make_checkpoint(20), rows=scores(0.5, 0.6, 0.7)) == 30
    assert iteration(2, checkpoint=make_checkpoint(20), run={"iteration": 37}) == 37
    # A test is logged at the iteration of the best checkpoint, after all others.
    assert iteration(3, rows=[*scores(0.5, 0.6), {"step": 10, "test/accuracy": 0.4}]) == 20
    assert (
        iteration(4, checkpoint=make_checkpoint(20), run={"iteration": 10, "state": "running"})
        == 20
    )
    assert iteration(5) is None


def test_the_run_knows_the_best_score_the_speed_and_the_time(tmp_path):
    rows, checkpoint = scores(0.5, 0.9), make_checkpoint(30)
    record = Record.read(make_session(tmp_path, checkpoint=checkpoint, rows=rows, run={}))
    assert (record.score_name, record.best_score, record.best_iteration) == (
        *("val/accuracy", 0.875, 30),
    )
    assert (record.examples_per_s, record.hours) == (500.0, 1.5)


def test_without_its_word_the_checkpoint_does(tmp_path):
    rows = scores(0.5, 0.9)
    for second, run in enumerate((None, {"score": None, "times": {}})):
        checkpoint = make_checkpoint(30)
        folder = make_session(tmp_path, second=second, checkpoint=checkpoint, rows=rows, run=run)
        record = Record.read(folder)
        assert (record.best_score, record.best_iteration) == (0.75, 20)
        assert (record.examples_per_s, record.hours) == (500.0, 0.5)


@pytest.mark.parametrize(("mode", "best"), [("max", (0.6, 20)), ("min", (0.4, 40))])
def test_without_both_metrics_csv_does(tmp_path, mode, best):
    rows = scores(0.5, 0.6, 0.6, 0.4, float("nan"))
    record = Record.read(make_session(tmp_path, rows=rows, settings={"score_mode": mode}))
    assert (record.best_score, record.best_iteration) == best
    assert (record.examples_per_s, record.hours) == (500.0, None)


def test_a_loss_is_best_where_it_is_lowest_and_an_unknown_direction_has_no_best(tmp_path):
    rows = [{"step": n, "val/loss": x, "val/mae": x} for n, x in ((1, 3.0), (2, 2.0), (3, 4.0))]
    settings = {"score_mode": None, "score_name": "loss"}
    record = Record.read(make_session(tmp_path, rows=rows, settings=settings))
    assert (record.score_name, record.score_mode) == ("val/loss", "min")
    assert (record.best_score, record.best_iteration) == (2.0, 2)
    record = Record.read(make_session(tmp_path, second=1, rows=rows, settings={"score_mode": None}))
    assert (record.score_name, record.score_mode) == ("val/mae", None)
    assert record.best_score is None


def test_the_score_is_the_one_that_is_named(tmp_path):
    rows = [{"step": 1, "val/accuracy": 0.5, "val/f1": 0.25}]
    assert Record.read(make_session(tmp_path, rows=rows)).score_name == "val/accuracy"
    named = make_session(tmp_path, second=1, rows=rows, settings={"score_name": "f1"})
    assert Record.read(named).best_score == 0.25


def test_the_commit_is_that_of_the_newest_start(tmp_path):
    session = make_session(tmp_path)
    assert Record.read(session).commit == "0123456"
    with session.joinpath("environment.yaml").open("a") as file:
        file.write("restarts:\n- git_commit: fedcba9876543210\n  git_dirty: true\n")
    assert Record.read(session).commit == "fedcba9+"


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_session_of_a_test_only_has_no_iterations_to_come(tmp_path, state):
    run = {"command": "test", "state": state, "iteration": 0, "score": None, "times": {}}
    session = make_session(tmp_path, rows=[{"step": 400, "test/accuracy": 0.5}], run=run)
    record = Record.read(session)
    assert (record.iteration, record.max_steps, record.state) == (400, None, state)


def test_a_run_of_epochs_has_the_iterations_that_it_has_counted(tmp_path):
    session = make_session(tmp_path, max_steps=-1, run={"n_iterations": 120})
    assert Record.read(session).max_steps == 120


def test_a_lost_config_is_read_from_the_checkpoint(tmp_path):
    config = {"tag": "kept", "trainer": {"max_steps": 30}}
    session = make_session(tmp_path, checkpoint=make_checkpoint(30, settings=config))
    session.joinpath("config.yaml").unlink()
    record = Record.read(session)
    assert (record.tag, record.max_steps, record.state) == ("kept", 30, "finished")


def test_an_empty_folder_has_the_tag_and_the_time_of_its_name(tmp_path):
    session = tmp_path / "session_a-b_2024_02_29_12_00_07_my_tag"
    session.mkdir()
    record = Record.read(session)
    assert (record.tag, record.started) == ("my_tag", "2024-02-29T12:00:07")
    assert record.iteration is record.best_score is record.hours is record.commit is None


def test_any_damage_of_any_file_leaves_a_record(tmp_path):
    generator = random.Random(0)
    session = make_session(tmp_path, rows=scores(0.5, 0.6), checkpoint=make_checkpoint(30), run={})
    files = {path: path.read_bytes() for path in session.rglob("*") if path.is_file()}
    for path, content in files.items():
        for _ in range(30):
            damaged = bytearray(content[: generator.randrange(len(content) + 1)])
            for _ in range(min(3, len(damaged))):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            path.write_bytes(damaged)
            assert Record.read(session).path == session
        path.write_bytes(content)


@pytest.mark.parametrize(
    "config", ["", "[1, 2]", "trainer: 3", "model: null", "trainer: {max_steps: x}", "1: {2: 3}"]
)
def test_a_config_of_another_kind_leaves_a_record(tmp_path, config):
    session = make_session(tmp_path)
    session.joinpath("config.yaml").write_text(config)
    assert Record.read(session).max_steps is None
