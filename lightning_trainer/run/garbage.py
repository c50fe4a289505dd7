"""CollectGarbage: Python collects garbage where it delays nobody."""

import gc
import os
from typing import Any, ClassVar

from lightning_trainer.run.state import Progress, RunCallback

_SPACING = 50  # batches
_FULL = 20  # of so many collections one looks at old objects as well


class CollectGarbage(RunCallback):
    """Collects where a line is printed, and at least every 50 batches; on all processes at once.

    Python otherwise collects whenever enough objects are made. A process then stops in the middle
    of a step, each at another, and all others wait for it. What is there after two iterations,
    mostly imported code, is no garbage and is left out. During a validation Python collects as
    usual. A project that has frozen objects or switched the collector off itself is let alone.
    """

    is_off: ClassVar[bool] = False  # whether it has switched Python's own collector off

    def on_train_start(self, *_: Any) -> None:
        self._starts_at: float = self.run.iteration + 2
        self._line: Progress | None = None
        self._n_batches = self._n_collections = 0

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.is_off:
            if self.run.iteration >= self._starts_at:
                self._start()
            return
        self._n_batches += 1
        if self._n_batches == _SPACING or self.run.line is not self._line:
            self._line, self._n_batches = self.run.line, 0
            self._n_collections += 1
            gc.collect(1 if self._n_collections % _FULL else 2)

    def on_validation_start(self, *_: Any) -> None:
        if self.is_off:
            gc.enable()

    def on_validation_end(self, *_: Any) -> None:
        if self.is_off:
            gc.collect()
            gc.disable()

    def _start(self) -> None:
        self._starts_at, self._line = float("inf"), self.run.line
        if gc.isenabled() and not gc.get_freeze_count():
            gc.collect()
            gc.freeze()
            gc.disable()
            CollectGarbage.is_off = True
            self.run.at_end(_stop)


def _stop() -> None:
    CollectGarbage.is_off = False
    gc.unfreeze()
    gc.enable()


def _in_child() -> None:
    if CollectGarbage.is_off:  # a worker of a loader never comes to a collection of the callback
        gc.enable()


os.register_at_fork(after_in_child=_in_child)
