"""From a project's hooks to a LightningModule: what it refuses, measures, steps and keeps."""

import math
from itertools import chain
from typing import Any

import pytest
import torch
from conftest import TinyData, TinyDataset, TinyModule
from lightning.pytorch.callbacks import Callback, EarlyStopping
from test_data import data_of, make_trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.wrappers import ClasswiseWrapper

from lightning_trainer import BaseModule
from lightning_trainer.report.visualise import CallVisualise
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session

HOOKS = (
    "create_model",
    "create_loss",
    "create_optimiser",
    "create_metrics",
    "forward_model",
    "forward_loss",
)


class ByHand(TinyModule):
    """Its losses and predictions follow from a sample's index `i` alone.

    The loss of sample i is i; it is called class 0 where i < 8, else what it is: of samples 0 to 9
    the odd ones below 8 are wrong.
    """

    def forward_model(self, batch: dict) -> Tensor:
        said = torch.where(batch["i"] < 8, 0, batch["label"])
        return nn.functional.one_hot(said, 2) + 0 * self.model(batch["x"])

    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        return batch["i"].float().mean() + 0 * output.sum()


def accuracy_of(indices: Any) -> float:
    """The score of `ByHand` over them."""
    right = [i >= 8 or i % 2 == 0 for i in indices]
    return sum(right) / len(right)


