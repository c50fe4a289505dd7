"""From `create_data` to loaders: the same batches however fetched, and where they go on."""

import multiprocessing
import random
import signal
import subprocess
import weakref
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import TinyData, TinyDataset, TinyModule
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

from lightning_trainer import BaseDataModule
from lightning_trainer.base import sampling
from lightning_trainer.base.data import SessionLoader
from lightning_trainer.base.sampling import seed_generators

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    """As Lightning's seed_everything leaves it, whatever ran before."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")


def tiny_data(data_class: type = TinyData, **kwargs: Any) -> Any:
    """A data module whose data are there, without a trainer."""
    data = data_class(**kwargs)
    data.setup("fit")
    return data


def data_of(dataset: Any, **kwargs: Any) -> Any:
    """A data module of one dataset for everything."""

    class Data(BaseDataModule):
        def create_data(self) -> None:
            self.train_dataset = self.val_dataset = dataset
            self.test_dataset = self.predict_dataset = dataset

    return tiny_data(Data, **kwargs)


class Follow(Callback):
    """Notes the samples of each training batch by epoch, and how often a validation ran."""

    def __init__(self) -> None:
        self.epochs: list[list[list[int]]] = []
        self.n_validations = 0

    def on_train_epoch_start(self, *args: Any) -> None:
        self.epochs.append([])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.epochs[-1].append(batch["i"].tolist())

    def on_validation_end(self, trainer, pl_module) -> None:
        self.n_validations += not trainer.sanity_checking


def make_trainer(**kwargs: Any) -> pl.Trainer:
    """A trainer on the CPU that writes and shows nothing."""
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def train(data: Any, ckpt_path: Any = None, **kwargs: Any) -> tuple[Follow, pl.Trainer]:
    """Trains the tiny module on it."""
    follow = Follow()
    trainer = make_trainer(callbacks=[follow], num_sanity_val_steps=0, **kwargs)
    trainer.fit(TinyModule(), datamodule=data, ckpt_path=ckpt_path)
    return follow, trainer


def indices(loader: Any) -> list[list[int]]:
    return [batch["i"].tolist() for batch in loader]


def assert_same_batches(some: list[dict], others: list[dict]) -> None:
    assert len(some) == len(others) > 0
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


# What a project must give -------------------------------------------------------------------------


def test_a_data_module_without_create_data_is_refused_by_name():
    class Forgetful(BaseDataModule):
        pass

    with pytest.raises(TypeError) as error:
        Forgetful()
    assert str(error.value) == (
        "`Forgetful` does not define `create_data`: every BaseDataModule needs it "
        "(`help(lightning_trainer.base.data.BaseDataModule.create_data)` says what to set)"
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0: it must be at least 1"),
        ({"batch_size": -4}, "`batch_size` is -4: it must be at least 1"),
        ({"n_workers": -1}, "`n_workers` is -1: it must be 0 or more"),
    ],
)
def test_sizes_that_can_not_be_are_refused_at_construction(kwargs, message):
    with pytest.raises(ValueError) as error:
        TinyData(**kwargs)
    assert str(error.value) == message


class WithoutLength:
    def __getitem__(self, index: int) -> dict:
        return {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            DataLoader([1, 2]),
            "is a DataLoader: assign its dataset, or let `train_dataloader` return a loader of ",
        ),
        (
            (x for x in [1, 2]),
            "is a generator, no dataset: give it `__len__` and `__getitem__`, or",
        ),
        ("data/train.csv", "is a str, no dataset: "),
        (Path("data/train.csv"), f"is a {type(Path()).__name__}, no dataset: "),
        (WithoutLength(), "is a WithoutLength, no dataset: "),
        ({1, 2}, "is a set, no dataset: "),
    ],
)
def test_what_is_no_dataset_is_named_with_the_remedy(given, told):
    with pytest.raises(ValueError, match=r"^`self.train_dataset` of `Data` is a") as found:
        data_of(given).train_dataloader()
    assert told in str(found.value)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_dataset_left_unset_is_named_when_its_loader_is_asked_for(loader):
    class Partial(BaseDataModule):
        def create_data(self) -> None:
            others = {f"{name.removesuffix('_dataloader')}_dataset" for name in LOADERS}
            for attribute in others - {loader.replace("dataloader", "dataset")}:
                setattr(self, attribute, TinyDataset())

    data = tiny_data(Partial)
    with pytest.raises(ValueError) as error:
        getattr(data, loader)()
    attribute = loader.replace("dataloader", "dataset")
    assert str(error.value) == (
        f"`Partial.create_data` left `self.{attribute}` unset: "
        "assign a dataset whose samples are dicts"
    )


@pytest.mark.parametrize("empty", [[], TinyDataset(0)])
def test_an_empty_dataset_is_named(empty):
    with pytest.raises(ValueError) as error:
        data_of(empty).train_dataloader()
    assert str(error.value) == (
        "`self.train_dataset` of `Data` is empty: check the paths and splits in `create_data`"
    )


def test_a_trainer_stops_before_training_where_the_validation_data_are_missing():
    class TrainOnly(BaseDataModule):
        def create_data(self) -> None:
            self.train_dataset = TinyDataset()

    follow = Follow()
    trainer = make_trainer(max_steps=1, num_sanity_val_steps=0, callbacks=[follow])
    with pytest.raises(ValueError, match=r"`TrainOnly.create_data` left `self.val_dataset` unset"):
        trainer.fit(TinyModule(), datamodule=TrainOnly())
    assert follow.epochs == []


def test_create_data_is_called_once_over_fit_and_test_and_predict():
    class Counting(TinyData):
        n_calls = 0

        def create_data(self) -> None:
            self.n_calls += 1
            super().create_data()

    data, module = Counting(), TinyModule()
    make_trainer(max_steps=1).fit(module, datamodule=data)
    make_trainer().test(module, datamodule=data, verbose=False)
    make_trainer().predict(module, datamodule=data)
    assert data.n_calls == 1


def test_create_data_is_called_once_where_there_is_nothing_to_train_on():
    class TestOnly(BaseDataModule):
        n_calls = 0

        def create_data(self) -> None:
            self.n_calls += 1
            self.test_dataset = self.predict_dataset = TinyDataset()

    data = TestOnly()
    data.setup("test")
    data.setup("predict")
    assert data.n_calls == 1


# How batches are fetched --------------------------------------------------------------------------


def test_two_epochs_are_bitwise_the_same_with_and_without_workers():
    batches = {}
    for n_workers in (0, 2):
        loader = tiny_data(n_workers=n_workers).train_dataloader()
        assert loader.persistent_workers == (n_workers > 0)
        batches[n_workers] = [batch for _ in range(2) for batch in loader]
    assert len(batches[0]) == 14
    assert_same_batches(batches[0], batches[2])


def test_each_epoch_has_its_own_order_and_its_own_noise():
    loader = tiny_data().train_dataloader()
    first, second = list(loader), list(loader)
    for epoch in (first, second):
        assert sorted(chain(*indices(epoch))) == list(range(26))
    assert indices(first) != indices(second)
    noise = [
        {i: x.tolist() for b in epoch for i, x in zip(b["i"].tolist(), b["x"], strict=True)}
        for epoch in (first, second)
    ]
    assert all(noise[0][i] != noise[1][i] for i in range(26))


def test_another_seed_gives_another_order(monkeypatch):
    first = indices(tiny_data().train_dataloader())
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    assert indices(tiny_data().train_dataloader()) != first


def test_without_a_seed_the_order_is_that_of_seed_0(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    first = indices(tiny_data().train_dataloader())
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert indices(tiny_data().train_dataloader()) == first


@pytest.mark.parametrize("name", LOADERS[1:])
def test_evaluation_keeps_the_order_and_the_noise_each_time(name):
    loader = getattr(tiny_data(), name)()
    first = list(loader)
    assert indices(first) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    torch.rand(3)
    assert_same_batches(first, list(loader))


def test_a_list_of_dicts_is_a_dataset():
    loader = data_of([{"i": i} for i in range(5)], batch_size=2, n_workers=0).val_dataloader()
    assert indices(loader) == [[0, 1], [2, 3], [4]]


class WholeBatches(Dataset):
    """Fetches a whole batch at once, as a dict; by sample it would fail."""

    def __len__(self) -> int:
        return 10

    def __getitems__(self, asked: list[int]) -> dict[str, torch.Tensor]:
        return {"i": torch.tensor(asked), "noise": torch.rand(len(asked))}

    def collate_fn(self, batch: dict) -> dict:
        return batch | {"collated": torch.ones(())}


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_dataset_may_fetch_whole_batches_and_collate_them_itself(n_workers):
    data = data_of(WholeBatches(), batch_size=4, n_workers=n_workers)
    batches = list(data.val_dataloader())
    assert indices(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all("collated" in batch for batch in batches)
    assert sorted(chain(*indices(data.train_dataloader()))) == list(range(10))
    assert_same_batches(batches, list(data.val_dataloader()))


class OnDevice(Dataset):
    """Makes whole batches, one part of them on a device; "meta" stands in for a GPU."""

    def __len__(self) -> int:
        return 10

    def get_batch(self, indices: torch.Tensor, seeds: torch.Tensor) -> dict[str, Any]:
        return {"i": indices, "x": torch.ones(len(indices), 2, device="meta"), "name": "a"}


def on_gpu(data: Any) -> Any:
    """The data, asked for their loaders by a trainer on a GPU."""
    data.trainer = SimpleNamespace(
        distributed_sampler_kwargs=None,
        lightning_module=TinyModule(),
        overfit_batches=0,
        strategy=SimpleNamespace(root_device=torch.device("cuda")),
    )
    return data


@pytest.mark.parametrize("name", LOADERS)
def test_get_batch_may_return_tensors_on_the_device(name, monkeypatch):
    pinned = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_cpu:
            raise RuntimeError("only dense CPU tensors can be pinned")
        pinned.append(tensor.tolist())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    loader = getattr(on_gpu(data_of(OnDevice(), batch_size=4, n_workers=0)), name)()
    for batch in loader:
        assert batch["x"].device == torch.device("meta")
        assert batch["name"] == "a"
        assert batch["i"].tolist() == pinned.pop()
        assert pinned == []


@pytest.mark.parametrize(("n_workers", "dataset"), [(1, OnDevice()), (0, TinyDataset())])
def test_torch_pins_what_workers_fetch_and_what_it_collates(n_workers, dataset):
    data = on_gpu(data_of(dataset, n_workers=n_workers))
    assert data.train_dataloader().pin_memory and data.val_dataloader().pin_memory


class ForkedGpu(OnDevice):
    def get_batch(self, indices: torch.Tensor, seeds: torch.Tensor) -> dict[str, Any]:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")


class Broken(OnDevice):
    def get_batch(self, indices: torch.Tensor, seeds: torch.Tensor) -> dict[str, Any]:
        raise RuntimeError("the project's own fault")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (OnDevice(), r"set `--data.n_workers 0`, or let it return tensors in host memory$"),
        (ForkedGpu(), r"set `--data.n_workers 0`, or let it return tensors in host memory$"),
        (Broken(), "^the project's own fault$"),
    ],
)
def test_a_worker_that_can_not_use_the_device_says_what_to_set(dataset, message, monkeypatch):
    monkeypatch.setattr(sampling, "get_worker_info", SimpleNamespace)  # as in a worker
    with pytest.raises(RuntimeError, match=message):
        next(iter(data_of(dataset, n_workers=0).train_dataloader()))


def test_each_process_takes_its_slice_of_the_global_batches():
    """A stand-in for the trainer of two processes: starting them takes long."""
    data = tiny_data(batch_size=2)
    loaders = []
    for rank in range(2):
        data.trainer = SimpleNamespace(
            distributed_sampler_kwargs={"num_replicas": 2, "rank": rank},
            overfit_batches=0,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        loaders.append([indices(data.train_dataloader()), indices(data.val_dataloader())])
    together, val = (
        [sorted(a + b) for a, b in zip(*halves, strict=True)]
        for halves in zip(*loaders, strict=True)
    )
    alone = indices(tiny_data(batch_size=4).train_dataloader())
    assert together == [sorted(batch) for batch in alone]
    assert val == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("name", LOADERS)
def test_iterating_with_workers_draws_from_no_global_generator(name):
    loader = getattr(tiny_data(n_workers=2), name)()

    def draws() -> tuple:
        return torch.rand(3).tolist(), TinyDataset()[0]["x"].tolist()

    seed_generators(1)
    expected = draws()
    seed_generators(1)
    list(loader)
    list(loader)
    assert draws() == expected


def test_workers_outlive_the_signals_that_end_a_run():
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group."""
    before = set(multiprocessing.active_children())
    loader = tiny_data(n_workers=2).train_dataloader()
    batches = iter(loader)
    first = [next(batches), next(batches)]  # one of each worker, so that both have started
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for number in ("INT", "TERM", "HUP", "USR1"):
        subprocess.run(["kill", f"-{number}", *(str(worker.pid) for worker in workers)], check=True)
    rest = list(batches)
    assert all(worker.is_alive() for worker in workers)
    assert_same_batches(first + rest, list(tiny_data().train_dataloader()))
    for worker in workers:  # as Python does at the exit of the main process
        worker.terminate()
        worker.join(timeout=3)
        assert worker.exitcode == 0


