"""A mistake that is likely in a first project's hooks is told in one line."""

import re
from pathlib import Path

import pytest
import torch
from conftest import BaseModule, TinyData, TinyDataset, TinyModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric, MetricCollection

HERE = re.escape(str(Path(__file__)))


class Masked(TinyDataset):
    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        return {"x": sample["x"], "mask": sample["label"]}


class MaskedData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = self.val_dataset = Masked()


class Pairs(TinyDataset):
    def __getitem__(self, index: int) -> tuple:
        sample = super().__getitem__(index)
        return sample["x"], sample["label"]


class PairsData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = self.val_dataset = self.test_dataset = Pairs()


class Ragged(TinyDataset):
    def __getitem__(self, index: int) -> dict:
        return {"x": torch.zeros(1 + index), "label": 0}


class RaggedData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = self.val_dataset = Ragged()


class MaskedModule(TinyModule):
    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        return self.loss_fn(output, batch["mask"])


class ReadsPairs(TinyModule):
    """Reads a batch that is a list in each hook that does."""

    def forward_model(self, batch: list) -> Tensor:
        return self.model(batch[0])

    def forward_loss(self, batch: list, output: Tensor) -> Tensor:
        return self.loss_fn(output, batch[1])

    def update_metrics(self, metrics, batch: list, output: Tensor) -> None:
        metrics.update(output, batch[1])


class ForgetsMetrics(ReadsPairs):
    update_metrics = BaseModule.update_metrics


class WrongShape(TinyModule):
    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = MeanSquaredError(), MeanSquaredError()


class WholeSet(Metric):
    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("n", torch.tensor(0), "sum")

    def update(self, output: Tensor, labels: Tensor) -> None:
        self.n += len(labels)

    def compute(self) -> Tensor:
        if self.n < 9:
            raise ValueError(f"20 neighbours of {self.n} samples")
        return self.n / 10


class NeedsAll(TinyModule):
    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = MeanMetric(), WholeSet()

    def update_metrics(self, metrics, batch: dict, output: Tensor) -> None:
        if metrics is self.val_metrics:
            metrics.update(output, batch["label"])


class CountsNothing(TinyModule):
    def count_examples(self, batch: dict) -> None:
        """Forgets to return."""


class ReturnsText(TinyModule):
    def training_step(self, batch: dict, batch_idx: int) -> str:
        return "done"


class Detached(TinyModule):
    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        return super().forward_loss(batch, output.detach())


class ReturnsPair(TinyModule):
    def forward_loss(self, batch: dict, output: Tensor) -> tuple:
        return super().forward_loss(batch, output), output, batch


class NeverUpdates(TinyModule):
    def update_metrics(self, metrics, batch: dict, output: Tensor) -> None:
        """Forgets to."""


class Doubles(TinyDataset):
    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        return sample | {"x": sample["x"].double()}


class DoublesData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = self.val_dataset = Doubles()


class FromOneData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = [{**TinyDataset()[i], "label": 2} for i in range(8)]
        self.val_dataset = self.train_dataset


class NoLoaderData(TinyData):
    def train_dataloader(self):
        return lambda: None


class OneLossForTwo(TinyModule):
    def create_optimiser(self) -> None:
        self.optimiser = [torch.optim.SGD(self.model.parameters(), 0.1) for _ in range(2)]

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        loss = self.forward_loss(batch, self.forward_model(batch)).square()
        self.optimise(0, loss)
        self.optimise(1, loss)
        return loss


MISTAKES = {
    "a detached loss": (
        ("Detached", "conftest.TinyData"),
        r"element 0 of tensors does not require grad .*: the loss depends on no weight that is "
        r"trained. Is what it is made of detached, or is every weight frozen\?",
    ),
    "a loss and more": (
        ("ReturnsPair", "conftest.TinyData"),
        r"`ReturnsPair.forward_loss` returned a tuple of 3, not a scalar tensor or a dict of them: "
        r"return the loss alone, or losses as a dict by name",
    ),
    "no update": (
        ("NeverUpdates", "conftest.TinyData"),
        r"`NeverUpdates.create_metrics`: the score `val/accuracy` is no scalar, or "
        r"`update_metrics` has not updated it: put a scalar metric first, or name one by "
        r"`score_name`",
    ),
    "no label": (
        ("MaskedModule", "MaskedData"),
        r'`MaskedModule.update_metrics` is not overridden, and reads "label" of a batch that is a '
        r"dict of x, mask: override it, e.g. with `metrics.update\(output, batch\[NAME\]\)`",
    ),
    "no label in a list": (
        ("ForgetsMetrics", "PairsData"),
        r'`ForgetsMetrics.update_metrics` is not overridden, and reads "label" of a batch that is '
        r"a list of 2: override it, e.g. with `metrics.update\(output, batch\[NAME\]\)`",
    ),
    "another name": (
        ("conftest.TinyModule", "MaskedData"),
        r"`TinyModule.forward_loss` reads 'label' of a batch that is a dict of x, mask \(.*"
        r"conftest.py, line \d+\): read one of these, or let the dataset give it",
    ),
    "a list": (
        ("conftest.TinyModule", "PairsData"),
        r"`TinyModule.forward_model` reads a batch by name that is a list of 2 \(.*conftest.py, "
        r"line \d+\): let the dataset's samples be dicts, or read it by position",
    ),
    "samples of different lengths": (
        ("conftest.TinyModule", "RaggedData"),
        r"the samples of a batch can't be put together: stack expects each tensor to be equal "
        r"size, but got \[1\] at entry 0 and \[2\] at entry 1. Give the dataset a "
        r"`collate_fn\(samples\)` that makes the batch, e.g. by padding",
    ),
    "in a worker": (
        ("conftest.TinyModule", "RaggedData", "--data.n_workers=1"),
        r"the samples of a batch can't be put together: .*stack expects each tensor .*",
    ),
    "a metric of another shape": (
        ("WrongShape", "conftest.TinyData"),
        r"Predictions and targets are expected to have the same shape, but got .*",
    ),
    "a metric of the whole set": (
        ("NeedsAll", "conftest.TinyData"),
        r"`val_metrics` of `NeedsAll` fail in the check before training, which has 2 batches: "
        rf"ValueError: 20 neighbours of 8 samples \({HERE}, line \d+\). If they need all of the "
        r"data, give `--trainer.num_sanity_val_steps 0` \(-1: check all\)",
    ),
    "no count": (
        ("CountsNothing", "conftest.TinyData"),
        r"`CountsNothing.count_examples` returned None: return the number of examples in the batch",
    ),
    "a loss for two optimisers": (
        ("OneLossForTwo", "conftest.TinyData"),
        rf"Trying to backward through the graph a second time .* \(in `training_step`, {HERE}, "
        r"line \d+\)\. Give each optimiser a loss of its own, made of what is detached from the "
        r"others; or, for one loss, one optimiser with groups of parameters",
    ),
    "numbers of numpy": (
        ("conftest.TinyModule", "DoublesData"),
        r"mat1 and mat2 must have the same dtype, but got Double and Float \(in `forward_model`, "
        r".*conftest.py, line \d+\)\. Numbers of numpy are float64: let the dataset give float32, "
        r"e.g. by `.float\(\)`",
    ),
    "labels from one": (
        ("conftest.TinyModule", "FromOneData"),
        r"Target 2 is out of bounds. \(in `forward_loss`, .*, line \d+\)\. Classes count from 0: "
        r"is the last label less than the model's outputs\?",
    ),
    "no loader": (
        ("conftest.TinyModule", "NoLoaderData"),
        r"An invalid dataloader was returned from `NoLoaderData.train_dataloader\(\)`. Found .*\. "
        r"Return what can be iterated over",
    ),
    "a step that returns a text": (
        ("ReturnsText", "conftest.TinyData"),
        r"In automatic optimization, `training_step` must return a Tensor, a dict, or None .*",
    ),
}


