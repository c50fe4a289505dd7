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

_SPACING_S = 20.0  # between two drawings: each takes a core for a second


class DrawCurves(RunCallback):
    """Draws loss and score after a validation, at most every 20 s, in a process beside training.

    The last picture, of the newest numbers, is drawn in this process before the summary: that
    takes 0.3 s, for matplotlib is imported by now. Where a run is stopped it comes last.
    """

    _process: subprocess.Popen[str] | None = None
    _begun_s = 0.0  # by `monotonic`: when the newest drawing began, at first when training did
    _drawn = True  # whether the newest numbers are
    _name = _mode = ""  # of the score

    def on_train_start(self, *_: Any) -> None:
        self._begun_s = monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not in_training(trainer) or not trainer.is_global_zero:
            return
        self._name, self._mode = pl_module.score_key, score_direction(pl_module) or "unknown"
        self._drawn = False
        is_drawing = self._process is not None and self._process.poll() is None
        if not is_drawing and monotonic() - self._begun_s >= _SPACING_S:
            self._begun_s = monotonic()
            self._begin()

    def on_fit_end(self, *_: Any) -> None:
        """Draws the newest numbers."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # it would be waited for longer than for a new picture
            self._process.communicate()
            self._process, self._drawn = None, False
        self._end()
        if not self._drawn:
            self._draw()

    def teardown(self, *_: Any, **__: Any) -> None:
        self.on_fit_end()

    def _draw(self) -> None:
        from lightning_trainer.session.drawing import draw_session

        best, self._drawn = self.run.best, True
        mark = (best.iteration, best.score) if best else None
        try:
            draw_session(self.run.session.path, self._name, self._mode, mark)
        except Exception as ex:  # matplotlib has many kinds, and a picture must not end a run
            _warn(f"{type(ex).__name__}: {ex}")

    def _begin(self) -> None:
        self._end()
        package = Path(__file__).parent.parent.parent
        path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
        module, folder = "lightning_trainer.session.drawing", os.path.abspath(self.run.session.path)
        best, self._drawn = self.run.best, True
        score = (str(best.score), str(best.iteration)) if best else ()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, folder, self._name, self._mode, *score],
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
        """Tells of a process that has failed."""
        if self._process is None:
            return
        process, self._process = self._process, None
        _, err = process.communicate()
        if process.returncode:
            _warn(err.strip().rpartition("\n")[2] or f"exit code {process.returncode}")


def _warn(reason: str) -> None:
    warnings.warn(f"curves.png could not be drawn: {reason}", stacklevel=3)
