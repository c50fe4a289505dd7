"""The command `check`: what it prints, its exit codes, and that it changes nothing."""

import json
import logging
import math
import os
import random
import signal
import sys
import threading
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from bases import Pictures, PicturesData
from conftest import TinyModule

from lightning_trainer.check import inspection
from lightning_trainer.check.catalogue import CHECKS
from lightning_trainer.check.findings import CheckReport, hint
from lightning_trainer.check.needs import Needs
from lightning_trainer.check.telling import format_json

TRAINING = ("metric", "learning", "relation")  # the checks that take longest

CONFIG = """\
model:
  class_path: test_check_command.{module}
data:
  class_path: test_check_command.Handwriting
output_path: {folder}
trainer:
  accelerator: cpu
  max_steps: 500
  val_check_interval: 100
  callbacks:
    - class_path: test_check_command.Forbidden
"""


class Forbidden(pl.Callback):
    def __getattribute__(self, name):
        raise AssertionError("a callback of the project was used")


class Handwriting(PicturesData):
    def create_data(self) -> None:
        super().create_data()
        self.val_dataset.columns = {k: v[:60] for k, v in self.val_dataset.columns.items()}

    def test_dataloader(self):
        raise AssertionError("the test data was asked for")


class Healthy(Pictures):
    silenced_checks: ClassVar = {
        "relation": "takes too long in a test",
        "own": "a test has no thumbs",
    }


class Twice(Pictures):
    def forward_model(self, batch):
        return super().forward_model(batch).softmax(1)


def thumbs(project):
    yield hint("two", f"{project.size('train')} thumbs", "there are two", "count again")


class Own(Pictures):
    checks = (thumbs,)


class Broken(Pictures):
    def create_model(self) -> None:
        raise RuntimeError("no such file: weights.pt")


class Forgetful(Pictures):
    def __init__(self) -> None:
        self.width = 3


def body_is_loaded(project):
    if bool((project.module.model[1].weight == 0.5).all()):
        yield hint("yes", "all weights are 0.5", "", "")


class Probe(Pictures):
    """What BackboneFinetuning takes: the body gets into the optimiser later."""

    checks = (body_is_loaded,)

    @property
    def backbone(self):
        return self.model[1]

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam(self.model[2:].parameters(), 5e-3)


class Counting(Pictures):
    n_calls = 0

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.n_calls = 0

    def forward_model(self, batch):
        self.n_calls += 1
        return super().forward_model(batch)


class LostHead(Pictures):
    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam([*self.model.parameters()][:-2], 5e-3)


class ByLBFGS(TinyModule):
    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.LBFGS(self.parameters(), 0.1, max_iter=2)


class Silent(Twice):
    silenced_checks: ClassVar = {"activation/double_softmax": "an experiment with temperatures"}


@pytest.fixture
def whole_check(run, tmp_path):
    """whole_check("Twice", ...) -> (exit code, out, err)."""

    def check_(module, *options):
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG.format(module=module, folder=tmp_path / "experiments"))
        return run("check", "--config", config, *options)

    return check_


@pytest.fixture
def check(whole_check, monkeypatch):
    """The same without what a run needs, and without the checks that take longest."""
    quick = {name: check for name, check in CHECKS.items() if name not in TRAINING}
    monkeypatch.setattr(inspection, "CHECKS", quick)
    monkeypatch.setattr(inspection, "needs_of_run", lambda project, output_path: None)
    return whole_check


def test_a_certain_mistake_is_told_in_three_parts_and_by_the_exit_code(check):
    code, out, err = check("Twice")
    assert code == 1, err
    first, likely, remedy = out.splitlines()[:3]
    assert first.startswith("CERTAIN activation/double_softmax: the loss applies log_softmax to ")
    assert likely.startswith("        likely: the loss expects logits, and the network returns")
    assert remedy.startswith("        remedy: return logits from `forward_model`: ")
    assert "\n1 certain mistake, " in out
    assert "future: no input is a sequence" in out
    assert '`silenced_checks = {"activation/double_softmax": "the reason"}` in Twice' in out


def state_of_the_process():
    """What a check could leave changed."""
    loggers = [logging.getLogger(name) for name in (None, "lightning.pytorch", "lightning.fabric")]
    return {
        "variables": dict(os.environ),
        "folder": os.getcwd(),
        "path": [*sys.path],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "loggers": [(each.level, [*each.handlers], [*each.filters]) for each in loggers],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": {thread.name for thread in threading.enumerate()},
        "torch": [
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.is_inference_mode_enabled(),
        ],
    }


