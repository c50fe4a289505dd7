"""What `fit` says at its start of mistakes that cost nothing to find."""

import time

import torch
from conftest import TinyModule
from torch.optim.lr_scheduler import StepLR

from lightning_trainer.check import at_start
from lightning_trainer.check.at_start import WarnOfMistakes


class LostHead(TinyModule):
    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.Adam([*self.model.parameters()][:-2], 1e-2)


class Meant(LostHead):
    silenced_checks = {"optimiser/missing": "the head stays as it is"}  # noqa: RUF012


class InEpochs(TinyModule):
    def create_optimiser(self) -> None:
        super().create_optimiser()
        self.scheduler = StepLR(self.optimiser, 2)


def with_module(name, *options):
    return ("--model", f"test_at_start.{name}", *options)


def test_a_run_warns_in_two_lines_and_says_how_to_silence(run, config):
    code, _, err = run("fit", "--config", config, *with_module("LostHead"))
    assert code == 0
    assert err.splitlines() == [
        "warning: 2 parameters are not in the optimiser, and are not frozen: model.4.weight, "
        "model.4.bias: a layer was added later, or groups made by names leave some out",
        "    give the optimiser `self.model.parameters()`, or freeze them by "
        "`requires_grad_(False)`. If it is meant: "
        '`silenced_checks = {"optimiser/missing": "the reason"}` in LostHead',
    ]


def test_a_silenced_one_and_a_run_without_mistakes_are_quiet(run, config):
    for options in (with_module("Meant"), ()):
        code, _, err = run("fit", "--config", config, *options)
        assert (code, err) == (0, "")


def test_a_schedule_in_epochs_is_told_at_the_start(run, config):
    _, _, err = run("fit", "--config", config, *with_module("InEpochs"))
    start = "warning: StepLR: the learning rate is below 1 % of 0.01 from iteration 6 of 23 on"
    assert err.startswith(start)


def test_settings_are_told_in_long_runs_only(run, config):
    few = ("--trainer.limit_train_batches=1", "--trainer.max_epochs=1")
    code, _, err = run("fit", "--config", config, *few)
    assert (code, err) == (0, "")
    _, _, err = run(
        *("fit", "--config", config, *few, "--trainer.max_steps=1000", "--trainer.max_epochs=-1"),
        *("--trainer.max_time=00:00:00:01", "--trainer.val_check_interval=500"),
    )
    assert "`trainer.limit_train_batches` is 1: 1 of 7 batches" in err


def test_a_run_that_goes_on_is_not_told_again(run, half):
    code, _, err = run("fit", "--ckpt_path", half, "--trainer.max_steps=13")
    assert (code, err) == (0, "")


def test_it_takes_less_than_50_ms(run, config, monkeypatch):
    seconds = []
    look = WarnOfMistakes.on_train_start

    def timed(self, *args):
        started_s = time.perf_counter()
        look(self, *args)
        seconds.append(time.perf_counter() - started_s)

    monkeypatch.setattr(at_start.WarnOfMistakes, "on_train_start", timed)
    for _ in range(3):
        run("fit", "--config", config, "--model.schedule=cosine", "--trainer.max_steps=3")
    assert min(seconds) < 0.05


def test_a_weight_is_the_same_with_and_without_the_look(run, config, fit, monkeypatch):
    last = []
    for _ in range(2):
        path = fit("--model.schedule=cosine", "--trainer.max_steps=5") / "checkpoints/last.ckpt"
        last.append(torch.load(path, weights_only=False)["state_dict"])
        monkeypatch.setattr(at_start.WarnOfMistakes, "on_train_start", lambda *args: None)
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())
