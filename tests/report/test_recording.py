"""run.json says what became of a run, and `sessions` reads it there."""

import itertools
import json
import os
import re
import shlex
import signal
import sys

import pytest
import yaml
from conftest import TinyModule
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.report import recording
from lightning_trainer.report.summary import signal_of
from lightning_trainer.session.record import Record
from lightning_trainer.session.run_record import RunRecord, note_failure


class Act(Callback):
    """Does something at iteration 7."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == 7 and self.what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif trainer.global_step == 7 and self.what == "stop":
            trainer.should_stop = True
        elif trainer.global_step == 7:
            raise RuntimeError("no more\nof this")


class NoData(TinyModule):
    def create_model(self) -> None:
        raise ValueError("there is no such network")


def act(what: str) -> str:
    return f"--trainer.callbacks={{class_path: test_recording.Act, init_args: {{what: {what}}}}}"


def ended(session) -> tuple[str, str, str, int]:
    record = RunRecord.read(session)
    assert Record.read(session).state == record.state
    return record.state, record.reason, record.by, record.iteration


def test_a_run_that_is_done_says_so_with_its_score_and_times(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.max_steps=10")[0] == 0
    [session] = sessions()
    record = RunRecord.read(session)
    assert ended(session) == ("finished", "all 10 iterations are done", "", 10)
    assert (record.command, record.n_iterations) == ("fit", 10)
    data = yaml.safe_load((session / "config.yaml").read_text())["data"]["init_args"]
    assert record.epoch_iterations == -(-data["n_samples"] // data["batch_size"])
    assert record.score.keys() == {"name", "mode", "best", "iteration"}
    assert (record.score["name"], record.score["mode"]) == ("val/accuracy", "max")
    assert 0 < record.times["validation_s"] < record.times["elapsed_s"]


def environment(session) -> dict:
    return yaml.safe_load((session / "environment.yaml").read_text())


def test_environment_tells_the_gpus_of_the_run_and_what_differs_is_said(
    run, config, sessions, monkeypatch
):
    assert run("fit", "--config", config, "--trainer.max_steps=4")[0] == 0
    [session] = sessions()
    assert environment(session)["gpus"] == []
    monkeypatch.setattr(recording, "describe_gpus", lambda trainer: {"gpus": ["A, 1"]})
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps=6")
    assert code == 0, err
    assert "What differs from before:\n    gpus: [] -> ['A, 1']\n" in out
    assert environment(session)["restarts"][0]["gpus"] == ["A, 1"]
    before = environment(session)
    assert run("test", "--ckpt_path", session)[0] == 0
    assert environment(session) == before


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("signal", ("interrupted", "SIGTERM", "signal", 7)),
        ("stop", ("finished", "it set `trainer.should_stop`", "Act", 7)),
        ("fail", ("failed", "RuntimeError: no more", f"process {os.getpid()} on ", 7)),
    ],
)
def test_what_ended_a_run_is_told(run, config, sessions, what, expected):
    run("fit", "--config", config, act(what))
    state, reason, by, iteration = ended(sessions()[0])
    assert (state, reason, iteration) == (expected[0], expected[1], expected[3])
    assert by.startswith(expected[2])


EARLY = """\
trainer:
  val_check_interval: 2
  callbacks:
    - class_path: lightning.pytorch.callbacks.EarlyStopping
      init_args: {monitor: val/accuracy, mode: max, patience: 1, min_delta: 2}
