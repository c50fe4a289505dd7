"""What the tests of a GPU share. Without one they rehearse on the CPU what does not need it."""

import inspect

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyModule
from torch import Tensor

from lightning_trainer import BaseDataModule, BaseModule
from projects.cifar import Images
from projects.cifar_fast import FastCifarData

HAS_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CARD else "cpu")
ON = f"--trainer.accelerator={DEVICE.type}"
needs_card = pytest.mark.skipif(not HAS_CARD, reason="needs a CUDA device")


def knows(base: type[BaseModule], option: str) -> bool:
    """Whether a class has an option."""
    return option in inspect.signature(base.__init__).parameters


def random_images(n: int) -> Images:
    return Images(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10)


class RandomImages(BaseDataModule):
    """Random images in memory, as `projects.cifar` has them."""

    def __init__(self, batch_size: int = 16, n_workers: int = 0, n_images: int = 480) -> None:
        super().__init__(batch_size, n_workers)
        self.n_images = n_images

    def create_data(self) -> None:
        self.train_dataset, self.val_dataset = random_images(self.n_images), random_images(32)
        self.classes = [str(i) for i in range(10)]


class RandomImagesOnDevice(FastCifarData):
    """The same for `projects.cifar_fast`, which moves and augments them on the device."""

    def __init__(self, batch_size: int = 16, n_workers: int = 0) -> None:
        super().__init__(batch_size=batch_size, n_workers=n_workers)

    def prepare_data(self) -> None:
        pass

    def _is_image_folder(self) -> bool:
        return True

    def _read_folder(self, split: str) -> tuple[Images, list[str]]:
        return random_images(480 if split == "train" else 32), [str(i) for i in range(10)]


def busy(seconds: float) -> Tensor:
    """Enqueues matrix products that take an H100 about so long; little for a CPU."""
    size = 8192 if HAS_CARD else 64
    a = torch.ones(size, size, device=DEVICE)
    for _ in range(max(1, int(seconds / 0.022))):  # 2 * 8192**3 operations at 50 TFLOP/s
        a = a @ a * 0.0
    return a


class SlowModule(TinyModule):
    """Keeps the device busy for 0.1 s in each step, which the host does not wait for."""

    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        loss = super().forward_loss(batch, output)
        return loss + busy(0.1)[0, 0] if self.training else loss


class FailsModule(TinyModule):
    """Fails in the step after iteration 6 while `broken`."""

    def __init__(self, broken: str = "", **kwargs) -> None:
        super().__init__(**kwargs)
        self.broken = broken

    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        if self.training and self.global_step == 6 and self.broken == "memory":
            torch.empty(1 << 47, dtype=torch.uint8, device=output.device)
        if self.training and self.global_step == 6 and self.broken == "index":
            table = torch.zeros(2, device=output.device)
            output = output + table[torch.tensor([99], device=output.device)]
        return super().forward_loss(batch, output)


class NanModule(TinyModule):
    """Its loss is NaN in the step after iteration 12, once."""

    spoilt = False

    def forward_loss(self, batch: dict, output: Tensor) -> Tensor:
        loss = super().forward_loss(batch, output)
        if self.training and self.global_step == 12 and not NanModule.spoilt:
            NanModule.spoilt = True
            return loss * torch.nan
        return loss


class NoSync(pl.Callback):
    """Any wait for the device between two lines raises; four steps of grace after a start.

    Assumes that nothing is validated or saved before the last iteration. The mode is that of the
    process: a thread that waits would raise as well.
    """

    n_armed = 0  # steps

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        n, every = trainer.global_step + 1, trainer.log_every_n_steps
        armed = n > 4 and n % every not in (0, 1)
        NoSync.n_armed += armed
        self._set("error" if armed else "default")

    def _set(self, mode: str) -> None:
        if HAS_CARD:
            torch.cuda.set_sync_debug_mode(mode)

    def on_validation_start(self, *_: object) -> None:
        self._set("default")

    def on_train_end(self, *_: object) -> None:
        self._set("default")

    def on_exception(self, *_: object) -> None:
        self._set("default")
