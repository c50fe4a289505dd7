"""The log line: its format, and that each of its figures is what the design defines."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import scripted
from restarts import Killed
from scripted import PROJECT, training_log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_trainer.report.log_line import format_line
from lightning_trainer.run.state import Progress, rule

RULE = rule()

LINE = Progress(
    iteration=100,
    n_iterations=10_000,
    examples_per_s=7785.4,
    loss=1.38322,
    elapsed_s=2.9,
    left_s=286.0,
    fetch_ms=2.1,
    update_ms=6.9,
)


@pytest.fixture
def script(monkeypatch):
    return scripted.start(monkeypatch)


def rows(session: Path) -> dict[int, dict[str, str]]:
    """metrics.csv by step."""
    with (session / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def events(session: Path) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars by name and step."""
    accumulator = EventAccumulator(str(session))
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: {e.step: e.value for e in accumulator.Scalars(name)} for name in names}


def test_a_line_has_the_format_of_the_guide():
    assert format_line(LINE) == (
        "Iteration    100/10000 | examples/s: 7785.4 | loss: 1.3832 | time elapsed: 00h00m02s"
        " | time left: 00h04m46s\n"
        "Fetch data time: 2ms, model update time: 7ms"
    )


def test_a_line_of_a_run_without_end_says_so():
    endless = replace(LINE, n_iterations=math.inf, left_s=math.inf)
    assert format_line(endless) == (
        "Iteration    100/? | examples/s: 7785.4 | loss: 1.3832 | time elapsed: 00h00m02s"
        " | time left: unknown\n"
        "Fetch data time: 2ms, model update time: 7ms"
    )


def test_a_line_of_a_long_run_shows_all_its_hours():
    long = replace(LINE, iteration=12_345_678, elapsed_s=359_999.9, left_s=4e6)
    assert format_line(long).splitlines()[0] == (
        "Iteration 12345678/10000 | examples/s: 7785.4 | loss: 1.3832 | time elapsed: 99h59m59s"
        " | time left: 1111h06m40s"
    )


def test_a_whole_run_prints_what_its_clock_says(run, config, script, sessions):
    script.late_s = {1: 100.0, 3: 0.75}
    script.scores = {5: 0.25, 10: 0.125}
    code, out, err = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=12")
    assert code == 0, err
    best = sessions()[0] / "checkpoints" / "best.ckpt"
    # Line 4 is over iterations 2 to 4: 12 examples in 3 x 0.5 + 0.75 s. To come: 8 such iterations,
    # and three validations of three batches of 0.5 s, as long as the sanity check's last one.
    # At 5 a checkpoint is written before the validation too, as a tenth of `save_minutes` is over.
    # Line 8: elapsed 102.75 + 4 x 0.5 + 2 + 1.5 + 2 = 110.25 s. To come: 4 iterations of 0.625 s,
    # the mean of both lines, and two validations with a checkpoint each, 2 x (1.5 + 2) s.
    # Line 12: elapsed 110.25 + 4 x 0.5 + 1.5 + 2 = 115.75 s. To come: the validation at the end.
    expected = f"""\
Iteration      4/12 | examples/s: 5.3 | loss: 2.5000 | time elapsed: 00h01m42s | time left: 00h00m10s
Fetch data time: 125ms, model update time: 625ms
{RULE}
Validation
{RULE}
Val loss: 0.6250
{RULE}
Metrics
{RULE}
Train score: 3.000
Val score (points, higher is better): 0.250
New best score (points, higher is better): -inf -> 0.250
Model saved to: {best}

{RULE}
Iteration      8/12 | examples/s: 8.0 | loss: 6.5000 | time elapsed: 00h01m50s | time left: 00h00m09s
Fetch data time: 125ms, model update time: 375ms
{RULE}
Validation
{RULE}
Val loss: 1.2500
{RULE}
Metrics
{RULE}
Train score: 8.000
Val score (points, higher is better): 0.125

{RULE}
Iteration     12/12 | examples/s: 8.0 | loss: 10.5000 | time elapsed: 00h01m55s | time left: 00h00m03s
Fetch data time: 125ms, model update time: 375ms
{RULE}
Validation
{RULE}
Val loss: 1.5000
{RULE}
Metrics
{RULE}
Train score: 11.500
Val score (points, higher is better): 0.500
New best score (points, higher is better): 0.250 -> 0.500
Model saved to: {best}

{RULE}
"""  # noqa: E501
    assert training_log(out) == expected


def lines(out: str) -> str:
    """The log lines alone."""
    found = re.findall(r"^(?:Iteration|Fetch data time).*$", out, flags=re.MULTILINE)
    return "\n".join(found) + "\n"


