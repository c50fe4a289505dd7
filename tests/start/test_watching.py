"""The thread that ends a process whose GPU waits for one that is gone; NCCL is feigned."""

import threading
from types import SimpleNamespace

import pytest
import torch

from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session
from lightning_trainer.start import watching
from lightning_trainer.start.failure import failure_text, has_lost_contact


def trainer(world_size: int, device: str) -> SimpleNamespace:
    return SimpleNamespace(
        world_size=world_size,
        strategy=SimpleNamespace(root_device=torch.device(device)),
        global_rank=1,
        is_global_zero=False,
    )


@pytest.mark.parametrize(
    ("failure", "told"),
    [("REMOTE_ERROR", "contact with another process was lost"), ("TIMEOUT", "does not answer")],
)
def test_a_failure_of_nccl_ends_the_process_with_its_cause(monkeypatch, tmp_path, failure, told):
    noticed, failed = iter(["", "", failure]), threading.Event()
    errors: list[Exception] = []
    monkeypatch.setattr(watching, "nccl_failure", lambda: next(noticed))
    monkeypatch.setattr(watching, "_EVERY_S", 0.01)
    run = RunState(
        Session(), fail=lambda ex: (errors.append(ex), failed.set()), at_end=lambda end: None
    )
    watching.WatchOthers(run).setup(trainer(2, "cuda"), None, "fit")
    assert failed.wait(10)
    [error] = errors
    assert has_lost_contact(error, trainer(2, "cuda"))
    monkeypatch.setattr("lightning_trainer.start.failure._PATIENCE_S", 0.0)
    text = failure_text(error, tmp_path, trainer(2, "cuda"))
    assert told in text
    assert text == (tmp_path / "failure.txt").read_text()


@pytest.mark.parametrize(("world_size", "device"), [(1, "cuda"), (2, "cpu")])
def test_only_processes_that_share_gpus_are_watched(monkeypatch, world_size, device):
    monkeypatch.setattr(watching.threading, "Thread", lambda **_: pytest.fail("is watched"))
    watching.WatchOthers(RunState(Session())).setup(trainer(world_size, device), None, "fit")


def test_the_watch_ends_when_the_run_is_over(monkeypatch):
    monkeypatch.setattr(watching, "_EVERY_S", 0.01)
    at_end = []
    callback = watching.WatchOthers(RunState(Session(), at_end=at_end.append))
    callback.setup(trainer(2, "cuda"), None, "fit")
    [thread] = [each for each in threading.enumerate() if each.name.endswith("(_watch)")]
    at_end[0]()
    thread.join(10)
    assert not thread.is_alive()


def test_a_failure_of_the_process_itself_is_told_by_it_alone(monkeypatch):
    noticed = threading.Event()
    monkeypatch.setattr(watching, "_EVERY_S", 0.01)
    monkeypatch.setattr(watching, "nccl_failure", lambda: noticed.set() or "REMOTE_ERROR")
    at_end, failures = [], []
    run = RunState(Session(), fail=failures.append, at_end=at_end.append, failure=KeyError("a"))
    watching.WatchOthers(run).setup(trainer(2, "cuda"), None, "fit")
    [thread] = [each for each in threading.enumerate() if each.name.endswith("(_watch)")]
    assert noticed.wait(10)
    at_end[0]()
    thread.join(10)
    assert not (thread.is_alive() or failures)
