"""One message, or a traceback, of what failed first."""

import errno
from pathlib import Path

import pytest
from conftest import TinyModule

from lightning_trainer.start import failure
from lightning_trainer.start.failure import report_failure


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
    report_failure(*args)
    return capsys.readouterr().err


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


def test_another_process_leaves_the_telling_to_the_first(capsys, tmp_path):
    shown(capsys, raised(KeyError("boom")), tmp_path, Two(0))
    lost = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    assert shown(capsys, raised(lost), tmp_path, Two(1)) == ""


def test_where_none_tells_its_end_the_loss_of_contact_is_told(capsys, tmp_path):
    lost = raised(RuntimeError("Connection reset by peer"))
    text = shown(capsys, lost, tmp_path, Two(0))
    assert text.splitlines()[-1].startswith("error: contact with another process was lost")


def test_a_process_that_knows_no_folder_yet_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "KeyError" in shown(capsys, raised(KeyError("a")), Path(), Two(1))
    assert list(tmp_path.iterdir()) == []


def test_what_a_library_refuses_is_told_with_its_place_in_the_project(run, config, monkeypatch):
    code, _, err = run("fit", "--config", config, "--model.learning_rate=-1")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: Invalid learning rate: -1.0 (in `create_optimiser`, ")
    assert TinyModule.__module__ in last