def test_a_run_that_goes_on_prints_what_is_true_of_the_whole_run(run, config, script, sessions):
    script.die_at = 11
    with pytest.raises(Killed):
        run("fit", "--config", config, *PROJECT, "--trainer.max_steps=15")
    script.die_at = 0
    script.late_s = {11: 50.0}
    code, out, err = run("fit", "--ckpt_path", sessions()[0])
    assert code == 0, err
    # The checkpoint of iteration 10 was begun after 10 x 0.5 + 2 + 2 x 1.5 = 10 s; iteration 11
    # again takes 50.5 s, is left out of the timings and counts in the time elapsed; iteration 12
    # has the loss of 9 and 10 from before the restart in its mean. To come: 3 iterations of 0.5 s
    # and one validation of 1.5 s with a checkpoint of 2 s.
    expected = """\
Iteration     12/15 | examples/s: 8.0 | loss: 10.5000 | time elapsed: 00h01m01s | time left: 00h00m05s
Fetch data time: 125ms, model update time: 375ms
"""  # noqa: E501
    assert lines(out) == expected


def test_accumulated_batches_make_one_iteration(run, config, script):
    flags = ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=8", "--data.n_samples=26")
    code, out, err = run(
        "fit", "--config", config, *PROJECT, *flags, "--trainer.val_check_interval=9"
    )
    assert code == 0, err
    # An epoch has 7 batches, the last one of 2 samples, and 4 iterations, the last one of a single
    # batch. Two batches take 2 x (125 + 250) + 125 ms, a single one 500 ms.
    # Line 4, over 5 batches: 18 examples in 2 x 0.875 + 0.5 s; loss of batches 1 to 7; to come: 4
    # iterations of 0.75 s and the validation at the end, of 1.5 s by the sanity check.
    # Line 8, over 7 batches: 26 examples in 3 x 0.875 + 0.5 s; loss of batches 8 to 14; to come:
    # the validation.
    expected = """\
Iteration      4/8 | examples/s: 8.0 | loss: 4.0000 | time elapsed: 00h00m03s | time left: 00h00m04s
Fetch data time: 208ms, model update time: 542ms
Iteration      8/8 | examples/s: 8.3 | loss: 11.0000 | time elapsed: 00h00m06s | time left: 00h00m01s
Fetch data time: 219ms, model update time: 562ms
"""  # noqa: E501
    assert lines(out) == expected


def test_checkpoints_between_validations_are_left_out_of_the_timings(run, config, script, sessions):
    flags = ("--save_minutes=0", "--trainer.max_steps=8", "--trainer.val_check_interval=9")
    assert run("fit", "--config", config, *PROJECT, *flags)[0] == 0
    table = rows(sessions()[0])
    names = ("timing/examples_per_s", "timing/fetch_ms", "timing/update_ms")
    for step in (4, 8):
        assert [float(table[step][name]) for name in names] == [8.0, 125.0, 375.0]


def test_a_loader_of_the_projects_own_is_timed_too(run, config, script):
    flags = ("--model=scripted.ScriptedModule", "--data=scripted.OwnLoaderData")
    code, out, err = run("fit", "--config", config, *flags, "--trainer.max_steps=12")
    assert code == 0, err
    # It is one batch ahead. Its wait after a validation can't be told from that and is left out.
    # Line 8 has 3 copies, 1 fetch before each of iterations 5 and 8, 2 at the start of an epoch.
    # Line 12 has 3 copies, and 1 fetch before each of iterations 9 and 10.
    expected = """\
Iteration      4/12 | examples/s: 8.0 | loss: 2.5000 | time elapsed: 00h00m02s | time left: 00h00m08s
Fetch data time: 125ms, model update time: 375ms
Iteration      8/12 | examples/s: 8.3 | loss: 6.5000 | time elapsed: 00h00m07s | time left: 00h00m08s
Fetch data time: 109ms, model update time: 375ms
Iteration     12/12 | examples/s: 8.8 | loss: 10.5000 | time elapsed: 00h00m12s | time left: 00h00m03s
Fetch data time: 78ms, model update time: 375ms
"""  # noqa: E501
    assert lines(out) == expected


def test_a_loader_that_is_made_anew_is_timed_as_before(run, config, script):
    flags = ("--trainer.max_steps=16", "--trainer.val_check_interval=100")
    anew = "--trainer.reload_dataloaders_every_n_epochs=1"
    code, out, err = run("fit", "--config", config, *PROJECT, *flags, anew)
    assert code == 0, err
    assert out.count("Fetch data time: 125ms, model update time: 375ms\n") == 4


@pytest.mark.parametrize(("steps", "left"), [(2, 8), (1, 8), (0, 5)])
def test_before_the_first_validation_its_time_is_guessed(run, config, script, steps, left):
    """By the sanity check: the last of its batches; without one by a third of an iteration."""
    script.forward_s, script.step_s = 0.25, 0.125
    flags = ("--trainer.max_steps=12", f"--trainer.num_sanity_val_steps={steps}")
    code, out, err = run("fit", "--config", config, *PROJECT, *flags)
    assert code == 0, err
    # To come at 4: 8 iterations of 0.5 s, and three validations of three batches of 0.5 s, or
    # without the check of 0.5 / 3 s.
    assert f"time left: 00h00m{left:02d}s" in lines(out).splitlines()[0]


