"""RecordRun: keeps run.json, the state of a run, up to date."""

import math
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.checkpoints.early import early_end
from lightning_trainer.report.loggers import MetricsFile, warn_of_disk
from lightning_trainer.report.summary import signal_of
from lightning_trainer.run.device import describe_gpus
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.checkpoint_header import KEY, layer_state
from lightning_trainer.session.facts import facts_of, with_files
from lightning_trainer.session.run_record import RunRecord, describe, process_name
from lightning_trainer.session.settings import read_yaml


class RecordRun(RunCallback):
    """Writes run.json when training starts, with each checkpoint, and when the run ends.

    It also completes environment.yaml once the run's devices are known.

    A test of a trained session does not change the record of the training.
    """

    _record: RunRecord | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Adds the GPUs to environment.yaml; earlier, asking CUDA would keep it from forking."""
        if not (self.run.is_sessions_own and trainer.is_global_zero):
            return
        if changes := self.run.session.record_gpus(describe_gpus(trainer)):
            print("What differs from before:", *changes, sep="\n    ", flush=True)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._complete(trainer)
        self._begin(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit":
            self._begin(trainer)

    on_test_start = on_validation_start  # type: ignore[assignment]
    on_predict_start = on_validation_start  # type: ignore[assignment]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Writes the checkpoint's times, because `run.times` ends at the last line.

        The checkpoint gets the rows that metrics.csv lacks, so that they are not lost.
        """
        for file in _metrics_files(trainer):
            if file.unwritten:
                checkpoint[KEY]["rows"] = file.unwritten
        self._write(trainer, checkpoint[KEY]["times"])

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self.run.kept_rows = layer_state(checkpoint).get("rows") or []

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Completes metrics.csv.

        Raises:
            OSError: If that fails.
        """
        self._complete(trainer)

    def on_fit_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Notes the end, after the last checkpoint."""
        self._complete(trainer)  # also where only these rows were left to do
        reason, by = f"all {self.run.iteration} iterations are done", ""
        if self.run.iteration < self.run.n_iterations:
            by, reason = early_end(trainer)
            reason, by = reason or "it was stopped early", by or "a hook that ended the epoch"
        self._end(trainer, "finished", reason, by)

    def teardown(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.state.fn != "fit":
            self._complete(trainer)
            self._end(trainer, "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if name := signal_of(exception):
            self._end(trainer, "interrupted", name, "signal")
        else:
            reason = describe(exception, self.run.secrets)
            self._end(trainer, "failed", reason, process_name())

    def _complete(self, trainer: pl.Trainer) -> None:
        kept, self.run.kept_rows = self.run.kept_rows, ()
        for file in _metrics_files(trainer):
            file.complete(kept)

    def _begin(self, trainer: pl.Trainer) -> None:
        if self.run.is_sessions_own and trainer.is_global_zero:
            self._record = RunRecord(command=str(trainer.state.fn and trainer.state.fn.value))
            session = self.run.session
            config, environment = (read_yaml(p) for p in (session.config, session.environment))
            self._record.facts = with_files(facts_of(config or {}, environment or {}), session.path)
            self._write(trainer)

    def _end(self, trainer: pl.Trainer, state: Any, reason: str = "", by: str = "") -> None:
        if self._record is not None and self._record.state == "running":  # the first word counts
            self._record.end(state, reason, by)
            self._write(trainer)

    def _write(self, trainer: pl.Trainer, times: dict[str, Any] | None = None) -> None:
        if self._record is None:
            return
        run, record = self.run, self._record
        if trainer.state.fn == "fit":
            record.iteration = run.iteration
            record.times = times or asdict(run.times)
            record.used = {**run.used}
            if math.isfinite(run.n_iterations):
                record.n_iterations = int(run.n_iterations)
            if math.isfinite(batches := trainer.num_training_batches):
                record.epoch_iterations = math.ceil(batches / trainer.accumulate_grad_batches)
            if best := run.best:
                name, mode, score, iteration = best.name, best.mode, best.score, best.iteration
                record.score = {"name": name, "mode": mode, "best": score, "iteration": iteration}
        try:
            run.session.restore()
            record.write(run.session.path)
        except OSError as ex:
            warn_of_disk(run.session.path / "run.json", ex)


def _metrics_files(trainer: pl.Trainer) -> list[MetricsFile]:
    """Those of the first process, which alone writes."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, MetricsFile)]
