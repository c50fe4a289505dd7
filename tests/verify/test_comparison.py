"""Two sessions are compared bitwise, and what differs first is found."""

import json
from pathlib import Path

import pytest
import torch

from lightning_trainer.session.checkpoint_header import KEY
from lightning_trainer.verify.comparison import (
    Difference,
    compare_bitwise,
    first_difference,
    parse_trail,
    read_printed,
    shorten,
)

GENERATOR = "numpy.random._generator.Generator"


def columns(x: str, i: str) -> dict[str, list[str]]:
    return {"x": x.split(), "i": i.split()}


def batch(iteration: int, **changes: object) -> dict:
    line = {
        "event": "batch",
        "iteration": iteration,
        "time_s": 0.0,
        "batch": iteration,
        "samples": {"x": ["aa", "bb", "cc"], "i": ["0", "1", "2"]},
        "before": f"w{iteration - 1}",
        "own": {"model.n": ["int", str(iteration)], "data.rng": [GENERATOR, str(iteration)]},
        "loss": (0.5).hex(),
        "weights": {"w": f"w{iteration}", "b": f"b{iteration}"},
    }
    return {**line, **changes}


def start(iteration: int = 0) -> dict:
    return {"event": "start", "iteration": iteration, "time_s": 0.0}


def validated(iteration: int, score: float = 0.25) -> dict:
    scores = {"val/accuracy": score.hex(), "val/loss": (1.0).hex()}
    return {"event": "validated", "iteration": iteration, "time_s": 0.0, "scores": scores}


REFERENCE = [start(), batch(1), batch(2), validated(2), batch(3)]


def test_a_run_that_was_killed_is_equal_whatever_it_did_twice():
    again = [start(1), batch(2, time_s=9.0), validated(2)]
    killed = [start(), batch(1), batch(2), *again, start(2), validated(2), batch(3)]
    assert first_difference(REFERENCE, REFERENCE) is None
    assert first_difference(REFERENCE, killed) is None


def test_what_was_done_twice_counts_each_time():
    killed = [*REFERENCE[:2], batch(2, loss=(0.25).hex()), start(1), *REFERENCE[2:]]
    assert first_difference(REFERENCE, killed) == Difference(
        rank=0, n_restarts=0, iteration=2, found={"loss": "loss: 0.25, not 0.5"}
    )


OWN_DATA = f"in no checkpoint: `data.rng` ({GENERATOR})"
BEFORE = (
    "weights before the step: changed in a hook between two steps, such as "
    "`on_train_epoch_start` or `on_validation_end`, or lost"
)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (batch(2, loss="nan"), {"loss": "loss: nan, not 0.5"}),
        (batch(2, loss=None), {"loss": "loss: none, not 0.5"}),
        (
            batch(2, samples=columns("aa xx cc", "0 7 2")),
            {"samples": "samples: 1 of the batch's 3, from 0: 1", "own": OWN_DATA},
        ),
        (
            batch(2, samples=columns("x y z", "7 8 9")),
            {"samples": "samples: all 3 of the batch", "own": OWN_DATA},
        ),
        (
            batch(2, samples=columns("bb aa cc", "1 0 2")),
            {"samples": "samples: the same 3 in another order", "own": OWN_DATA},
        ),
        (
            batch(2, samples=columns("aa", "0")),
            {"samples": "samples: a batch of 1, not 3", "own": OWN_DATA},
        ),
        (
            batch(2, samples=columns("aa xx cc", "0 1 2")),
            {"draws": "samples: `x` of 1 of the batch's 3, from 0: 1", "own": OWN_DATA},
        ),
        (
            batch(2, samples={"x": ["aa", "bb", "cc"]}),
            {"samples": "samples: i only in one of the two", "own": OWN_DATA},
        ),
        (
            batch(2, loss="0x0p+0", own={"model.n": ["int", "1"]}),
            {
                "loss": "loss: 0.0, not 0.5",
                "own": f"in no checkpoint: `model.n` (int), `data.rng` ({GENERATOR})",
            },
        ),
        (batch(2, before="x"), {"before": BEFORE}),
        (
            batch(2, weights={"w": "w2", "b": "x"}),
            {"weights": "weights: 1 of 2 tensors (b)"},
        ),
        (
            validated(2, 0.75),
            {"scores": "scores: val/accuracy 0.75, not 0.25"},
        ),
        (batch(2, batch=7), {"order": "batch 7 is not in the uninterrupted run"}),
        (validated(1), {"order": "the validation is not in the uninterrupted run"}),
    ],
)
def test_what_differs_is_described(line, found):
    killed = [start(), batch(1), start(1), line, *REFERENCE[2:]]
    difference = first_difference(REFERENCE, killed, rank=1)
    assert difference == Difference(1, 1, line["iteration"], found)


def test_the_first_cause_comes_first():
    line = batch(
        2, samples=columns("x bb cc", "7 1 2"), loss="0x0p+0", weights={"w": "x", "b": "x"}
    )
    difference = first_difference(REFERENCE, [*REFERENCE[:2], line])
    assert list(difference.found) == ["samples", "loss", "weights", "own"]


@pytest.mark.parametrize(
    ("missing", "name"), [(1, "batch 1"), (3, "the validation"), (4, "batch 3")]
)
def test_what_was_left_out_is_a_difference(missing, name):
    killed = [line for i, line in enumerate(REFERENCE) if i != missing]
    difference = first_difference(REFERENCE, killed)
    assert difference.found == {"order": f"{name} was left out"}
    assert difference.iteration == REFERENCE[missing]["iteration"]


