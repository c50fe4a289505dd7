"""When a validation runs, and what that takes for granted in Lightning."""

import sys

import lightning.pytorch as pl
import pytest
import scripted
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel
from restarts import copy_at, result, same
from scripted import PROJECT, validated
from tiny import logged

EPOCHS = ("--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=1")


@pytest.fixture
def script(monkeypatch):
    return scripted.start(monkeypatch)


@pytest.mark.parametrize(
    ("interval", "n_iterations", "expected"),
    [
        (5, 23, [5, 10, 15, 20, 23]),
        (5, 10, [5, 10]),
        (5, 3, [3]),
        (1, 3, [1, 2, 3]),
        (6, 12, [6, 12]),  # at the ends of epochs
    ],
)
@pytest.mark.parametrize(
    "accumulating",
    [
        (),
        ("--trainer.accumulate_grad_batches=2", "--data.n_samples=26"),  # 7 batches an epoch
    ],
    ids=lambda flags: " ".join(flags) or "one batch an iteration",
)
def test_validation_runs_every_n_iterations_and_once_at_the_last(
    run, config, script, interval, n_iterations, expected, accumulating
):
    flags = (f"--trainer.val_check_interval={interval}", f"--trainer.max_steps={n_iterations}")
    code, out, err = run("fit", "--config", config, *PROJECT, *flags, *accumulating)
    assert (code, validated(out)) == (0, expected), err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--trainer.val_check_interval=1.0", "--trainer.max_steps=-1"), [6, 12, 18, 24]),
        (("--trainer.val_check_interval=0.5", "--trainer.max_steps=9"), [3, 6, 9]),
        (("--trainer.val_check_interval=1.0", "--trainer.max_steps=9"), [6, 9]),
        (("--trainer.val_check_interval=4", "--trainer.max_steps=13"), [4, 10, 13]),
        (
            (
                "--trainer.val_check_interval=1.0",
                "--trainer.max_steps=-1",
                "--trainer.check_val_every_n_epoch=2",
            ),
            [12, 24],
        ),
    ],
)
def test_an_interval_within_epochs_stays_lightnings(run, config, script, flags, expected):
    code, out, err = run("fit", "--config", config, *PROJECT, *EPOCHS, *flags)
    assert (code, validated(out)) == (0, expected), err


ACCUMULATED = ("--trainer.accumulate_grad_batches=4", "--trainer.max_steps=-1")


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("0.2", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("0.5", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("0.7", [1, 3, 5, 7, 8]),
    ],
)
def test_a_validation_amid_accumulated_gradients_waits_for_their_step(
    run, config, script, interval, expected
):
    # 6 batches an epoch, of which 4 and 2 are an iteration each.
    flags = (f"--trainer.val_check_interval={interval}", *ACCUMULATED)
    code, out, err = run("fit", "--config", config, *PROJECT, *EPOCHS, *flags)
    assert (code, validated(out)) == (0, expected), err


ENDS = {
    "validated every other epoch": (
        ("--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=2"),
        [4],
    ),
    "validated every hour": (("--trainer.val_check_interval=00:01:00:00",), [4]),
    "ended by epochs": (("--trainer.max_steps=-1", "--trainer.max_epochs=1"), [5, 6]),
}


@pytest.mark.parametrize(("flags", "expected"), ENDS.values(), ids=ENDS)
def test_the_last_iteration_is_validated_however_the_run_is_measured(
    run, config, script, flags, expected
):
    code, out, err = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=4", *flags)
    assert (code, validated(out)) == (0, expected), err


@pytest.mark.parametrize(("flags", "expected"), ENDS.values(), ids=ENDS)
def test_the_last_iteration_is_saved_however_the_run_is_measured(
    run, config, script, flags, expected
):
    code, _, err = run("fit", "--config", config, *PROJECT, "--trainer.max_steps=4", *flags)
    assert (code, script.written[-1:]) == (0, expected[-1:]), err


@pytest.mark.long
@pytest.mark.parametrize(
    ("interval", "accumulate", "kills"),
    [
        ("1.0", 1, (7, 13, 14)),  # amid, before and at the end of an epoch
        ("0.5", 1, (7, 13, 14)),
        ("0.3", 3, (1, 2, 4)),  # due after batches 2, 4 and 6; iterations end after 3, 6 and 7
    ],
)
def test_a_run_validated_by_epochs_goes_on_bitwise(
    run, config, sessions, monkeypatch, tmp_path, interval, accumulate, kills
):
    flags = (
        *("--trainer.max_epochs=2", "--trainer.max_steps=-1", "--save_minutes=0"),
        *("--trainer.check_val_every_n_epoch=1", f"--trainer.val_check_interval={interval}"),
        f"--trainer.accumulate_grad_batches={accumulate}",
    )
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", kills, tmp_path / "killed")
        assert run("fit", "--config", config, *flags)[0] == 0
    expected = result(sessions()[0])
    for k in kills:
        session = tmp_path / "killed" / str(k)
        code, _, err = run("fit", "--ckpt_path", session)
        assert code == 0, err
        assert same(result(session), expected), f"killed after iteration {k}"