class Follow(Callback):
    """Notes the training batches and, for each validation, its results and what came before it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.outputs: list[bool] = []
        self.learning_rates: list[float] = []
        self.validations: list[dict[str, float]] = []
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.learning_rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.batches.append(batch["i"].tolist())
        self.outputs.append("output" in outputs)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.validations.append({k: v.item() for k, v in trainer.callback_metrics.items()})
            self.seen.append(list(chain(*self.batches)))


def train(module: BaseModule, data: Any = None, **kwargs: Any) -> Follow:
    """Trains it on the CPU, by default on the tiny data."""
    follow = Follow()
    trainer = make_trainer(callbacks=[follow, *kwargs.pop("callbacks", [])], **kwargs)
    trainer.fit(module, datamodule=data or TinyData())
    return follow


def configured(module: BaseModule) -> Any:
    module.configure_model()
    return module


def batch_of(n: int = 4) -> dict[str, Tensor]:
    return {"x": torch.rand(n, 4), "label": torch.arange(n) % 2, "i": torch.arange(n)}


# Hooks that are missing or leave their attribute unset --------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_a_missing_hook_is_named(hook):
    others = {name: getattr(TinyModule, name) for name in HOOKS if name != hook}
    forgetful = type("Forgetful", (BaseModule,), others)
    with pytest.raises(TypeError) as error:
        forgetful()
    assert str(error.value) == (
        f"`Forgetful` does not define `{hook}`: every BaseModule needs it "
        f"(`help(lightning_trainer.base.module.BaseModule.{hook})` says what to set)"
    )


def test_all_missing_hooks_are_named_at_once():
    with pytest.raises(TypeError) as error:
        type("Empty", (BaseModule,), {})()
    assert all(f"`{hook}`" in str(error.value) for hook in HOOKS)
    assert "every BaseModule needs them" in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "takes"),
    [
        (lambda self, batch, output: None, "self, batch, output"),
        (lambda self, metrics, batch, output, mode: None, "self, metrics, batch, output, mode"),
    ],
)
def test_a_hook_with_other_arguments_is_named_before_the_run(wrong, takes):
    with pytest.raises(TypeError) as error:
        type("Other", (TinyModule,), {"update_metrics": wrong})()
    assert str(error.value) == (
        f"`Other.update_metrics` takes ({takes}), and is called with others: write "
        "`def update_metrics(self, metrics, batch, output)`"
    )


def test_a_hook_may_name_its_arguments_otherwise_and_take_more():
    for hook in (lambda self, *_: None, lambda self, m, b, o, top=5: None, staticmethod(print)):
        type("Other", (TinyModule,), {"update_metrics": hook})()


@pytest.mark.parametrize(
    ("hook", "attribute", "value", "wanted"),
    [
        ("create_model", "model", None, "Module"),
        ("create_model", "model", 3, "Module"),
        ("create_loss", "loss_fn", None, "a callable"),
        ("create_loss", "loss_fn", 3, "a callable"),
        ("create_metrics", "train_metrics", None, "Metric or MetricCollection"),
        ("create_metrics", "train_metrics", [3], "Metric or MetricCollection"),
        ("create_metrics", "val_metrics", None, "Metric or MetricCollection"),
        ("create_metrics", "val_metrics", [3], "Metric or MetricCollection"),
        ("create_optimiser", "optimiser", None, "Optimizer or dict or list"),
        ("create_optimiser", "optimiser", 3, "Optimizer or dict or list"),
    ],
)
def test_a_hook_that_leaves_its_attribute_unset_or_wrong_is_named(hook, attribute, value, wanted):
    def set_wrongly(self: Any) -> None:
        getattr(TinyModule, hook)(self)
        delattr(self, attribute)
        setattr(self, attribute, value)

    module = type("Wrong", (TinyModule,), {hook: set_wrongly})()
    with pytest.raises(TypeError) as error:
        module.configure_model()
        module.configure_optimizers()
    assert str(error.value) == (
        f"`Wrong.{hook}` left `self.{attribute}` as {value!r}: assign {wanted} to it"
    )


@pytest.mark.parametrize("scheduler", ["cosine", {"interval": "epoch"}])
def test_a_scheduler_that_is_none_is_named(scheduler):
    class Wrong(TinyModule):
        def create_optimiser(self) -> None:
            super().create_optimiser()
            self.scheduler = scheduler

    with pytest.raises(TypeError) as error:
        train(Wrong(), max_steps=1)
    left = f"`Wrong.create_optimiser` left `self.scheduler` as {scheduler!r}: assign "
    assert str(error.value).startswith(left)


def test_a_hook_that_does_nothing_is_named():
    module = type("Idle", (TinyModule,), {"create_model": lambda self: None})()
    with pytest.raises(TypeError, match=r"`Idle.create_model` left `self.model` as None"):
        module.configure_model()


def test_hyper_parameters_that_were_not_saved_are_named():
    module = type("Forgetful", (TinyModule,), {"create_model": lambda self: self.hparams.width})()
    with pytest.raises(AttributeError, match="no attribute 'width'"):
        module.configure_model()
    module.hparams.clear()
    with pytest.raises(AttributeError, match=r"`Forgetful.create_model` reads .* which is empty"):
        module.configure_model()


@pytest.mark.parametrize("loss_fn", [nn.functional.cross_entropy, nn.CrossEntropyLoss()])
def test_a_loss_is_a_function_or_a_module(loss_fn):
    class Free(TinyModule):
        def create_loss(self) -> None:
            self.loss_fn = loss_fn

    assert configured(Free()).training_step(batch_of(), 0)["loss"].ndim == 0


MEAN = "average over the batch, e.g. `loss.mean()`"
TENSOR = "leave the tensor as it is, without `.item()` or `float`"
ALONE = "return the loss alone, or losses as a dict by name"

# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (torch.zeros(4), f"a tensor (4,), not a scalar tensor or a dict of them: {MEAN}"),
        (torch.zeros(1), f"a tensor (1,), not a scalar tensor or a dict of them: {MEAN}"),
        (1.5, f"1.5, not a scalar tensor or a dict of them: {TENSOR}"),
        ((1.5, 2.5), f"(1.5, 2.5), not a scalar tensor or a dict of them: {ALONE}"),
        ({}, f"{{}}, not a scalar tensor or a dict of them: {MEAN}"),
        (
            {"a": torch.tensor(1.0), "b": torch.zeros(2)},
            f"a tensor (2,) as 'b', not a scalar tensor: {MEAN}",
        ),
        ({"a": torch.tensor(1.0), "b": 0.5}, f"0.5 as 'b', not a scalar tensor: {TENSOR}"),
    ],
)
@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_a_loss_that_is_no_scalar_tensor_is_refused(step, loss, got):
    class Wrong(TinyModule):
        def forward_loss(self, batch: dict, output: Tensor) -> Any:
            return loss

    with pytest.raises(TypeError) as error:
        getattr(configured(Wrong()), step)(batch_of(), 0)
    assert str(error.value) == f"`Wrong.forward_loss` returned {got}"


def test_a_training_has_a_loss_and_an_evaluation_may_have_none():
    class Without(TinyModule):
        def forward_loss(self, batch: dict, output: Tensor) -> None:
            return None

    module = configured(Without())
    assert module.eval().validation_step(batch_of(), 0).keys() == {"output"}
    with pytest.raises(TypeError, match=r"returned None, .*: only an evaluation may have no loss$"):
        module.train().training_step(batch_of(), 0)


def accuracy(**kwargs: Any) -> MulticlassAccuracy:
    return MulticlassAccuracy(2, **({"average": "micro", "validate_args": False} | kwargs))


class Measured(ByHand):
    """`ByHand` with the metrics that `measured` gives it."""

    given: tuple[Any, Any]

    def create_metrics(self) -> None:
        self.train_metrics, self.val_metrics = self.given


def measured(train: Any = None, val: Any = None, **kwargs: Any) -> Measured:
    module = Measured(**kwargs)
    module.given = (train or accuracy(), val or accuracy())
    return module


def shared_metrics() -> list[tuple[Any, Any]]:
    one = accuracy()
    return [
        (one, one),
        (MetricCollection({"a": one}), one),
        (MetricCollection({"a": one, "b": MeanMetric()}), MetricCollection({"c": one})),
    ]


@pytest.mark.parametrize(("train_metrics", "val_metrics"), shared_metrics())
def test_a_metric_that_training_and_validation_share_is_refused(train_metrics, val_metrics):
    with pytest.raises(ValueError) as error:
        measured(train_metrics, val_metrics).configure_model()
    assert str(error.value) == (
        "`Measured.create_metrics`: `train_metrics` and `val_metrics` share a metric, which would "
        "mix training and validation: use `.clone()` for one of them"
    )


class WithoutState(MeanMetric):
    """Forgets `add_state`."""

    def add_state(self, *_: Any, **__: Any) -> None:
        self.values: list[Tensor] = []


class Resets(WithoutState):
    def reset(self) -> None:
        self.values = []


def test_a_metric_that_nothing_resets_is_told():
    with pytest.warns(UserWarning) as warnings:
        measured(val=MetricCollection({"a": accuracy(), "b": WithoutState()})).configure_model()
    assert [str(w.message) for w in warnings] == [
        "`Measured.create_metrics`: `WithoutState` has no state, so that nothing is reset after a "
        "validation: name what `update` adds to by `self.add_state` in its `__init__`"
    ]


def test_a_metric_that_resets_itself_or_wraps_one_is_let_alone(recwarn):
    for metric in (Resets(), ClasswiseWrapper(accuracy(average=None)), 1 - accuracy()):
        measured(val=metric).configure_model()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("acuracy", "use one of accuracy"),
        ("los", "use one of loss"),
        ("zzz", "use one of accuracy, loss"),
        ("val/accuracy", "use one of accuracy"),
    ],
)
def test_a_misspelt_score_name_is_refused_with_the_near_one(name, remedy):
    with pytest.raises(ValueError) as error:
        train(TinyModule(score_name=name), max_steps=1)
    assert str(error.value) == (
        f"`score_name` is {name!r}, which `create_metrics` does not define: {remedy}"
    )


@pytest.mark.parametrize("mode", ["maximum", ""])
def test_a_score_mode_that_is_neither_max_nor_min_is_refused(mode):
    with pytest.raises(ValueError) as error:
        TinyModule(score_mode=mode)
    assert str(error.value) == f'`score_mode` is {mode!r}: it must be "max" or "min"'


@pytest.mark.parametrize("metric", [accuracy(average=None), MulticlassConfusionMatrix(2)])
def test_a_score_that_is_no_scalar_is_refused_by_the_first_validation(metric):
    val = MetricCollection({"parts": metric, "whole": accuracy()})
    with pytest.raises(TypeError) as error:
        train(measured(val=val, score_mode="max"), max_steps=1)
    assert str(error.value) == (
        "`Measured.create_metrics`: the score `val/parts` is no scalar, or "
        "`update_metrics` has not updated it: put a scalar metric first, or name one by "
        "`score_name`"
    )


def test_the_remedy_for_a_score_that_is_no_scalar_works():
    val = MetricCollection({"parts": accuracy(average=None), "whole": accuracy()})
    follow = train(measured(val=val, score_name="whole"), max_steps=7)
    assert follow.validations[0]["val/whole"] == pytest.approx(0.6)
    assert "val/parts" not in follow.validations[0]


# What is measured ---------------------------------------------------------------------------------


def test_a_validation_counts_each_sample_once_whatever_its_batch():
    """10 samples in batches of 4, 4 and 2: means over batches would be 5.1667 and 0.6667."""
    trainer = make_trainer()
    trainer.validate(ByHand(), datamodule=TinyData(), verbose=False)
    assert trainer.callback_metrics.keys() == {"val/accuracy", "val/loss"}
    assert trainer.callback_metrics["val/loss"].item() == 4.5
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(0.6)


def test_a_test_measures_the_same_by_its_own_name():
    trainer = make_trainer()
    trainer.test(ByHand(), datamodule=TinyData(), verbose=False)
    assert trainer.callback_metrics.keys() == {"test/accuracy", "test/loss"}
    assert trainer.callback_metrics["test/loss"].item() == 4.5
    assert trainer.callback_metrics["test/accuracy"].item() == pytest.approx(0.6)


def test_each_validation_starts_anew():
    """Also after Lightning's check before training, which sees two of the three batches."""
    follow = train(ByHand(), max_steps=6, val_check_interval=2)
    assert [v["val/loss"] for v in follow.validations] == [4.5] * 3
    assert [v["val/accuracy"] for v in follow.validations] == [pytest.approx(0.6)] * 3