def test_half_a_line_is_left_out():
    assert parse_trail('{"event": "start"}\n{"event": "ba\n\n{"event": "x"}\n{"e') == [
        {"event": "start"},
        {"event": "x"},
    ]


CHECKPOINT = {
    "state_dict": {"w": torch.ones(2), "b": torch.tensor([torch.nan])},
    "optimizer_states": [{"state": {0: {"step": 3, "m": torch.ones(2)}}, "lr": 0.1}],
    "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}],
    "global_step": 3,
    KEY: {"version": 1, "best": {"score": 0.5}, "times": {"elapsed_s": 1.0}},
    "loops": {"fit_loop": {"state_dict": {"combined_loader": [{"samples": 12}]}}},
}


def write_session(folder: Path, trails: list[list[dict]], checkpoint: dict, metrics: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    for rank, trail in enumerate(trails):
        text = "".join(f"{json.dumps(line)}\n" for line in trail)
        (folder / f"trail_rank{rank}.jsonl").write_text(text)
    for name in ("last", "best"):
        torch.save(checkpoint, folder / f"checkpoints/{name}.ckpt")
    (folder / "metrics.csv").write_text(metrics)
    return folder


METRICS = "step,train/loss,timing/update_ms,val/loss\n2,0.5,7.1,\n3,,,0.25\n"


@pytest.fixture
def reference(tmp_path):
    return write_session(tmp_path / "reference", [REFERENCE] * 2, CHECKPOINT, METRICS)


def test_sessions_that_differ_in_times_and_order_of_columns_only_are_equal(reference, tmp_path):
    state = {**CHECKPOINT[KEY], "times": {"elapsed_s": 2.0}}
    metrics = "step,val/loss,train/loss,timing/update_ms\n2,,0.5,9.9\n3,0.25,,\n"
    checkpoint = {**CHECKPOINT, KEY: state}
    session = write_session(tmp_path / "other", [REFERENCE] * 2, checkpoint, metrics)
    comparison = compare_bitwise(reference, session)
    assert comparison.equal
    assert comparison.compared["metrics.csv"] == ["step 2: train/loss", "step 3: val/loss"]
    assert comparison.compared["checkpoints/last.ckpt"] == [
        "state_dict.w",
        "state_dict.b",
        "optimizer_states.0.state.0.step",
        "optimizer_states.0.state.0.m",
        "optimizer_states.0.lr",
        "lr_schedulers.0.last_epoch",
        "lr_schedulers.0._last_lr",
        "global_step",
        "lightning_trainer.version",
        "lightning_trainer.best.score",
        "loops.fit_loop.state_dict.combined_loader.0.samples",
    ]


def test_each_entry_that_differs_in_a_checkpoint_or_in_metrics_is_named(reference, tmp_path):
    checkpoint = {**CHECKPOINT, "global_step": 4, "state_dict": {"w": torch.tensor([1.0, 2.0])}}
    metrics = METRICS.replace("0.25", "0.75").replace("0.5", "")
    session = write_session(tmp_path / "other", [REFERENCE] * 2, checkpoint, metrics)
    comparison = compare_bitwise(reference, session)
    assert not comparison.equal
    assert comparison.first is None
    in_checkpoint = ["state_dict.w", "state_dict.b", "global_step"]
    assert comparison.differing == {
        "checkpoints/last.ckpt": in_checkpoint,
        "checkpoints/best.ckpt": in_checkpoint,
        "metrics.csv": ["step 2: train/loss", "step 3: val/loss"],
    }


def test_another_scale_of_the_loss_is_a_difference(reference, tmp_path):
    scaled = [{**CHECKPOINT, "MixedPrecision": {"scale": 2.0**n}} for n in (15, 16)]
    first, second = (
        write_session(tmp_path / str(i), [REFERENCE] * 2, checkpoint, METRICS)
        for i, checkpoint in enumerate(scaled)
    )
    assert compare_bitwise(first, second).differing["checkpoints/last.ckpt"] == [
        "MixedPrecision.scale"
    ]
    lost = compare_bitwise(first, reference)
    assert lost.differing["checkpoints/last.ckpt"] == ["MixedPrecision.scale"]


def test_a_file_that_is_missing_differs_in_all_it_would_hold(reference, tmp_path):
    session = write_session(tmp_path / "other", [REFERENCE] * 2, CHECKPOINT, METRICS)
    (session / "checkpoints/best.ckpt").unlink()
    differing = compare_bitwise(reference, session).differing
    assert len(differing.pop("checkpoints/best.ckpt")) == 11
    assert not any(differing.values())


def test_every_process_is_compared(reference, tmp_path):
    other = [*REFERENCE[:2], batch(2, loss="0x0p+0"), *REFERENCE[3:]]
    session = write_session(tmp_path / "other", [REFERENCE, other], CHECKPOINT, METRICS)
    assert compare_bitwise(reference, session).first.rank == 1
    (session / "trail_rank1.jsonl").unlink()
    assert compare_bitwise(reference, session).first.found == {"order": "batch 1 was left out"}


def test_the_iterations_of_log_lines_are_those_with_timings(reference, tmp_path):
    assert read_printed(reference / "metrics.csv") == {2}
    assert read_printed(tmp_path / "none.csv") == set()


def test_many_names_are_shortened():
    assert shorten(["a", "b", "c"]) == "a, b, c"
    assert shorten(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
