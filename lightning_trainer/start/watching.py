"""Ends a process of several soon after NCCL has noticed that another one is gone."""

import threading
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.internals import nccl_failure
from lightning_trainer.run.state import RunCallback

_EVERY_S, _PATIENCE_S = 1.0, 30.0


class WatchOthers(RunCallback):
    """Ends the run with its cause where NCCL has failed.

    The GPU waits for ever for a process that is gone, and the host for the GPU. torch's watchdog
    ends the process a minute later, without numbers and log being completed.
    """

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if trainer.world_size > 1 and trainer.strategy.root_device.type == "cuda":
            over = threading.Event()
            self.run.at_end(over.set)  # however the run ends
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_EVERY_S):
            if (failure := nccl_failure()) and self.run.fail:
                if self.run.failure and over.wait(_PATIENCE_S):
                    return  # the main thread has told a failure of its own
                what = "Timed out" if failure == "TIMEOUT" else failure
                self.run.fail(RuntimeError(f"[NCCL] {what}: see what torch has printed above"))
                return
