"""What keeps a restart from being exact is said once."""

import pytest
import torch
from conftest import TinyData, TinyModule
from torch.utils.data import DataLoader, IterableDataset

from lightning_trainer.checkpoints.inexact import WarnOfInexactRestart
from lightning_trainer.run.state import RunState
from lightning_trainer.session.folder import Session


class OwnLoaderData(TinyData):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=4)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"x": torch.rand(4), "label": i % 2} for i in range(40))


class StreamData(TinyData):
    def create_data(self) -> None:
        super().create_data()
        self.train_dataset = Stream()


def inexact(text: str) -> list[str]:
    return [line for line in text.splitlines() if "not bitwise exact" in line]


@pytest.mark.parametrize("data", ["OwnLoaderData", "StreamData"])
def test_a_loader_that_starts_from_its_beginning_is_told_once(run, config, sessions, data):
    flags = (f"--data=test_inexact.{data}", "--trainer.max_steps=7")
    code, _, err = run("fit", "--config", config, *flags)
    assert code == 0, err
    assert inexact(err) == []
    code, _, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=12")
    assert code == 0, err
    assert inexact(err) == [
        "warning: this restart is not bitwise exact: the training data comes from a loader of the "
        "project's own or an iterable dataset, which starts again from its beginning"
    ]
    assert "resumable" not in err


def test_an_exact_restart_warns_of_nothing(run, config, sessions):
    assert run("fit", "--config", config, "--trainer.max_steps=7")[0] == 0
    _, _, err = run("fit", "--ckpt_path", sessions()[0], "--trainer.max_steps=12")
    assert inexact(err) == []


class TwoProcesses:
    """As much of a trainer as the callback looks at."""

    world_size, is_global_zero = 2, True
    train_dataloader = DataLoader(Stream())
    strategy = type("Strategy", (), {"root_device": torch.device("cpu"), "model": None})


def test_another_number_of_processes_is_told(capsys):
    run = RunState(Session(), goes_on=True, n_processes_before=1)
    WarnOfInexactRestart(run).on_train_start(TwoProcesses(), TinyModule())
    [line] = capsys.readouterr().err.splitlines()
    assert "2 processes take part instead of 1; the training data" in line


def test_a_new_run_warns_of_nothing(capsys):
    WarnOfInexactRestart(RunState(Session())).on_train_start(TwoProcesses(), TinyModule())
    assert capsys.readouterr().err == ""
