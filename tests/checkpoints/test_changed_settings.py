"""Optimiser settings that differ when a run goes on hold as if they had been there all along."""

import csv
import math
from pathlib import Path

import pytest
import torch
from conftest import TinyModule
from restarts import Killed, kill_at, result, same
from torch.optim import lr_scheduler


class ScheduledModule(TinyModule):
    """Many schedules, several groups, every setting a flag."""

    def __init__(
        self,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.0,
        schedule: str = "none",
        step_size: int = 4,
        patience: int = 0,
        n_groups: int = 1,
    ) -> None:
        super().__init__(learning_rate, schedule)
        self.save_hyperparameters()

    def create_optimiser(self) -> None:
        hparams, parameters = self.hparams, list(self.model.parameters())
        groups = [{"params": parameters[i :: hparams.n_groups]} for i in range(hparams.n_groups)]
        self.optimiser = torch.optim.AdamW(
            groups, hparams.learning_rate, weight_decay=hparams.weight_decay
        )
        optimiser, n, step_size = self.optimiser, self.trainer.max_steps, hparams.step_size
        self.scheduler = {
            "none": lambda: None,
            "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimiser, n),
            "one cycle": lambda: lr_scheduler.OneCycleLR(optimiser, hparams.learning_rate, n),
            "step": lambda: lr_scheduler.StepLR(optimiser, step_size, 0.5),
            "lambda": lambda: lr_scheduler.LambdaLR(optimiser, lambda k: 1 / (k + step_size)),
            "warm-up, then cosine": lambda: lr_scheduler.SequentialLR(
                optimiser,
                [
                    lr_scheduler.LinearLR(optimiser, 0.1, total_iters=step_size),
                    lr_scheduler.CosineAnnealingLR(optimiser, n - step_size),
                ],
                [step_size],
            ),
            "plateau": lambda: lr_scheduler.ReduceLROnPlateau(
                optimiser, "max", 0.5, hparams.patience
            ),
        }[hparams.schedule]()

    def on_validation_epoch_end(self) -> None:
        if self.hparams.schedule == "plateau":  # a score that never gets better
            self.val_metrics.reset()
            self.val_metrics.update(torch.tensor([0]), torch.tensor([0]))
        super().on_validation_epoch_end()


PROJECT = ("--model=test_changed_settings.ScheduledModule",)


def groups(session: Path) -> list[dict]:
    """The optimiser's settings at the end."""
    last = torch.load(session / "checkpoints" / "last.ckpt")
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in last["optimizer_states"][0]["param_groups"]
    ]


def schedules(session: Path) -> list[dict]:
    return torch.load(session / "checkpoints" / "last.ckpt")["lr_schedulers"]


