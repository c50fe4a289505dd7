"""A checkpoint that is written while the GPU goes on is that of the step it says."""

import threading
import zipfile
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from card import DEVICE, HAS_CARD, ON, busy, needs_card
from lightning_utilities.core.apply_func import apply_to_collection
from restarts import result, same

from lightning_trainer.checkpoints import writing
from lightning_trainer.checkpoints.files import AtomicCheckpointIO

pytestmark = pytest.mark.gpu


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_copy_is_of_the_moment_of_the_save_whatever_is_enqueued_before_and_after(tmp_path):
    io, n_times = AtomicCheckpointIO(), 50 if HAS_CARD else 3
    weights = torch.zeros(2**22, device=DEVICE)
    momentum = torch.zeros(3, 5, device=DEVICE)
    for n in range(1, n_times + 1):
        busy(0.3)
        weights.add_(1)
        momentum.add_(2)
        checkpoint = {"state_dict": {"w": weights, "tied": weights[:7], "m": momentum}}
        with io.put_off(True) as writes:
            io.save_checkpoint(checkpoint, tmp_path / "later.ckpt")
        held = weights.clone(), momentum.clone()
        weights.zero_()
        momentum.zero_()
        for write in writes:
            write()
        weights.copy_(held[0])
        momentum.copy_(held[1])
        io.save_checkpoint(checkpoint, tmp_path / "now.ckpt")
        kept = torch.load(tmp_path / "later.ckpt", map_location="cpu")["state_dict"]
        assert kept["w"].eq(n).all()
        assert kept["m"].eq(2 * n).all()
        later, now = (records(tmp_path / f"{name}.ckpt") for name in ("later", "now"))
        data = [sorted(v for k, v in files.items() if "/data/" in k) for files in (later, now)]
        assert data[0] == data[1]


@pytest.fixture
def meanwhile(monkeypatch):
    """Chooses whether training goes on while a checkpoint is written."""

    def choose(value: bool) -> None:
        monkeypatch.setattr(writing, "goes_on_meanwhile", lambda trainer: value)

    return choose


def test_saved_in_the_background_or_not_a_run_ends_in_the_same_checkpoint(fit, meanwhile):
    flags = (ON, "--save_minutes=0", f"--trainer.max_steps={200 if HAS_CARD else 20}")
    results = []
    for value in (False, True):
        meanwhile(value)
        session = fit(*flags, "--trainer.log_every_n_steps=0")
        results.append(apply_to_collection(result(session), torch.Tensor, torch.Tensor.cpu))
    assert same(*results)


class Gate(pl.Callback):
    """Lets the writer go on 90 steps after the validation at 100."""

    opened = threading.Event()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 190:
            Gate.opened.set()


def test_steps_go_on_while_the_writer_is_held_up(fit, meanwhile, monkeypatch):
    meanwhile(True)
    save, held = torch.save, []
    Gate.opened.clear()

    def held_up(checkpoint, *args, **kwargs):
        if checkpoint["global_step"] == 100:
            held.append(Gate.opened.wait(60))
        save(checkpoint, *args, **kwargs)

    monkeypatch.setattr(torch, "save", held_up)
    steps = ("--trainer.max_steps=250", "--trainer.val_check_interval=100")
    session = fit(ON, *steps, "--trainer.callbacks=test_gpu_saving.Gate")
    assert held == [True]
    assert torch.load(session / "checkpoints/last.ckpt")["global_step"] == 250


class SeesScaler(pl.Callback):
    """The state of the GradScaler before the first step of each start."""

    states: ClassVar[list[dict]] = []

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        SeesScaler.states.append(trainer.precision_plugin.scaler.state_dict())


@needs_card
def test_the_scale_of_the_gradients_goes_on(fit, run):
    SeesScaler.states.clear()
    see = "--trainer.callbacks+=test_gpu_saving.SeesScaler"
    session = fit(ON, "--trainer.precision=16-mixed", "--trainer.max_steps=11", see)
    saved = torch.load(session / "checkpoints/last.ckpt", map_location="cpu")["MixedPrecision"]
    assert saved["_growth_tracker"] > 0
    assert run("fit", "--ckpt_path", session, "--trainer.max_steps=12")[0] == 0
    assert SeesScaler.states[1] == saved


def test_weights_keep_their_layout_in_a_checkpoint(fit, run):
    module = ("--model=projects.digits.DigitsModule", "--model.channels_last=true")
    data = ("--data=projects.digits.DigitsData", "--model.vis_iterations=0")
    session = fit(*module, *data, ON, "--trainer.max_steps=6")
    weights = torch.load(session / "checkpoints/last.ckpt", map_location="cpu")["state_dict"]
    layouts = {k: w.stride() for k, w in weights.items() if w.ndim == 4 and w.shape[1] > 1}
    assert layouts
    assert all(stride[1] == 1 for stride in layouts.values())
    assert run("fit", "--ckpt_path", session, "--trainer.max_steps=7")[0] == 0
    again = torch.load(session / "checkpoints/last.ckpt", map_location="cpu")["state_dict"]
    assert {name: again[name].stride() for name in layouts} == layouts
