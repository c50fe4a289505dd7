"""How long a GPU works on something, without waiting for it."""

from typing import Any

import torch


class DeviceEvents:
    """Times what a GPU does between `start` and `end`, without waiting for it.

    The events are used again after each line, so a step allocates nothing.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._n_used = 0

    def start(self) -> None:
        """Marks where the work begins."""
        if self._n_used == len(self._pairs):
            event: Any = torch.cuda.Event
            self._pairs.append((event(enable_timing=True), event(enable_timing=True)))
        self._pairs[self._n_used][0].record()

    def end(self) -> None:
        """Marks where the work ends."""
        self._pairs[self._n_used][1].record()
        self._n_used += 1

    def total_s(self) -> float:
        """Seconds between all pairs of marks; synchronises with the device up to the newest."""
        pairs = self._pairs[: self._n_used]
        if pairs:
            pairs[-1][1].synchronize()
        return float(sum(start.elapsed_time(end) for start, end in pairs) / 1e3)

    def clear(self) -> None:
        """Forgets the marks, and keeps the events for the next ones."""
        self._n_used = 0
