"""KeepReport: keeps report.html of a session up to date."""

import contextlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from time import monotonic, time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_trainer.base.results import in_training
from lightning_trainer.run.state import RunState
from lightning_trainer.session.program import PACKAGE, program

_LAST_S = 60.0  # that the end of a run waits for its page
_REST = 20  # times what a page took, until the next one: of many numbers it takes seconds


class KeepReport(Callback):
    """Writes `report.html` into the session folder: the page of `report`, to be opened any time.

    Another process of the lowest priority writes it after a validation; each takes half a second
    of a core, with a million rows of numbers 15 s. The last one is written when the run ends,
    however it does.

    Args:
        minutes: At least so long between two pages.
    """

    def __init__(self, minutes: float = 1.0) -> None:
        self.minutes = minutes
        self._process: subprocess.Popen[str] | None = None
        self._page, self._clock_s, self._took_s = Path(), 0.0, 0.0  # the newest, begun when
        self._begun_s = 0.0  # by `monotonic`: the newest page, or the training

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._begun_s = monotonic()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not (in_training(trainer) and trainer.is_global_zero):
            return
        if self._process and self._process.poll() is None:
            return
        self._end()
        if monotonic() - self._begun_s >= max(self.minutes * 60, _REST * self._took_s):
            self._begin(trainer)

    def on_fit_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Writes the last page, after run.json has the end."""
        if trainer.is_global_zero and self._begun_s:
            self._end()
            self._begin(trainer)
            self._end()

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_fit_end(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        self._end()
        self._begun_s = monotonic()
        session = RunState.of(trainer, self).session.path
        self._page, self._clock_s = session / "report.html", time()
        module = "lightning_trainer.commands.report"
        path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, os.getcwd(), str(session), _script()],
                cwd=PACKAGE.parent,  # Python looks there first for what it imports
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C does not reach it
            )
        except OSError as ex:  # no memory or no process left
            _warn_of_page(str(ex))

    def _end(self) -> None:
        """Waits for the process, and tells if it has failed."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            _, err = process.communicate(timeout=_LAST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
        with contextlib.suppress(OSError):
            self._took_s = max(self._page.stat().st_mtime - self._clock_s, 0.0)
        if process.returncode:
            _warn_of_page(err.strip().rpartition("\n")[2] or f"exit code {process.returncode}")


def _script() -> str:
    """The file by which the page's commands start the program, as those of the summary do."""
    *module, script = program()
    return str(PACKAGE / "__main__.py") if module else script


def _warn_of_page(reason: str) -> None:
    warnings.warn(f"report.html could not be written: {reason}", stacklevel=3)
