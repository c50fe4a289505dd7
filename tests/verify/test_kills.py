"""A run is killed, with all that it has started, at moments of its own trail."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_trainer.verify.command import _end_by_signals
from lightning_trainer.verify.kills import Moment, Run, draw_moments

# Stands for cli.py: an iteration takes 20 ms, and a validation after each fourth one 150 ms. The
# state of the run is the text of its checkpoint.
SCRIPT = """\
import json, os, subprocess, sys, time
from pathlib import Path

options = dict(option.partition("=")[::2] for option in sys.argv[2:] if "=" in option)
if "--fail" in options:
    print("some line\\\\n" * 99 + "the reason")
    sys.exit(int(options["--fail"]))
if "--ckpt_path" in sys.argv:
    session = Path(sys.argv[-1])
else:
    session = Path(options["--output_path"], "session_1")
    (session / "checkpoints").mkdir(parents=True)
    (session / "options.json").write_text(json.dumps(sys.argv[1:]))
last = session / "checkpoints/last.ckpt"
helper = subprocess.Popen(["sleep", "60"])
with (session / "helpers.txt").open("a") as file:
    print(helper.pid, file=file)

def write(event, iteration, batch):
    line = {"event": event, "iteration": iteration, "batch": batch, "time_s": time.monotonic()}
    with (session / "trail_rank0.jsonl").open("a") as file:
        file.write(json.dumps(line))
        file.write("\\\\n")

for i in range(int(last.read_text()) if last.exists() else 0, 12):
    write("batch", i + 1, i + 1)
    time.sleep(0.02)
    last.write_text(str(i + 1))
    if i % 4 == 3:
        write("validating", i + 1, 1)
        time.sleep(0.15)
        write("validated", i + 1, None)
helper.kill()
"""


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def make_run(tmp_path, monkeypatch, reports):
    """make_run(*options) -> a run whose `fit` is the script."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("\\\\", "\\"))
    monkeypatch.setattr(sys, "argv", [str(script)])
    return lambda *options: Run(tmp_path / "run", list(options), reports.append)


def lines(session: Path) -> list[tuple]:
    text = session.joinpath("trail_rank0.jsonl").read_text()
    return [(e["event"], e["iteration"]) for e in map(json.loads, text.splitlines())]


