"""The guide's network: the layer against a plain loop, and against itself with faster settings.

python benchmarks/network.py
python benchmarks/network.py --device cuda
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from common import alternate, report, spread

from lightning_trainer.start.cli import run_trainer
from projects.cifar import CifarData, CifarModule, Images

N_STEPS, N_UNTIMED, N_ROUNDS, BATCH_SIZE = 12, 3, 7, 128
DEVICE = "cpu"


def sync() -> None:
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def random_images(n: int) -> Images:
    return Images(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10)


class RandomData(CifarData):
    def prepare_data(self) -> None:
        pass

    def create_data(self) -> None:
        self.train_dataset, self.val_dataset = random_images(5120), random_images(64)
        self.test_dataset = self.predict_dataset = self.val_dataset
        self.classes = [str(i) for i in range(10)]


class Clock(pl.Callback):
    """Seconds of an iteration."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step in (N_UNTIMED, N_STEPS):
            sync()
        if trainer.global_step == N_UNTIMED:
            Clock.started_s = time.perf_counter()
        if trainer.global_step == N_STEPS:
            Clock.step_s = (time.perf_counter() - Clock.started_s) / (N_STEPS - N_UNTIMED)


def plain_loop() -> float:
    module, data = CifarModule(), random_images(5120)
    module.create_model()
    module.to(DEVICE)
    module.create_loss()
    module.create_optimiser()
    for i in range(N_STEPS):
        if i == N_UNTIMED:
            sync()
            started_s = time.perf_counter()
        on_host = data.get_batch(torch.randint(0, 5120, (BATCH_SIZE,)), torch.empty(0))
        batch = {name: value.to(DEVICE) for name, value in on_host.items()}
        module.optimiser.zero_grad()
        module.forward_loss(batch, module.forward_model(batch)).backward()
        module.optimiser.step()
    sync()
    return (time.perf_counter() - started_s) / (N_STEPS - N_UNTIMED) / BATCH_SIZE


def layer(*flags: str, batch_size: int = BATCH_SIZE) -> Callable[[], float]:
    def timed() -> float:
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
            arguments: list[Any] = [
                f"--data={__name__}.RandomData",
                f"--data.batch_size={batch_size}",
            ]
            arguments += [f"--trainer.max_steps={N_STEPS}", f"--output_path={folder}"]
            arguments += [
                f"--trainer.callbacks+={__name__}.Clock",
                f"--trainer.accelerator={DEVICE}",
            ]
            with contextlib.redirect_stdout(nothing):
                run_trainer(["fit", *flags, *arguments])
        return Clock.step_s / batch_size

    return timed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    DEVICE = parser.parse_args().device
    if DEVICE == "cuda":
        N_STEPS, N_UNTIMED = 300, 50
    guide = "--model=projects.cifar.CifarModule"
    fast = ["--trainer.precision=bf16-mixed", "--model.channels_last=true"]
    values = alternate(
        {
            "a plain loop": plain_loop,
            "the layer": layer(guide),
            "the layer, bf16-mixed and channels_last": layer(guide, *fast),
        },
        N_ROUNDS,
    )
    text = spread(values, "us/example", 1e6)
    report("The guide's network", f"Batches of {BATCH_SIZE}, forward, backward and Adam.\n\n{text}")
