"""ReuseMemory: what torch frees on a CPU serves the next iteration."""

import ctypes
import os
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.run.state import RunCallback

# `mallopt` of glibc's malloc.h: the option, and its value here in bytes.
_OPTIONS = {
    -1: 2**30,  # M_TRIM_THRESHOLD: so much of the heap's free end is kept
    -3: 2**25,  # M_MMAP_THRESHOLD: a larger block is given back when it is freed; the highest value
}
VARIABLES = tuple(
    f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")
)


class ReuseMemory(RunCallback):
    """Keeps memory that is freed on a CPU, for the next iteration, instead of giving it back.

    glibc gives large blocks back to the system, which then clears each page of them when the next
    iteration asks for them: in a virtual machine up to a third of a network's time
    (benchmarks/reused.py). Nothing is changed for training on a GPU, in a process that has called
    from Python, with another library than glibc, as on macOS, or where a variable sets the same.
    """

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.strategy.root_device.type == "cpu" and not self.run.is_called:
            reuse_memory()


def reuse_memory() -> bool:
    """Does so in this process from now on; returns whether it does."""
    library = ctypes.CDLL(None)
    given = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if given or any(map(os.environ.get, VARIABLES)) or not hasattr(library, "mallopt"):
        return False
    return all(library.mallopt(option, n_bytes) for option, n_bytes in _OPTIONS.items())
