"""Each private part of Lightning's logging is still as it was read; a test for each."""

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyData, TinyModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _ResultCollection,
    _ResultMetric,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_internals import SaveAt, trainer
from torch.utils.tensorboard import SummaryWriter
from torchmetrics import MeanMetric

from lightning_trainer.internals_of_logging import (
    StepCount,
    call_after_batch,
    count_steps,
    hide_in_events,
    is_accumulating,
    leave_logged_in_place,
    logged_numbers,
    metrics_of_validation,
    restore_logged,
    tell_iterations,
)


class Seen(DummyLogger):
    """Keeps each step that it is given, and the names logged there."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, set[str]]] = []

    def log_metrics(self, metrics, step) -> None:
        self.rows.append((step, {*metrics}))


class Logs(TinyModule):
    def create_metrics(self) -> None:
        super().create_metrics()
        self.mean = MeanMetric()

    def on_train_epoch_start(self) -> None:
        self.log("at_start", 7.0)

    def training_step(self, batch, batch_idx):
        step = super().training_step(batch, batch_idx)
        self.log("sum", 1.0, on_step=True, on_epoch=True, reduce_fx="sum")
        return step

    def validation_step(self, batch, batch_idx):
        step = super().validation_step(batch, batch_idx)
        self.mean.update(step["loss"])
        self.log("val_mean", self.mean)
        return step


class Look(Callback):
    """Calls functions in hooks, by their names."""

    def __init__(self, **functions) -> None:
        for hook, function in functions.items():
            setattr(self, hook, lambda trainer, *_, f=function: f(trainer))


def fit(module: pl.LightningModule, *callbacks: Callback, **options) -> pl.Trainer:
    made = trainer(callbacks=[*callbacks], **options)
    made.fit(module, datamodule=TinyData())
    return made


def test_lightning_gives_loggers_its_count_of_steps_which_tells_the_iteration():
    logger = Seen()
    look = Look(on_train_start=lambda trainer: tell_iterations(trainer, lambda: 99))
    made = trainer(callbacks=[look], log_every_n_steps=1)
    made.loggers = [logger]
    made.fit(Logs(), datamodule=TinyData())
    steps = [step for step, names in logger.rows if "sum_step" in names]
    assert steps == [0, 1]  # one less than the iterations
    assert all(isinstance(step, StepCount) and step.iteration() == 99 for step in steps)
    [epoch] = [step for step, names in logger.rows if "sum_epoch" in names]
    assert (epoch, epoch.iteration()) == (1, 99)


def test_a_restored_count_of_steps_is_that_of_the_batches_that_are_done(tmp_path):
    path, counts = tmp_path / "three.ckpt", []
    fit(Logs(), SaveAt(3, path), max_steps=3)
    look = Look(
        on_train_start=count_steps,
        on_train_batch_start=lambda t: counts.append(t.fit_loop.epoch_loop._batches_that_stepped),
    )
    again = trainer(max_steps=5, callbacks=[look])
    again.fit(Logs(), datamodule=TinyData(), ckpt_path=path, weights_only=True)
    assert counts == [3, 4]


def test_a_batch_that_accumulates_is_told_from_one_that_steps():
    found = []
    look = Look(on_train_batch_end=lambda trainer: found.append(is_accumulating(trainer)))
    fit(Logs(), look, accumulate_grad_batches=3, max_steps=3)
    assert found == [True, True, False, True, True, False, False]  # 7 batches an epoch


def test_the_numbers_of_a_batch_are_logged_after_its_hooks_and_before_what_is_asked_for():
    logger, calls, undo = Seen(), [], []

    def note(name):
        return lambda *_: calls.append((name, len(logger.rows)))

    look = Look(
        on_train_start=lambda trainer: undo.append(call_after_batch(trainer, note("after"))),
        on_train_batch_end=note("end"),
    )
    made = trainer(callbacks=[look], log_every_n_steps=1)
    made.loggers = [logger]
    made.fit(Logs(), datamodule=TinyData())
    assert calls == [("end", 0), ("after", 1), ("end", 1), ("after", 2)]
    undo[0]()
    assert "update_train_step_metrics" not in vars(made._logger_connector)


def test_what_is_logged_stays_where_it_is_with_the_same_numbers(monkeypatch):
    moves, move = [], _ResultMetric.to
    monkeypatch.setattr(
        _ResultMetric, "to", lambda self, *to, **how: moves.append(to) or move(self, *to, **how)
    )
    options = {"limit_val_batches": 2, "num_sanity_val_steps": 0, "max_steps": 7}
    pl.seed_everything(0, verbose=False)
    lightnings = fit(Logs(), **options)
    n_before = len(moves)
    give_back = leave_logged_in_place()
    pl.seed_everything(0, verbose=False)
    own = fit(Logs(), **options)
    give_back()
    assert own.callback_metrics == lightnings.callback_metrics
    assert {"sum_step", "sum_epoch", "val_mean", "val/loss"} <= own.callback_metrics.keys()
    # Left are torchmetrics, which are moved to their own device, and the end of the run.
    assert len(moves) - n_before < n_before / 2


def test_what_is_logged_of_another_device_is_moved_there():
    give_back = leave_logged_in_place()
    results = _ResultCollection(training=True)
    results.log("training_step", "a", torch.tensor(1.0))
    assert results["training_step.a"].to(torch.device("cpu")).value.device.type == "cpu"
    assert results["training_step.a"].to(torch.device("meta")).value.device.type == "meta"
    give_back()
    assert _ResultMetric.to.__module__ == _ResultMetric.__module__


def test_what_was_logged_in_an_epoch_is_taken_and_goes_on():
    taken = []
    fit(Logs(), Look(on_train_batch_end=lambda trainer: taken.append(logged_numbers(trainer))))
    numbers = taken[-1]
    assert numbers.keys() == {"on_train_epoch_start.at_start", "training_step.sum"}
    assert numbers["training_step.sum"]["sums"] == {"value": torch.tensor(2.0)}
    # The first hook of the epoch has run before: it logs nothing in what goes on.
    again = Logs()
    again.on_train_epoch_start = lambda: None
    made = fit(again, Look(on_train_start=lambda trainer: restore_logged(trainer, numbers)))
    assert made.callback_metrics["sum_epoch"] == 4.0
    assert made.callback_metrics["at_start"] == 7.0


@pytest.mark.parametrize(
    ("changed", "result"), [({"prog_bar": True}, 4.0), ({"reduce_fx": "max"}, 1.0)]
)
def test_arguments_of_a_log_may_change_over_a_restart(changed, result):
    taken = []
    fit(Logs(), Look(on_train_batch_end=lambda trainer: taken.append(logged_numbers(trainer))))

    class Changed(TinyModule):
        def training_step(self, batch, batch_idx):
            arguments = {"on_step": False, "on_epoch": True, "reduce_fx": "sum", **changed}
            self.log("sum", 1.0, **arguments)
            return super().training_step(batch, batch_idx)

    look = Look(on_train_start=lambda trainer: restore_logged(trainer, taken[-1]))
    assert fit(Changed(), look).callback_metrics["sum"] == result


def test_metrics_that_a_validation_has_logged_are_known_until_it_has_reset_them():
    known = []

    def note(trainer) -> None:
        known.append(metrics_of_validation(trainer))

    module = Logs()
    look = Look(on_validation_end=note, on_train_epoch_end=note)
    options = {"limit_val_batches": 1, "num_sanity_val_steps": 0, "val_check_interval": 1}
    fit(module, look, max_steps=1, **options)
    assert known == [[module.mean], []]


def test_all_that_a_writer_of_tensorboard_writes_can_be_changed(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        hide_in_events(writer, lambda content: content.replace(b"abc", b"***"))
        writer.add_scalar("abc", 1.0, 3)
        writer.add_text("b", "an abc", 3)
        writer.add_image("abc/c", torch.ones(1, 2, 2), 3)
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert (tags["scalars"], tags["images"]) == (["***"], ["***/c"])
    assert [event.value for event in events.Scalars("***")] == [1.0]
    assert events.Tensors("b/text_summary")[0].tensor_proto.string_val == [b"an ***"]
