"""`prune` shows what could be deleted and deletes it when told; `sessions --size` what is taken."""

import csv
import io
import os
import re
from pathlib import Path

import pytest
import torch
from folders import make_checkpoint, make_session, scores
from living import living_run

from lightning_trainer.commands import prune as module
from lightning_trainer.commands.sizes import disk_bytes, format_bytes
from lightning_trainer.session.lock import SessionLock

FAILED = {"state": "failed", "iteration": 3, "score": None, "times": {}}


def make_finished(folder: Path, tag: str, second: int = 0) -> Path:
    session = make_session(
        folder, tag, second=second, run={}, rows=scores(0.5), checkpoint=make_checkpoint(40)
    )
    torch.save(make_checkpoint(30), session / "checkpoints/best.ckpt")
    return session


@pytest.fixture
def experiments(tmp_path) -> Path:
    folder = tmp_path / "experiments"
    make_finished(folder, "done")
    make_session(folder, "bad", second=1, run=FAILED)
    make_session(folder, "late", second=2, rows=scores(0.5), run={"state": "failed"})
    make_session(folder, "stopped", second=3, run={**FAILED, "state": "interrupted"})
    return folder


def content(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_nothing_is_deleted_without_a_yes(run, experiments):
    before = content(experiments)
    code, out, err = run("prune", experiments)
    assert (code, err) == (0, "")
    lines = [re.split("  +", line) for line in out.splitlines()]
    assert [line[:3] for line in lines[1:-1]] == [
        ["2024_02_29_12_00_00_done", "last.ckpt", "finished: best.ckpt stays"],
        ["2024_02_29_12_00_01_bad", "the folder", "failed before its first validation"],
    ]
    assert re.fullmatch(r"[\d.]+ kB could be deleted: `prune --yes` does it", lines[-1][0])
    assert content(experiments) == before


def test_a_yes_deletes_that_and_nothing_else(run, experiments):
    before = content(experiments)
    code, out, _ = run("prune", experiments, "--yes")
    assert (code, out.splitlines()[-1]) == (0, "Deleted: 2 of 2")
    gone = {name.partition("_00_0")[2] for name in before - content(experiments)}
    assert gone == {"0_done/checkpoints/last.ckpt", "1_bad"} | {
        f"1_bad/{name}" for name in ("config.yaml", "environment.yaml", "log.txt", "run.json")
    }
    assert run("prune", experiments)[1] == f"{experiments} has nothing to delete\n"


def test_a_tag_chooses(run, experiments):
    assert "done" not in run("prune", experiments, "--tag", "bad")[1]


def test_a_session_in_use_is_left_alone(run, experiments, monkeypatch):
    """Also one that a run takes between the table and the deletion."""
    monkeypatch.setattr(SessionLock, "acquire", lambda self, command: "process 7 on node1 (fit)")
    before = content(experiments)
    code, _, err = run("prune", experiments, "--yes")
    assert (code, err.count("is in use by process 7 on node1 (fit): left alone")) == (1, 2)
    assert content(experiments) == before


def test_a_training_without_validations_keeps_its_only_checkpoint(run, tmp_path):
    checkpoint = make_checkpoint(3, best=None)
    session = make_session(tmp_path, run=FAILED, checkpoint=checkpoint)
    assert "failed before its first validation" in run("prune", tmp_path)[1]
    (session / "config.yaml").write_text("trainer: {limit_val_batches: 0}")
    assert run("prune", tmp_path, "--yes")[1].endswith("has nothing to delete\n")


@pytest.mark.long
def test_a_running_one_is_none_of_them(run, tmp_path):
    with living_run(tmp_path) as (_, session):
        assert "has nothing to delete" in run("prune", session)[1]


def test_a_whole_best_checkpoint_is_what_last_may_go_for(run, experiments):
    best = next(experiments.glob("*done")) / "checkpoints/best.ckpt"
    best.write_bytes(best.read_bytes()[:-9])
    code, _, err = run("prune", experiments, "--yes", "--tag", "done")
    assert (code, "last.ckpt is left" in err) == (1, True)
    best.unlink()
    assert "has nothing to delete" in run("prune", experiments, "--tag", "done")[1]
    os.link(best.with_name("last.ckpt"), best)  # two names of one file
    assert "has nothing to delete" in run("prune", experiments, "--tag", "done")[1]


def test_what_a_link_leads_to_stays(run, experiments, tmp_path):
    archive = tmp_path / "archive"
    elsewhere = make_session(archive, "elsewhere", second=5, run=FAILED)
    (experiments / "more").symlink_to(archive)
    (experiments / elsewhere.name).symlink_to(elsewhere)
    done = next(experiments.glob("*done"))
    (done / "checkpoints").rename(tmp_path / "disk")
    (done / "checkpoints").symlink_to(tmp_path / "disk")
    inside = next(experiments.glob("*bad")) / "link"
    inside.symlink_to(archive)
    assert run("prune", experiments, "--yes")[0] == 0
    assert elsewhere.exists() and (tmp_path / "disk/last.ckpt").exists()
    assert not inside.parent.exists()


def test_what_has_changed_since_the_table_stays(run, experiments, monkeypatch):
    table = module._table

    def going_on(wastes) -> str:
        (next(experiments.glob("*bad")) / "checkpoints").mkdir()
        (next(experiments.glob("*bad")) / "checkpoints/best.ckpt").touch()
        return table(wastes)

    monkeypatch.setattr(module, "_table", going_on)
    code, _, err = run("prune", experiments, "--yes", "--tag", "bad")
    assert (code, "has changed meanwhile: left alone" in err) == (1, True)


def test_a_folder_that_is_missing_is_one_message(run):
    code, _, err = run("prune", "nowhere")
    assert (code, err.splitlines()[0][:30]) == (2, "error: 'nowhere' can't be read")


def test_the_size_of_each_session_is_a_column(run, experiments):
    out = run("sessions", experiments, "--size")[1]
    assert out.split()[2] == "size"
    rows = csv.DictReader(io.StringIO(run("sessions", experiments, "--size", "--format=csv")[1]))
    sizes = {row["tag"]: int(row["bytes"]) for row in rows}
    done = next(experiments.glob("*done"))
    assert sizes["done"] == sum(p.stat().st_size for p in done.rglob("*") if p.is_file())


def test_a_file_with_two_names_counts_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    os.link(tmp_path / "a", tmp_path / "b")
    assert disk_bytes(tmp_path) == 1000


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_400_000, "3.4 MB"), (5e13, "50.0 TB")],
)
def test_sizes_are_told_in_units_of_1000(n, text):
    assert format_bytes(n) == text
