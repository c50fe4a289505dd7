"""Where numbers go: TensorBoard and metrics.csv, both straight into the session folder."""

import json
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from lightning_trainer.internals import add_summary, is_open, reopen
from lightning_trainer.session.folder import Session
from lightning_trainer.session.metrics_csv import MetricsWriter
from lightning_trainer.session.secrets import scrub
from lightning_trainer.session.settings import flatten


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
        settings = flatten(scrub(dict(vars(params) if isinstance(params, Namespace) else params)))
        named = {name.removesuffix(".class_path"): _plain(v) for name, v in settings.items()}
        self._write_row(hparams(named, {})[1])

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


def _plain(value: Any) -> int | float | str:
    """A setting as TensorBoard shows it: null, true and [1, 2] as in YAML."""
    # A bool would be shown as 0.0000.
    is_plain = isinstance(value, str) or type(value) in (int, float)
    return value if is_plain else json.dumps(value, default=str)


class MetricsFile(Logger):
    """Logs to metrics.csv.

    Lightning's CSVLogger deletes the file of a session that goes on; this one appends to it.

    Args:
        session: Where to write.
        purge_step: Rows from this step on, which an earlier start left, are dropped.
    """

    def __init__(self, session: Session, purge_step: int | None = None) -> None:
        super().__init__()
        self._file = MetricsWriter(session.path / "metrics.csv", purge_step)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: there is one file a session."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of this step; a row that a full disk keeps out is written later."""
        try:
            self._file.add(step or 0, metrics)
        except OSError as ex:
            warn_of_disk(self._file.path, ex)


def warn_of_disk(path: Any, ex: OSError) -> None:
    """Says once for each reason that a record can't be written, which is not worth ending a run."""
    warnings.warn(f"{path} can't be written to: {ex}. Training goes on", stacklevel=3)
