"""The loggers of a session: TensorBoard and metrics.csv, both in its folder."""

import functools
import json
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from lightning_trainer.internals import add_summary, is_open, reopen
from lightning_trainer.internals_of_logging import StepCount, hide_in_events
from lightning_trainer.session.folder import Session
from lightning_trainer.session.metrics_csv import MetricsReader, MetricsWriter
from lightning_trainer.session.secrets import hide, hider_of, scrub
from lightning_trainer.session.settings import flatten


class SessionTensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger without a folder of its own and without hparams.yaml.

    Points of an earlier start from `purge_step` on are hidden. A point that is there, at the newest
    step, is not written again: Lightning logs the epoch with each row, and some callbacks log at
    each batch of an iteration. After a restart metrics.csv tells what is there.
    """

    _pause_until_s = 0.0
    _step: int | None = None  # the newest

    def __init__(
        self, session: Session, purge_step: int | None = None, secrets: Sequence[str] = ()
    ) -> None:
        self._secrets = tuple(secrets)
        super().__init__(session.path, "", "", default_hp_metric=False, purge_step=purge_step)
        self._session = session
        self._rows = MetricsReader(session.path / "metrics.csv")
        self._before = None if purge_step is None else purge_step - 1
        self._points: dict[str, float] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer, which puts *** in place of secrets in texts and names.

        Raises:
            OSError: If its file can't be made.
        """
        try:
            was_open, writer = is_open(self), super().experiment
        except OSError as ex:
            raise OSError(ex.errno, ex.strerror, self.save_dir) from ex
        if not was_open:
            hide_in_events(writer, hider_of(self._secrets).hide)
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds points; a full disk loses points, but does not end the run."""
        step = _iteration(step)
        if step != self._step:
            self._step = step
            self._points = self._rows.at(step) if step is not None and step == self._before else {}
        new = {name: value for name, value in metrics.items() if not self._is_there(name, value)}
        self._points.update(new)
        self._write(super().log_metrics, new, step)

    def _is_there(self, name: str, value: Any) -> bool:
        return isinstance(value, int | float) and self._points.get(name) == value

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Adds a row, without secrets, to the table of runs, which shows a folder's first row.

        Lightning also writes a list of the table's columns. TensorBoard would then take one run's
        list and hide all other settings. Without a list it collects the settings of all runs, and
        shows differing ones first.
        """
        if metrics:
            self.log_metrics(metrics, step)
        given = vars(params) if isinstance(params, Namespace) else params
        settings = flatten(scrub(dict(given), self._secrets))
        named = {name.removesuffix(".class_path"): _plain(v) for name, v in settings.items()}
        self._write(add_summary, self, hparams(named, {})[1])

    @rank_zero_only
    def log_success(self) -> None:
        """Marks the row's run as finished."""
        self._write(add_summary, self, hparams({}, {})[2])

    @rank_zero_only
    def save(self) -> None:
        if is_open(self):
            self._write(self.experiment.flush)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write(super().finalize, status)

    def _write(self, method: Callable[..., Any], *args: Any) -> None:
        if time.monotonic() < self._pause_until_s:
            return
        try:
            self._session.restore()
        except OSError as ex:
            warn_of_disk(self.save_dir, ex)
            return
        if self.save_dir != str(self._session.path):  # it has moved
            reopen(self, self._session.path)
        try:
            method(*args)
        except (OSError, ValueError) as ex:  # Lightning turns any error into a ValueError
            reason = ex.__cause__ or ex
            if not isinstance(reason, OSError):
                raise
            warn_of_disk(self.save_dir, reason)
            reopen(self, self._session.path)
            self._pause_until_s = time.monotonic() + _PAUSE_S


_PAUSE_S = 60.0  # before the next try: each leaves a file


def _plain(value: Any) -> int | float | str:
    """A setting as TensorBoard shows it: null, true and [1, 2] as in YAML."""
    # A bool would be shown as 0.0000.
    is_plain = isinstance(value, str) or type(value) in (int, float)
    return value if is_plain else json.dumps(value, default=str)


class MetricsFile(Logger):
    """Logs to metrics.csv; rows of an earlier start from `purge_step` on are dropped.

    Lightning's CSVLogger deletes the file of a session that goes on; this one appends to it.
    """

    def __init__(
        self, session: Session, purge_step: int | None = None, secrets: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._shown = functools.lru_cache(None)(functools.partial(hide, secrets=secrets))
        self._session = session
        self._file = MetricsWriter(session.path / "metrics.csv", purge_step)

    @property
    def name(self) -> str:
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
        """Adds to the row of this step; a full disk delays the row."""
        self._file.path = self._session.path / "metrics.csv"
        try:
            named = {self._shown(name): value for name, value in metrics.items()}
            self._file.add(_iteration(step) or 0, named)
        except OSError as ex:
            warn_of_disk(self._file.path, ex)

    @property
    def unwritten(self) -> list[dict[str, Any]]:
        """The rows that could not be written, for a checkpoint."""
        plain = (int, float, str)
        return [
            {name: v if isinstance(v, plain) else str(v) for name, v in row.items()}
            for row in self._file.unwritten
        ]

    def complete(self, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes the rows that could not be written, and those that a checkpoint has kept.

        Raises:
            OSError: If that fails again.
        """
        self._session.restore()
        self._file.path = self._session.path / "metrics.csv"
        try:
            self._file.complete(kept)
        except OSError as ex:
            raise OSError(
                f"{self._file.path} can't be written to: {ex.strerror or ex}. "
                f"{len(self._file.unwritten)} of its rows are in no file but last.ckpt: "
                "`fit --ckpt_path` writes them once that is mended"
            ) from ex

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._file.close()


def _iteration(step: int | None) -> int | None:
    """The iteration of Lightning's own count of steps; any other step is what it is."""
    return step.iteration() if isinstance(step, StepCount) else step


def log_to_all(trainer: pl.Trainer, numbers: dict[str, float], step: int) -> None:
    """Logs the numbers to all loggers, and writes them out."""
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=step)
        logger.save()


def warn_of_disk(path: Any, ex: OSError) -> None:
    """Warns, once for each reason, of a record that can't be written; the run goes on."""
    warnings.warn(f"{path} can't be written to: {ex}. Training goes on", stacklevel=3)