def runs(pid: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")


def test_a_run_ends_by_itself_where_it_is_not_killed(make_run, reports, tmp_path):
    session = make_run("--tag=a").finish()
    assert session == tmp_path / "run/session_1"
    assert ("batch", 12) in lines(session)
    assert json.loads((session / "options.json").read_text()) == [
        "fit",
        "--tag=a",
        f"--output_path={tmp_path / 'run'}",
        "--trainer.default_root_dir=null",
        "--trainer.callbacks+=lightning_trainer.verify.trail.RecordTrail",
        f"--trainer.callbacks.watched={os.getpid()}",
    ]
    assert reports == []


def test_it_is_killed_at_each_moment_and_goes_on_to_its_end(make_run, reports):
    run = make_run()
    moments = [
        Moment("batch", 3, 3, 0.0),
        Moment("validating", 5, 1, 0.001),
        Moment("batch", 10, 10, 0.005),
    ]
    session = run.finish_with_kills(moments, n_iterations=12)
    # A busy machine may see a moment an iteration late.
    assert run.kills[0] in ("at iteration 3", "at iteration 4", "at iteration 4, in its validation")
    assert run.kills[1] == "at iteration 8, in its validation"
    assert run.kills[2].startswith("at iteration 1")
    assert reports == [f"killed {where}; goes on" for where in run.kills]
    assert lines(session)[-1] == ("validated", 12)


def test_what_it_has_started_is_killed_as_well(make_run):
    run = make_run()
    session = run.finish_with_kills([Moment("batch", 2, 2, 0.0)], n_iterations=12)
    killed, _ = (session / "helpers.txt").read_text().split()
    deadline = time.monotonic() + 5
    while runs(killed) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(killed)


def test_it_is_not_killed_before_there_is_a_checkpoint(make_run):
    run = make_run()
    run.finish_with_kills([Moment("batch", 1, 1, 0.0)], n_iterations=12)
    assert len(run.kills) == 1
    assert run.kills != ["at iteration 1"]


def test_a_moment_that_it_does_not_live_to_see_is_told(make_run, reports):
    run = make_run()
    run.finish_with_kills([Moment("batch", 13, 13, 0.0)], n_iterations=12)
    assert (run.kills, reports) == ([], ["ended before the next kill"])


def test_killed_after_its_last_checkpoint_it_is_not_started_again(make_run, reports, monkeypatch):
    run = make_run()
    monkeypatch.setattr(run, "_is_done", lambda n_iterations: True)
    run.finish_with_kills([Moment("validating", 12, 1, 0.0)], n_iterations=12)
    assert reports == ["killed at iteration 12, in its validation"]


def test_a_run_that_fails_shows_the_end_of_its_output(make_run):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        make_run("--fail=3").finish()
    assert (failure.value.returncode, failure.value.cmd) == (3, "fit")
    assert failure.value.output.splitlines()[-2:] == ["some line", "the reason"]
    assert len(failure.value.output.splitlines()) == 15


def test_a_restart_that_fails_is_told_from_a_first_start(make_run):
    run = make_run()
    run.kills.append("at iteration 1")
    (run.folder / "session_1").mkdir()  # without a folder for checkpoints
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run.finish()
    assert failure.value.cmd == f"fit --ckpt_path {run.session}"


def session_of(folder: Path, n_iterations: int, interval: int) -> Path:
    """A trail of iterations of 1 s, every other one with a line, and validations of 2 times 5 s."""
    now_s, trail = 0.0, [{"event": "start", "iteration": 0, "time_s": 0.0}]
    for i in range(1, n_iterations + 1):
        now_s += 1
        trail.append({"event": "batch", "iteration": i, "batch": i, "time_s": now_s})
        if interval and i % interval == 0:
            for batch in (1, 2):
                trail.append(
                    {"event": "validating", "iteration": i, "batch": batch, "time_s": now_s}
                )
                now_s += 5
            trail.append({"event": "validated", "iteration": i, "time_s": now_s})
    text = "".join(f"{json.dumps(line)}\n" for line in trail)
    folder.joinpath("trail_rank0.jsonl").write_text(text)
    rows = "".join(f"{i},1.0\n" for i in range(2, n_iterations + 1, 2))
    folder.joinpath("metrics.csv").write_text(f"step,timing/update_ms\n{rows}")
    return folder


@pytest.mark.parametrize("n_iterations", [4, 20, 99])
def test_moments_are_in_a_step_after_a_line_and_in_a_validation_and_never_others(
    tmp_path, n_iterations
):
    session = session_of(tmp_path, n_iterations, interval=3)
    moments = draw_moments(session)
    assert moments == draw_moments(session)
    assert sorted(m.event for m in moments) == ["batch", "batch", "validating"]
    assert [m.iteration for m in moments] == sorted(m.iteration for m in moments)
    (line,) = (m for m in moments if m.event == "batch" and m.delay_s == 0)
    assert line.iteration % 2 == 0
    assert line.iteration < n_iterations
    (validation,) = (m for m in moments if m.event == "validating")
    assert validation.iteration % 3 == 0
    assert validation.batch in (1, 2)
    assert validation.delay_s == 0
    (step,) = (m for m in moments if m not in (line, validation))
    assert 0 < step.delay_s < 1


def test_a_run_without_validations_or_lines_has_fewer_moments(tmp_path):
    assert len(draw_moments(session_of(tmp_path, 20, interval=0))) == 2
    (tmp_path / "metrics.csv").unlink()
    assert len(draw_moments(tmp_path)) == 1
    (tmp_path / "trail_rank0.jsonl").unlink()
    assert draw_moments(tmp_path) == []


def test_in_a_run_of_several_epochs_one_moment_is_after_the_last_batch_of_one(tmp_path):
    session = session_of(tmp_path, 20, interval=0)
    trail = session / "trail_rank0.jsonl"
    lines_ = [json.loads(line) for line in trail.read_text().splitlines()]
    epochs = [{**line, "epoch": (line["iteration"] - 1) // 7} for line in lines_]
    trail.write_text("".join(f"{json.dumps(line)}\n" for line in epochs))
    moments = draw_moments(session)
    assert len(moments) == 3
    assert {7, 14} & {m.iteration for m in moments if m.delay_s == 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_what_it_has_started(make_run, tmp_path, number, request):
    # In the background of a shell, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    run, helpers = make_run(), tmp_path / "run/session_1/helpers.txt"

    def send() -> None:
        while not helpers.exists() or not helpers.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with pytest.raises(KeyboardInterrupt), _end_by_signals():
        run.finish()
    deadline = time.monotonic() + 5
    while runs(helpers.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(helpers.read_text().strip())
