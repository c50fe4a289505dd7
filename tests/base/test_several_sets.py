"""Of several sets of data to validate or test with, each has its results, and all their mean."""

import os
import re
import signal

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyData, TinyDataset, TinyModule
from restarts import result, same
from tiny import logged
from torch import Tensor

from lightning_trainer.base.scoring import score_direction

SETS = ("--model=test_several_sets.Graded", "--data=test_several_sets.SeveralData")


class SeveralData(TinyData):
    """Three samples in one set, ten in the other."""

    def create_data(self) -> None:
        super().create_data()
        self.val_dataset = {"few": TinyDataset(3), "many": TinyDataset(10)}
        self.test_dataset = {"few": TinyDataset(3), "other": TinyDataset(5)}


class OneTestData(SeveralData):
    def create_data(self) -> None:
        super().create_data()
        self.test_dataset = TinyDataset(6)


class Graded(TinyModule):
    """Calls each sample 0, which is right for every second one, from the first on."""

    def update_metrics(self, metrics, batch: dict, output: Tensor) -> None:
        super().update_metrics(metrics, batch, torch.eye(2)[torch.zeros(len(output), dtype=int)])

    def forward_loss(self, batch: dict, output: Tensor) -> Tensor | dict[str, Tensor]:
        loss = super().forward_loss(batch, output)
        i = batch["i"].float().mean()
        return loss if self.training else {"place": i, "one": torch.ones_like(i)}


class WithoutLossOfMany(Graded):
    def forward_loss(self, batch: dict, output: Tensor) -> Tensor | dict[str, Tensor] | None:
        loss = super().forward_loss(batch, output)
        return loss if self.training or len(output) == 3 else None


def of(run, config, *flags: str) -> str:
    code, out, err = run("fit", "--config", config, *SETS, *flags)
    assert code == 0, err
    return out


def test_each_set_has_its_results_and_their_mean_is_the_score(run, config, sessions):
    out = of(run, config, "--trainer.max_steps=5")
    block = out[out.index("Validation") : out.index("New best")].splitlines()
    assert [line for line in block if line[0] != "-" and not line.startswith("Train")] == [
        "Validation",
        "Val loss: 3.7500 (place 2.7500, one 1.0000)",
        "Val few/loss: 2.0000 (place 1.0000, one 1.0000)",
        "Val many/loss: 5.5000 (place 4.5000, one 1.0000)",
        "Metrics",
        "Val score (accuracy, higher is better): 0.583",
        "Val few/accuracy: 0.667",
        "Val many/accuracy: 0.500",
    ]
    expected = {
        **{"accuracy": 7 / 12, "few/accuracy": 2 / 3, "many/accuracy": 0.5, "loss": 3.75},
        **{"few/loss": 2.0, "many/loss": 5.5, "few/loss_place": 1.0, "loss_one": 1.0},
    }
    for name, value in expected.items():
        assert logged(sessions()[0], f"val/{name}") == {5: pytest.approx(value)}, name
    best = torch.load(sessions()[0] / "checkpoints/best.ckpt")["lightning_trainer"]["best"]
    assert best["score"] == pytest.approx(7 / 12)


def test_a_test_has_its_own_sets(run, config, sessions):
    of(run, config, "--trainer.max_steps=5")
    code, out, err = run("test", "--ckpt_path", sessions()[0])
    assert code == 0, err
    assert "Test loss: 2.5000 (place 1.5000, one 1.0000)\nTest few/loss: 2.0000 (" in out
    assert "Test score (accuracy, higher is better): 0.633\nTest few/accuracy: 0.667\n" in out
    assert "Test other/accuracy: 0.600\n" in out
    assert logged(sessions()[0], "test/other/accuracy") == {5: pytest.approx(0.6)}


def test_one_set_can_be_the_score(run, config, sessions):
    out = of(run, config, "--trainer.max_steps=5", "--model.score_name=few/accuracy")
    assert "Val score (few/accuracy, higher is better): 0.667\n" in out
    assert {"Val many/accuracy: 0.500", "Val accuracy: 0.583"} <= {*out.splitlines()}
    assert "New best score (few/accuracy, higher is better): -inf -> 0.667\n" in out
    code, out, err = run("test", "--ckpt_path", sessions()[0])
    assert code == 0, err
    assert "Test score (few/accuracy, higher is better): 0.667\n" in out


def test_a_test_without_the_set_of_the_score_is_told_all_the_same(run, config, sessions):
    flags = ("--trainer.max_steps=5", "--model.score_name=many/accuracy")
    of(run, config, *flags, "--data=test_several_sets.OneTestData")
    code, out, err = run("test", "--ckpt_path", sessions()[0])
    assert code == 0, err
    assert "Test accuracy: 0.500\n" in out


def test_a_set_that_is_not_there_is_refused(run, config):
    code, _, err = run("fit", "--config", config, *SETS, "--model.score_name=fw/accuracy")
    assert code == 1
    assert err == (
        "error: `score_name` is 'fw/accuracy', which `create_metrics` does not define: use one of "
        "few/accuracy, accuracy, many/accuracy\n"
    )


@pytest.mark.parametrize(
    ("name", "direction"),
    [("few/accuracy", "max"), ("few/loss", "min"), ("few/loss_place", "min"), ("loss_one", "min")],
)
def test_the_direction_of_a_sets_score_is_that_of_its_metric(name, direction):
    module = TinyModule(score_name=name)
    module.create_metrics()
    assert score_direction(module) == direction


