"""How Lightning calls hooks is still as it was read."""

import inspect
import re
from pathlib import Path

import lightning
import lightning.pytorch as pl
import pytest
from conftest import TinyData, TinyModule
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call

from lightning_trainer.internals_of_hooks import (
    CURRENT_HOOK,
    call_hooks,
    skip_empty_hooks,
    skip_hooks,
    without_profiler,
)


def trainer(callbacks=None, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, **options}
    return pl.Trainer(callbacks=callbacks, **quiet, **options)


class CountBatches(Callback):
    def __init__(self) -> None:
        self.n_started = self.n_ended = 0

    def on_train_batch_start(self, *args) -> None:
        self.n_started += 1

    def on_train_batch_end(self, *args) -> None:
        self.n_ended += 1


def test_lightning_names_the_hook_that_it_calls_in_the_module():
    seen = []

    class Own(TinyModule):
        def on_train_batch_start(self, batch, batch_idx) -> None:
            seen.append(vars(self)[CURRENT_HOOK])

    trainer().fit(Own(), datamodule=TinyData())
    assert seen == ["on_train_batch_start"] * 2


@pytest.mark.parametrize("skips_empty", [False, True])
def test_a_hook_that_can_not_be_called_is_passed_over_until_it_is_given_back(skips_empty):
    callback = CountBatches()
    skip_hooks(callback, ["on_train_batch_start"])
    for n_started, n_ended in ((0, 2), (2, 4)):
        own = trainer([callback])
        restore = skip_empty_hooks(own) if skips_empty else lambda: None
        own.fit(TinyModule(), datamodule=TinyData())
        restore()
        assert (callback.n_started, callback.n_ended) == (n_started, n_ended)
        call_hooks(callback, ["on_train_batch_start"])


def test_lightning_calls_the_hooks_of_callbacks_in_one_place():
    folder = Path(lightning.__file__).parent / "pytorch"
    source = "".join(path.read_text() for path in folder.rglob("*.py"))
    of_batches = r"call_callback_hooks\(\s*\w+,\s*\"on_(?:before|after|\w*_batch)_"
    n_calls = len(re.findall(of_batches, source))
    assert n_calls == len(re.findall(f"call\\._{of_batches}", source)) > 0
    assert "fn(trainer, trainer.lightning_module, *args" in inspect.getsource(
        call._call_callback_hooks
    )


def record_hooks(skips_empty: bool) -> list[tuple]:
    """Each hook of two callbacks in a run, with its arguments and the name that the module has."""
    seen: list[tuple] = []

    def note(who: str, name: str):
        return lambda t, module, *args, **options: seen.append(
            (who, name, vars(module)[CURRENT_HOOK], len(args), sorted(options), t.global_step)
        )

    names = [name for name in dir(Callback) if name.startswith("on_") and "checkpoint" not in name]
    all_hooks = LambdaCallback(
        **{name: note("all", name) for name in names if name != "on_exception"}
    )

    class Few(Callback):
        on_before_zero_grad = staticmethod(note("few", "on_before_zero_grad"))
        on_validation_batch_end = staticmethod(note("few", "on_validation_batch_end"))

    class Added(Callback):
        on_train_batch_end = staticmethod(note("added", "on_train_batch_end"))

    class AddsAnother(TinyModule):
        def configure_callbacks(self) -> list[Callback]:
            return [Added()]

    own = trainer([Callback(), all_hooks, Few()], max_steps=3, limit_val_batches=2)
    restore = skip_empty_hooks(own) if skips_empty else lambda: None
    own.fit(AddsAnother(), datamodule=TinyData())
    restore()
    return seen


def test_the_same_hooks_are_called_in_the_same_order_with_the_same_arguments():
    with_lightnings, with_ours = record_hooks(False), record_hooks(True)
    assert with_lightnings == with_ours
    assert {who for who, *_ in with_ours} == {"all", "few", "added"}


class Silent(Callback):
    """Says when its hooks are looked up."""

    looked_up = 0

    def __getattribute__(self, name: str):
        if name in ("on_train_batch_start", "on_validation_batch_end", "on_validation_end"):
            Silent.looked_up += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize(("skips_empty", "n_looks"), [(False, 5), (True, 0)])
def test_a_callback_costs_only_the_hooks_it_has(skips_empty, n_looks):
    Silent.looked_up, original = 0, call._call_callback_hooks
    own = trainer([Silent()], limit_val_batches=2, num_sanity_val_steps=0, val_check_interval=2)
    restore = skip_empty_hooks(own) if skips_empty else lambda: None
    own.fit(TinyModule(), datamodule=TinyData())
    restore()
    assert (Silent.looked_up, call._call_callback_hooks) == (n_looks, original)


def test_a_hook_that_a_callback_gets_after_the_check_of_a_validation_is_called():
    class Later(Callback):
        n_ends = 0

        def on_train_start(self, *args) -> None:
            self.on_validation_end = self.count

        def count(self, *args) -> None:
            self.n_ends += 1

    later = Later()
    own = trainer([later], limit_val_batches=1, num_sanity_val_steps=1, val_check_interval=1)
    restore = skip_empty_hooks(own)
    own.fit(TinyModule(), datamodule=TinyData())
    restore()
    assert later.n_ends == 2


def test_lightnings_profiler_that_measures_nothing_is_replaced_by_one_that_costs_less():
    assert isinstance(trainer().profiler, PassThroughProfiler)
    with without_profiler().profile("anything") as nothing:
        assert nothing is None
    source = inspect.getsource(PassThroughProfiler.profile)
    assert "yield" in source  # a generator for each call: the reason
