"""The trail tells two runs apart where a bit differs, and only there."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import TinyModule
from lightning.pytorch.callbacks import Callback
from restarts import Killed, kill_at

from lightning_trainer.verify.digests import digest
from lightning_trainer.verify.trail import RecordTrail

RECORD = "--trainer.callbacks+=lightning_trainer.verify.trail.RecordTrail"
FLAGS = (RECORD, "--trainer.max_steps=7", "--save_minutes=0")


def read(session: Path) -> list[dict]:
    """All whole lines, without the time."""
    lines = session.joinpath("trail_rank0.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [{k: v for k, v in entry.items() if k != "time_s"} for entry in entries]


def events(lines: list[dict]) -> list[tuple]:
    return [(line["event"], line["iteration"]) for line in lines]


def batches(first: int, last: int) -> list[tuple]:
    return [("batch", i) for i in range(first, last + 1)]


class ChangesItsBatch(TinyModule):
    def forward_model(self, batch):
        batch["x"].mul_(2)
        return super().forward_model(batch)


class Other(Callback):
    """Stands for a callback of the user's config file."""


def test_starts_batches_and_validations_are_in_the_order_in_which_they_happened(
    run, config, sessions
):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    lines = read(sessions()[0])
    middle, end = ([*[("validating", i)] * 3, ("validated", i)] for i in (5, 7))
    assert events(lines) == [("start", 0), *batches(1, 5), *middle, *batches(6, 7), *end]
    numbers = [line["batch"] for line in lines if "batch" in line]
    epochs = [line["epoch"] for line in lines if line["event"] == "batch"]
    assert epochs == [0] * 7
    assert numbers == [1, 2, 3, 4, 5, *[1, 2, 3], 6, 7, *[1, 2, 3]]
    assert lines[-1]["scores"].keys() == {"val/accuracy", "val/loss"}


def test_the_weights_are_those_after_the_iteration(run, config, sessions):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    *_, last = (line for line in read(sessions()[0]) if line["event"] == "batch")
    checkpoint = torch.load(sessions()[0] / "checkpoints/last.ckpt")
    assert last["weights"] == {k: digest(v) for k, v in checkpoint["state_dict"].items()}


def test_accumulated_batches_have_a_line_each(run, config, sessions):
    flags = ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=2")
    assert run("fit", "--config", config, *FLAGS, *flags)[0] == 0
    lines = [line for line in read(sessions()[0]) if line["event"] == "batch"]
    numbers = [(line["iteration"], line["batch"]) for line in lines]
    assert numbers == [(1, 1), (1, 2), (2, 3), (2, 4)]
    a, b, c, _ = (line["weights"]["model.0.weight"] for line in lines)
    assert a != b == c


def test_a_killed_run_adds_equal_lines_after_half_a_line(run, config, sessions, monkeypatch):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    kill_at(monkeypatch, "on_validation_start", lambda trainer: trainer.global_step == 5)
    with pytest.raises(Killed):
        run("fit", "--config", config, *FLAGS)
    with sessions()[1].joinpath("trail_rank0.jsonl").open("a") as file:
        file.write('{"event": "val')
    assert run("fit", "--ckpt_path", sessions()[1])[0] == 0
    reference, lines = read(sessions()[0]), read(sessions()[1])
    assert lines.pop(lines.index({"event": "start", "iteration": 5}))
    assert lines == reference


def test_samples_are_those_of_the_loader_whatever_the_module_does_to_them(run, config, sessions):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    assert run("fit", "--config", config, *FLAGS, f"--model={__name__}.ChangesItsBatch")[0] == 0
    a, b = (read(session)[1] for session in sessions())
    assert a["samples"] == b["samples"]
    assert a["loss"] != b["loss"]


def test_the_option_adds_it_to_the_callbacks_of_a_config_file(run, config, sessions, tmp_path):
    for i, callbacks in enumerate((f"[{__name__}.Other]", f"{{class_path: {__name__}.Other}}")):
        more = tmp_path / "more.yaml"
        more.write_text(f"trainer:\n  callbacks: {callbacks}\n")
        code, _, err = run("fit", *FLAGS, "--config", config, "--config", more)
        assert code == 0, err
        stored = sessions()[i].joinpath("config.yaml").read_text()
        assert f"{__name__}.Other" in stored
        assert events(read(sessions()[i]))[0] == ("start", 0)


def test_it_writes_nothing_in_the_sanity_check_and_in_a_test(run, config, sessions):
    assert run("fit", "--config", config, *FLAGS)[0] == 0
    before = read(sessions()[0])
    assert run("test", "--ckpt_path", sessions()[0])[0] == 0
    assert read(sessions()[0]) == before
    assert before[0] == {"event": "start", "iteration": 0}


def test_it_keeps_nothing_in_a_checkpoint():
    assert RecordTrail().state_dict() == {}


def test_it_ends_the_run_when_the_process_that_wants_it_has_ended(run, config, sessions):
    ended = subprocess.Popen(["true"])
    ended.wait()
    flags = (RECORD, f"--trainer.callbacks.watched={ended.pid}")
    assert run("fit", "--config", config, *flags)[0] == 128 + signal.SIGTERM
