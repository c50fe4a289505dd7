"""Averaged weights: what is averaged, scored, kept, and gone on from."""

import csv
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import TinyModule, start_process
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from restarts import copy_at, result, same
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_trainer import AverageWeights

AVERAGE = ["--trainer.callbacks=lightning_trainer.AverageWeights", "--trainer.callbacks.decay=0.8"]
LIGHTNINGS = [
    "--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging",
    "--trainer.callbacks.decay=0.8",
]


@pytest.fixture
def fit(run, config):
    def fit_(*flags, average=AVERAGE):
        return run("fit", "--config", config, *average, *flags)

    return fit_


def both(session) -> dict:
    """As `result`, with the weights of training and the state of the average."""
    last = torch.load(session / "checkpoints/last.ckpt")
    parts = ("current_model_state", "averaging_state")
    return {**result(session), **{name: last[name] for name in parts}}


def test_the_score_is_that_of_the_averaged_weights_which_are_the_best(fit, run, sessions):
    code, _, err = fit("--model.learning_rate=0.5")
    assert (code, err) == (0, "")
    [session] = sessions()
    with (session / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    best = torch.load(session / "checkpoints/best.ckpt")
    [at_best] = [row for row in rows if int(row["step"]) == best["global_step"]]
    assert not same(best["state_dict"], best["current_model_state"])
    code, out, err = run("validate", "--ckpt_path", session)
    assert (code, err) == (0, "")
    assert f"Val loss: {float(at_best['val/loss']):.4f}\n" in out
    assert f"Val score (accuracy, higher is better): {float(at_best['val/accuracy']):.3f}\n" in out


def test_the_average_is_that_of_every_iteration(fit, sessions, monkeypatch):
    weights = []
    optimise = TinyModule.optimizer_step

    def note(self, *args, **kwargs):
        optimise(self, *args, **kwargs)
        weights.append(self.model[0].weight.detach().clone())

    monkeypatch.setattr(TinyModule, "optimizer_step", note)
    assert fit("--trainer.max_steps=6")[0] == 0
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.8 * expected + 0.2 * weight
    averaged = torch.load(sessions()[0] / "checkpoints/last.ckpt")["state_dict"]["model.0.weight"]
    torch.testing.assert_close(averaged, expected)


def test_the_average_is_lightnings_but_for_the_rounding_and_whole_numbers(fit, sessions):
    for average in (AVERAGE, LIGHTNINGS):
        assert fit("--trainer.max_steps=12", average=average)[0] == 0
    ours, theirs = (torch.load(s / "checkpoints/last.ckpt") for s in sessions())
    assert ours.keys() == theirs.keys()
    assert ours["callbacks"] == theirs["callbacks"]
    # It leaves the training alone.
    for name in ("current_model_state", "averaging_state", "optimizer_states"):
        assert same(ours[name], theirs[name]), name
    n_batches = "model.1.num_batches_tracked"
    assert ours["state_dict"].pop(n_batches) == ours["current_model_state"][n_batches] == 12
    assert theirs["state_dict"].pop(n_batches) < 12
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"])


def test_a_session_of_lightnings_average_goes_on_with_this_one(fit, run, sessions):
    assert fit("--trainer.max_steps=5", average=LIGHTNINGS)[0] == 0
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=6", *AVERAGE)
    assert (code, "provided" in err) == (0, False)
    last = torch.load(sessions()[0] / "checkpoints/last.ckpt")
    assert last["averaging_state"] == {"n_averaged": 6}
    assert not same(last["state_dict"], dict(last["current_model_state"]))


class Mixed(BoringModel):
    """Parameters of two types, a tied one, and buffers of numbers and of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.half = nn.Linear(3, 3, dtype=torch.bfloat16)
        self.tied = self.layer
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("index", torch.arange(200))


def begin(model: BoringModel, **options) -> tuple[AverageWeights, AveragedModel]:
    callback = AverageWeights(decay=0.99, **options)
    callback.setup(None, model, "fit")
    return callback, callback._average_model


def update(callback: AverageWeights, model: BoringModel, step: int) -> None:
    callback.on_train_batch_end(SimpleNamespace(global_step=step), model, None, None, 0)


@pytest.mark.parametrize("use_buffers", [True, False])
def test_numbers_are_averaged_and_indices_are_copied(use_buffers):
    model = Mixed()
    callback, average = begin(model, use_buffers=use_buffers)
    expected = None
    for step in range(1, 4):
        for tensor in (*model.parameters(), model.mean):
            tensor.data.normal_()
        update(callback, model, step)
        update(callback, model, step)  # a batch without an iteration, as with accumulation
        new = {name: value.clone() for name, value in model.state_dict().items()}
        old = expected or new
        expected = {
            name: old[name].lerp(value, 1 - 0.99) if value.is_floating_point() else value
            for name, value in new.items()
        }
        if not use_buffers:
            expected["mean"] = new["mean"]
    assert same(dict(average.module.state_dict()), expected)
    assert average.n_averaged == 3


def test_an_iteration_reads_nothing_back_from_the_device():
    model = Mixed().to("meta")  # to read from it is an error
    callback, average = begin(model)
    for step in range(1, 4):
        update(callback, model, step)
    assert average.n_averaged == 3
    assert {value.device.type for value in average.module.state_dict().values()} == {"meta"}


@pytest.mark.gpu
def test_on_a_gpu_no_iteration_waits_and_the_average_is_there():
    model = Mixed().to("cuda")
    callback, average = begin(model)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            update(callback, model, step)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert {value.device.type for value in average.module.state_dict().values()} == {"cuda"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("average", "hook", "flags", "kills"),
    [
        (AVERAGE, "on_train_batch_end", ["--save_minutes=0"], (1, 7, 13, 22)),
        (AVERAGE, "on_validation_batch_end", [], (5, 10, 23)),
        (LIGHTNINGS, "on_train_batch_end", ["--save_minutes=0"], (12,)),
    ],
)
def test_killed_it_goes_on_bitwise(
    fit, run, sessions, monkeypatch, tmp_path, average, hook, flags, kills
):
    with monkeypatch.context() as patch:
        copy_at(patch, hook, kills, tmp_path / "killed")
        assert fit(*flags, average=average)[0] == 0
    expected = both(sessions()[0])
    for k in kills:
        session = tmp_path / "killed" / str(k)
        code, _, err = run("fit", "--ckpt_path", session, "--save_minutes=10")
        assert (code, err) == (0, "")
        assert same(both(session), expected), f"killed at {k}"


@pytest.mark.long
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_start"])
def test_stopped_by_a_signal_also_within_a_validation_it_goes_on_bitwise(
    fit, run, sessions, monkeypatch, hook
):
    assert fit()[0] == 0
    original = getattr(EMAWeightAveraging, hook)

    def signalled(self, trainer, *args) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 10 and not trainer.sanity_checking:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EMAWeightAveraging, hook, signalled)
        assert fit()[0] == 128 + signal.SIGTERM
    code, _, err = run("fit", "--ckpt_path", sessions()[1])
    assert (code, err) == (0, "")
    assert same(both(sessions()[1]), both(sessions()[0]))


@pytest.mark.parametrize(
    "stop",
    [
        ["--trainer.max_steps=7"],
        # Without a validation it is saved when training has ended.
        ["--trainer.callbacks+=test_saving.StopAtSeven", "--trainer.limit_val_batches=0"],
    ],
)
def test_a_run_that_has_ended_goes_on_with_the_weights_of_training(fit, run, sessions, stop):
    assert fit("--trainer.max_steps=10")[0] == 0
    assert fit("--trainer.max_steps=10", *stop)[0] == 0
    whole, half = sessions()
    assert torch.load(half / "checkpoints/last.ckpt")["global_step"] == 7
    assert run("fit", "--ckpt_path", half, "--trainer.max_steps=10")[0] == 0
    for name in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        checkpoints = [torch.load(s / "checkpoints/last.ckpt")[name] for s in (whole, half)]
        assert same(*checkpoints), name


def test_going_back_from_what_is_not_finite_takes_the_average_back(fit, sessions, monkeypatch):
    forward_loss = TinyModule.forward_loss

    def lost_at_6(self, batch, output):
        loss = forward_loss(self, batch, output)
        return loss * float("nan") if self.training and self.global_step == 5 else loss

    monkeypatch.setattr(TinyModule, "forward_loss", lost_at_6)
    code, out, err = fit("--on_non_finite=skip", "--trainer.max_steps=10")
    assert code == 0, err
    assert "go back to iteration 5" in out
    last = torch.load(sessions()[0] / "checkpoints/last.ckpt")
    for name in ("state_dict", "current_model_state"):
        assert all(value.isfinite().all() for value in last[name].values())


def test_an_average_can_begin_when_a_session_goes_on(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    begun = torch.load(sessions()[0] / "checkpoints/last.ckpt")["state_dict"]
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=6", *AVERAGE)
    assert code == 0, err
    last = torch.load(sessions()[0] / "checkpoints/last.ckpt")
    assert not same(last["state_dict"], begun)
    assert same(last["state_dict"], dict(last["current_model_state"]))


@pytest.mark.slow
def test_on_two_processes_a_run_that_is_killed_goes_on_bitwise_on_both(config):
    flags = ("--trainer.devices=2", "--data.n_samples=28")
    process = start_process("verify", "--config", config, *AVERAGE, *flags)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert "EQUAL: bitwise as if it had never been killed." in out