def test_early_stopping_from_the_config_ends_the_run_after_its_validation(
    run, config, script, sessions
):
    settings = yaml.safe_load(config.read_text())
    stopping = {"monitor": "val/loss", "mode": "min", "patience": 2}
    settings["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": stopping}]
    config.write_text(yaml.safe_dump(settings))
    code, out, err = run("fit", "--config", config, *PROJECT)
    assert code == 0, err
    # The loss grows with each validation: 10 and 15 are no better than 5.
    assert validated(out) == [5, 10, 15]
    assert "Finished at iteration 15\n" in out
    last = torch.load(sessions()[0] / "checkpoints" / "last.ckpt")
    (state,) = (s for name, s in last["callbacks"].items() if name.startswith("EarlyStopping"))
    assert (last["global_step"], state["wait_count"]) == (15, 2)


# What the schedule uses of Lightning without being promised it ------------------------------------


class BoringValidations(pl.Callback):
    """Sets `val_check_batch` after each batch as `wanted` says and notes what follows."""

    def __init__(self, wanted: list[bool]) -> None:
        self.wanted = wanted
        self.predicted: list[bool] = []
        self.n_batches: dict[int, int] = {}  # of the validation after so many iterations

    def on_train_batch_end(self, trainer, *args) -> None:
        validate = self.wanted[trainer.global_step - 1]
        trainer.val_check_batch = 1 if validate else sys.maxsize
        fit_loop = trainer.fit_loop
        due = fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)
        self.predicted.append(due)

    def on_validation_batch_end(self, trainer, *args) -> None:
        self.n_batches[trainer.global_step] = self.n_batches.get(trainer.global_step, 0) + 1


def fit_boring(callback: pl.Callback, n_iterations: int, **settings) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": n_iterations,
            "max_epochs": -1,
            "limit_train_batches": 4,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [callback],
            **settings,
        }
    )
    trainer.fit(BoringModel())
    return trainer


def test_lightning_validates_after_a_batch_if_val_check_batch_says_so():
    wanted = [False, True, True, False, False, False, False, True, False, True]
    callback = BoringValidations(wanted)
    fit_boring(callback, len(wanted))
    assert callback.n_batches == {k: 2 for k, due in enumerate(wanted, 1) if due}


@pytest.mark.parametrize("validate", [True, False])
def test_lightning_tells_within_on_train_batch_end_whether_a_validation_follows(validate):
    wanted = [False, validate, False, validate, True]
    callback = BoringValidations(wanted)
    fit_boring(callback, len(wanted))
    assert callback.predicted == wanted
    assert sorted(callback.n_batches) == [k for k, due in enumerate(wanted, 1) if due]


def test_lightning_validates_when_asked_to_stop():
    class Stop(BoringValidations):
        def on_train_batch_end(self, trainer, *args) -> None:
            trainer.should_stop = trainer.global_step == 2
            super().on_train_batch_end(trainer, *args)

    callback = Stop([False] * 5)
    trainer = fit_boring(callback, 5)
    assert (trainer.global_step, callback.predicted) == (2, [False, True])
    assert callback.n_batches == {2: 2}


def test_lightnings_validation_loop_can_be_run_before_the_first_iteration():
    class Validate(BoringValidations):
        def on_train_start(self, trainer, pl_module) -> None:
            val_loop = trainer.fit_loop.epoch_loop.val_loop
            val_loop.restarting = False
            trainer.validating = True
            val_loop.run()
            trainer.training = True
            assert pl_module.training

    callback = Validate([False, True, False])
    trainer = fit_boring(callback, 3)
    assert (trainer.global_step, callback.n_batches) == (3, {0: 2, 2: 2})


def test_two_optimisers_by_epochs_are_validated_where_epochs_end(run, config, sessions):
    flags = ("--model=stop_kinds.ManualModule", "--trainer.max_steps=-1", "--trainer.max_epochs=3")
    by_epoch = ("--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0")
    for more, steps in ((by_epoch, [7, 14, 21]), ((), [5, 10, 15, 20, 21])):
        code, out, err = run("fit", "--config", config, *flags, *more)
        assert code == 0, err
        assert [*logged(sessions()[-1], "val/loss")] == steps
        assert "Finished at iteration 21\n" in out