EPOCHS = ("--trainer.max_epochs=4", "--trainer.max_steps=-1")
ACCUMULATED = (
    *("--trainer.check_val_every_n_epoch=1", "--trainer.accumulate_grad_batches=3"),
    "--trainer.log_every_n_steps=1",
)


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        ("--trainer.val_check_interval=1",),
        ("--trainer.val_check_interval=4",),
        ("--trainer.val_check_interval=5",),
        ("--trainer.val_check_interval=5", "--trainer.accumulate_grad_batches=3"),
        (*EPOCHS, "--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"),
        (*EPOCHS, "--trainer.val_check_interval=0.5", "--trainer.check_val_every_n_epoch=1"),
        (*EPOCHS, "--trainer.val_check_interval=0.5", "--trainer.check_val_every_n_epoch=2"),
        *(
            (*EPOCHS, f"--trainer.val_check_interval={interval}", *ACCUMULATED)
            for interval in ("0.2", "0.4", "0.7", "1.0")
        ),
    ],
    ids=lambda flags: " ".join(flags[-4:]),
)
def test_elapsed_and_left_together_are_the_time_of_the_whole_run(run, config, script, flags):
    # Whole seconds, because the lines cut off the rest: an iteration's batch 1 s, a validation 3 s.
    script.forward_s, script.step_s, script.validation_batch_s = 0.875, 0.0, 1.0
    code, out, err = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=23", *flags)
    assert code == 0, err
    # What a validation takes is known after the first.
    known = out[out.index("Val loss") :]
    found = re.findall(r"elapsed: (\d+)h(\d+)m(\d+)s .* left: (\d+)h(\d+)m(\d+)s", known)
    times = [[int(number) for number in line] for line in found]
    sums = [3600 * (h + h2) + 60 * (m + m2) + s + s2 for h, m, s, h2, m2, s2 in times]
    total = re.search(r"Total time: +(\d+)h(\d+)m(\d+)s", out)
    hours, minutes, seconds = (int(number) for number in total.groups())
    assert len(sums) >= 3
    assert set(sums) == {3600 * hours + 60 * minutes + seconds}


def test_files_hold_the_numbers_that_were_printed_at_their_iteration(run, config, script, sessions):
    script.late_s = {3: 0.75, 11: 0.5}
    script.scores = {5: 0.25, 10: 0.125}
    code, out, err = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=12")
    assert code == 0, err
    table, scalars = rows(sessions()[0]), events(sessions()[0])
    line = re.compile(
        r"Iteration +(\d+)/12 \| examples/s: (.*?) \| loss: (.*?) \|.*\n"
        r"Fetch data time: (\d+)ms, model update time: (\d+)ms"
    )
    printed = {int(iteration): figures for iteration, *figures in line.findall(out)}
    assert list(printed) == [4, 8, 12]
    names = ("timing/examples_per_s", "train/loss", "timing/fetch_ms", "timing/update_ms")
    for get in (lambda name, step: table[step][name], lambda name, step: scalars[name][step]):
        assert printed == {
            step: [f"{float(get(n, step)):.{d}f}" for n, d in zip(names, (1, 4, 0, 0), strict=True)]
            for step in (4, 8, 12)
        }
    expected = {
        "val/loss": {5: 0.625, 10: 1.25, 12: 1.5},
        "val/points": {5: 0.25, 10: 0.125, 12: 0.5},
        "train/points": {5: 3.0, 10: 8.0, 12: 11.5},
        "learning_rate": {4: 0.125, 8: 0.125, 12: 0.125},
    }
    assert {name: scalars[name] for name in expected} == expected
    assert expected == {
        name: {step: float(row[name]) for step, row in table.items() if row[name]}
        for name in expected
    }
    assert sorted(table) == [4, 5, 8, 10, 12]


def test_each_parameter_group_has_its_learning_rate_logged(run, config, script, sessions):
    flags = ("--model.n_groups=2", "--trainer.max_steps=4")
    assert run("fit", "--config", config, *PROJECT, *flags)[0] == 0
    table = rows(sessions()[0])
    rates = {name: value for name, value in table[4].items() if name.startswith("learning_rate")}
    assert rates == {"learning_rate/group_0": "0.125", "learning_rate/group_1": "0.0625"}


def test_no_interval_means_no_lines(run, config, script):
    flags = ("--trainer.log_every_n_steps=0", "--trainer.max_steps=2")
    code, out, err = run("fit", "--config", config, *PROJECT, *flags)
    assert (code, lines(out)) == (0, "\n"), err