def test_the_main_process_keeps_its_signal_handlers():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    list(tiny_data(n_workers=1).train_dataloader())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_batch_is_let_go_before_the_next_is_fetched():
    class Notes(WholeBatches):
        def __getitems__(self, asked: list[int]) -> dict[str, torch.Tensor]:
            n_alive.append(sum(batch() is not None for batch in handed_out))
            return super().__getitems__(asked)

    n_alive: list[int] = []
    handed_out: list[Any] = []
    for batch in data_of(Notes(), batch_size=4, n_workers=0).train_dataloader():
        handed_out.append(weakref.ref(batch["i"]))
        del batch
    assert n_alive == [0, 0, 0]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_the_fetch_starts_when_a_batch_is_asked_for(n_workers):
    loader = tiny_data(n_workers=n_workers).train_dataloader()
    batches = iter(loader)
    started = []
    for _ in range(3):
        asked_s = perf_counter()
        next(batches)
        assert asked_s <= loader.fetch_started_s <= perf_counter()
        started.append(loader.fetch_started_s)
    assert started == sorted(set(started))


# Where a loader goes on ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", [0, 2])
def test_only_batches_that_were_used_count_however_far_workers_prefetch(n_workers):
    loader = tiny_data(n_workers=n_workers).train_dataloader()
    assert loader.state_dict() == {"samples": 0, "n_samples": 26, "batch_size": 4}
    batches = iter(loader)
    positions = []
    for _ in range(7):
        next(batches)
        positions.append(loader.state_dict()["samples"])
    assert positions == [4, 8, 12, 16, 20, 24, 26]
    assert next(batches, None) is None
    next(iter(loader))
    assert loader.state_dict()["samples"] == 30


