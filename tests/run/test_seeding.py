"""Whatever a project draws, and in whichever hook, is the same after a restart."""

import random

import numpy as np
import pytest
import torch
from conftest import TinyModule
from lightning.pytorch.callbacks import Callback
from restarts import copy_at, result, same


def draw() -> float:
    return float(torch.rand(()) + np.random.rand() + random.random())


def disturb(module) -> None:
    """Adds a drawn number to the weights, so that each number drawn counts."""
    with torch.no_grad():
        module.model[0].weight.add_(1e-3 * draw())


class Draws(Callback):
    def on_train_batch_start(self, trainer, module, *_) -> None:
        disturb(module)

    def on_validation_epoch_end(self, trainer, module) -> None:
        disturb(module)


class DrawingModule(TinyModule):
    """Draws in each hook that comes before or after a step."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "x": batch["x"] + draw()}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "x": batch["x"] * (1 + 0.1 * torch.rand_like(batch["x"]))}

    def on_train_epoch_start(self) -> None:
        disturb(self)

    def on_train_batch_start(self, batch, batch_idx) -> None:
        disturb(self)

    def on_train_epoch_end(self) -> None:
        disturb(self)

    def on_validation_start(self) -> None:
        disturb(self)

    def on_validation_end(self) -> None:
        draw()

    def validation_step(self, batch, batch_idx):
        batch = {**batch, "x": batch["x"] + 0.1 * draw()}
        return super().validation_step(batch, batch_idx)


PROJECT = (
    "--model=test_seeding.DrawingModule",
    "--trainer.callbacks=test_seeding.Draws",
    "--save_minutes=0",
)


@pytest.mark.long
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("counted", [(), ("--trainer.max_steps=-1", "--trainer.max_epochs=3")])
def test_numbers_drawn_in_any_hook_are_the_same_after_a_restart(
    run, config, sessions, monkeypatch, tmp_path, counted, n_workers
):
    stops = (3, 5, 7, 14) if n_workers == 0 else (7,)
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", stops, tmp_path / "stopped")
        flags = (*PROJECT, *counted, f"--data.n_workers={n_workers}")
        assert run("fit", "--config", config, *flags)[0] == 0
    for n in stops:
        session = tmp_path / "stopped" / str(n)
        code, _, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        assert same(result(session), result(sessions()[0])), f"stopped after iteration {n}"


def test_numbers_drawn_for_a_batch_do_not_depend_on_the_number_of_workers(run, config, sessions):
    for n_workers in (0, 2):
        flags = (f"--data.n_workers={n_workers}", "--trainer.num_sanity_val_steps=0")
        assert run("fit", "--config", config, *PROJECT, *flags)[0] == 0
    assert same(*map(result, sessions()))
