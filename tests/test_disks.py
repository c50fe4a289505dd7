"""A file operation that fails ends in a message or costs nothing, and nothing is lost.

DISK_FAULTS=300 pytest -m slow tests/test_disks.py
"""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest
from disks import Fault, all_faults, fit_on, operations, run_on, survive
from restarts import result

N_FAULTS = int(os.environ.get("DISK_FAULTS", 100))

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)


SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def never_failed(tmp_path_factory) -> tuple[dict, dict]:
    """The result of a run that does not fail, and how many operations of each kind it makes."""
    folder = tmp_path_factory.mktemp("disks")
    run = fit_on(folder / "whole", log=folder / "operations.txt")
    assert run.code == 0, run.err
    return result(run.session), operations(folder / "operations.txt")


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault("fsync", "checkpoints folder", 1, "EINVAL", True), "went on"),
        pytest.param(Fault("fsync", "last.ckpt", 1, "ENOSYS", True), "went on", marks=SLOW),
        pytest.param(Fault("mmap", "last.ckpt", 1, "ENODEV", True), "went on", marks=SLOW),
        (Fault("link", "best.ckpt", 1, "EPERM", True), "went on"),
        pytest.param(Fault("lock", ".lock", 1, "EINVAL", True), "went on", marks=SLOW),
        (Fault("write", "last.ckpt", 3, "ENOSPC", True), "ended"),
        pytest.param(Fault("rename", "best.ckpt", 2, "EROFS", True), "ended", marks=SLOW),
        (Fault("create", "metrics.csv", 2, "EIO", True), "ended"),
        pytest.param(Fault("truncate", "metrics.csv", 2, "EIO", True), "went on", marks=SLOW),
        pytest.param(Fault("write", "TensorBoard", 12, "EDQUOT", True), "went on", marks=SLOW),
        (Fault("create", "run.json", 2, "EACCES", True), "went on"),
        pytest.param(Fault("create", "environment.yaml", 1, "EIO", True), "ended", marks=SLOW),
    ],
    ids=str,
)
def test_nothing_is_lost(never_failed, tmp_path, fault, outcome):
    assert survive(fault, tmp_path / "disk", never_failed[0]) == outcome


@pytest.mark.slow
def test_nothing_is_lost_at_many_places(never_failed, tmp_path):
    whole, done = never_failed
    faults = random.Random(0).sample(all_faults(done), N_FAULTS)
    told = {fault: survive(fault, tmp_path / str(i), whole) for i, fault in enumerate(faults)}
    assert {fault: text for fault, text in told.items() if text not in ("went on", "ended")} == {}


@pytest.mark.long
def test_a_session_on_a_disk_that_refuses_all_writing_is_tested(tmp_path):
    session = fit_on(tmp_path / "disk").session
    before = {path: path.read_bytes() for path in session.rglob("*") if path.is_file()}
    run = run_on(tmp_path / "disk", "test", "--ckpt_path", session, fault="create 1 30 on *")
    assert run.code == 0, run.err
    assert f"{session} can't be written to (Read-only file system): results are shown" in run.out
    assert "Test score (" in run.out
    assert {path: path.read_bytes() for path in session.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_predictions_that_can_not_be_written_leave_no_part_of_a_file(tmp_path):
    session: Path = fit_on(tmp_path / "disk").session
    fault = Fault("write", "predictions.pt", 1, "ENOSPC", True)
    run = run_on(tmp_path / "disk", "predict", "--ckpt_path", session, fault=fault)
    assert run.code == 1
    assert run.err.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in run.err
    assert "Traceback" not in run.err
    assert not [*session.glob("predictions*")]