def test_train_metrics_are_over_all_training_batches_since_the_last_validation():
    """Two of the four intervals reach over the end of an epoch of seven batches."""
    follow = train(ByHand(), max_steps=20, val_check_interval=5, check_val_every_n_epoch=None)
    assert [len(batch) for batch in follow.batches] == [4, 4, 4, 4, 4, 4, 2] * 2 + [4] * 6
    edges = [0, *(len(seen) for seen in follow.seen)]
    since = [seen[edge:] for seen, edge in zip(follow.seen, edges, strict=False)]
    assert len(since) == 4
    assert [v["train/accuracy"] for v in follow.validations] == [
        pytest.approx(accuracy_of(part)) for part in since
    ]
    assert len({accuracy_of(part) for part in since}) > 1


def test_a_nan_loss_shows_in_the_validation():
    class Diverged(ByHand):
        def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
            return torch.where(batch["i"] == 5, torch.nan, 1.0).mean() + 0 * output.sum()

    (validation,) = train(Diverged(), max_steps=7).validations
    assert math.isnan(validation["val/loss"])


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (accuracy(), "accuracy"),
        (MulticlassF1Score(2), "f1score"),
        (MetricCollection({"f1": MulticlassF1Score(2), "top1": accuracy()}), "f1"),
        (MetricCollection([accuracy()]), "MulticlassAccuracy"),
        (MetricCollection({"acc": accuracy()}, prefix="my_"), "acc"),
    ],
)
def test_the_score_is_the_first_metric_under_its_name(metric, name):
    module = measured(metric.clone(), metric)
    (validation,) = train(module, max_steps=7).validations
    assert module.score_key == f"val/{name}"
    assert {f"val/{name}", f"train/{name}"} <= validation.keys()