def rates(session: Path) -> dict[int, float]:
    """The learning rates that were logged, by iteration."""
    with (session / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {int(r["step"]): float(r["learning_rate"]) for r in rows if r["learning_rate"]}


def test_a_changed_learning_rate_takes_effect_and_is_told(run, config, sessions):
    assert run("fit", "--config", config, *PROJECT, "--trainer.max_steps=10")[0] == 0
    session = sessions()[0]
    flags = ("--model.learning_rate=0.5", "--trainer.max_steps=16")
    code, out, err = run("fit", "--ckpt_path", session, *flags)
    assert code == 0, err
    assert (
        "Changed optimiser settings, from iteration 11 on:\n    groups.0.lr: 0.01 -> 0.5\n"
    ) in out
    assert [group["lr"] for group in groups(session)] == [0.5]
    assert rates(session) == {4: 0.01, 8: 0.01, 12: 0.5, 16: 0.5}


def test_it_keeps_what_the_optimiser_has_learnt(run, config, sessions):
    assert run("fit", "--config", config, *PROJECT, "--trainer.max_steps=10")[0] == 0
    session = sessions()[0]
    before = torch.load(session / "checkpoints" / "last.ckpt")
    flags = ("--model.learning_rate=0.0", "--trainer.max_steps=11")
    assert run("fit", "--ckpt_path", session, *flags)[0] == 0
    after = torch.load(session / "checkpoints" / "last.ckpt")
    for old, new in zip(
        before["optimizer_states"][0]["state"].values(),
        after["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        assert (old["step"].item(), new["step"].item()) == (10, 11)
        # What Adam does, with its default of 0.999: the old mean counts, and was not started anew.
        assert (new["exp_avg_sq"] >= 0.999 * old["exp_avg_sq"]).all()
    weights = [name for name, _ in before["state_dict"].items() if name.endswith("weight")]
    assert weights
    assert all(torch.equal(before["state_dict"][n], after["state_dict"][n]) for n in weights)


@pytest.mark.long
@pytest.mark.parametrize(
    ("schedule", "change"),
    [
        ("cosine", "--model.learning_rate=0.05"),
        ("cosine", "--model.weight_decay=0.1"),
        ("cosine", "--trainer.max_steps=23"),
        ("one cycle", "--model.learning_rate=0.05"),
        ("step", "--model.step_size=3"),
        ("lambda", "--model.step_size=3"),
        ("warm-up, then cosine", "--model.learning_rate=0.05"),
    ],
)
def test_changed_settings_hold_as_if_they_had_been_there_from_the_start(
    run, config, sessions, monkeypatch, schedule, change
):
    flags = (*PROJECT, f"--model.schedule={schedule}", "--trainer.max_steps=15")
    stop_at_10(run, config, monkeypatch, *flags)
    changed = sessions()[0]
    code, _, err = run("fit", "--ckpt_path", changed, change)
    assert code == 0, err
    assert run("fit", "--config", config, *flags, change)[0] == 0
    whole = sessions()[-1]
    assert changed != whole
    assert groups(changed) == groups(whole)
    assert schedules(changed) == schedules(whole)
    after = {step: rate for step, rate in rates(whole).items() if step > 10}
    assert after
    assert {step: rate for step, rate in rates(changed).items() if step > 10} == after


def stop_at_10(run, config, monkeypatch, *flags: str) -> None:
    """Starts a session that is killed once its validation at iteration 10 is saved."""
    kill_at(monkeypatch, "on_validation_end", lambda trainer: trainer.global_step == 10)
    with pytest.raises(Killed):
        run("fit", "--config", config, *flags)


def test_raising_max_steps_stretches_a_cosine_over_them(run, config, sessions):
    flags = (*PROJECT, "--model.schedule=cosine", "--trainer.log_every_n_steps=1")
    assert run("fit", "--config", config, *flags, "--trainer.max_steps=10")[0] == 0
    session = sessions()[0]
    code, out, err = run("fit", "--ckpt_path", session, "--trainer.max_steps=20")
    assert code == 0, err
    assert "    scheduler.T_max: 10 -> 20\n" in out

    def cosine(step: int, n_steps: int) -> float:
        return 0.01 * (1 + math.cos(math.pi * step / n_steps)) / 2

    # The rate of an iteration is that before the scheduler steps for the next one.
    first = {step: cosine(step - 1, 10) for step in range(1, 11)}
    second = {step: cosine(step - 1, 20) for step in range(11, 21)}
    assert rates(session) == pytest.approx(first | second)


@pytest.mark.parametrize("schedule", ["one cycle", "plateau"])
def test_unchanged_settings_are_left_alone(run, config, sessions, monkeypatch, schedule):
    flags = (*PROJECT, f"--model.schedule={schedule}", "--trainer.max_steps=15")
    assert run("fit", "--config", config, *flags)[0] == 0
    stop_at_10(run, config, monkeypatch, *flags)
    code, out, err = run("fit", "--ckpt_path", sessions()[-1])
    assert code == 0, err
    assert "Changed optimiser settings" not in out
    assert same(result(sessions()[1]), result(sessions()[0]))


@pytest.mark.parametrize("schedule", ["cosine", "one cycle"])
def test_changed_settings_hold_where_a_validation_is_still_to_run(
    run, config, sessions, monkeypatch, schedule
):
    flags = (*PROJECT, f"--model.schedule={schedule}", "--trainer.max_steps=15", "--save_minutes=0")
    kill_at(monkeypatch, "on_train_batch_end", lambda trainer: trainer.global_step == 10)
    with pytest.raises(Killed):
        run("fit", "--config", config, *flags)
    change = "--model.learning_rate=0.05"
    code, _, err = run("fit", "--ckpt_path", sessions()[0], change)
    assert code == 0, err
    assert run("fit", "--config", config, *flags, change)[0] == 0
    assert groups(sessions()[0]) == groups(sessions()[1])
    assert schedules(sessions()[0]) == schedules(sessions()[1])


def test_a_change_is_kept_when_the_run_goes_on_once_more(run, config, sessions, monkeypatch):
    flags = (*PROJECT, "--model.schedule=cosine", "--trainer.max_steps=20")
    stop_at_10(run, config, monkeypatch, *flags)
    session = sessions()[0]
    kill_at(monkeypatch, "on_validation_end", lambda trainer: trainer.global_step == 15)
    with pytest.raises(Killed):
        run("fit", "--ckpt_path", session, "--model.learning_rate=0.5")
    code, out, err = run("fit", "--ckpt_path", session)
    assert code == 0, err
    assert "Changed optimiser settings" not in out
    expected = {step: 0.25 * (1 + math.cos(math.pi * (step - 1) / 20)) for step in (12, 16, 20)}
    assert {step: rate for step, rate in rates(session).items() if step > 10} == (
        pytest.approx(expected)
    )


def test_changed_settings_of_a_plateau_hold_from_there_on(run, config, sessions, monkeypatch):
    # The score never gets better: each validation but the first halves the rate, ...
    flags = (*PROJECT, "--model.schedule=plateau", "--trainer.max_steps=23")
    stop_at_10(run, config, monkeypatch, *flags)
    (before,) = schedules(sessions()[0])
    assert (before["patience"], before["num_bad_epochs"], before["last_epoch"]) == (0, 0, 2)
    # ... until it may stay bad for ten of them.
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--model.patience=10")
    assert code == 0, err
    (after,) = schedules(sessions()[0])
    assert (after["patience"], after["num_bad_epochs"], after["last_epoch"]) == (10, 3, 5)
    assert after["best"] == before["best"]


def test_a_plateaus_reductions_survive_another_setting(run, config, sessions, monkeypatch):
    flags = (*PROJECT, "--model.schedule=plateau", "--trainer.max_steps=15")
    stop_at_10(run, config, monkeypatch, *flags)
    assert [group["lr"] for group in groups(sessions()[0])] == [0.005]
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--model.weight_decay=0.1")
    assert code == 0, err
    after = [(group["lr"], group["weight_decay"]) for group in groups(sessions()[0])]
    assert after == [(0.0025, 0.1)]


def test_several_groups_get_their_settings_each(run, config, sessions, monkeypatch):
    flags = (*PROJECT, "--model.n_groups=2", "--trainer.max_steps=15")
    stop_at_10(run, config, monkeypatch, *flags)
    code, out, err = run("fit", "--ckpt_path", sessions()[0], "--model.learning_rate=0.5")
    assert code == 0, err
    assert "    groups.0.lr: 0.01 -> 0.5\n    groups.1.lr: 0.01 -> 0.5\n" in out
    assert [group["lr"] for group in groups(sessions()[0])] == [0.5, 0.5]


def test_another_number_of_groups_is_refused_with_the_reason(run, config, sessions):
    assert run("fit", "--config", config, *PROJECT, "--trainer.max_steps=5")[0] == 0
    flags = ("--model.n_groups=2", "--trainer.max_steps=10")
    code, _, err = run("fit", "--ckpt_path", sessions()[0], *flags)
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: the checkpoint's optimiser is AdamW over groups of [6] tensors, `create_optimiser` "
        "makes AdamW over groups of [3, 3] tensors: keep it as it was, or begin a new "
        "session with its weights by `--init_from`"
    )


def test_another_optimiser_is_refused_with_both_named(run, config, sessions, monkeypatch):
    assert run("fit", "--config", config, "--trainer.max_steps=5")[0] == 0

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.SGD(self.model.parameters(), 0.1)

    monkeypatch.setattr(TinyModule, "create_optimiser", create_optimiser)
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=10")
    assert code == 1
    assert err.splitlines()[-1] == (
        "error: the checkpoint's optimiser is Adam over groups of [6] tensors, `create_optimiser` "
        "makes SGD over groups of [6] tensors: keep it as it was, or begin a new "
        "session with its weights by `--init_from`"
    )
