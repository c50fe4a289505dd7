"""TellOfStart: what a run waits for before its first iteration, and how it gets on after that."""

import math
import time
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.report.log_line import format_duration
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.slow_start import begin_step, current_watch

_SILENT_S = 2.0  # after the first iteration
_SOON_S = 5.0  # a line that comes so soon needs no other before it


class TellOfStart(RunCallback):
    """Names the steps that the callbacks see, and tells of iterations where no line does so yet.

    Its thread reads the number of iterations: a step of training costs nothing.
    """

    _interval = 0
    _seen: tuple[int, float] = (0, 0.0)  # the newest iteration that the thread has seen, and when
    _first: tuple[int, float] | None = None  # the first one

    def on_sanity_check_start(self, *_: Any) -> None:
        begin_step("the check before training")

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        begin_step("the first batch and iteration")
        self._interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._started = self._seen = self.run.iteration, time.monotonic()
        if watch := current_watch():
            watch.follow(self._go_on)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            begin_step("")  # its bar tells

    def on_test_start(self, *_: Any) -> None:
        begin_step("")

    def on_predict_start(self, *_: Any) -> None:
        begin_step("")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if watch := current_watch():
            watch.end()

    on_exception = on_train_end

    def _go_on(self) -> bool:
        """Called by the thread, until all is told."""
        iteration, now_s = self.run.iteration, time.monotonic()
        if iteration == self._started[0]:
            return True
        if iteration != self._seen[0]:
            self._seen = iteration, now_s
        if self._first is None:
            self._first = self._seen
            watch = current_watch()
            if overview := watch.overview() if watch else "":
                print(f"{overview}\n", end="", flush=True)
        if not self._interval or iteration // self._interval > self._started[0] // self._interval:
            return False  # a line is there, or none is wanted
        if now_s - self._first[1] < _SILENT_S:
            return True
        line = self._so_far(iteration, self._first)
        print(line, end="", flush=True)
        return not line

    def _so_far(self, iteration: int, first: tuple[int, float]) -> str:
        since = first if self._seen != first else self._started  # with what the first one prepares
        each_s = (self._seen[1] - since[1]) / (self._seen[0] - since[0])
        next_line = (iteration // self._interval + 1) * self._interval
        if math.isfinite(self.run.n_iterations):
            next_line = min(next_line, int(self.run.n_iterations))
        left_s = (next_line - iteration) * each_s
        if left_s < _SOON_S:
            return ""
        return (
            f"Iterations so far: {iteration - self._started[0]}, {each_s:.1f} s each: the next "
            f"line comes at iteration {next_line}, in about {format_duration(left_s)}\n"
        )
