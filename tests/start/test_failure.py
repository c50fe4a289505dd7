"""One message, or a traceback, of what failed first."""

import atexit
import contextlib
import csv
import errno
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TinyData, TinyModule, run_process
from lightning.pytorch.callbacks import Callback
from torch.distributed import DistStoreError

from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session
from lightning_trainer.session.run_record import RunRecord
from lightning_trainer.start import failure
from lightning_trainer.start.failure import SkipTeardown, end_at_once, failure_text


class Two:
    """As much of a trainer as is looked at."""

    world_size = 2

    def __init__(self, rank: int) -> None:
        self.global_rank, self.is_global_zero = rank, rank == 0


def raised(ex: Exception) -> Exception:
    """With a traceback of which the last line does not say `raise`."""
    try:
        next(iter([(_ for _ in ()).throw(ex)]))
    except Exception as caught:
        return caught
    raise AssertionError


def shown(capsys, *args: object) -> str:
    return failure_text(*args) + capsys.readouterr().err


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(failure, "_PATIENCE_S", 0.2)


def test_a_fault_in_code_has_its_traceback(capsys, tmp_path):
    text = shown(capsys, raised(KeyError("a")), tmp_path, None)
    assert text.startswith("Traceback")
    assert text.endswith("KeyError: 'a'\n")