def test_a_loss_that_only_some_sets_have_is_the_mean_of_these(run, config):
    out = of(run, config, "--trainer.max_steps=5", "--model=test_several_sets.WithoutLossOfMany")
    assert "Val loss: 2.0000 (place 1.0000, one 1.0000)\nVal few/loss: 2.0000 (" in out
    assert "Val many/loss" not in out


class Draws(Graded):
    def visualise(self, batch: dict, output: Tensor, mode: str) -> None:
        print("drawn", mode, len(output))


def test_the_first_batch_of_each_set_is_drawn(run, config):
    out = of(run, config, "--trainer.max_steps=5", "--model=test_several_sets.Draws")
    assert re.findall("drawn (.*)", out) == ["val/few 3", "val/many 4"]


class StoppedInMany(TinyModule):
    """Is told to stop in the first batch of the second set, once."""

    told = False
    n_after = 0

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> dict:
        StoppedInMany.n_after += self.told
        if self.global_step == 5 and dataloader_idx == 1 and not self.told:
            StoppedInMany.told = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().validation_step(batch, batch_idx)


def test_a_run_that_is_stopped_in_the_second_set_ends_there_and_goes_on_bitwise(
    run, config, sessions, monkeypatch
):
    monkeypatch.setattr(StoppedInMany, "told", True)
    flags = (*SETS, "--model=test_several_sets.StoppedInMany", "--trainer.max_steps=8")
    assert run("fit", "--config", config, *flags)[0] == 0
    monkeypatch.setattr(StoppedInMany, "told", False)
    monkeypatch.setattr(StoppedInMany, "n_after", 0)
    code, out, err = run("fit", "--config", config, *flags)
    assert (code, StoppedInMany.n_after) == (143, 0), err
    assert "Stopped by SIGTERM at iteration 5\n" in out
    assert run("fit", "--ckpt_path", sessions()[1])[0] == 0
    assert same(result(sessions()[1]), result(sessions()[0]))


class OwnLoaders(TinyData):
    """Loaders of the project's own, in a list."""

    def val_dataloader(self) -> list:
        return [torch.utils.data.DataLoader(TinyDataset(n), 4) for n in (3, 10)]


class OneInADict(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.val_dataset = {"only": TinyDataset(10)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("OwnLoaders", ["Val 0/accuracy: 0.667", "Val 1/accuracy: 0.500"]),
        ("OneInADict", ["Val only/accuracy: 0.500"]),
    ],
)
def test_a_list_of_loaders_and_a_dict_of_one_are_named_too(run, config, name, expected):
    out = of(run, config, "--trainer.max_steps=5", f"--data=test_several_sets.{name}")
    assert re.findall("^Val .*/accuracy: .*$", out, re.M) == expected


class ByTrainer(pl.Callback):
    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        self.numbers = {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_with_a_plain_trainer_each_set_has_its_results():
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    follow = ByTrainer()
    trainer = pl.Trainer(
        max_steps=7, accelerator="cpu", enable_checkpointing=False, callbacks=[follow], **options
    )
    trainer.fit(Graded(), datamodule=SeveralData())
    assert follow.numbers["val/few/accuracy"] == pytest.approx(2 / 3)
    assert follow.numbers["val/accuracy"] == pytest.approx(7 / 12)


class TrainSets(SeveralData):
    def create_data(self) -> None:
        super().create_data()
        self.train_dataset = self.val_dataset


class PredictSets(SeveralData):
    def create_data(self) -> None:
        super().create_data()
        self.predict_dataset = self.val_dataset


class ListOfSets(SeveralData):
    def create_data(self) -> None:
        super().create_data()
        self.val_dataset = [*self.val_dataset.values()]


class EmptySet(SeveralData):
    def create_data(self) -> None:
        super().create_data()
        self.val_dataset["none"] = TinyDataset(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "TrainSets",
            "`self.train_dataset` of `TrainSets` is a dict of datasets: `val_dataset` and "
            "`test_dataset` may be a dict of them by name, the others one dataset",
        ),
        (
            "ListOfSets",
            "`self.val_dataset` of `ListOfSets` is a list of datasets: `val_dataset` and "
            "`test_dataset` may be a dict of them by name, the others one dataset",
        ),
        (
            "EmptySet",
            "`self.val_dataset.none` of `EmptySet` is empty: check the paths and splits in "
            "`create_data`",
        ),
    ],
)
def test_what_is_wrong_is_one_line(run, config, name, message):
    code, _, err = run("fit", "--config", config, *SETS, f"--data=test_several_sets.{name}")
    assert (code, err) == (1, f"error: {message}\n")


def test_a_dict_is_not_predicted(run, config, sessions):
    of(run, config, "--trainer.max_steps=5", "--data=test_several_sets.PredictSets")
    code, _, err = run("predict", "--ckpt_path", sessions()[0])
    assert code == 1
    assert err.startswith("error: `self.predict_dataset` of `PredictSets` is a dict of datasets")


def test_a_dict_with_other_keys_is_a_dataset():
    data = TinyData()
    data.val_dataset = {i: {"x": torch.ones(4)} for i in range(6)}
    data.create_data = lambda: None
    assert len([*data.val_dataloader()]) == 2
