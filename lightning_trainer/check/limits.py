"""What a check may take and must give back: time, and the random streams."""

import contextlib
import random
import time
from collections.abc import Iterator

import numpy as np
import torch


class Patience:
    """Ends after some seconds of work, which a busy machine stretches to at most three times.

    `ends_s` is the latest end, of the clock `time.perf_counter`.
    """

    def __init__(self, work_s: float, ends_s: float) -> None:
        self._work_ends_s = time.thread_time() + work_s
        self._wall_ends_s = min(time.perf_counter() + 3 * work_s, ends_s)

    @property
    def is_over(self) -> bool:
        is_done = time.thread_time() > self._work_ends_s
        return is_done or time.perf_counter() > self._wall_ends_s


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Gives the random streams of torch, numpy and Python back as they were."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
