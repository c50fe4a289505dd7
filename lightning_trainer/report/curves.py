"""DrawCurves: keeps curves.png of a session up to date."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from time import monotonic
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.base.results import in_training
from lightning_trainer.base.scoring import score_direction
from lightning_trainer.run.state import RunCallback

_WAIT_S = 30.0  # for the last drawing
_SPACING_S = 20.0  # between two of them: each takes a core for a second or two


class DrawCurves(RunCallback):
    """Draws loss and score after a validation, in a process beside training.

    After the first one, then at most every 20 s, and at the end of training, which waits for it.
    """

    _process: subprocess.Popen[str] | None = None
    _begun_s = float("-inf")  # by `monotonic`
    _command: tuple[str, ...] = ()  # draws the newest numbers; empty once begun

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not in_training(trainer) or not trainer.is_global_zero:
            return
        module = "lightning_trainer.session.drawing"
        folder, best = os.path.abspath(self.run.session.path), self.run.best
        score = (str(best.score), str(best.iteration)) if best else ()
        named = (pl_module.score_key, score_direction(pl_module) or "unknown")
        self._command = (sys.executable, "-m", module, folder, *named, *score)
        is_drawing = self._process is not None and self._process.poll() is None
        if not is_drawing and monotonic() - self._begun_s >= _SPACING_S:
            self._begun_s = monotonic()
            self._begin()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Waits until the newest numbers are drawn."""
        self._end()
        if self._command:
            self._begin()
            self._end()

    def _begin(self) -> None:
        self._end()
        package = Path(__file__).parent.parent.parent
        path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
        command, self._command = [*self._command], ()
        try:
            self._process = subprocess.Popen(
                command,
                cwd=package,  # Python looks there first for what it imports
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C does not reach it
            )
        except OSError as ex:  # no memory or no process left
            _warn(str(ex))

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            _, err = process.communicate(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
            err += f"not done after {_WAIT_S:.0f} s"
        if process.returncode:
            _warn(err.strip().rpartition("\n")[2] or f"exit code {process.returncode}")


def _warn(reason: str) -> None:
    warnings.warn(f"curves.png could not be drawn: {reason}", stacklevel=3)
