"""Rows of the GPU programme that time a step or measure its memory.

python benchmarks/gpu_steps.py B1
"""

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from common import alternate, spread
from gpu_frame import Result
from gpu_projects import (
    CIFAR,
    DEVICE,
    DIGITS,
    HAS_CARD,
    LINEAR,
    LinearModule,
    RandomData,
    StepClock,
    data_flags,
    fit,
    on_card,
    steps,
    sync,
    tell,
    timed_fit,
)
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer import BaseModule
from projects.cifar import CifarModule
from projects.digits import DigitsModule

FIRST, LAST = (50, 350) if HAS_CARD else (3, 8)
N_ROUNDS = 5 if HAS_CARD else 1
NETS = {
    "digits, batch 32": (
        DigitsModule,
        DIGITS,
        {"shape": [1, 8, 8], "floats": True, "batch_size": 32},
    ),
    "cifar, batch 128": (CifarModule, CIFAR, {"batch_size": 128 if HAS_CARD else 8}),
}


def loader(options: dict[str, Any]) -> DataLoader[Any]:
    """Its batches, without the layer."""
    data = RandomData(**{"n": 5120 if HAS_CARD else 256, **options})
    data.create_data()
    return DataLoader(
        data.train_dataset, data.batch_size, shuffle=True, collate_fn=lambda batch: batch,
        pin_memory=HAS_CARD,
    )  # fmt: skip


def made(kind: type[BaseModule], **options: Any) -> tuple[BaseModule, torch.optim.Optimizer]:
    """A module on the device, with the fused optimiser that the layer makes of its own there."""
    module = kind(**options)
    module.create_model()
    module.create_loss()
    module.to(DEVICE)
    module.create_optimiser()
    for group in module.optimiser.param_groups:
        group["fused"] = True if HAS_CARD else group["fused"]
    return module, module.optimiser


def micro_accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(10, average="micro", validate_args=False).to(DEVICE)


def plain_loop(
    kind: type[BaseModule], options: dict[str, Any], n_steps: int = LAST, metric: bool = False
) -> float:
    """Seconds of a step."""
    module, optimiser = made(kind)
    accuracy = micro_accuracy() if metric else None
    batches, n = loader(options), 0
    while n < n_steps:
        for batch in batches:
            on_device = {k: v.to(DEVICE, non_blocking=True) for k, v in batch.items()}
            optimiser.zero_grad()
            output = module.forward_model(on_device)
            if accuracy is not None:
                accuracy.update(output.detach(), on_device["label"])
            module.forward_loss(on_device, output).backward()
            optimiser.step()
            n += 1
            if n == FIRST:
                sync()
                started_s = perf_counter()
            if n == n_steps:
                break
    sync()
    return (perf_counter() - started_s) / (n_steps - FIRST)


class Bare(pl.LightningModule):
    """The same step for bare Lightning."""

    def __init__(self, kind: type[BaseModule], metric: bool) -> None:
        super().__init__()
        self.inner, self.optimiser = made(kind)
        self.accuracy = micro_accuracy() if metric else None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        output = self.inner.forward_model(batch)
        if self.accuracy is not None:
            self.accuracy.update(output.detach(), batch["label"])
        return self.inner.forward_loss(batch, output)

    def configure_optimizers(self) -> Any:
        return self.optimiser


def bare(kind: type[BaseModule], options: dict[str, Any], metric: bool = False) -> float:
    steps(FIRST, LAST)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=DEVICE.type, devices=1, max_steps=LAST, max_epochs=-1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[StepClock()], default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Bare(kind, metric), loader(options))
    return StepClock.step_s()


def overhead(_: str | None) -> Iterator[Result]:
    """B1."""
    for name, (kind, flags, options) in NETS.items():
        things: dict[str, Callable[[], float]] = {
            "a plain loop": partial(plain_loop, kind, options),
            "a plain loop with the metric": partial(plain_loop, kind, options, metric=True),
            "bare Lightning": partial(bare, kind, options),
            "bare Lightning with the metric": partial(bare, kind, options, metric=True),
            "the layer": timed_fit(FIRST, LAST, *flags, *data_flags(options)),
        }
        values = alternate(things, N_ROUNDS)
        print(spread(values, "us", 1e6))
        loop, loop_metric, lightning, metric, layer = map(statistics.median, values.values())
        text = (
            f"{layer * 1e6:.0f} us; of a plain loop {layer / loop:.2f}, with the metric "
            f"{layer / loop_metric:.2f}; of bare Lightning {layer / lightning:.2f}, with the "
            f"metric {layer / metric:.2f}"
        )
        yield Result(text, on_card(layer <= 1.05 * metric), name)


def peak(run: Callable[[], object]) -> int:
    """The most bytes that were allocated on the device meanwhile."""
    gc.collect()
    if not HAS_CARD:
        run()
        return 1
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    sync()
    return torch.cuda.max_memory_allocated()


def memory(_: str | None) -> Iterator[Result]:
    """B8."""
    width = 8192 if HAS_CARD else 64
    big = {"n": 256, "shape": [1, 1, width], "floats": True, "batch_size": 64}
    linear = (*LINEAR, f"--model.width={width}", "--model.n_layers=4")
    sized = partial(LinearModule, width=width, n_layers=4)
    nets = {
        "cifar": (CifarModule, CIFAR, NETS["cifar, batch 128"][2]),
        "weights of 1 GB": (sized, linear, big),
    }
    n_steps = FIRST + 5
    saving = [f"--trainer.max_steps={n_steps}", f"--trainer.val_check_interval={FIRST}"]
    for name, (kind, flags, options) in nets.items():
        loop = peak(partial(plain_loop, kind, options, n_steps))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            layer = peak(partial(fit, folder, *flags, *data_flags(options), *saving))
        shape = options.get("shape", (3, 32, 32))
        batch = options["batch_size"] * shape[0] * shape[1] * shape[2] * 4
        text = f"{layer / 2**20:.1f} MiB, a plain loop {loop / 2**20:.1f} MiB"
        yield Result(text, on_card(layer <= 1.01 * loop + batch), name)


if __name__ == "__main__":
    tell({"B1": overhead, "B8": memory})
