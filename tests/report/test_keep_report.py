"""KeepReport: a session's report.html."""

import os
import re
import subprocess
import time
from types import SimpleNamespace

import pytest

from lightning_trainer.report import keep_report
from lightning_trainer.report.keep_report import KeepReport
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session


def test_a_run_leaves_a_page_that_tells_its_end(run, config, sessions):
    """In a process of its own, as in any run: it has another state than this one."""
    callback = "--trainer.callbacks+=lightning_trainer.KeepReport"
    code, out, err = run("fit", "--config", config, "--trainer.max_steps=5", callback)
    assert code == 0, err
    [session] = sessions()
    page = (session / "report.html").read_text()
    assert "finished: all 5 iterations are done" in page
    told = re.search(rf"To go on: +(.*) fit --ckpt_path {session}", out)
    assert f">{told[1]} fit --ckpt_path {session}" in page


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """A run's callback, its time, and the processes that it begins."""
    clock, processes = SimpleNamespace(now=100.0), []

    class Process:
        def __init__(self, command, **_):
            self.command, self.returncode = command, None
            processes.append(self)

        def poll(self):
            return self.returncode

        def communicate(self, timeout=None):
            self.returncode = 1 if self.returncode is None else self.returncode
            return "", "Traceback\nOSError: no room"

        def kill(self):
            self.returncode = -9

    trainer = SimpleNamespace(
        is_global_zero=True, sanity_checking=False, state=SimpleNamespace(fn="fit")
    )
    state = SimpleNamespace(session=Session(tmp_path))
    monkeypatch.setattr(RunState, "of", lambda *_: state)
    monkeypatch.setattr(keep_report, "monotonic", lambda: clock.now)
    monkeypatch.setattr(subprocess, "Popen", Process)
    callback = KeepReport(minutes=2)
    callback.on_train_start(trainer)
    return callback, trainer, clock, processes


def test_a_page_is_written_at_most_every_so_often_and_never_two_at_once(begun):
    callback, trainer, clock, processes = begun
    for seconds, n in ((0, 0), (119, 0), (120, 1), (121, 1), (500, 1)):
        clock.now = 100.0 + seconds
        callback.on_validation_end(trainer)
        assert len(processes) == n
    processes[0].returncode = 0
    callback.on_validation_end(trainer)
    assert len(processes) == 2


def test_a_page_that_takes_long_is_written_less_often(begun, tmp_path):
    callback, trainer, clock, processes = begun
    clock.now += 120
    callback.on_validation_end(trainer)
    processes[0].returncode = 0
    page = tmp_path / "report.html"
    page.touch()
    os.utime(page, (0, time.time() + 10))  # it took 10 s: 200 s until the next
    for seconds, n in ((190, 1), (202, 2)):
        clock.now = 220.0 + seconds
        callback.on_validation_end(trainer)
        assert len(processes) == n


def test_a_page_that_fails_is_one_warning_and_ends_no_run(begun):
    callback, trainer, _, processes = begun
    with pytest.warns(UserWarning, match="report.html could not be written: OSError: no room"):
        callback.on_exception(trainer)
    assert len(processes) == 1
    trainer.is_global_zero = False
    callback.on_fit_end(trainer)
    assert len(processes) == 1
