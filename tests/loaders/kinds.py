"""Training loaders of a project's own, each of which draws random numbers."""

import itertools
import os
import random
from pathlib import Path

import numpy as np
import torch
from conftest import TinyData, TinyDataset, TinyModule
from torch.utils.data import DataLoader, IterableDataset, default_collate

FOLDER = "FOLDER"  # the variable of the environment that names the files of litdata and webdataset


def sample(i: int) -> dict:
    return {**TinyDataset()[i % 26], **place(i, torch.rand(4) + random.random() + np.random.rand())}


def place(i: int, noise: torch.Tensor) -> dict:
    return {"x": (i % 101 / 50 + 0.1 * noise).float(), "i": i}


class Noisy(TinyDataset):
    def __getitem__(self, i: int) -> dict:
        return sample(i)


class Quiet(torch.utils.data.Dataset):
    """The samples are always the same."""

    def __len__(self) -> int:
        return 26

    def __getitem__(self, i: int) -> dict:
        return quiet(i)


def quiet(i: int) -> dict:
    noise = torch.tensor(np.random.default_rng(i).random(4))
    return {"label": i % 2, **place(i, noise)}


class Stream(IterableDataset):
    """Has no state. Draws, or not."""

    def __init__(self, make=sample, end: int | None = None) -> None:
        self.make, self.end = make, end

    def __iter__(self):
        for i in itertools.count():
            if i == self.end:
                return
            yield self.make(i)


class Counting(Stream):
    """Knows where it is."""

    at = 0

    def __iter__(self):
        while self.at != self.end:
            self.at += 1
            yield self.make(self.at)
        self.at = 0

    def state_dict(self) -> dict:
        return vars(self) | {"at": self.at, "make": None}

    def load_state_dict(self, state: dict) -> None:
        self.at = state["at"]


class OwnStateful:
    """A loader that a project has written, over samples without end; its state is a live dict."""

    def __init__(self, length: int | None = None) -> None:
        self.state = {"at": 0}
        if length:
            self.__class__ = type("Sized", (OwnStateful,), {"__len__": lambda _: length})

    def __iter__(self):
        n_batches = len(self) if hasattr(self, "__len__") else 10**9
        while True:
            first = 4 * self.state["at"]
            self.state["at"] += 1
            yield default_collate([sample(i) for i in range(first, first + 4)])
            if self.state["at"] % n_batches == 0:
                return

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


class Batches:
    """As few methods as a loader may have."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Loaders(TinyData):
    """A loader by name."""

    def __init__(self, kind: str, n_workers: int = 0) -> None:
        super().__init__(n_workers=n_workers)
        self.kind = kind

    def train_dataloader(self):
        return KINDS[self.kind](self)


def plain(data, **options):
    return DataLoader(Noisy(), 4, shuffle=True, num_workers=data.n_workers, **options)


def stateful(dataset, data, **options):
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(dataset, 4, num_workers=data.n_workers, **options)


def hugging_face(data, buffer_size: int | None = None, as_map: bool = False):
    from datasets import Dataset

    rows = Dataset.from_list([{"label": i % 2, "i": i} for i in range(104)])
    if as_map:
        return DataLoader(
            rows.with_transform(lambda r: {**r, "x": [sample(i)["x"] for i in r["i"]]}),
            4,
            shuffle=True,
            num_workers=data.n_workers,
        )
    stream = rows.to_iterable_dataset(num_shards=4)
    if buffer_size:
        stream = stream.shuffle(seed=0, buffer_size=buffer_size)
    return stateful(stream.map(lambda row: {**row, "x": quiet(row["i"])["x"]}), data)


def litdata(data):
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = Path(os.environ[FOLDER], "litdata")
    if not folder.exists():
        folder.mkdir()
        writer = BinaryWriter(str(folder), chunk_size=8)
        for i in range(56):
            writer[i] = {"i": i}
        writer.done()
        writer.merge()

    class Digits(StreamingDataset):
        def __getitem__(self, i):
            return quiet(super().__getitem__(i)["i"])

    dataset = Digits(str(folder), shuffle=True, drop_last=True, seed=0)
    return StreamingDataLoader(dataset, batch_size=4, num_workers=data.n_workers)


def webdataset(data, with_length: bool = False):
    import webdataset as wds

    folder = Path(os.environ[FOLDER], "webdataset")
    if not folder.exists():
        folder.mkdir()
        with wds.ShardWriter(str(folder / "%03d.tar"), maxcount=13, verbose=0) as shards:
            for i in range(52):
                shards.write({"__key__": f"{i:03d}", "cls": i})
    urls = str(folder / "{000..003}.tar")
    samples = (
        wds.WebDataset(urls, shardshuffle=4, seed=0, empty_check=False).decode().to_tuple("cls")
    )
    samples = samples.map(lambda row: quiet(row[0])).batched(4, collation_fn=default_collate)
    loader = wds.WebLoader(samples, batch_size=None, num_workers=data.n_workers)
    return loader.with_epoch(7).with_length(7) if with_length else loader


KINDS = {
    "hugging face map": lambda data: hugging_face(data, as_map=True),
    "hugging face": hugging_face,
    "hugging face with a buffer": lambda data: hugging_face(data, buffer_size=20),
    "litdata": litdata,
    "webdataset": webdataset,
    "webdataset with a length": lambda data: webdataset(data, with_length=True),
    "overfit": lambda data: data.create_loader("train_dataset", False),
    "plain": plain,
    "plain with a generator": lambda data: plain(data, generator=torch.Generator()),
    "plain stream": lambda data: DataLoader(Stream(), 4, num_workers=data.n_workers),
    "own": lambda data: OwnStateful(),
    "own with a length": lambda data: OwnStateful(7),
    "list": lambda data: Batches([default_collate([quiet(i), quiet(i + 1)]) for i in range(7)]),
    "two": lambda data: {"a": data.create_loader("train_dataset", True), "b": OwnStateful(7)},
    "stateful": lambda data: stateful(Noisy(), data, shuffle=True),
    "stateful quiet": lambda data: stateful(Quiet(), data, shuffle=True),
    "stateful persistent": lambda data: stateful(
        Quiet(), data, shuffle=True, persistent_workers=data.n_workers > 0
    ),
    "stateful stream": lambda data: stateful(Counting(), data),
    "stateful quiet stream": lambda data: stateful(Counting(quiet), data),
    "stateful finite stream": lambda data: stateful(Counting(quiet, 26), data),
    "stateful stream without a state": lambda data: stateful(Stream(quiet), data),
}


class TwoModule(TinyModule):
    """Takes the batches of two loaders."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if "a" in batch:
            batch = {**batch["a"], "x": batch["a"]["x"] + batch["b"]["x"].mean()}
        return batch
