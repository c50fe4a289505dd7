"""What the guards against faults cost, for each checkpoint and for each step.

python benchmarks/faults.py
"""

import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning
import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader

from lightning_trainer.checkpoint_io import AtomicCheckpointIO

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def alternate(
    things: dict[str, Callable[[], float]], n_rounds: int
) -> dict[str, tuple[float, float, float]]:
    """The median, fastest and slowest result in seconds of each, called in turn."""
    times: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(n_rounds):
        for name, thing in things.items():
            times[name].append(thing())
    return {name: (statistics.median(t), min(t), max(t)) for name, t in times.items()}


def report(
    title: str, rows: dict[str, tuple[float, float, float]], unit_s: float, unit: str
) -> None:
    print(f"\n{title}\n")
    print(f"| | median {unit} | fastest | slowest | ratio to the first |")
    print("|---|---|---|---|---|")
    first = next(iter(rows.values()))[0]
    for name, values in rows.items():
        numbers = " | ".join(f"{value / unit_s:.1f}" for value in values)
        print(f"| {name} | {numbers} | {values[0] / first:.2f} |")


def time_saves(n_bytes: int, n_rounds: int, folder: Path) -> None:
    checkpoint = {"state_dict": {"w": torch.rand(n_bytes // 4)}, "global_step": 1}
    own, lightnings = AtomicCheckpointIO(), TorchCheckpointIO()

    def save(io: TorchCheckpointIO, name: str) -> Callable[[], float]:
        def timed() -> float:
            started_s = time.perf_counter()
            io.save_checkpoint(checkpoint, folder / name)
            return time.perf_counter() - started_s

        return timed

    things = {
        "Lightning's own": save(lightnings, "lightning.ckpt"),
        "written beside, flushed, read back, renamed": save(own, "own.ckpt"),
    }
    rows = alternate(things, n_rounds)
    report(f"A checkpoint of {n_bytes / 1e6:.1f} MB, {n_rounds} of each", rows, 1e-3, "ms")


def time_steps(n_steps: int, n_rounds: int, folder: Path) -> None:
    from conftest import TinyDataset, TinyModule

    from lightning_trainer.cli import main

    class Plain(pl.LightningModule):
        """The tests' network without the layer."""

        def __init__(self) -> None:
            super().__init__()
            module = TinyModule()
            module.create_model()
            module.create_loss()
            self.model, self.loss_fn = module.model, module.loss_fn

        def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
            return self.loss_fn(self.model(batch["x"]), batch["label"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    def bare() -> float:
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=n_steps, max_epochs=-1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loader = DataLoader(TinyDataset(4 * n_steps), batch_size=4, shuffle=True)
        started_s = time.perf_counter()
        trainer.fit(Plain(), loader)
        return (time.perf_counter() - started_s) / n_steps

    def layer() -> float:
        flags = ["--model=conftest.TinyModule", "--data=conftest.TinyData"]
        flags += [f"--data.n_samples={4 * n_steps}", f"--trainer.max_steps={n_steps}"]
        flags += ["--trainer.accelerator=cpu", f"--trainer.val_check_interval={n_steps}"]
        started_s = time.perf_counter()
        main(["fit", *flags, f"--output_path={folder}"])
        return (time.perf_counter() - started_s) / n_steps

    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        rows = alternate({"bare Lightning, nothing on": bare, "the layer, all on": layer}, n_rounds)
    report(f"A step, {n_steps} a run, start included, {n_rounds} of each", rows, 1e-6, "us")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, lightning "
        f"{lightning.__version__}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for n_bytes, n_rounds in ((100_000, 30), (400_000_000, 7)):
            time_saves(n_bytes, n_rounds, Path(temporary))
        time_steps(2000, 5, Path(temporary))