def test_of_metrics_in_a_dict_the_first_in_the_alphabet_is_the_score():
    """torchmetrics sorts them; only a list keeps its order."""
    val = MetricCollection({"top1": accuracy(), "f1": MulticlassF1Score(2)})
    assert configured(measured(val=val)).score_key == "val/f1"
    val = MetricCollection([MulticlassF1Score(2), accuracy()])
    assert configured(measured(val=val)).score_key == "val/MulticlassF1Score"


def test_each_metric_of_a_collection_is_measured_by_its_name():
    metrics = MetricCollection({"top1": accuracy(), "f1": MulticlassF1Score(2), "n": CatMetric()})

    class Many(ByHand):
        def create_metrics(self) -> None:
            self.train_metrics, self.val_metrics = metrics, metrics.clone()

        def update_metrics(self, metrics: Any, batch: dict, output: Tensor) -> None:
            for name in ("top1", "f1"):
                metrics[name].update(output, batch["label"])
            metrics["n"].update(batch["i"])

    follow = train(Many(), max_steps=7)
    (validation,) = follow.validations
    # "n" is a tensor of ten numbers, which is no result to log.
    assert validation.keys() == {
        "val/loss",
        *(f"{mode}/{name}" for mode in ("train", "val") for name in ("top1", "f1")),
    }
    assert validation["val/top1"] == pytest.approx(0.6)
    assert validation["train/top1"] == pytest.approx(accuracy_of(range(26)))
    # Class 0: 5 right, 4 wrongly called so; class 1: 1 right of 5.
    assert validation["val/f1"] == pytest.approx((10 / 14 + 2 / 6) / 2)


