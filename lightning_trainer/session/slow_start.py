"""Tells of a step before training that takes long, while it does."""

import threading
import time
from collections.abc import Callable

from lightning_trainer.session.environment import is_first_process

_LONG_S = 2.0
_POLL_S = 0.25


class StartWatch:
    """The steps of one start, and a thread that looks at them until training is under way."""

    def __init__(self) -> None:
        self._step, self._since_s = "", time.monotonic()
        self._began_s = self._since_s
        self._told = ""  # the newest step that was told of
        self._long: list[tuple[str, float]] = []  # steps that were told of, and their seconds
        self._next: Callable[[], bool] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="start")
        self._thread.start()

    def begin(self, step: str) -> None:
        """Ends the step before, and begins one; an empty one is not told of."""
        now_s = time.monotonic()
        if self._told and self._told == self._step:
            self._long.append((self._step, now_s - self._since_s))
        self._step, self._since_s, self._told = step, now_s, ""

    def follow(self, goes_on: Callable[[], bool]) -> None:
        """Lets the thread call a function again and again, until that returns False."""
        self._next = goes_on

    def overview(self) -> str:
        """The steps that took long, once the last one has ended; empty if none did."""
        self.begin("")
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in self._long)
        return f"The start took {time.monotonic() - self._began_s:.0f} s: {steps}" if steps else ""

    def end(self) -> None:
        self._end.set()
        self._thread.join(_LONG_S)

    def _watch(self) -> None:
        while not self._end.wait(_POLL_S):
            step, since_s = self._step, self._since_s
            if step and step != self._told and time.monotonic() - since_s > _LONG_S:
                self._told = step
                # In one piece: other threads print as well.
                print(f"Waiting for {step} ({_LONG_S:.0f} s so far)\n", end="", flush=True)
            if self._next is not None and not self._next():
                return


_watches: list[StartWatch] = []  # the last one is that of the innermost run


def watch_start() -> Callable[[], None]:
    """Begins to watch a start, in the first process; returns what ends it."""
    if not is_first_process():
        return lambda: None
    watch = StartWatch()
    _watches.append(watch)

    def end() -> None:
        watch.end()
        if watch in _watches:
            _watches.remove(watch)

    return end


def begin_step(step: str) -> None:
    """Names what a run waits for from now on, e.g. "`create_data`"; does nothing elsewhere."""
    if _watches:
        _watches[-1].begin(step)


def current_watch() -> StartWatch | None:
    """That of the run that is starting, if it is watched."""
    return _watches[-1] if _watches else None
