"""A loss with parts, one that an evaluation lacks, and losses and scores that are small."""

import re

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyData, TinyModule
from restarts import copy_at, result, same
from tiny import logged
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer.base.losses import of_step
from lightning_trainer.base.metrics import compute_metrics, named_metrics
from lightning_trainer.report.log_line import format_loss
from lightning_trainer.session.number import format_number


class Parts(TinyModule):
    def forward_loss(self, batch: dict, output: Tensor) -> dict[str, Tensor]:
        fit = self.loss_fn(output, batch["label"])
        return {"fit": fit, "penalty": 0.1 * output.square().mean()}


class Summed(Parts):
    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        return sum(super().forward_loss(batch, output).values())


class WithoutEvaluation(TinyModule):
    def forward_loss(self, batch: dict, output: Tensor) -> Tensor | None:
        return super().forward_loss(batch, output) if self.training else None


class Tiny(TinyModule):
    """Its validation loss is a millionth, its accuracy a thousandth."""

    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        loss = super().forward_loss(batch, output)
        return loss if self.training else torch.tensor(1.23456e-6)

    def create_metrics(self) -> None:
        one = MetricCollection({"accuracy": MulticlassAccuracy(2) * 1e-3})
        self.train_metrics, self.val_metrics = one, one.clone()


def test_a_dict_of_losses_is_summed_and_each_is_logged(run, config, sessions):
    flags = ("--model=test_losses.Parts", "--trainer.max_steps=8")
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    numbers = r"([\d.]+) \(fit ([\d.]+), penalty ([\d.]+)\)"
    lines = re.findall(rf"\| loss: {numbers} \| time elapsed", out)
    lines += re.findall(rf"^Val loss: {numbers}$", out, re.M)
    assert len(lines) == 4
    for whole, fit, penalty in lines:
        assert float(whole) == pytest.approx(float(fit) + float(penalty), abs=2e-4)
    for mode in ("train", "val"):
        names = ("loss", "loss_fit", "loss_penalty")
        whole, fit, penalty = (logged(sessions()[0], f"{mode}/{name}") for name in names)
        assert len(whole) == 2
        assert whole == {step: pytest.approx(fit[step] + penalty[step]) for step in fit}
    assert "Val fit" not in out
    assert "Val loss_" not in out


def test_the_sum_is_what_is_trained_on(run, config, sessions):
    for name in ("Parts", "Summed"):
        flags = (f"--model=test_losses.{name}", "--trainer.max_steps=8")
        assert run("fit", "--config", config, *flags)[0] == 0
    parts, summed = map(result, sessions())
    assert same(parts["weights"], summed["weights"])
    assert same(parts["optimiser"], summed["optimiser"])


def test_the_parts_go_on_over_a_restart(run, config, sessions, monkeypatch, tmp_path):
    flags = ("--model=test_losses.Parts", "--save_minutes=0", "--trainer.max_steps=12")
    flags += ("--trainer.accumulate_grad_batches=2",)
    with monkeypatch.context() as patch:
        copy_at(patch, "on_train_batch_end", (6,), tmp_path / "killed")
        assert run("fit", "--config", config, *flags)[0] == 0
    code, _, err = run("fit", "--ckpt_path", tmp_path / "killed" / "6")
    assert code == 0, err
    assert same(result(tmp_path / "killed" / "6"), result(sessions()[0]))


@pytest.mark.parametrize(("command", "mode"), [("validate", "val"), ("test", "test")])
def test_a_plain_trainer_returns_what_it_has_measured(command, mode):
    options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(accelerator="cpu", enable_checkpointing=False, **options)
    [numbers] = getattr(trainer, command)(Parts(), datamodule=TinyData(), verbose=False)
    assert numbers.keys() == {
        f"{mode}/{name}" for name in ("accuracy", "loss", "loss_fit", "loss_penalty")
    }


def test_without_a_loss_in_evaluation_there_is_neither_a_line_nor_a_column(run, config, sessions):
    flags = ("--model=test_losses.WithoutEvaluation", "--trainer.max_steps=8")
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    assert "Val loss" not in out
    assert "Val score (accuracy, higher is better)" in out
    code, out, err = run("test", "--ckpt_path", sessions()[0])
    assert (code, "Test loss" in out) == (0, False), err
    columns = (sessions()[0] / "metrics.csv").read_text().splitlines()[0].split(",")
    assert not {"val/loss", "test/loss"} & {*columns}


def test_a_score_that_is_the_loss_which_no_evaluation_has_is_refused(run, config):
    flags = ("--model=test_losses.WithoutEvaluation", "--model.score_name=loss")
    code, _, err = run("fit", "--config", config, *flags)
    assert (code, err) == (
        1,
        "error: `score_name` is 'loss', but `WithoutEvaluation.forward_loss` returned None in each "
        "batch of the evaluation: return a loss there, or use one of accuracy\n",
    )


def test_small_numbers_have_four_significant_digits(run, config):
    code, out, err = run(
        "fit",
        "--config",
        config,
        "--model=test_losses.Tiny",
        "--trainer.max_steps=5",
        "--model.score_mode=max",
    )
    assert code == 0, err
    assert "Val loss: 1.235e-06\n" in out
    assert re.search(r"^Val score \(accuracy, higher is better\): 0\.00\d{4,5}$", out, re.M)
    assert re.search(r"-inf -> 0\.00\d{4,5}$", out, re.M)
    assert re.search(r"^Best score: +0\.00\d+ at iteration 5$", out, re.M)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.4691, 3, "0.469"),
        (1.47371, 4, "1.4737"),
        (39.2944, 3, "39.294"),
        (0.0125, 3, "0.013"),
        (0.00314159, 3, "0.003142"),
        (0.0123456, 4, "0.0123"),
        (0.000987654, 4, "0.0009877"),
        (-2.5e-7, 3, "-2.500e-07"),
        (0.0, 3, "0.000"),
        (float("inf"), 3, "inf"),
        (float("nan"), 4, "nan"),
    ],
)
def test_a_number_keeps_its_decimals_while_they_show_it(value, decimals, text):
    assert format_number(value, decimals) == text


def test_a_loss_is_told_with_its_parts():
    assert format_loss(1.23, {}) == "1.2300"
    assert format_loss(1.23, {"image": 1.0, "kl": 0.23}) == "1.2300 (image 1.0000, kl 0.2300)"


def test_the_parts_keep_no_graph():
    losses = {"a": torch.ones((), requires_grad=True) * 2, 3: torch.ones(())}
    step = of_step(TinyModule(), losses)
    assert step["loss"].requires_grad
    assert {name: part.requires_grad for name, part in step["losses"].items()} == {
        "a": False,
        "3": False,
    }


def test_the_prefix_and_postfix_of_a_collection_are_taken_off(run, config):
    metrics = MetricCollection({"acc": MulticlassAccuracy(2)}, prefix="val_", postfix="_x")
    assert [*named_metrics(metrics)] == ["acc"]
    metrics.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert compute_metrics(metrics, "val") == {"val/acc": torch.tensor(1.0)}


class MeanAveragePrecision(MulticlassAccuracy):
    """Stands for that of torchmetrics, which needs a package of its own."""

    def compute(self) -> dict[str, Tensor]:
        values = {"map": -1.0, "map_small": -1.0, "map_50": 0.5, "classes": 3}
        return {name: torch.tensor(value) for name, value in values.items()}


def test_what_the_detection_metric_says_of_absent_classes_is_left_out():
    metric = MeanAveragePrecision(2)
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert compute_metrics(metric, "val").keys() == {"val/map", "val/map_50"}
