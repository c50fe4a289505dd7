"""Where numbers go: TensorBoard and metrics.csv, both straight into the session folder."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_trainer.session import Session


class SessionTensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger without a folder of its own and without hparams.yaml.

    Args:
        session: Where to write.
        purge_step: Points from this step on, which an earlier start left, are hidden.
    """

    def __init__(self, session: Session, purge_step: int | None = None) -> None:
        super().__init__(
            save_dir=session.path,
            name="",
            version="",
            default_hp_metric=False,
            purge_step=purge_step,
        )

    @rank_zero_only
    def save(self) -> None:
        """Hands what was logged to the file."""
        self.experiment.flush()


class MetricsFile(Logger):
    """metrics.csv: a row for each step at which anything is logged, a column for each name.

    Lightning's CSVLogger deletes the file of a session that goes on; this one appends to it.

    Args:
        session: Where to write.
        purge_step: Rows from this step on, which an earlier start left, are dropped.
    """

    def __init__(self, session: Session, purge_step: int | None = None) -> None:
        super().__init__()
        self._session = session
        self._purge_step = purge_step
        self._columns: list[str] = []
        self._last: dict[str, Any] = {}
        self._last_offset = 0

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: there is one file a session."""
        return ""

    @property
    def path(self) -> Path:
        """The file."""
        return self._session.path / "metrics.csv"

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of this step; the file is written anew where a name is new."""
        rows = None if self._columns else self._read()
        same_step = self._last.get("step") == str(step)
        row = {**(self._last if same_step else {}), "step": str(step), **metrics}
        if added := [name for name in row if name not in self._columns]:
            rows = self._read() if rows is None else rows
            self._columns += added
            self._write([*(rows[:-1] if same_step else rows), row])
            return
        with self.path.open("r+", newline="") as file:
            file.seek(self._last_offset if same_step else 0, 0 if same_step else 2)
            file.truncate()
            self._write_last(file, row)

    def _read(self) -> list[dict[str, Any]]:
        """The rows to keep of the file, and its columns."""
        if not self.path.exists():
            return []
        # A kill in the middle of a write leaves a last row without its end.
        text = self.path.read_text()
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = list(reader)
        if not self._columns:
            self._columns = list(reader.fieldnames or [])
            if self._purge_step is not None:
                rows = [row for row in rows if int(row["step"]) < self._purge_step]
            self._write(rows)
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[:-1])
            if rows:
                self._write_last(file, rows[-1])
        temporary.replace(self.path)

    def _write_last(self, file: Any, row: dict[str, Any]) -> None:
        self._last, self._last_offset = row, file.tell()
        csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
