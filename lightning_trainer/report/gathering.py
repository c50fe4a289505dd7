"""The figures of all processes for one log line."""

import lightning.pytorch as pl
import torch
from torch import Tensor


def of_all_processes(trainer: pl.Trainer, figures: tuple[float, ...]) -> Tensor:
    """The figures of each process, float64 (processes, figures), on the CPU."""
    own = torch.tensor(figures, dtype=torch.float64)
    if trainer.world_size > 1:
        own = trainer.strategy.all_gather(own.to(trainer.strategy.root_device)).cpu()
    return own.reshape(-1, len(figures))


def slow_process(fetch_s: Tensor, iteration_s: float) -> str:
    """Names the process, if there is one, that delays the others by a slow loader.

    `fetch_s`, float (processes,), and `iteration_s` are means over iterations.
    """
    slowest = int(fetch_s.argmax())
    others = [seconds for rank, seconds in enumerate(fetch_s.tolist()) if rank != slowest]
    if not others or fetch_s[slowest] < max(2 * max(others), iteration_s / 10):
        return ""
    return (
        f"Process {slowest} waits {fetch_s[slowest] * 1e3:.0f}ms for its data, the others at most "
        f"{max(others) * 1e3:.0f}ms"
    )