def test_nothing_is_written_and_the_process_stays_as_it_is(whole_check, tmp_path):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = state_of_the_process()
    streams = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    code, out, err = whole_check("Healthy")
    assert code == 0, out + err
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "config.yaml"}
    assert state_of_the_process() == before
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.random.get_state()[1].tolist() == streams[1]
    assert random.getstate() == streams[2]
    assert torch.nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_a_project_adds_a_check_and_silences_one(check):
    code, out, _ = check("Own", "--format", "json")
    report = json.loads(out)
    [finding] = report["findings"]
    assert code == 0 and finding["name"] == "thumbs/two"
    assert finding["evidence"] == "640 thumbs" and not finding["certain"]
    code, out, _ = check("Silent", "--format=json")
    assert code == 0
    silenced = json.loads(out)["silenced"]
    assert silenced == {"activation/double_softmax": "an experiment with temperatures"}


def test_settings_of_several_processes_are_checked_in_one_and_nothing_is_compiled(check):
    several = ("--trainer.devices=2", "--trainer.strategy=ddp", "--model.compile=true")
    code, out, err = check("Healthy", *several)
    assert code == 0, out + err
    assert "Note: checked without `model.compile`" in out
    assert "Note: checked in one process, on one device" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "xml"], "invalid choice: 'xml'"),
        (["--ckpt_path", "x"], "`check` takes no `--ckpt_path`"),
        (["--trainer.max_step", "3"], "max_steps"),
    ],
)
def test_a_wrong_command_line_is_refused(check, options, message):
    code, _, err = check("Healthy", *options)
    assert code == 2 and message in err


def test_few_samples_and_an_optimiser_that_calls_a_closure_are_checked(run, config, monkeypatch):
    """Of 26 samples for training and 10 to validate with batches begin anew with the first."""
    names = ("optimiser", "modes", "unregistered", "learning")
    monkeypatch.setattr(inspection, "CHECKS", {name: CHECKS[name] for name in names})
    monkeypatch.setattr(inspection, "needs_of_run", lambda project, output_path: None)
    code, out, err = run("check", "--config", config, "--model=test_check_command.ByLBFGS")
    assert code == 0, err
    assert "4 checks in " in out and "Not checked" not in out


def test_a_project_that_fails_says_so(check):
    code, out, err = check("Broken")
    assert code == 1 and "no such file: weights.pt" in err and not out


@pytest.mark.parametrize(
    ("module", "option", "code", "message"),
    [
        ("Broken", "--format=json", 1, "no such file: weights.pt"),
        ("Forgetful", "--format=json", 1, "`Forgetful.__init__` does not call its base's"),
        ("Healthy", "--trainer.max_step=3", 2, "max_steps"),
        ("Healthy", "--typo", 2, "--typo"),
    ],
)
def test_a_refusal_is_an_object_too(check, module, option, code, message):
    got, out, err = check(module, "--format", "json", option)
    assert got == code
    told = json.loads(out)
    assert message in told["error"] and message in err and told["exit_code"] == code


def test_what_has_no_end_is_null_in_the_object():
    report = CheckReport(needs=Needs(n_iterations=math.inf, first_validation=math.inf))
    needs = json.loads(format_json(report), parse_constant=pytest.fail)["needs"]
    assert needs["n_iterations"] is needs["first_validation"] is None


def test_it_needs_a_project(run):
    code, _, err = run("check")
    assert code == 2 and "give `--config FILE`" in err


def test_it_tells_what_a_run_needs(whole_check):
    _, out, _ = whole_check("Own", "--format", "json")
    needs = json.loads(out)["needs"]
    assert needs["n_iterations"] == 500 and needs["first_validation"] == 100
    assert needs["iteration_ms"] > 0 and needs["workers"] in (0, 2, 4)
    assert sorted(needs["data_ms"]) == ["0", "2", "4"]
    n_weights = 64 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10
    assert needs["checkpoint_mib"] == pytest.approx(3 * 4 * n_weights / 2**20, rel=0.05)  # Adam
    assert needs["free_mib"] > needs["session_mib"] and needs["inexact"] == []
    _, out, _ = whole_check("Counting")
    assert "going on   no checkpoint holds model.n_calls, which training changes" in out


def test_weights_that_backbone_finetuning_adds_are_not_missed(check, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"model.1.weight": torch.full((32, 64), 0.5)}, path)
    callback = "--trainer.callbacks=lightning.pytorch.callbacks.BackboneFinetuning"
    code, out, err = check("Probe", "--format=json", callback)
    assert code == 0 and json.loads(out)["findings"] == [], err
    code, out, _ = check("Probe", "--format=json", "--trainer.callbacks=null")
    assert [each["name"] for each in json.loads(out)["findings"]] == ["optimiser/not_optimised"]
    callback += f" --init_from={path}"
    _, out, _ = check("Probe", "--format=json", *callback.split())
    assert [each["name"] for each in json.loads(out)["findings"]] == ["body_is_loaded/yes"]


def test_weights_that_a_left_out_callback_may_add_are_a_hint(check):
    code, out, _ = check("LostHead", "--format", "json")
    [finding] = json.loads(out)["findings"]
    assert finding["name"] == "optimiser/not_optimised" and code == 0
    code, out, _ = check("LostHead", "--format", "json", "--trainer.callbacks=null")
    assert code == 1 and json.loads(out)["findings"][0]["certain"]