"""


def test_early_stopping_is_named_with_its_reason_and_the_printed_command_goes_on(
    run, config, sessions
):
    early = config.with_name("early.yaml")
    early.write_text(EARLY)
    _, out, _ = run("fit", "--config", config, "--config", early)
    reason = "Monitored metric val/accuracy did not improve in the last 1 records. Best score: "
    assert f"\nStopped by:    EarlyStopping: {reason}" in out
    [session] = sessions()
    state, told, by, iteration = ended(session)
    assert (state, by, iteration) == ("finished", "EarlyStopping", 4)
    assert told.startswith(reason)
    [command] = re.findall(r"To go on: +python \S+ (.*)\n", out)
    again = "`EarlyStopping` has ended this run before: its patience of 1 for val/accuracy begins"
    assert again in run(*shlex.split(command))[1]
    assert ended(session)[3] == 6
    callbacks = yaml.safe_load(EARLY)["trainer"]["callbacks"]
    callbacks[0]["init_args"]["patience"] = 3  # one of them is used up
    assert run(*shlex.split(command), f"--trainer.callbacks={json.dumps(callbacks)}")[0] == 0
    assert ended(session)[3] == 10


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.max_steps=4"],
        ["--trainer.callbacks=null", "--trainer.val_check_interval=00:00:00:01"],
    ],
    ids=["EarlyStopping at the end", "validations by the clock"],
)
def test_a_run_that_has_done_all_its_iterations_was_stopped_by_nobody(
    run, config, sessions, options
):
    early = config.with_name("early.yaml")
    early.write_text(EARLY)
    code, out, _ = run("fit", "--config", config, "--config", early, *options)
    assert code == 0 and "\nFinished at iteration " in out and "Stopped by" not in out
    assert ended(sessions()[0])[1].startswith("all ")


def test_a_run_whose_time_is_over_says_so_and_asks_for_more(run, config, sessions, monkeypatch):
    asked = itertools.count()
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 61.0 if next(asked) > 9 else 0.0)
    _, out, _ = run("fit", "--config", config, "--trainer.max_time=00:00:01:00")
    assert "Stopped by:    Timer: the run's time of 0:01:00 is over (`trainer.max_time`)\n" in out
    [session] = sessions()
    assert f"{session} --trainer.max_time DD:HH:MM:SS\n" in out
    code, _, err = run("fit", "--ckpt_path", session)
    assert (code, "raise `--trainer.max_time`" in err) == (1, True)
    assert run("fit", "--ckpt_path", session, "--trainer.max_time=00:01:00:00")[0] == 0
    assert ended(session)[::3] == ("finished", 23)


def test_a_run_whose_last_save_fails_is_failed_and_not_finished(run, config, sessions, monkeypatch):
    save = AtomicCheckpointIO._save

    def fail_late(self, checkpoint, target) -> None:
        if checkpoint["global_step"] == 10:
            raise OSError(28, "No space left on device", target)
        save(self, checkpoint, target)

    monkeypatch.setattr(AtomicCheckpointIO, "_save", fail_late)
    code, out, _ = run("fit", "--config", config, "--trainer.max_steps=10")
    assert code == 1
    assert "Finished" not in out
    assert "Stopped at iteration 10" in out
    assert ended(sessions()[0])[0] == "failed"


def test_an_error_before_training_fails_the_session(run, config, sessions):
    assert run("fit", "--config", config, "--model=test_recording.NoData")[0] == 1
    state, reason, _, _ = ended(sessions()[0])
    assert (state, reason) == ("failed", "ValueError: there is no such network")


def test_a_session_that_has_nothing_left_to_do_stays_finished(run, config, sessions):
    epochs = ("--trainer.max_steps=-1", "--trainer.max_epochs=1")
    assert run("fit", "--config", config, *epochs)[0] == 0
    code, _, err = run("fit", "--ckpt_path", sessions()[0])
    assert code == 1
    assert "nothing left to do" in err
    assert ended(sessions()[0])[0] == "finished"


def test_a_finished_session_whose_next_start_fails_is_failed_with_its_numbers(
    run, config, sessions, monkeypatch
):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    monkeypatch.setattr(TinyModule, "create_model", NoData.create_model)
    code, _, _ = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=9")
    assert code == 1
    assert ended(sessions()[0])[::3] == ("failed", 5)
    assert RunRecord.read(sessions()[0]).score["iteration"] == 5


class Late(Callback):
    def on_fit_end(self, *args) -> None:
        raise RuntimeError("after the end")


def test_what_fails_after_the_end_changes_no_finished_run(run, config, sessions):
    late = "--trainer.callbacks=test_recording.Late"
    assert run("fit", "--config", config, "--trainer.max_steps=5", late)[0] == 1
    assert ended(sessions()[0])[0] == "finished"


def test_no_secret_of_an_option_is_in_the_reason(tmp_path):
    note_failure(tmp_path, "fit", ValueError("refused for abcd1234efgh"), ["abcd1234efgh"])
    assert RunRecord.read(tmp_path).reason == "ValueError: refused for ***"


def test_a_test_leaves_the_record_of_the_training_and_has_one_where_it_is_alone(
    run, config, sessions, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["/a folder/cli.py"])  # which is no reason to be interrupted
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    [trained] = sessions()
    before = (trained / "run.json").read_text()
    assert run("test", "--ckpt_path", trained)[0] == 0
    assert (trained / "run.json").read_text() == before
    assert run("test", "--config", config, "--ckpt_path", trained)[0] == 0
    alone = sessions()[-1]
    assert alone != trained
    assert (RunRecord.read(alone).command, *ended(alone)) == ("test", "finished", "", "", 0)


@pytest.mark.parametrize(
    ("exception", "name"),
    [
        (SystemExit(143), "SIGTERM"),
        (SystemExit(129), "SIGHUP"),
        (KeyboardInterrupt(), "SIGINT"),
        (SIGTERMException(), "SIGTERM"),
        (SystemExit(1), ""),
        (SystemExit("text"), ""),
        (ValueError("143"), ""),
    ],
)
def test_the_signal_that_ends_a_run_is_known_by_its_exception(exception, name):
    assert signal_of(exception) == name
