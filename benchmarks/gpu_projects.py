"""Projects that the GPU programme trains, and how it runs and times them in one process."""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from common import ROOT
from conftest import TinyData
from gpu_frame import MARK, Result
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from lightning_trainer import BaseDataModule
from lightning_trainer.start.cli import run_trainer
from projects.cifar import CifarModule, Images, Normalise

HAS_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_CARD else "cpu")
CIFAR = ("--model=projects.cifar.CifarModule", "--model.vis_iterations=0")
DIGITS = ("--model=projects.digits.DigitsModule", "--model.vis_iterations=0")
RESNET = ("--model=gpu_projects.ResNetModule", "--model.vis_iterations=0")
LINEAR = ("--model=gpu_projects.LinearModule", "--model.vis_iterations=0")


class RandomData(BaseDataModule):
    """Random images in memory.

    Args:
        n: Training images.
        shape: (C, H, W) of an image.
        floats: Whether they are floats; else uint8.
        on_device: Whether they are on the device from the start.
        sleep_ms: How long a batch takes to be read.
        batch_size: Of a process.
        n_workers: Processes that read.
    """

    def __init__(
        self,
        n: int = 5120,
        shape: tuple[int, int, int] = (3, 32, 32),
        floats: bool = False,
        on_device: bool = False,
        sleep_ms: float = 0.0,
        batch_size: int = 128,
        n_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, n_workers)
        self.n, self.shape, self.floats, self.sleep_ms = n, shape, floats, sleep_ms
        self.device = DEVICE if on_device else torch.device("cpu")
        self.classes = [str(i) for i in range(10)]

    def create_data(self) -> None:
        kind = (self.shape, self.floats, self.device)
        self.train_dataset = RandomImages(self.n, *kind, self.sleep_ms)
        self.val_dataset = RandomImages(self.batch_size, *kind)


class RandomImages(Images):
    """Random images that take a while to be read, if any; bare Lightning reads whole batches."""

    def __init__(
        self,
        n: int,
        shape: tuple[int, ...],
        floats: bool,
        device: torch.device,
        sleep_ms: float = 0.0,
    ) -> None:
        images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, device=device)
        labels = torch.arange(n, device=device) % 10
        super().__init__(images.float() / 255 if floats else images, labels)
        self.sleep_ms = sleep_ms

    def get_batch(self, indices: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        if self.sleep_ms:
            time.sleep(self.sleep_ms / 1e3)
        return super().get_batch(indices.to(self.labels.device), seeds)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        at = torch.tensor(indices)
        return self.get_batch(at, at)


class AugmentedData(TinyData):
    """Augments on the device, where Lightning documents it, without a seed of its own."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training:
            batch["x"] = batch["x"] + 0.1 * torch.rand_like(batch["x"])
        return batch


class ResNetModule(CifarModule):
    """A residual network of 50 layers, of 18 in a rehearsal."""

    def create_model(self) -> None:
        network = resnet50 if HAS_CARD else resnet18
        self.model = nn.Sequential(Normalise(), network(num_classes=10))


class LinearModule(CifarModule):
    """Linear layers of one width.

    Args:
        width: Features of each layer.
        n_layers: How many there are.
    """

    def __init__(self, width: int = 64, n_layers: int = 8, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()

    def create_model(self) -> None:
        hp = self.hparams
        layers = [nn.Linear(hp.width, hp.width, bias=False) for _ in range(hp.n_layers)]
        self.model = nn.Sequential(nn.Flatten(), *layers)


def sync() -> None:
    """Waits for the device."""
    if HAS_CARD:
        torch.cuda.synchronize()


class StepClock(pl.Callback):
    """Seconds of an iteration between two iterations, at which the device is waited for."""

    first, last = 3, 6
    at_s: ClassVar[dict[int, float]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step in (self.first, self.last):
            sync()
            self.at_s[trainer.global_step] = time.perf_counter()

    @classmethod
    def step_s(cls) -> float:
        return (cls.at_s[cls.last] - cls.at_s[cls.first]) / (cls.last - cls.first)


CLOCK = "--trainer.callbacks+=gpu_projects.StepClock"


def on_card(passes: bool) -> bool | None:
    """What a timing says: nothing in a rehearsal."""
    return passes if HAS_CARD else None


class NotAvailableError(RuntimeError):
    """An option is not there."""


def fit(folder: str | Path, *flags: str) -> tuple[Path, str]:
    """Trains in this process; returns the session and what was printed.

    Raises:
        NotAvailableError: If an option is refused.
        RuntimeError: If the run fails.
    """
    os.environ.pop("LIGHTNING_TRAINER_SESSION", None)
    printed = io.StringIO()
    on = f"--trainer.accelerator={DEVICE.type}"
    output = tempfile.mkdtemp(dir=folder)
    warnings.filterwarnings("ignore")
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            run_trainer(["fit", on, *flags, f"--output_path={output}"])
    except SystemExit as ex:
        lines = printed.getvalue().strip().splitlines()
        print(*lines, sep="\n")
        told = [line for line in lines if line.startswith("error:")] or lines
        kind = NotAvailableError if ex.code == 2 else RuntimeError
        raise kind(f"exit code {ex.code}: {''.join(told[-1:])}") from None
    [session] = Path(output).glob("session_*")
    return session, printed.getvalue()


def steps(first: int, last: int) -> list[str]:
    """The options of a run whose iterations after `first` up to `last` are timed."""
    StepClock.first, StepClock.last = first, last
    StepClock.at_s.clear()
    whole = [f"--trainer.max_steps={last}", "--trainer.val_check_interval=1000000", CLOCK]
    return [*whole, "--trainer.limit_val_batches=0", "--save_minutes=1000"]


def timed_fit(first: int, last: int, *flags: str) -> Callable[[], float]:
    """Times an iteration of the layer, in seconds."""

    def timed() -> float:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            fit(folder, *steps(first, last), f"--trainer.log_every_n_steps={last}", *flags)
        return StepClock.step_s()

    return timed


def data_flags(options: dict[str, Any]) -> list[str]:
    """The options of `fit` for `RandomData`."""
    values = {"n": 5120 if HAS_CARD else 256, **options}
    given = [f"--data.{name}={str(value).lower()}" for name, value in values.items()]
    return ["--data=gpu_projects.RandomData", *given]


def tell(measures: dict[str, Callable[[str | None], Iterator[Result]]]) -> None:
    """Prints the results of the row that the command line names, each as soon as it is known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("id", choices=measures)
    parser.add_argument("--data")
    args = parser.parse_args()
    os.chdir(ROOT)
    try:
        for result in measures[args.id](args.data):
            print(f"{MARK}{json.dumps(result._asdict())}", flush=True)
    except Exception as ex:
        traceback.print_exc()
        raise SystemExit(f"{type(ex).__name__}: {str(ex).partition(chr(10))[0]}") from None
