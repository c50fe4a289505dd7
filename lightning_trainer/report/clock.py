"""DeviceClock: what a GPU spends on fetches and updates, without waiting for it."""

from itertools import takewhile
from typing import Any

import torch

from lightning_trainer.base.data import SessionLoader

_MOST_PAIRS = 256  # before finished ones are summed up


class DeviceEvents:
    """Times what a GPU does between `start` and `end`; the pairs of events are used again.

    A `start` without an `end` is replaced by the next one, and an `end` without a `start` is
    nothing.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._n_used = 0
        self._started = False
        self._summed_ms = 0.0  # of pairs that may be used again
        self._stream: Any = None  # of the steps; to ask for it takes longer than to record an event

    def start(self) -> None:
        if self._n_used == len(self._pairs):
            event: Any = torch.cuda.Event
            self._pairs.append((event(enable_timing=True), event(enable_timing=True)))
        self._pairs[self._n_used][0].record(self._stream)
        self._started = True

    def end(self) -> None:
        if not self._started:
            return
        self._pairs[self._n_used][1].record(self._stream)
        self._started = False
        self._n_used += 1
        if self._n_used >= _MOST_PAIRS:
            self._sum_up()

    def total_s(self) -> float:
        """Seconds between all pairs of events; waits for the device up to the newest."""
        if self._n_used:
            self._pairs[self._n_used - 1][1].synchronize()
            self._sum_up()
        return self._summed_ms / 1e3

    def clear(self) -> None:
        self._n_used, self._summed_ms, self._started = 0, 0.0, False
        self._stream = torch.cuda.current_stream()

    def _sum_up(self) -> None:
        """Sums up the pairs that the device has passed; does not wait."""
        used = self._pairs[: self._n_used]
        done = list(takewhile(lambda pair: pair[1].query(), used))
        self._summed_ms = sum((start.elapsed_time(end) for start, end in done), self._summed_ms)
        self._pairs = [*self._pairs[len(done) :], *done]
        self._n_used -= len(done)


class DeviceClock:
    """Times a GPU's fetches and updates by events in its queue.

    A fetch is from asking for the batch to the start of the step: the GPU's wait for the batch, and
    what it copies and augments itself. It does not wait for a batch that is there before it has
    done the step before.
    """

    _loader: SessionLoader | None = None

    def __init__(self) -> None:
        self._fetches, self._updates = DeviceEvents(), DeviceEvents()

    def listen_to(self, loader: SessionLoader | None) -> None:
        """Learns from a loader when it is asked for a batch.

        Without one, as for a data loader of the project's own, a fetch is all between two steps.
        """
        self._loader = loader
        if loader:
            loader.on_fetch = self._fetches.start

    def clear(self) -> None:
        self._fetches.clear()
        self._updates.clear()
        if not self._loader:
            self._fetches.start()

    def start_step(self, after_pause: bool) -> None:
        if self._loader or not after_pause:
            self._fetches.end()
        self._updates.start()

    def end_step(self) -> None:
        self._updates.end()
        if not self._loader:
            self._fetches.start()

    def totals_s(self) -> tuple[float, float]:
        """Seconds of all fetches and of all updates since `clear`; waits for the device."""
        return self._fetches.total_s(), self._updates.total_s()