def test_a_loader_goes_on_from_each_batch_bitwise():
    whole = tiny_data().train_dataloader()
    batches, states = [], []
    for _ in range(2):
        for batch in whole:
            batches.append(batch)
            states.append(whole.state_dict())
    for n_done, state in enumerate(states[:-1], start=1):
        loader = tiny_data().train_dataloader()
        loader.load_state_dict(state)
        rest = [batch for _ in range(2) for batch in loader]
        assert_same_batches(batches[n_done:], rest[: len(batches) - n_done])


def test_a_loader_with_workers_goes_on_bitwise_as_one_without():
    loader, alone = (tiny_data(n_workers=n).train_dataloader() for n in (2, 0))
    for _ in islice(loader, 3):
        pass
    alone.load_state_dict(loader.state_dict())
    assert_same_batches([*loader, *loader], [*alone, *alone])


def test_a_trainer_goes_on_with_the_samples_that_are_left(tmp_path):
    whole, _ = train(tiny_data(), max_steps=9)
    first, trainer = train(tiny_data(), max_steps=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest, _ = train(tiny_data(), tmp_path / "a.ckpt", max_steps=9)
    assert list(chain(*first.epochs, *rest.epochs)) == list(chain(*whole.epochs))
    assert [len(epoch) for epoch in whole.epochs] == [7, 2]


@pytest.mark.parametrize("n_done", [2, 3, 4, 6, 7])
def test_a_trainer_goes_on_exactly_where_limit_train_batches_cuts_its_epochs(n_done, tmp_path):
    whole, _ = train(tiny_data(), max_steps=9, limit_train_batches=3)
    first, trainer = train(tiny_data(), max_steps=n_done, limit_train_batches=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rest, _ = train(tiny_data(), tmp_path / "a.ckpt", max_steps=9, limit_train_batches=3)
    assert list(chain(*first.epochs, *rest.epochs)) == list(chain(*whole.epochs))


# What the trainer makes of it ---------------------------------------------------------------------


def test_the_trainer_leaves_the_loaders_as_they_are():
    trainer = train(tiny_data(), max_steps=1)[1]
    assert isinstance(trainer.train_dataloader, SessionLoader)
    assert indices(trainer.val_dataloaders) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_loader_of_ones_own_is_used():
    class Backwards(TinyData):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(TinyDataset(6), 2, sampler=range(5, -1, -1))

    follow, _ = train(Backwards(), max_steps=6)
    assert follow.epochs == [[[5, 4], [3, 2], [1, 0]]] * 2


def test_create_loader_changes_all_loaders_at_once():
    class Asking(TinyData):
        def create_loader(self, attribute: str, shuffle: bool) -> DataLoader:
            asked.append((attribute, shuffle))
            return super().create_loader(attribute, shuffle)

    asked = []
    data = tiny_data(Asking)
    for name in LOADERS:
        getattr(data, name)()
    assert asked == [
        ("train_dataset", True),
        ("val_dataset", False),
        ("test_dataset", False),
        ("predict_dataset", False),
    ]


def test_a_collation_that_create_loader_gives_draws_anew_for_each_batch():
    """E.g. the share of a mixture, by numpy: of samples that draw nothing themselves."""

    class Mixing(TinyData):
        def create_data(self) -> None:
            self.val_dataset = [{"i": i} for i in range(10)]

        def create_loader(self, attribute: str, shuffle: bool) -> DataLoader:
            loader = super().create_loader(attribute, shuffle)
            loader.collate_fn = lambda samples: (float(np.random.beta(1, 1)), random.random())
            return loader

    loader = tiny_data(Mixing).val_dataloader()
    drawn = [*loader]
    assert len({*drawn}) == len(drawn) > 1
    assert drawn == [*loader]


def test_overfit_batches_are_the_same_in_every_epoch():
    class Noise(Follow):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.epochs[-1].append(batch["x"].tolist())

    noise, follow = Noise(), Follow()
    trainer = make_trainer(overfit_batches=2, max_steps=6, callbacks=[noise, follow])
    trainer.fit(TinyModule(), datamodule=TinyData())
    assert follow.epochs == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 3
    assert noise.epochs == noise.epochs[:1] * 3


def test_prediction_sees_each_sample_once_in_order_with_the_collation_of_the_dataset():
    class Echo(TinyModule):
        def forward_model(self, batch: dict) -> dict:
            return batch

    data = data_of(WholeBatches(), batch_size=4, n_workers=0)
    outputs = make_trainer().predict(Echo(), datamodule=data)
    assert indices(outputs) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert_same_batches(outputs, list(data.predict_dataloader()))
