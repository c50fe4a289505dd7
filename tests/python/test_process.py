"""A run leaves its process as it was, whoever calls for it and however it ends."""

import contextlib
import gc
import io
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from conftest import TinyData, TinyModule
from tiny import Breaks, use_descriptors

from lightning_trainer import RunError, fit, load
from lightning_trainer.python import running
from lightning_trainer.session import terminal

TRAINER = {"accelerator": "cpu", "max_steps": 6, "val_check_interval": 3, "log_every_n_steps": 2}


class Interrupts(TinyModule):
    """Gets a signal at iteration 4."""

    def __init__(self, number: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)
        self.number = number

    def forward_model(self, batch):
        if self.training and self.global_step == 3:
            signal.raise_signal(self.number)
        return super().forward_model(batch)


class Leaves(TinyModule):
    def create_loss(self) -> None:
        sys.exit(7)


class Teacher(TinyModule):
    """Trains another one first."""

    def __init__(self, folder: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.folder = folder

    def create_model(self) -> None:
        settings = {"model": TinyModule, "data": TinyData, "output_path": self.folder}
        print("the teacher begins")
        self.teacher = [fit(settings, tag="teacher", trainer=TRAINER)]
        print("the teacher has ended")
        super().create_model()


@pytest.fixture
def given(tmp_path):
    folder = tmp_path / "experiments"
    return {"model": TinyModule, "data": TinyData, "output_path": folder, "trainer": TRAINER}


def process() -> dict[str, object]:
    """What others in this process see of it."""
    loggers = [logging.root, logging.getLogger("lightning.pytorch"), logging.getLogger("lightning")]
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    backends = torch.backends.cudnn
    return {
        "signals": {number: signal.getsignal(number) for number in numbers},
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__),
        "loggers": [(log.level, [*log.handlers], [*log.filters]) for log in loggers],
        "warnings": ([*warnings.filters], warnings.showwarning),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.gettrace()),
        "imports": ([*sys.path], *map(str, sys.argv), os.getcwd()),
        "guards": [f for f in sys.meta_path if type(f).__module__.startswith("lightning_trainer")],
        "variables": dict(os.environ),
        "threads": {*threading.enumerate()},
        "start": multiprocessing.get_start_method(allow_none=True),
        "gc": (gc.isenabled(), gc.get_threshold(), [*gc.callbacks]),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "settings": (torch.get_float32_matmul_precision(), backends.benchmark),
        "exact": (torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()),
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "locale": locale.setlocale(locale.LC_ALL),
    }


CHANGING = {"deterministic": True, "benchmark": True, "detect_anomaly": True}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, None),
        ({"matmul_precision": "medium", "trainer": CHANGING}, None),
        ({"model": Breaks, "trainer": {"max_steps": 20}}, RunError),
        ({"trainer": {"max_step": 3}}, RunError),
        ({"model": Interrupts}, KeyboardInterrupt),
        ({"model": Leaves}, RunError),
        ({"trainer": {"max_steps": 0}}, RunError),
    ],
)
def test_a_run_leaves_nothing_changed_however_it_ends(given, options, error):
    before = process()
    with pytest.raises(error) if error else contextlib.nullcontext():
        fit(given, **options)
    after = process()
    assert {n: after[n] for n in before if before[n] != after[n]} == {}


def test_load_leaves_nothing_changed(given):
    session = fit(given)
    before = process()
    load(session)
    after = process()
    assert {n: after[n] for n in before if before[n] != after[n]} == {}


def test_the_log_has_all_that_is_printed_past_the_descriptors(given, capsys):
    session = fit(given)
    told = capsys.readouterr().out
    assert told.startswith(f"Session: {session.path}\n") and "Iteration      6/6" in told
    log = (session.path / "log.txt").read_text()
    assert log == told


def test_the_log_and_the_caller_both_get_a_redirected_stdout(given):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        session = fit(given)
    assert (session.path / "log.txt").read_text() == text.getvalue()


def test_what_kept_the_stream_of_a_run_still_prints_after_it(given, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(TinyModule, "on_fit_start", lambda _: kept.append(sys.stdout))
    fit(given)
    capsys.readouterr()
    print("later", file=kept[0])
    assert capsys.readouterr().out == "later\n"


def test_ctrl_c_ends_the_iteration_saves_and_raises(given, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="all is saved"):
        fit(given, model=Interrupts)
    [folder] = (tmp_path / "experiments").iterdir()
    assert load(folder / "checkpoints/last.ckpt").iteration == 4
    assert fit(ckpt_path=folder).iteration == 6


def test_another_signal_is_meant_for_the_process(given):
    with pytest.raises(SystemExit) as ended:
        fit(given, model={"class_path": Interrupts, "init_args": {"number": 15}})
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_project_that_leaves_python_ends_its_run_only(given):
    with pytest.raises(RunError, match=r"ended the run by `sys\.exit\(7\)`"):
        fit(given, model=Leaves)


def in_thread(function) -> list:
    """What the function returns or raises in another thread."""
    results = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as ex:
            results.append(ex)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return results


def test_it_trains_in_another_thread(given):
    before = process()["signals"]
    [session] = in_thread(lambda: fit(given))
    assert session.state == "finished"
    assert process()["signals"] == before


class StartsAnother(TinyModule):
    def create_loss(self) -> None:
        settings = {"model": TinyModule, "data": TinyData}
        self.refused = in_thread(lambda: fit(settings))
        assert isinstance(self.refused[0], RunError)
        assert "another thread" in str(self.refused[0])
        super().create_loss()


def test_a_second_run_in_another_thread_is_refused(given):
    assert fit(given, model=StartsAnother).state == "finished"


def test_a_run_within_a_run_has_a_session_of_its_own(given, tmp_path, monkeypatch):
    use_descriptors(monkeypatch)
    inner = tmp_path / "inner"
    outer = fit(given, model={"class_path": Teacher, "init_args": {"folder": str(inner)}})
    [teacher] = inner.iterdir()
    log = (outer.path / "log.txt").read_text()
    assert f"Session: {teacher}" in log and log.count("Finished at iteration 6") == 2
    assert (teacher / "log.txt").read_text().count("Finished at iteration 6") == 1
    assert "the teacher has ended" not in (teacher / "log.txt").read_text()


@pytest.mark.parametrize(
    ("variables", "is_terminal", "can"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": ""}, True, False),
        ({"TERM": "xterm", "CI": "true"}, True, False),
        ({"TERM": "xterm"}, False, False),
    ],
)
def test_a_bar_is_drawn_where_a_row_can_be_drawn_again(monkeypatch, variables, is_terminal, can):
    monkeypatch.delenv("CI", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    assert terminal.can_redraw() == can


def test_a_second_run_that_would_start_processes_is_refused(given, monkeypatch):
    monkeypatch.setattr(running, "_started_others", [True])
    with pytest.raises(RunError, match="on several devices before"):
        fit(given, trainer={"devices": 2})
    assert fit(given).state == "finished"


def test_a_process_that_was_started_for_a_run_ends_with_it(given, monkeypatch):
    monkeypatch.setattr(running, "is_started_by_run", lambda: True)
    with pytest.raises(SystemExit) as ended:
        fit(given)
    assert ended.value.code == 0
