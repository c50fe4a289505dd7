"""run.json keeps what a table shows of two files, as long as they are as they were."""

import os
import shutil

import pytest
from folders import make_session

from lightning_trainer.session import record
from lightning_trainer.session.record import Record
from lightning_trainer.session.run_record import RunRecord


@pytest.fixture
def no_yaml(monkeypatch):
    monkeypatch.setattr(record, "load_yaml", lambda path: pytest.fail(f"{path} was read"))


def test_a_real_session_is_read_without_its_yaml_files_and_the_same(whole, monkeypatch):
    facts = RunRecord.load(whole).facts
    monkeypatch.setattr(record, "still_true", lambda facts, path: None)
    slow = Record.read(whole)
    monkeypatch.undo()
    monkeypatch.setattr(record, "load_yaml", lambda path: pytest.fail(f"{path} was read"))
    fast = Record.read(whole)
    assert fast == slow
    assert facts["settings"]["model.learning_rate"] == 0.01


def test_a_moved_session_is_read_so_too(whole, tmp_path, no_yaml):
    assert Record.read(shutil.copytree(whole, tmp_path / "moved")).tag == "tiny"


def test_a_file_that_has_changed_since_is_read(done):
    config = done / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert Record.read(done).settings["model.learning_rate"] == 0.02
    config.unlink()
    assert Record.read(done).settings["model.learning_rate"] == 0.01  # of the checkpoint


@pytest.mark.parametrize("facts", [{}, {"settings": 1, "files": [1]}, {"files": []}, None])
def test_what_else_may_stand_there_is_ignored(tmp_path, facts):
    session = make_session(tmp_path, "a", run={"facts": facts})
    assert Record.read(session).settings["model.learning_rate"] == 0.001


def test_the_time_of_a_file_counts_too(done):
    before = (done / "config.yaml").stat()
    text = (done / "config.yaml").read_text()
    (done / "config.yaml").write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert (done / "config.yaml").stat().st_size == before.st_size
    os.utime(done / "config.yaml", ns=(0, before.st_mtime_ns + 1))
    assert Record.read(done).settings["model.learning_rate"] == 0.02
