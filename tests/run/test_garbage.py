"""When Python collects garbage in a run, and that it does as before afterwards."""

import gc
import os
import weakref
from typing import ClassVar

import pytest
import torch
from conftest import TinyModule, count_frozen
from lightning.pytorch.callbacks import Callback
from restarts import Killed, kill_at

from lightning_trainer.run import garbage
from lightning_trainer.run.garbage import CollectGarbage

SPARSE = ("--trainer.val_check_interval=1000", "--trainer.log_every_n_steps=1000")


class Cycle:
    """Holds a tensor and itself, as exceptions and closures come to do."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self) -> None:
        self.tensor, self.itself = torch.zeros(1), self
        self.alive.add(self)


class MakesCycles(TinyModule):
    """Drops a cycle at each step; those of the last 120 steps are still in use."""

    def __init__(self, n_kept: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.cycles: list[Cycle] = []
        self.most = 0

    def on_train_batch_end(self, *_) -> None:
        self.cycles.append(Cycle())
        del self.cycles[: -self.hparams.n_kept or len(self.cycles)]
        self.most = max(self.most, len(Cycle.alive))

    def on_train_end(self) -> None:
        print("most alive:", self.most)


class Watch(Callback):
    """Notes each collection by the iterations done, and whether Python collects by itself."""

    seen: ClassVar[list] = []

    def on_train_start(self, trainer, *_) -> None:
        def note(phase: str, info: dict) -> None:
            if phase == "start" and CollectGarbage.is_off:
                self.seen.append((trainer.global_step, info["generation"]))

        self.note = note
        gc.callbacks.append(note)

    def on_train_batch_end(self, trainer, *_) -> None:
        assert gc.isenabled() == (trainer.global_step < 2)
        if trainer.global_step == 2:
            assert gc.get_freeze_count() > 0

    def on_validation_batch_end(self, *_) -> None:
        assert gc.isenabled()

    def on_train_end(self, *_) -> None:
        gc.callbacks.remove(self.note)


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    """Python's collector as it is outside of these tests, which spare it what they imported."""
    gc.unfreeze()
    monkeypatch.setattr(gc, "get_freeze_count", count_frozen)
    yield
    gc.freeze()


def is_as_before() -> bool:
    return gc.isenabled() and not gc.get_freeze_count() and not CollectGarbage.is_off


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (SPARSE, [(52, 1), (102, 1), (120, 2)]),
        (  # lines and validations
            ("--trainer.val_check_interval=90", "--trainer.log_every_n_steps=40"),
            [(40, 1), (80, 1), (90, 2), (120, 1), (120, 2)],
        ),
    ],
)
def test_it_collects_at_lines_validations_and_every_50_batches(run, config, options, seen):
    Watch.seen.clear()
    watch = f"--trainer.callbacks={__name__}.Watch"
    code, _, err = run("fit", "--config", config, "--trainer.max_steps=120", *options, watch)
    assert code == 0, err
    assert Watch.seen == seen
    assert is_as_before()


@pytest.mark.long
@pytest.mark.parametrize(("n_kept", "n_steps", "most"), [(0, 110, 55), (120, 450, 330)])
def test_what_forms_cycles_is_bounded(run, config, monkeypatch, n_kept, n_steps, most):
    monkeypatch.setattr(garbage, "_FULL", 3)
    options = (*SPARSE, f"--trainer.max_steps={n_steps}", f"--model={__name__}.MakesCycles")
    code, out, err = run("fit", "--config", config, *options, f"--model.n_kept={n_kept}")
    assert code == 0, err
    assert int(out.split("most alive: ")[1].split()[0]) < most


def test_a_run_that_dies_gives_the_collector_back(run, config, monkeypatch):
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 5)
    with pytest.raises(Killed):
        run("fit", "--config", config)
    assert is_as_before()


@pytest.mark.parametrize("do", ["disable", "freeze"])
def test_a_project_that_sees_to_the_collector_itself_is_let_alone(run, config, do, monkeypatch):
    states = set()

    def on_train_start(self, *_) -> None:
        getattr(gc, do)()

    def on_train_batch_end(self, *_) -> None:
        states.add((gc.isenabled(), gc.get_freeze_count() > 0, CollectGarbage.is_off))

    for hook in (on_train_start, on_train_batch_end):
        monkeypatch.setattr(TinyModule, hook.__name__, hook, raising=False)
    try:
        assert run("fit", "--config", config, "--trainer.max_steps=7")[0] == 0
        states.add((gc.isenabled(), gc.get_freeze_count() > 0, CollectGarbage.is_off))
    finally:
        gc.unfreeze()
        gc.enable()
    assert states == {(do != "disable", do == "freeze", False)}


def test_a_process_that_is_forked_collects_by_itself(run, config, monkeypatch):
    codes = []

    def on_train_batch_end(self, *_) -> None:
        child = os.fork()
        if child == 0:
            os._exit(gc.isenabled())
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    monkeypatch.setattr(TinyModule, "on_train_batch_end", on_train_batch_end, raising=False)
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0
    assert codes == [1] * 5
