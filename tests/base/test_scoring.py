"""The best checkpoint is the best by the direction of its metric, which nobody has to type."""

import re

import pytest
import torch
from conftest import TinyModule
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import (
    BootStrapper,
    ClasswiseWrapper,
    MaxMetric,
    MeanAbsoluteError,
    MeanMetric,
    Metric,
    MetricCollection,
    MinMaxMetric,
    MultioutputWrapper,
    SumMetric,
)
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy
from torchmetrics.text import Perplexity

from lightning_trainer.base.scoring import score_direction


class ErrorModule(TinyModule):
    """Its score is an error, which falls."""

    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = MeanAbsoluteError(), MeanAbsoluteError()

    def update_metrics(self, metrics, batch, output) -> None:
        metrics.update(output.softmax(1)[:, 1], batch["label"].float())


class NoDirection(TinyModule):
    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = MeanMetric(), MeanMetric()

    def update_metrics(self, metrics, batch, output) -> None:
        metrics.update(output)


class WrongPlateau(ErrorModule):
    def create_optimiser(self) -> None:
        super().create_optimiser()
        self.scheduler = ReduceLROnPlateau(self.optimiser, "max")


def direction(metrics: Metric | MetricCollection, **options: str) -> str | None:
    module = TinyModule(**options)
    module.val_metrics = metrics
    return score_direction(module)


class Own(SumMetric):
    higher_is_better = False


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (BinaryAccuracy(), "max"),
        (MeanAbsoluteError(), "min"),
        (Perplexity(), "min"),
        (Own(), "min"),
        (MeanMetric(), None),
        (1 - BinaryAccuracy(), None),
        (MinMaxMetric(MeanAbsoluteError()), "min"),
        (BootStrapper(MeanAbsoluteError(), num_bootstraps=2), "min"),
        (MultioutputWrapper(MeanAbsoluteError(), 2), "min"),
        (ClasswiseWrapper(MulticlassAccuracy(2, average=None)), "max"),
        (MetricCollection({"b": BinaryAccuracy(), "a": MeanAbsoluteError()}), "min"),
        (MetricCollection({"a": MaxMetric(), "b": BinaryAccuracy()}), None),
    ],
    ids=str,
)
def test_the_metric_that_is_the_score_says_which_is_better(metrics, expected):
    assert direction(metrics) == expected
    assert direction(metrics, score_name="loss") == "min"
    assert direction(metrics, score_mode="max") == "max"


def test_a_number_among_several_of_a_metric_goes_by_them_all():
    both = {"a": ClasswiseWrapper(MulticlassAccuracy(2, average=None)), "b": BinaryAccuracy()}
    assert direction(MetricCollection(both), score_name="multiclassaccuracy_0") == "max"
    both["b"] = MeanAbsoluteError()
    assert direction(MetricCollection(both), score_name="multiclassaccuracy_0") is None


def test_the_best_checkpoint_has_the_lowest_error(run, config, sessions):
    flags = ("--model=test_scoring.ErrorModule", "--trainer.val_check_interval=3")
    code, out, err = run("fit", "--config", config, *flags)
    assert (code, "warning" in err) == (0, False), err
    errors = [float(number) for number in re.findall(r"Val score \(meanabs.*\): (.*)", out)]
    told = re.findall(r"^New best score \(meanabsoluteerror, lower is better\): (.*)$", out, re.M)
    assert len(errors) == 8
    assert told[-1].endswith(f" -> {min(errors):.3f}")
    best = torch.load(sessions()[0] / "checkpoints/best.ckpt")
    iterations = [*range(3, 23, 3), 23]
    assert best["global_step"] == iterations[errors.index(min(errors))]
    assert best["lightning_trainer"]["best"]["mode"] == "min"


def test_a_score_without_a_direction_is_refused_before_training(run, config):
    code, out, err = run("fit", "--config", config, "--model=test_scoring.NoDirection")
    assert (code, "Iteration" in out) == (1, False)
    assert (
        "error: the score is `meanmetric`, and its metric does not say whether a higher one is"
        in err
    )
    assert "Traceback" not in err
    flags = ("--model=test_scoring.NoDirection", "--model.score_mode=min", "--trainer.max_steps=1")
    code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    assert "New best score (meanmetric, lower is better): inf -> " in out


def test_a_direction_against_the_metric_is_taken_with_a_warning(run, config):
    flags = ("--model=test_scoring.ErrorModule", "--model.score_mode=max", "--trainer.max_steps=1")
    with pytest.warns(UserWarning, match="`score_mode` is 'max', but the metric says that a lower"):
        code, out, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    assert "(meanabsoluteerror, higher is better): -inf -> " in out


def test_a_plateau_of_the_other_direction_is_refused(run, config):
    code, _, err = run("fit", "--config", config, "--model=test_scoring.WrongPlateau")
    assert code == 1
    assert "error: the scheduler's `mode` is 'max', but it is stepped with the score" in err


def test_another_score_begins_anew(run, half, config):
    flags = ("--model.score_name=loss", "--trainer.max_steps=16", "--save_minutes=10")
    code, out, err = run("fit", "--ckpt_path", half, *flags)
    assert code == 0, err
    assert "The score was accuracy, higher is better, and is now loss, lower is better" in out
    assert "New best score (loss, lower is better): inf -> " in out