@pytest.mark.parametrize("compute_groups", [True, False])
def test_metrics_that_share_their_states_are_measured_alike(compute_groups):
    """torchmetrics updates only one of those that count the same."""
    metrics = MetricCollection(
        {"f1": MulticlassF1Score(2), "precision": accuracy(average="macro"), "top1": accuracy()},
        compute_groups=compute_groups,
    )
    module = measured(metrics, metrics.clone())
    follow = train(module, max_steps=9, val_check_interval=3, check_val_every_n_epoch=None)
    assert len(follow.validations) == 3
    for validation in follow.validations:
        assert validation["val/top1"] == pytest.approx(0.6)
        assert validation["val/precision"] == pytest.approx((1 + 1 / 5) / 2)
        assert validation["val/f1"] == pytest.approx((10 / 14 + 2 / 6) / 2)
    edges = [0, *(len(seen) for seen in follow.seen)]
    assert [v["train/top1"] for v in follow.validations] == [
        pytest.approx(accuracy_of(seen[edge:]))
        for seen, edge in zip(follow.seen, edges, strict=False)
    ]


def test_the_loss_can_be_the_score():
    module = ByHand(score_name="loss", score_mode="min")
    (validation,) = train(module, max_steps=7).validations
    assert module.score_key == "val/loss"
    assert validation["val/loss"] == 4.5


def test_a_number_of_a_metric_that_gives_several_can_be_the_score():
    """As of torchmetrics' MeanAveragePrecision, which gives a dict."""
    val = ClasswiseWrapper(accuracy(average=None), labels=["cat", "dog"])
    module = measured(val=val, score_name="multiclassaccuracy_cat")
    (validation,) = train(module, max_steps=7).validations
    assert validation["val/multiclassaccuracy_cat"] == 1


def test_results_reach_lightnings_own_callbacks():
    """The score never improves on the first: two validations later the run ends."""
    stop = EarlyStopping("val/accuracy", mode="max", patience=2)
    follow = train(ByHand(), callbacks=[stop], max_steps=20, val_check_interval=2)
    assert len(follow.validations) == 3
    assert stop.best_score.item() == pytest.approx(0.6)
    assert len(follow.batches) == 6


