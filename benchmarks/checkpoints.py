"""What a checkpoint that no crash can break costs, against Lightning's own.

python benchmarks/checkpoints.py
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_trainer.checkpoint_io import AtomicCheckpointIO


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, lightning "
        f"{lightning.__version__}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for n_bytes, n_rounds in ((100_000, 30), (400_000_000, 7)):
            time_saves(n_bytes, n_rounds, Path(temporary))
