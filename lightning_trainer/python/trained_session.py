"""TrainedSession: what a program asks a session for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_trainer.session.extras import install_command
from lightning_trainer.session.metrics_csv import MetricsReader
from lightning_trainer.session.record import Record
from lightning_trainer.session.settings import read_yaml

if TYPE_CHECKING:
    import numpy as np


class TrainedSession(os.PathLike[str]):
    """A session folder, of a run that has ended or still goes on.

    Stands for its path wherever one is wanted, e.g. `fit(ckpt_path=session)`. The numbers are those
    of the time when they are asked for.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, module: Any = None) -> None:
        self.path, self._module = path, module

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        record = self.record
        parts = [f"{str(self.path)!r}: {record.state}", f"iteration {record.iteration}"]
        if record.best_score is not None:
            direction = f" ({record.score_mode})" if record.score_mode else ""
            parts.append(f"{record.score_name}{direction} {record.best_score:.4g}")
        return f"TrainedSession({', '.join(parts)})"

    @property
    def record(self) -> Record:
        """All that `sessions` and `compare` know of it."""
        return Record.read(self.path)

    @property
    def state(self) -> str:
        """One of "running", "finished", "interrupted", "failed", "damaged"."""
        return self.record.state

    @property
    def iteration(self) -> int | None:
        """Iterations done."""
        return self.record.iteration

    @property
    def score(self) -> float | None:
        """The best score; None before there is one."""
        return self.record.best_score

    @property
    def score_name(self) -> str | None:
        """Its name among the curves, e.g. "val/accuracy"."""
        return self.record.score_name

    @property
    def score_mode(self) -> str | None:
        """Its direction: "max" if a higher score is better, "min" if a lower one is."""
        return self.record.score_mode

    @property
    def settings(self) -> dict[str, Any]:
        """What config.yaml holds: `fit` on it trains the same again."""
        return read_yaml(self.path / "config.yaml") or {}

    @property
    def module(self) -> Any:
        """The project's module with the best weights, its network as `module.model`.

        Loaded when it is first asked for, on the CPU; `load` puts it elsewhere. In evaluation mode.

        Raises:
            RunError: If there is no checkpoint, or it can't be loaded.
        """
        if self._module is None:
            from lightning_trainer.python.loading import load_module

            self._module = load_module(str(self.path), "cpu")
        return self._module

    def curves(self) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        """All logged numbers by name, each as iterations, int (N,), and values, float (N,)."""
        import numpy as np

        reader = MetricsReader(self.path / "metrics.csv")
        found = reader.curves(reader.names)
        return {
            name: (np.array(steps, dtype=int), np.array(values, dtype=float))
            for name, (steps, values) in found.items()
        }

    def table(self) -> Any:
        """The same as a `pandas.DataFrame`: a row an iteration, NaN where nothing was logged.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            told = f"`table` needs pandas: {install_command('tables')}"
            raise ModuleNotFoundError(told, name="pandas") from None
        curves = self.curves().items()
        columns = {
            name: pandas.Series(dict(zip(*curve, strict=True)), dtype=float)
            for name, curve in curves
        }
        return pandas.DataFrame(columns).sort_index().rename_axis("iteration")