def test_update_metrics_can_find_the_labels_elsewhere():
    class Renamed(ByHand):
        def forward_model(self, batch: dict) -> Tensor:
            return super().forward_model({**batch, "label": batch["target"]})

        def update_metrics(self, metrics: Any, batch: dict, output: Tensor) -> None:
            metrics.update(output, batch["target"])

    samples = [{"x": torch.zeros(4), "target": i % 2, "i": i} for i in range(10)]
    data = data_of(samples, batch_size=4, n_workers=0)
    (validation,) = train(Renamed(), data, max_steps=3).validations
    assert validation["val/accuracy"] == validation["train/accuracy"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    "wrap",
    [lambda t: t, lambda t: {"logits": t}, lambda t: (t, [t]), lambda t: {"a": {"b": [t]}}],
    ids=["tensor", "dict", "tuple", "nested"],
)
def test_metrics_that_keep_what_they_see_do_not_hold_the_graph(wrap):
    def tensors(output: Any) -> list[Tensor]:
        if isinstance(output, Tensor):
            return [output]
        parts = output.values() if isinstance(output, dict) else output
        return list(chain(*map(tensors, parts)))

    class Keeping(TinyModule):
        def create_metrics(self) -> None:
            self.train_metrics, self.val_metrics = CatMetric(), CatMetric()

        def forward_model(self, batch: dict) -> Any:
            return wrap(super().forward_model(batch))

        def forward_loss(self, batch: dict, output: Any) -> Tensor:
            assert all(t.requires_grad for t in tensors(output))
            return sum(t.sum() for t in tensors(output))

        def update_metrics(self, metrics: Any, batch: dict, output: Any) -> None:
            for tensor in tensors(output):
                metrics.update(tensor)

    module = configured(Keeping(vis_iterations=1))
    step = module.training_step(batch_of(), 0)
    step["loss"].backward()
    kept = module.train_metrics.metric_state["value"]
    assert kept
    assert not any(t.requires_grad for t in [*kept, *tensors(step["output"])])


# What is stepped ----------------------------------------------------------------------------------


class Plateau(ReduceLROnPlateau):
    """Notes the scores that it is stepped with."""

    def step(self, metrics: Any, *args: Any) -> None:
        self.scores = [*getattr(self, "scores", []), float(metrics)]
        super().step(metrics, *args)


class PlateauModule(ByHand):
    def create_optimiser(self) -> None:
        super().create_optimiser()
        self.scheduler = Plateau(self.optimiser, "max", patience=1, factor=0.5)


class LossPlateauModule(ByHand):
    def create_optimiser(self) -> None:
        super().create_optimiser()
        self.scheduler = Plateau(self.optimiser, "min", patience=1, factor=0.5)


def test_a_plateau_scheduler_is_stepped_once_a_validation_with_the_score():
    module = PlateauModule(learning_rate=1.0)
    follow = train(module, max_steps=12, val_check_interval=2, check_val_every_n_epoch=None)
    assert module.scheduler.scores == [v["val/accuracy"] for v in follow.validations]
    assert len(follow.validations) == 6
    # The score never improves on the first: after every second validation without, it halves.
    assert follow.learning_rates == [1] * 6 + [0.5] * 4 + [0.25] * 2


def test_a_plateau_scheduler_follows_the_score_that_is_named():
    module = LossPlateauModule(score_name="loss")
    train(module, max_steps=2, val_check_interval=2)
    assert module.scheduler.scores == [4.5]


def test_a_validation_outside_training_does_not_step_a_plateau_scheduler():
    module = PlateauModule()
    train(module, max_steps=2, val_check_interval=2)
    make_trainer().validate(module, datamodule=TinyData(), verbose=False)
    assert len(module.scheduler.scores) == 1


