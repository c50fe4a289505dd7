"""DeviceEvents: the time that a GPU works, without waiting for it."""

from typing import Any

import torch


class DeviceEvents:
    """Times the GPU's work between `start` and `end`; `clear` keeps the events for later use."""

    def __init__(self) -> None:
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._n_used = 0

    def start(self) -> None:
        if self._n_used == len(self._pairs):
            event: Any = torch.cuda.Event
            self._pairs.append((event(enable_timing=True), event(enable_timing=True)))
        self._pairs[self._n_used][0].record()

    def end(self) -> None:
        self._pairs[self._n_used][1].record()
        self._n_used += 1

    def total_s(self) -> float:
        """Seconds between all pairs of events; waits for the device up to the newest."""
        pairs = self._pairs[: self._n_used]
        if pairs:
            pairs[-1][1].synchronize()
        return float(sum(start.elapsed_time(end) for start, end in pairs) / 1e3)

    def clear(self) -> None:
        self._n_used = 0
