"""Batches that are made on the GPU, the crops there, and the events that time it."""

from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from card import DEVICE, HAS_CARD, ON
from conftest import TinyData
from torch import Tensor

from lightning_trainer import random_crop_and_flip

pytestmark = pytest.mark.gpu


class OnDevice(torch.utils.data.Dataset):
    """A batch of it is on the device already."""

    def __init__(self) -> None:
        self.x, self.labels = torch.rand(26, 4, device=DEVICE), torch.arange(26, device=DEVICE) % 2

    def __len__(self) -> int:
        return 26

    def get_batch(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        at = indices.to(DEVICE)
        return {"x": self.x[at], "label": self.labels[at]}


class OnDeviceData(TinyData):
    def create_data(self) -> None:
        self.train_dataset = self.val_dataset = OnDevice()


def test_a_batch_may_be_on_the_device_already(run, config):
    code, _, err = run("fit", "--config", config, "--data=test_gpu_data.OnDeviceData", ON)
    assert code == 0, err


@pytest.mark.parametrize("fill", ["zeros", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [32, 224])
def test_crops_and_flips_are_those_of_the_cpu(size, dtype, fill):
    n = (2000 if size == 32 else 500) if HAS_CARD else 8
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8).to(dtype)
    seeds = torch.randint(-(2**63), 2**63 - 1, (n,), dtype=torch.int64)
    expected = random_crop_and_flip(images, seeds, 4, fill)
    got = random_crop_and_flip(images.to(DEVICE), seeds.to(DEVICE), 4, fill)
    assert torch.equal(got.cpu(), expected)


def test_crops_are_right_where_an_index_needs_64_bits():
    n, size = (16_000, 224) if HAS_CARD else (4, 224)  # 2 * 16,000 * 3 * 232 * 232 > 2**32
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, device=DEVICE)
    seeds = torch.arange(n, device=DEVICE) - n // 2
    got = random_crop_and_flip(images, seeds, 4)
    for part in (slice(0, 4), slice(n - 4, n)):
        expected = random_crop_and_flip(images[part].cpu(), seeds[part].cpu(), 4)
        assert torch.equal(got[part].cpu(), expected)


class Memory(pl.Callback):
    """Bytes in use on the device, by iteration."""

    at: ClassVar[dict[int, int]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if HAS_CARD and trainer.global_step in (500, 1999):
            Memory.at[trainer.global_step] = torch.cuda.memory_allocated()


def test_without_lines_neither_events_nor_memory_grow(run, config, monkeypatch):
    made = []

    class Counted(torch.cuda.Event):
        def __new__(cls, *args, **kwargs):
            made.append(1)
            return super().__new__(cls, *args, **kwargs)

    if HAS_CARD:
        monkeypatch.setattr(torch.cuda, "Event", Counted)
    n_steps = 2000 if HAS_CARD else 50
    flags = (f"--trainer.max_steps={n_steps}", "--trainer.log_every_n_steps=0")
    flags += ("--trainer.val_check_interval=100000", "--trainer.callbacks+=test_gpu_data.Memory")
    code, _, err = run("fit", "--config", config, *flags, ON)
    assert code == 0, err
    assert len(made) <= 2 * (512 + 1)  # and the pair of the step that is under way
    if HAS_CARD:
        assert Memory.at[1999] <= Memory.at[500] + 2**16