@pytest.mark.parametrize("n_accumulated", [1, 2])
def test_other_schedulers_are_stepped_every_iteration(n_accumulated):
    module = TinyModule(learning_rate=1.0, schedule="cosine")
    follow = train(module, max_steps=9, accumulate_grad_batches=n_accumulated)
    assert module.scheduler.last_epoch == 9
    rates = follow.learning_rates
    # The last, lone batch of each epoch is an iteration by itself: seven batches make four.
    if n_accumulated == 2:
        rates = [rate for i, rate in enumerate(rates) if i % 7 % 2 == 0]
    assert rates == [pytest.approx((1 + math.cos(math.pi * i / 9)) / 2) for i in range(9)]


# What Lightning does with it ----------------------------------------------------------------------


def test_configure_model_makes_everything_only_once():
    module = configured(TinyModule())
    before = [module.model, module.loss_fn, module.train_metrics, module.val_metrics]
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    module.configure_model()
    after = [module.model, module.loss_fn, module.train_metrics, module.val_metrics]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())


def test_a_checkpoint_loads_without_a_trainer(tmp_path):
    module = TinyModule(learning_rate=0.5, score_name="loss", score_mode="min", vis_iterations=3)
    trainer = make_trainer(max_steps=3)
    trainer.fit(module, datamodule=TinyData())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = TinyModule.load_from_checkpoint(tmp_path / "a.ckpt")
    expected, actual = module.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert dict(loaded.hparams) == dict(module.hparams)
    assert loaded.hparams.learning_rate == 0.5
    assert (loaded.score_key, loaded.score_mode, loaded.vis_iterations) == ("val/loss", "min", 3)
    batch = batch_of()
    assert torch.equal(loaded.eval()(batch), module.eval()(batch))


def test_the_state_holds_the_model_and_nothing_of_the_metrics():
    """So that other metrics do not make a checkpoint unreadable."""
    module = configured(TinyModule())
    assert module.state_dict().keys() == {f"model.{name}" for name in module.model.state_dict()}


def test_lightnings_hooks_can_be_overridden():
    class Own(TinyModule):
        called = ()

        def training_step(self, batch: dict, batch_idx: int) -> Tensor:
            return self.forward_loss(batch, self.forward_model(batch))

        def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
            return {**batch, "x": -batch["x"]}

        def on_train_batch_end(self, outputs: Any, batch: dict, batch_idx: int) -> None:
            self.called += ((batch_idx, batch["x"].max().item() < 0, list(outputs)),)

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self.clip_gradients(optimizer, 1e-12, "norm")

        def on_fit_start(self) -> None:
            self.at_start = {name: p.clone() for name, p in self.named_parameters()}

    module = Own(learning_rate=0.01)
    (validation,) = train(module, max_steps=7).validations
    assert module.called == tuple((i, True, ["loss"]) for i in range(7))
    assert any(not torch.equal(p, module.at_start[n]) for n, p in module.named_parameters())
    # The own step adds nothing to the train metrics.
    assert validation.keys() == {"val/accuracy", "val/loss"}


@pytest.mark.parametrize("returned", [None, torch.ones(())])
def test_an_own_validation_step_need_not_return_what_the_base_does(returned):
    class Own(ByHand):
        def validation_step(self, batch: dict, batch_idx: int) -> Any:
            super().validation_step(batch, batch_idx)
            return returned

    (validation,) = train(
        Own(), callbacks=[CallVisualise(RunState(Session()))], max_steps=7
    ).validations
    assert validation["val/accuracy"] == pytest.approx(0.6)


def test_a_model_is_called_by_its_batch():
    module = configured(TinyModule()).eval()
    batch = batch_of()
    assert torch.equal(module(batch), module.model(batch["x"]))


def test_predictions_are_what_forward_model_returns():
    class Twice(TinyModule):
        def forward_model(self, batch: dict) -> dict:
            return {"i": 2 * batch["i"]}

    outputs = make_trainer().predict(Twice(), datamodule=TinyData())
    assert [output["i"].tolist() for output in outputs] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]