def named(name: str) -> str:
    return name if "." in name else f"test_likely.{name}"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_likely_mistake_is_one_line(run, config, mistake):
    (model, data, *flags), message = MISTAKES[mistake]
    classes = (f"--model={named(model)}", f"--data={named(data)}")
    code, _, err = run("fit", "--config", config, *classes, *flags)
    assert code == 1
    assert re.fullmatch(f"error: {message}\n", err), err


class ForgetsOne(TinyModule):
    def create_metrics(self) -> None:
        super().create_metrics()
        self.val_metrics = MetricCollection({"accuracy": self.val_metrics, "mae": MeanMetric()})

    def update_metrics(self, metrics, batch: dict, output: Tensor) -> None:
        metrics = metrics["accuracy"] if metrics is self.val_metrics else metrics
        metrics.update(output, batch["label"])


def test_a_metric_that_is_never_updated_is_told_once(run, config, recwarn):
    flags = ("--model=test_likely.ForgetsOne", "--trainer.max_steps=4")
    assert run("fit", "--config", config, *flags, "--trainer.val_check_interval=2")[0] == 0
    assert [str(w.message) for w in recwarn if "mae" in str(w.message)] == [
        "`val_metrics` has mae, which the log leaves out: let `ForgetsOne.update_metrics` update it"
    ]


def test_a_batch_may_have_any_structure_that_the_hooks_read(run, config, sessions):
    flags = ("--model=test_likely.ReadsPairs", "--data=test_likely.PairsData")
    assert run("fit", "--config", config, *flags, "--trainer.max_steps=5")[0] == 0
    assert run("test", "--ckpt_path", sessions()[0])[0] == 0


def test_a_metric_of_the_whole_set_is_let_alone_without_the_check(run, config):
    flags = ("--model=test_likely.NeedsAll", "--trainer.max_steps=5")
    for steps in (0, -1):
        options = (*flags, f"--trainer.num_sanity_val_steps={steps}")
        assert run("fit", "--config", config, *options)[0] == 0


class NeedsGradients(TinyModule):
    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        x = batch["x"].clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.model(x).sum(), x)
        return super().forward_loss(batch, output) + slope.square().mean()


def test_an_evaluation_that_needs_gradients_is_told_how(run, config, sessions):
    flags = ("--model=test_likely.NeedsGradients", "--trainer.max_steps=5")
    code, _, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    code, _, err = run("test", "--ckpt_path", sessions()[0])
    assert code == 1
    assert err.endswith("`--trainer.inference_mode false` in `validate`, `test` and `predict`\n")
    assert err.count("\n") == 1
    assert run("test", "--ckpt_path", sessions()[0], "--trainer.inference_mode=false")[0] == 0


class WithoutNorm(TinyModule):
    def create_model(self) -> None:
        self.model = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--data.n_samples=25"], True),
        (["--data.n_samples=25", "--trainer.limit_train_batches=6"], False),
        (["--data.n_samples=25", "--model=test_likely.WithoutNorm"], False),
        (["--data.n_samples=25", "--trainer.max_steps=6"], False),
        (["--data.n_samples=26"], False),
    ],
)
def test_a_last_batch_of_one_sample_is_told_at_the_start(run, config, flags, told):
    code, _, err = run("fit", "--config", config, *flags)
    assert ("warning: the last batch of an epoch has one sample" in err) == told
    assert code == int(told)
    if told:
        assert (
            "of which `model.1` can't take a mean: give another `--data.batch_size` than 4, or "
            "leave that batch out by `--trainer.limit_train_batches 6`\n"
        ) in err
