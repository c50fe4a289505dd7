"""The GPU programme's frame: rows end in time, whatever they do, and are written as they come."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT
from forks import ForkedProcess, start_server

sys.path.append(str(ROOT / "benchmarks"))

import gpu
from gpu_frame import Bench, Ended, Log, Result, Row, Settings, Table, run_row, run_rows
from gpu_restarts import TINY, judge, verify


@pytest.fixture
def settings(tmp_path):
    return Settings("cpu", tmp_path, log=Log(tmp_path / "log"))


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "results.md", "One GPU: numbers", "Facts.")


@pytest.fixture
def rows(tmp_path):
    """The rows of the file of results: id, what, result, passes."""

    def rows_() -> list[list[str]]:
        lines = (tmp_path / "results.md").read_text().splitlines()
        found = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        return [cells[:4] for cells in found[2:]]

    return rows_


def test_every_row_of_the_plan_is_there():
    ids = [name for part in gpu.PARTS.values() for row in part for name in row.id.split(", ")]
    tests_ = {"T1", "T2-T4", "T6", "T7-T10", "T11", "T12", "T13", "T14", "T15", "T18", "others"}
    tests_.add("loops")
    restarts = {f"G{n}" for n in range(1, 11)} | {"G4b", "N1", "N2", "N3"}
    assert {*ids} == tests_ | restarts | {f"B{n}" for n in range(1, 13)} | {"soak"}
    for part in gpu.PARTS.values():
        assert all(row.limit_s <= 300 for row in part)


def test_every_test_of_a_gpu_is_run_by_a_row():
    source = (ROOT / "benchmarks/gpu.py").read_text()
    own = [f"tests/gpu/{path.name}" for path in (ROOT / "tests/gpu").glob("test_*.py")]
    assert own
    assert all(name in source for name in own)
    assert "tests/base/test_sampling.py" in gpu.MARKED


def test_rows_are_written_as_they_come_and_a_row_that_fails_ends_no_other(settings, table, rows):
    seen = []

    def measure(bench: Bench):
        yield Result("good", True)
        seen.append(rows())
        yield Result("only told", what="more closely")
        raise ValueError("no | kernel")

    after = Row("B2", "later", 9, lambda bench: iter([Result("bad", False)]))
    assert not run_rows([Row("B1", "a step", 9, measure), after], settings, table)
    assert seen == [[["B1", "a step", "good", "yes"]]]
    assert rows()[1:] == [
        ["B1", "a step: more closely", "only told", "reported"],
        ["B1", "a step", "failed: no / kernel", "failed"],
        ["B2", "later", "bad", "no"],
    ]


def test_a_row_whose_time_is_over_is_ended_with_all_that_it_started(settings, table, rows):
    starts = "import subprocess as s, sys; s.Popen(['sleep', '987'], start_new_session=True).wait()"

    def measure(bench: Bench):
        yield Result(bench.run("-c", starts).output)

    started_s = time.monotonic()
    assert not run_row(Row("T1", "hangs", 0.5, measure), settings, table)
    assert time.monotonic() - started_s < 5
    assert rows() == [["T1", "hangs", "failed: the row's time is over", "failed"]]
    found = subprocess.run(["pgrep", "-f", "^sleep 987"], capture_output=True, text=True)
    assert not found.stdout


def test_rows_that_begin_after_the_end_are_not_run(settings, table, rows):
    settings.ends_at_s = time.monotonic() + 1
    assert not run_row(Row("B1", "late", 9, lambda bench: iter(())), settings, table)
    assert rows() == [["B1", "late", "no time left", "not run"]]


def test_what_needs_a_gpu_is_skipped_without_one(settings, table, rows):
    assert run_row(Row("N3", "NCCL", 9, lambda bench: 1 / 0, needs_gpu=True), settings, table)
    assert rows() == [["N3", "NCCL", "skipped: needs a GPU", "skipped"]]


def test_a_section_of_results_is_replaced_and_the_others_stay(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("# Results\n\n## One GPU: recipe\n\nold\n\n## Another\n\nkept\n")
    Table(path, "One GPU: recipe", "new facts").add("B6", "a", "b", "yes", "1")
    text = path.read_text()
    assert text.startswith("# Results\n\n## Another\n\nkept\n\n## One GPU: recipe\n\nnew facts\n")
    assert "old" not in text
    assert text.endswith("| B6 | a | b | yes | 1 |\n")


def test_ids_choose_rows():
    assert [row.id for row in gpu.chosen("numbers", "B2,B1")] == ["B1", "B2"]
    assert len(gpu.chosen("correctness", "T13")) == 1
    with pytest.raises(SystemExit, match="no row B99: there are "):
        gpu.chosen("numbers", "B99")


@pytest.mark.parametrize(
    ("code", "output", "text", "passes"),
    [
        (0, "EQUAL: bitwise as if it had never been killed.", "EQUAL", True),
        (
            1,
            "NOT EQUAL to the run that was never killed.\n    first at iteration 8, after "
            "restart 1:\n        loss: 0.5, not 0.25\n    last.ckpt: 3 of 43 differ (a)",
            "NOT EQUAL: first at iteration 8, after restart 1: loss: 0.5, not 0.25",
            False,
        ),
        (2, "error: no key\n(more: --help)", "not available: error: no key", "not available"),
    ],
)
def test_what_verify_says_is_a_row(code, output, text, passes):
    assert judge(Ended(code, output)) == Result(text, passes)


@pytest.fixture
def forking(settings, monkeypatch):
    """Lets rows fork their scripts, as a rehearsal does."""
    for name in ("PYTHONPATH", "PYTHONUNBUFFERED", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # given back afterwards
    gpu.prepare("cpu")
    monkeypatch.setenv("FORKS", start_server())
    settings.popen = ForkedProcess
    return settings


@pytest.mark.long
def test_a_row_that_measures_and_one_that_is_refused(forking, table, rows):
    [copies] = gpu.chosen("numbers", "B2")
    refused = Row("G1", "refused", 60, verify(*TINY, "--model.no_such_option=1"))
    assert run_rows([copies, refused], forking, table)
    *told, last = rows()
    assert [cells[3] for cells in told] == ["reported"] * 4
    assert last[3] == "not available"
    assert "no_such_option" in last[2]


@pytest.mark.slow
@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_part_is_rehearsed_on_the_cpu(part, tmp_path, rows):
    options = ["--device=cpu", f"--results={tmp_path}/results.md", f"--log={tmp_path}/log"]
    command = [sys.executable, "benchmarks/gpu.py", part, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {cells[0] for cells in rows()} == {row.id for row in gpu.PARTS[part]}
