"""Where numbers go: TensorBoard and metrics.csv, both straight into the session folder."""

import csv
import json
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from lightning_trainer.internals import add_summary, is_open, reopen
from lightning_trainer.session.folder import Session
from lightning_trainer.session.secrets import scrub


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
        self._pause_until_s = 0.0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds points; a disk that is full costs points and not the run."""
        self._write(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
    ) -> None:
        """Adds a row to the table of runs, without secrets; of one folder the first is shown.

        Lightning also writes which columns the table has: TensorBoard takes the list of one run
        and shows nothing of what others have besides. Without one it collects the settings of all
        runs, and shows those first in which they differ.
        """
        if metrics:
            self.log_metrics(metrics, step)
        settings = vars(params) if isinstance(params, Namespace) else params
        self._write_row(hparams(_flatten(scrub(dict(settings))), {})[1])

    @rank_zero_only
    def log_success(self) -> None:
        """Marks the row as that of a run which came to its end."""
        self._write_row(hparams({}, {})[2])

    def _write_row(self, part: Any) -> None:
        self._write(add_summary, self, part)

    @rank_zero_only
    def save(self) -> None:
        """Hands what was logged to the file."""
        if is_open(self):
            self._write(self.experiment.flush)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file."""
        self._write(super().finalize, status)

    def _write(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if time.monotonic() < self._pause_until_s:
            return
        try:
            method(*args, **kwargs)
        except (OSError, ValueError) as ex:  # Lightning makes a ValueError of any
            reason = ex.__cause__ or ex
            if not isinstance(reason, OSError):
                raise
            warn_of_disk(self.save_dir, reason)
            reopen(self)
            self._pause_until_s = time.monotonic() + _PAUSE_S


_PAUSE_S = 60.0  # before the next try: each leaves a file


def _flatten(settings: Mapping[str, Any], group: str = "") -> dict[str, int | float | str]:
    """Settings as numbers and texts, a class's arguments named as on the command line."""
    flat: dict[str, int | float | str] = {}
    for key, value in settings.items():
        in_class = group and key in ("class_path", "init_args")
        name = group if in_class else f"{group}.{key}" if group else key
        if isinstance(value, Mapping):
            flat |= _flatten(value, name)
        elif isinstance(value, str) or type(value) in (int, float):  # a bool would be 0.0000
            flat[name] = value
        else:
            flat[name] = json.dumps(value, default=str)  # null, true, [1, 2]: as in YAML
    return flat


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
        self._unwritten: list[dict[str, Any]] = []
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
        """Adds to the row of this step; the file is written anew where a name is new.

        What can't be written, e.g. on a full disk, is written with the next row.
        """
        rows: list[dict[str, Any]] | None = None
        if not self._columns or self._unwritten or metrics.keys() - {*self._columns}:
            rows = [*self._read(), *self._unwritten]
            self._last = rows[-1] if rows else {}
        same_step = self._last.get("step") == str(step)
        row = {**(self._last if same_step else {}), "step": str(step), **metrics}
        try:
            if rows is None:
                self._append(row, same_step)
            else:
                self._write(rows[:-1] if same_step else rows, row)
            self._unwritten = []
        except OSError as ex:
            warn_of_disk(self.path, ex)
            self._unwritten = [*(r for r in self._unwritten if r["step"] != row["step"]), row]
        self._last = row

    def _append(self, row: dict[str, Any], same_step: bool) -> None:
        with self.path.open("r+", newline="") as file:
            file.seek(self._last_offset if same_step else 0, 0 if same_step else 2)
            file.truncate()
            self._last_offset = file.tell()
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def _read(self) -> list[dict[str, Any]]:
        """The rows to keep of the file, and its columns."""
        if not self.path.exists():
            return []
        # A kill in the middle of a write leaves a last row without its end.
        text = self.path.read_text(errors="replace")
        whole = text[: text.rfind("\n") + 1].splitlines()
        # A power cut leaves zeros, which Python 3.10 refuses, or what is no row at all.
        reader = csv.DictReader(line for line in whole if "\0" not in line)
        rows = [row for row in reader if str(row.get("step")).isdigit()]
        if not self._columns:
            self._columns = list(reader.fieldnames or [])
            if self._purge_step is not None:
                rows = [row for row in rows if int(row["step"]) < self._purge_step]
        return rows

    def _write(self, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        columns = [*self._columns, *(name for name in row if name not in self._columns)]
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            offset = file.tell()
            writer.writerow(row)
        temporary.replace(self.path)
        self._columns, self._last_offset = columns, offset


def warn_of_disk(path: Any, ex: OSError) -> None:
    """Says once for each reason that a record can't be written, which is not worth ending a run."""
    warnings.warn(f"{path} can't be written to: {ex}. Training goes on", stacklevel=3)
