"""ReuseMemory: what torch frees on a CPU serves the next iteration."""

import ctypes
import os
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.run.state import RunCallback

# `mallopt` of glibc's malloc.h: the option, and its value here in bytes.
_OPTIONS = {
    -1: 2**30,  # M_TRIM_THRESHOLD: so much free memory at the end of the heap stays
    -3: 2**25,  # M_MMAP_THRESHOLD: only a larger block is one of its own; the most that it takes
}
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


class ReuseMemory(RunCallback):
    """Keeps memory that is freed on a CPU, for the next iteration, instead of giving it back.

    glibc gives large blocks back to the system, which then clears each page of them when the next
    iteration asks for them: in a virtual machine up to a third of a network's time
    (benchmarks/reused.py). Nothing is changed where training is on a GPU, with another library than
    glibc, as on macOS, or where one of the variables that set the same is there.
    """

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.strategy.root_device.type == "cpu":
            reuse_memory()


def reuse_memory() -> bool:
    """Does so in this process from now on; returns whether anything was changed."""
    library = ctypes.CDLL(None)
    if any(map(os.environ.get, _VARIABLES)) or not hasattr(library, "mallopt"):
        return False
    return all(library.mallopt(option, n_bytes) for option, n_bytes in _OPTIONS.items())