def test_evaluation_neither_changes_the_weights_nor_drops_out():
    module = configured(TinyModule())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    outputs = [make_trainer().predict(module, datamodule=TinyData()) for _ in range(2)]
    make_trainer().test(module, datamodule=TinyData(), verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


# What is kept for `visualise` ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "kept"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (8, [])]
)
def test_the_output_of_a_training_step_is_kept_only_where_visualise_is_due(interval, kept):
    follow = train(TinyModule(vis_iterations=interval), max_steps=7)
    assert [i for i, has_output in enumerate(follow.outputs, start=1) if has_output] == kept


def test_the_output_of_a_validation_or_test_step_is_there_for_callbacks():
    module = configured(TinyModule()).eval()
    batch = batch_of()
    with torch.no_grad():
        for step in (module.validation_step, module.test_step):
            assert torch.equal(step(batch, 1)["output"], module(batch))


@pytest.mark.parametrize(
    "batch",
    [
        {"name": ["a", "b"], "x": torch.rand(3, 2)},
        {"weight": torch.tensor(0.5), "x": torch.rand(3, 2)},
        {"inputs": {"x": torch.rand(3, 2)}},
        [torch.rand(3, 2), torch.rand(5)],
        (["a", "b"], torch.rand(3, 2)),
        torch.rand(3, 2),
    ],
)
def test_examples_are_counted_by_the_first_tensor(batch):
    assert TinyModule().count_examples(batch) == 3


@pytest.mark.parametrize(
    "batch", [{}, [], {"x": [torch.rand(2)]}, torch.tensor(1.0), [{"x": torch.rand(2)}], "text"]
)
def test_examples_that_can_not_be_counted_are_refused(batch):
    """Not by StopIteration, which Lightning takes for the end of the data."""
    with pytest.raises(TypeError, match=r"`count_examples`"):
        TinyModule().count_examples(batch)


def test_a_batch_may_be_nested_where_its_examples_are_counted():
    class Nested(ByHand):
        def forward_model(self, batch: dict) -> Tensor:
            return super().forward_model(batch["all"])

        def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
            return super().forward_loss(batch["all"], output)

        def update_metrics(self, metrics: Any, batch: dict, output: Tensor) -> None:
            super().update_metrics(metrics, batch["all"], output)

        def count_examples(self, batch: dict) -> int:
            return super().count_examples(batch["all"])

    samples = [{"all": TinyDataset()[i]} for i in range(10)]
    trainer = make_trainer()
    data = data_of(samples, batch_size=4, n_workers=0)
    trainer.validate(Nested(), datamodule=data, verbose=False)
    assert trainer.callback_metrics["val/loss"].item() == 4.5
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(0.6)


def test_tensorboard_without_its_logger_says_how_to_have_one():
    module = TinyModule()
    make_trainer().validate(module, datamodule=TinyData(), verbose=False)
    with pytest.raises(RuntimeError, match=r"`self.tensorboard` needs a TensorBoardLogger: .*"):
        _ = module.tensorboard


# Faster settings ------------------------------------------------------------------------------


def test_channels_last_lays_out_the_kernels_and_nothing_else():
    class Convolving(TinyModule):
        def create_model(self) -> None:
            self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))

    for channels_last in (False, True):
        module = Convolving(channels_last=channels_last)
        module.configure_model()
        convolution, linear = module.model
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert linear.weight.is_contiguous()


def test_a_compiled_model_trains_and_its_checkpoint_fits_one_that_is_not(
    run, config, sessions, monkeypatch
):
    compiled = []

    def compile_eagerly(call: Any, **options: Any) -> Any:
        compiled.append(call)
        return call

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    code, _, err = run("fit", "--config", config, "--model.compile=true", "--trainer.max_steps=5")
    assert (code, len(compiled)) == (0, 2), err  # the model, and the step with the loss
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--model.compile=false",
                       "--trainer.max_steps=10")  # fmt: skip
    assert (code, len(compiled)) == (0, 2), err  # the model, and the step with the loss