def test_a_fault_of_the_machine_is_one_line_with_its_place(capsys, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    assert shown(capsys, raised(full), tmp_path, None) == (
        f"error: {tmp_path}: [Errno 28] No space left on device\n"
    )


def test_the_process_that_failed_first_is_shown_last_by_the_first_process(capsys, tmp_path):
    first = shown(capsys, raised(KeyError("boom")), tmp_path, Two(1))
    assert first.startswith("Process 1 of 2 on ")
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    assert shown(capsys, raised(lost), tmp_path, Two(0)) == first
    assert (tmp_path / "failure.txt").read_text() == first


def test_the_file_for_the_other_processes_has_no_secret(capsys, tmp_path):
    text = shown(capsys, raised(KeyError("a hunter2-or-so")), tmp_path, Two(1), ["hunter2-or-so"])
    assert "KeyError: 'a ***'" in text
    assert (tmp_path / "failure.txt").read_text() == text


def test_another_process_leaves_the_telling_to_the_first(capsys, tmp_path):
    shown(capsys, raised(KeyError("boom")), tmp_path, Two(0))
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    assert shown(capsys, raised(lost), tmp_path, Two(1)) == ""


def test_where_none_tells_its_end_the_loss_of_contact_is_told(capsys, tmp_path):
    lost = raised(RuntimeError("Connection reset by peer"))
    text = shown(capsys, lost, tmp_path, Two(0))
    assert text.splitlines()[-1].startswith("error: contact with another process was lost")


@pytest.mark.parametrize(
    "text", ["wait timeout after 1000ms, keys: /a", "Timed out after 2 seconds waiting for clients"]
)
def test_a_process_that_waited_in_vain_for_the_start_of_another_says_so(capsys, tmp_path, text):
    said = shown(capsys, raised(DistStoreError(text)), tmp_path, Two(0))
    assert said.splitlines()[-1].startswith("error: another process did not start, or does not")


def test_a_connection_of_the_projects_own_is_no_other_process(capsys, tmp_path):
    for ex in (TimeoutError("timed out"), BrokenPipeError(errno.EPIPE, "Broken pipe")):
        text = shown(capsys, raised(ex), tmp_path / type(ex).__name__, Two(0))
        assert text.splitlines()[-1].startswith(f"{type(ex).__name__}: ")


def test_a_process_that_knows_no_folder_yet_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "KeyError" in shown(capsys, raised(KeyError("a")), Path(), Two(1))
    assert list(tmp_path.iterdir()) == []


class LosesItsDevice(TinyModule):
    """Fails at iteration 3; from then on its device answers every call with an error."""

    lost = False

    def training_step(self, batch, batch_idx):
        if self.global_step == 2:
            self.lost = True
            raise KeyError("the cause")
        return super().training_step(batch, batch_idx)

    def cpu(self):
        if self.lost:
            raise RuntimeError("device-side assert triggered")
        return super().cpu()


class AsksTheDevice(Callback):
    def on_exception(self, trainer, pl_module, exception) -> None:
        pl_module.cpu()


@pytest.mark.parametrize("flags", [[], ["--trainer.callbacks+=test_failure.AsksTheDevice"]])
def test_the_first_error_is_reported_when_ending_the_run_fails_too(run, config, sessions, flags):
    code, _, err = run("fit", "--config", config, "--model=test_failure.LosesItsDevice", *flags)
    assert code == 1
    assert err.endswith("KeyError: 'the cause'\n")
    assert "device-side" not in err
    assert RunRecord.read(sessions()[0]).reason == "KeyError: 'the cause'"


class BreaksItsGpu(TinyModule):
    """A kernel fails at iteration 3; then the end of Python aborts the process, as CUDA does."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 2:
            atexit.register(os.abort)
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().training_step(batch, batch_idx)


def test_a_failed_kernel_ends_the_process_with_exit_code_1_and_its_cause_last(config, sessions):
    fit = ("fit", "--config", config, "--trainer.log_every_n_steps=1")
    done = run_process(*fit, "--model=test_failure.BreaksItsGpu")
    assert done.returncode == 1
    assert done.stderr.endswith("CUDA error: device-side assert triggered\n")
    [session] = sessions()
    assert RunRecord.read(session).state == "failed"
    assert "device-side assert" in (session / "log.txt").read_text()
    assert "2" in {row["step"] for row in csv.DictReader((session / "metrics.csv").open())}


@pytest.mark.parametrize(
    ("ex", "world_size", "skipped"),
    [
        (RuntimeError("Connection closed by peer [127.0.0.1]:1"), 2, True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation"), 2, True),
        (KeyError("a"), 2, False),
        (TimeoutError("the read operation timed out"), 2, False),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 2, False),
        (RuntimeError("Connection closed by peer"), 1, False),
    ],
)
def test_only_a_process_that_has_lost_another_is_not_torn_down(ex, world_size, skipped):
    trainer = SimpleNamespace(world_size=world_size)
    with pytest.raises(type(ex)) if skipped else contextlib.nullcontext():
        SkipTeardown(RunState(Session())).on_exception(trainer, None, ex)


@pytest.mark.parametrize("stuck", [False, True])
def test_a_checkpoint_that_is_being_written_is_completed_unless_the_device_is_stuck(
    monkeypatch, stuck
):
    done: list[object] = []
    ended, never = threading.Event(), threading.Event()

    def end(code: int) -> None:
        done.append(code)
        ended.set()

    def write() -> None:
        (never if stuck else ended).wait(30 if stuck else 0.1)
        done.append("written")

    monkeypatch.setattr(failure.os, "_exit", end)
    monkeypatch.setattr(failure, "_LAST_WRITES_S", 1.5)
    run, clean_up = RunState(Session()), contextlib.ExitStack()
    clean_up.callback(done.append, "log")
    logger = SimpleNamespace(finalize=done.append)
    run.writer.submit(write)
    trainer = SimpleNamespace(loggers=[logger])
    before = {*threading.enumerate()}
    threading.Thread(target=end_at_once, args=(trainer, run, clean_up)).start()
    assert ended.wait(10)
    assert done == (["failed", 1] if stuck else ["failed", "written", "log", 1])
    never.set()
    for thread in {*threading.enumerate()} - before:  # they would end this process later
        thread.join()


class ReadsAFile(TinyData):
    def create_data(self) -> None:
        Path("data/nothere.csv").read_text()


def test_a_file_that_is_missing_is_one_line_with_its_place_in_the_project(run, config):
    code, _, err = run("fit", "--config", config, "--data", "test_failure.ReadsAFile")
    assert code == 1
    assert re.fullmatch(
        r"error: \[Errno 2\] No such file or directory: 'data/nothere.csv' "
        r"\(in `create_data`, \S+test_failure.py, line \d+\)\n",
        err,
    )


def test_a_callback_that_waits_for_another_number_is_one_line(run, config):
    stop = "lightning.pytorch.callbacks.EarlyStopping"
    added = ("--trainer.callbacks+", stop, "--trainer.callbacks.monitor", "val_loss")
    code, _, err = run("fit", "--config", config, "--trainer.max_steps=5", *added)
    assert code == 1
    assert err.startswith("error: Early stopping conditioned on metric `val_loss` which is not")
    assert len(err.splitlines()) == 1 and "`val/loss`" in err


def test_what_a_library_refuses_is_told_with_its_place_in_the_project(run, config, monkeypatch):
    code, _, err = run("fit", "--config", config, "--model.learning_rate=-1")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: Invalid learning rate: -1.0 (in `create_optimiser`, ")
    assert TinyModule.__module__ in last
