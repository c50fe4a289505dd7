"""Several optimisers: one call of `training_step` is one iteration, whatever steps in it."""

import re

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyData, TinyModule
from lightning.pytorch.plugins.precision import MixedPrecision
from restarts import copy_at, result, same
from tiny import logged
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler

from lightning_trainer import BaseModule
from lightning_trainer.base.optimising import average_gradients

ADVERSARIES = ("--model=test_optimising.Adversaries",)


class Adversaries(BaseModule):
    """A generator of points and a critic, each with its optimiser and schedule."""

    def __init__(
        self, rate: float = 1e-2, rates: str = "none", listed: bool = False, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        critic = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.model = nn.ModuleDict({"generator": generator, "critic": critic})

    def create_loss(self) -> None:
        self.loss_fn = nn.BCEWithLogitsLoss()

    def create_optimiser(self) -> None:
        rate = self.hparams.rate
        self.optimiser = {
            "critic": SGD(self.model["critic"].parameters(), 2 * rate, momentum=0.9),
            "generator": Adam(self.model["generator"].parameters(), rate),
        }
        if self.hparams.rates == "steps":
            self.scheduler = {
                name: lr_scheduler.StepLR(each, 5) for name, each in self.optimiser.items()
            }
        elif self.hparams.rates == "one":
            self.scheduler = lr_scheduler.StepLR(self.optimiser["generator"], 5)
        if self.hparams.listed:
            self.optimiser = [*self.optimiser.values()]

    create_metrics = TinyModule.create_metrics

    def forward_model(self, batch: dict) -> Tensor:
        return self.model["generator"](torch.randn(len(batch["x"]), 2, device=self.device))

    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        return self.judge(output, real=True)

    def judge(self, points: Tensor, real: bool) -> Tensor:
        logits = self.model["critic"](points)
        return self.loss_fn(logits, torch.full_like(logits, float(real)))

    def update_metrics(self, metrics, batch: dict, output: Tensor) -> None:
        metrics.update(output[:, :2], batch["label"])

    def training_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        fake = self.forward_model(batch)
        critic = self.judge(batch["x"], real=True) + self.judge(fake.detach(), real=False)
        listed = self.hparams.listed
        self.optimise(0 if listed else "critic", critic)
        generator = self.forward_loss(batch, fake)
        self.optimise(1 if listed else "generator", generator)
        self.update_metrics(self.train_metrics, batch, fake.detach())
        return {"generator": generator, "critic": critic, "output": fake}


class ByHand(Adversaries):
    """The same by Lightning's own means, each batch's critic trained twice."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[Optimizer]:
        self.create_optimiser()
        return [*self.optimiser.values()]

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        critic_steps, _ = self.optimizers()
        for _ in range(2):
            loss = self.judge(batch["x"], real=True)
            critic_steps.zero_grad()
            self.manual_backward(loss)
            critic_steps.step()
        return loss


def of(run, config, *flags: str) -> str:
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    return out


@pytest.mark.parametrize("name", ["Adversaries", "ByHand"])
def test_a_batch_is_one_iteration_whatever_steps_in_it(run, config, sessions, name):
    out = of(run, config, f"--model=test_optimising.{name}", "--trainer.max_steps=9")
    assert re.findall(r"^Iteration +(\d+)/9", out, re.M) == ["4", "8"]
    assert out.count("\nValidation\n") == 2
    assert "Finished at iteration 9\n" in out
    with (sessions()[0] / "metrics.csv").open() as file:
        header, *rows = (line.split(",") for line in file)
    assert [row[header.index("step")] for row in rows] == ["4", "5", "8", "9"]
    assert torch.load(sessions()[0] / "checkpoints/last.ckpt")["global_step"] == 9


def test_a_run_by_epochs_has_as_many_iterations_as_batches(run, config):
    out = of(run, config, *ADVERSARIES, "--trainer.max_steps=-1", "--trainer.max_epochs=2")
    assert re.findall(r"^Iteration +(\d+)/14", out, re.M) == ["4", "8", "12"]
    assert "Finished at iteration 14\n" in out


def test_the_losses_are_logged_by_name_and_summed(run, config, sessions):
    out = of(run, config, *ADVERSARIES, "--trainer.max_steps=4")
    numbers = re.search(r"\| loss: ([\d.]+) \(generator ([\d.]+), critic ([\d.]+)\) \|", out)
    whole, generator, critic = map(float, numbers.groups())
    assert whole == pytest.approx(generator + critic, abs=2e-4)
    names = ("loss", "loss_generator", "loss_critic")
    found = [logged(sessions()[0], f"train/{name}")[4] for name in names]
    assert found == pytest.approx([whole, generator, critic], abs=1e-4)
    assert logged(sessions()[0], "learning_rate/critic")[4] == 0.02
    assert logged(sessions()[0], "learning_rate/generator")[4] == 0.01


class Draws(Adversaries):
    def visualise(self, batch: dict, output: Tensor, mode: str) -> None:
        assert not output.requires_grad
        print("drawn", mode, self.global_step, tuple(output.shape))


def test_the_output_of_a_step_is_drawn(run, config):
    flags = ("--model=test_optimising.Draws", "--model.vis_iterations=3", "--trainer.max_steps=6")
    out = of(run, config, *flags)
    drawn = [line for line in out.splitlines() if line.startswith("drawn train")]
    assert drawn == ["drawn train 3 (4, 4)", "drawn train 6 (4, 4)"]


@pytest.mark.long
@pytest.mark.parametrize("listed", ["true", "false"])
def test_killed_it_goes_on_bitwise(run, config, sessions, monkeypatch, tmp_path, listed):
    flags = (*ADVERSARIES, "--model.rates=steps", "--save_minutes=0", f"--model.listed={listed}")
    flags += ("--trainer.max_steps=13", "--trainer.gradient_clip_val=0.5")
    kills = (1, 5, 7, 10)
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", kills, tmp_path / "killed")
        of(run, config, *flags)
    expected = result(sessions()[0])
    assert len(expected["optimiser"]) == len(expected["scheduler"]) == 2
    for k in kills:
        code, out, err = run("fit", "--ckpt_path", tmp_path / "killed" / str(k))
        assert (code, "Changed optimiser" in out) == (0, False), err
        assert same(result(tmp_path / "killed" / str(k)), expected), k


def rates_of(session) -> list[float]:
    last = torch.load(session / "checkpoints/last.ckpt")
    return [state["param_groups"][0]["lr"] for state in last["optimizer_states"]]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [("steps", [2e-4, 1e-4]), ("one", [2e-2, 1e-4]), ("none", [2e-2, 1e-2])],
)
def test_each_scheduler_is_stepped_once_an_iteration(run, config, sessions, rates, expected):
    of(run, config, *ADVERSARIES, f"--model.rates={rates}", "--trainer.max_steps=12")
    assert rates_of(sessions()[0]) == pytest.approx(expected)


def test_changed_learning_rates_win_for_all(run, config, sessions):
    of(run, config, *ADVERSARIES, "--model.rates=steps", "--trainer.max_steps=7")
    flags = ("--model.rate=0.1", "--trainer.max_steps=12")
    code, out, err = run("fit", "--ckpt_path", sessions()[0], *flags)
    assert code == 0, err
    assert "    optimisers.critic.groups.0.lr: 0.02 -> 0.2\n" in out
    assert "    optimisers.generator.groups.0.lr: 0.01 -> 0.1\n" in out
    assert rates_of(sessions()[0]) == pytest.approx([2e-3, 1e-3])


def test_other_optimisers_are_refused_when_it_goes_on(run, config, sessions):
    of(run, config, *ADVERSARIES, "--trainer.max_steps=4")
    flags = ("--model.listed=true", "--trainer.max_steps=6")
    code, _, err = run("fit", "--ckpt_path", sessions()[0], *flags)
    assert code == 1
    assert "the checkpoint's optimiser is SGD as 'critic' over groups of [4] tensors and" in err


class Steep(Adversaries):
    """Its gradients are large."""

    largest = 0.0

    def __init__(self, steepness: float = 1e4, **kwargs) -> None:
        super().__init__(**kwargs)
        self.steepness = steepness

    def judge(self, points: Tensor, real: bool) -> Tensor:
        return self.steepness * super().judge(points, real)

    def create_optimiser(self) -> None:
        super().create_optimiser()
        for name, each in self.optimiser.items():
            each.register_step_post_hook(lambda *_, name=name: self.note(name))

    def note(self, name: str) -> None:
        squares = [p.grad.square().sum() for p in self.model[name].parameters()]
        Steep.largest = max(Steep.largest, torch.stack(squares).sum().sqrt().item())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_for_each(run, config, monkeypatch, precision):
    monkeypatch.setattr(Steep, "largest", 0.0)
    flags = ("--model=test_optimising.Steep", f"--trainer.precision={precision}")
    of(run, config, *flags, "--trainer.gradient_clip_val=0.5", "--trainer.max_steps=3")
    assert Steep.largest == pytest.approx(0.5, rel=1e-2)


OPTIONS = {
    **{"enable_progress_bar": False, "enable_model_summary": False, "logger": False},
    **{"enable_checkpointing": False, "accelerator": "cpu"},
}


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    monkeypatch.setattr(Steep, "largest", 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = pl.Trainer(max_steps=3, plugins=[plugin], gradient_clip_val=0.5, **OPTIONS)
    trainer.fit(Steep(steepness=1e2), datamodule=TinyData())
    assert trainer.global_step == 3
    assert Steep.largest == pytest.approx(0.5, rel=1e-2)
    assert scaler.get_scale() == 256.0


def test_with_a_plain_trainer_it_counts_and_steps_the_same():
    trainer = pl.Trainer(max_steps=6, **OPTIONS)
    trainer.fit(Adversaries(rates="steps"), datamodule=TinyData())
    assert trainer.global_step == 6
    assert [each.param_groups[0]["lr"] for each in trainer.optimizers] == pytest.approx(
        [2e-3, 1e-3]
    )


def test_processes_average_the_gradients_of_what_is_stepped(monkeypatch):
    """The other process has gradients of 3 for the first two weights, and none for the third."""
    weights = [nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    weights[0].grad = torch.ones(2, 2)
    other = torch.tensor([1.0, 1.0, 0.0, *[3.0] * 8, *[0.0] * 4]) / 2
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(other))
    average_gradients(SGD([*weights, frozen], 1.0))
    assert torch.equal(weights[0].grad, torch.full((2, 2), 2.0))
    assert torch.equal(weights[1].grad, torch.full((2, 2), 1.5))
    assert weights[2].grad is None
    assert frozen.grad is None


class Explodes(Adversaries):
    """Its seventh batch has no finite loss."""

    def judge(self, points: Tensor, real: bool) -> Tensor:
        loss = super().judge(points, real)
        seventh = self.trainer.training and self.trainer.fit_loop.total_batch_idx == 6
        return loss * float("nan") if seventh else loss


def test_after_a_loss_that_is_not_finite_all_go_back(run, config, sessions):
    flags = ("--model=test_optimising.Explodes", "--on_non_finite=skip", "--trainer.max_steps=12")
    out = of(run, config, *flags)
    assert "weights and optimiser go back to iteration 5, the batches since then are skipped" in out
    last = torch.load(sessions()[0] / "checkpoints/last.ckpt")
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())


class NoStep(Adversaries):
    training_step = BaseModule.training_step


class Empty(Adversaries):
    def create_optimiser(self) -> None:
        self.optimiser = {}


class Misnamed(Adversaries):
    def optimise(self, which: str, loss: Tensor) -> None:
        super().optimise("kritic", loss)


class NotALoss(Adversaries):
    def optimise(self, which: str, loss: Tensor) -> None:
        super().optimise(which, loss.reshape(1))


class ReturnsNothing(Adversaries):
    def training_step(self, batch: dict, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)


class NeverSteps(Adversaries):
    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        for optimiser in self.optimiser.values():
            optimiser.step()  # Lightning sees only those of `self.optimizers()`
        return self.judge(batch["x"], real=True)


class OneOnly(TinyModule):
    def training_step(self, batch: dict, batch_idx: int) -> None:
        self.optimise("critic", self.forward_loss(batch, self.forward_model(batch)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("NoStep",),
            "`NoStep.create_optimiser` sets several optimisers: override `training_step`, and call "
            "`self.optimise(NAME, loss)` in it for each",
        ),
        (
            ("Empty",),
            "`Empty.create_optimiser` left `self.optimiser` with nothing in it: assign Optimizers "
            "to it",
        ),
        (
            ("Misnamed",),
            "`optimise` was given 'kritic', but the optimisers that `Misnamed.create_optimiser` "
            "sets are critic, generator",
        ),
        (
            ("NotALoss",),
            "`NotALoss.training_step` returned a tensor (1,) as 'critic', not a scalar tensor: "
            "average over the batch, e.g. `loss.mean()`",
        ),
        (
            ("ReturnsNothing",),
            "`ReturnsNothing.training_step` returned None, not a scalar tensor or a dict of them: "
            "only an evaluation may have no loss",
        ),
        (
            ("NeverSteps",),
            "`NeverSteps.training_step` has stepped no optimiser in 100 batches, and an iteration "
            "is a batch that has: call `self.optimise(NAME, loss)` in it, or the steps of "
            "`self.optimizers()`",
        ),
        (
            ("OneOnly",),
            "`optimise` was given 'critic', but the optimisers that `OneOnly.create_optimiser` "
            "sets are none: set a dict or a list of them",
        ),
        (
            ("Adversaries", "--trainer.accumulate_grad_batches=2"),
            "`trainer.accumulate_grad_batches` is 2, but several optimisers are stepped in each "
            "batch: leave it out, and raise `--data.batch_size`",
        ),
    ],
)
def test_what_is_wrong_is_one_line(run, config, flags, message):
    name, *more = flags
    code, _, err = run("fit", "--config", config, f"--model=test_optimising.{name}", *more)
    assert (code, err) == (1, f"error: {message}\n")
