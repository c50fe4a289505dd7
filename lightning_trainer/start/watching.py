"""Ends a process of several soon after NCCL has noticed that another one is gone."""

import threading
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.internals import nccl_failure
from lightning_trainer.run.state import RunCallback, RunState

_EVERY_S = 1.0


class WatchOthers(RunCallback):
    """Ends the run with its cause where NCCL has failed.

    The GPU waits for ever for a process that is gone, and the host for the GPU. torch's watchdog
    ends the process a minute later, without numbers and log being completed.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        self._over = threading.Event()

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if trainer.world_size > 1 and trainer.strategy.root_device.type == "cuda":
            self._over.clear()
            threading.Thread(target=self._watch, daemon=True).start()

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            if (failure := nccl_failure()) and self.run.fail:
                what = "Timed out" if failure == "TIMEOUT" else failure
                self.run.fail(RuntimeError(f"[NCCL] {what}: see what NCCL has printed above"))
                return
