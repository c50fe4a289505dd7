"""Processes: decisions that all processes share, without waiting for the device."""

from datetime import timedelta
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

_SPACING_S = 1.0
_MOST_BATCHES = 100  # between two meetings, in case batches get slower


class Processes:
    """Meetings of all processes on the CPU, through a gloo group of their own.

    One process decides alone, at each batch. Several meet about once a second, at the same batch,
    to act on a signal or on the time to save. The cost of that is too small to measure.

    Args:
        timeout: How long a meeting waits for a process that does not come; None is torch's default.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.meeting = True  # whether the processes meet at the end of this batch
        self.timeout = timeout
        self._group: Any = None
        self._batches = 0
        self._interval = 1  # batches
        self._met_s = 0.0

    def start(self, trainer: pl.Trainer) -> None:
        """Makes the group; all processes meet here."""
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(timeout=self.timeout, backend="gloo")
        self._batches, self._interval, self._met_s = 0, 1, perf_counter()

    def close(self) -> None:
        """Ends the group, whose threads can otherwise crash the exit of the process."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def tick(self) -> None:
        """Counts a batch that all processes have, and sets `meeting`."""
        if self._group is None:
            return
        self._batches += 1
        self.meeting = self._batches >= self._interval
        if self.meeting:
            now = perf_counter()
            since_s, self._met_s = now - self._met_s, now
            (slowest_s,) = self.highest(since_s)  # the same on all, as the next meeting must be
            batches_a_second = int(_SPACING_S * self._batches / max(slowest_s, 1e-6))
            self._interval = min(max(batches_a_second, 1), _MOST_BATCHES)
            self._batches = 0

    def highest(self, *numbers: float) -> list[float]:
        """The highest of each number over all processes, which meet here."""
        if self._group is None:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return list(tensor.tolist())

    def any(self, flag: bool) -> bool:
        """Whether it holds on any process; all meet here."""
        return bool(self.highest(flag)[0])

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, on the CPU; all meet here."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values
