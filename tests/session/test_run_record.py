"""run.json: what a run has written is read back, or not at all."""

import json

import pytest
from folders import make_run

from lightning_trainer.session.run_record import RunRecord


def test_what_was_written_is_read_back(tmp_path):
    record = RunRecord(command="fit")
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    ended = make_run(reason="all 600 iterations are done", by="signal", n_iterations=600)
    ended.write(tmp_path)
    assert RunRecord.read(tmp_path) == ended
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_says_who_it_is_and_when_it_was(tmp_path):
    RunRecord(command="test").write(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    assert (content["version"], content["command"], content["state"]) == (1, "test", "running")
    assert content["pid"] > 0
    assert content["host"]
    assert content["started"] <= content["updated"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"iteration": "3"},
        {"iteration": True},
        {"score": [1]},
        {"times": None},
        {"command": 1},
    ],
)
def test_a_record_of_another_kind_is_none(tmp_path, change):
    make_run().write(tmp_path)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert RunRecord.read(tmp_path) is None


def test_what_a_later_version_adds_is_no_damage(tmp_path):
    record = make_run()
    record.write(tmp_path)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    assert RunRecord.read(tmp_path) == record


@pytest.mark.parametrize("text", [None, "", "[1]", "{", "3", "[" * 100_000, "\0", "9" * 10_000])
def test_a_damaged_or_missing_record_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert RunRecord.read(tmp_path) is None


def test_a_file_cut_anywhere_is_none(tmp_path):
    make_run().write(tmp_path)
    path = tmp_path / "run.json"
    content = path.read_bytes()
    for length in range(len(content) - 1):  # without its last line's end it is still whole
        path.write_bytes(content[:length])
        assert RunRecord.read(tmp_path) is None


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    make_run(reason="x" * 2**20).write(tmp_path)
    assert RunRecord.read(tmp_path) is None


def test_a_full_disk_is_the_business_of_the_caller(tmp_path):
    with pytest.raises(OSError):
        make_run().write(tmp_path / "none")
