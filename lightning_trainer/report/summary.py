"""What is told at the start and at the end of a run."""

import signal
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_trainer.report.evaluation import RULE, ReportEvaluation
from lightning_trainer.report.log_line import format_duration
from lightning_trainer.run.schedule import ValidationSchedule
from lightning_trainer.run.state import RunTimes
from lightning_trainer.session.folder import Session, go_on_command


class Summarise(Callback):
    """Prints the number of parameters at the start and, however the run ends, what it came to.

    Args:
        session: The run's folder.
        schedule: Knows whether the last iteration lacks its validation.
        report: Has the best score.
        times: Has where the time went.
    """

    def __init__(
        self,
        session: Session,
        schedule: ValidationSchedule,
        report: ReportEvaluation,
        times: RunTimes,
    ) -> None:
        self.session = session
        self.schedule = schedule
        self.report = report
        self.times = times
        self._training = self._started = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the number of parameters."""
        if trainer.global_step >= trainer.estimated_stepping_batches and self.schedule.validated:
            self._refuse(trainer)
        self._training = self._started = True
        if trainer.is_global_zero:
            sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
            n_all, n_trainable = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
            print(f"Parameters: {n_all:,} (trainable: {n_trainable:,})", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the summary of a run that is done."""
        self._print(trainer, f"Finished at iteration {trainer.global_step}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says so where Lightning found nothing to do."""
        if not self._started:
            self._refuse(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Prints the summary of a run that was stopped, above the traceback if there is one."""
        if self._training:
            cause = ""
            if isinstance(exception, SystemExit) and isinstance(exception.code, int):
                names = {128 + number: number.name for number in signal.Signals}
                cause = f" by {names[exception.code]}" if exception.code in names else ""
            self._print(trainer, f"\nStopped{cause} at iteration {trainer.global_step}")

    def _refuse(self, trainer: pl.Trainer) -> None:
        raise ValueError(
            f"nothing left to do: iteration {trainer.global_step} is the last one. To go on, "
            "raise `--trainer.max_epochs`"
        )

    def _print(self, trainer: pl.Trainer, title: str) -> None:
        self._training = False
        if not trainer.is_global_zero:
            return
        print(f"{title}\n{RULE}")
        for name, value in self._lines(trainer):
            print(f"{name + ':':<14} {value}")
        if self._waits_for_data():
            print(_DATA_ADVICE)
        sys.stdout.flush()

    def _lines(self, trainer: pl.Trainer) -> list[tuple[str, Any]]:
        report, times = self.report, self.times
        best = "none yet"
        if report.best_score is not None:
            best = f"{report.best_score:.4f} at iteration {report.best_iteration}"
        lines: list[tuple[str, Any]] = [
            ("Best score", best),
            ("Total time", f"{format_duration(times.elapsed_s)} ({_shares(times)})"),
        ]
        if times.iterations_s:
            lines.append(("Examples/s", f"{times.examples / times.iterations_s:.1f}"))
        lines.append(("Folder", self.session.path))
        if self.session.last_checkpoint.exists():
            limit = "max_epochs" if trainer.max_steps < 0 else "max_steps"
            done = trainer.global_step >= trainer.estimated_stepping_batches
            more = f" --trainer.{limit} N" if done and self.schedule.validated else ""
            lines.append(("To go on", go_on_command("fit", self.session.path) + more))
        if self.session.best_checkpoint.exists():
            lines.append(("To test", go_on_command("test", self.session.path)))
        lines.append(("To look", f"tensorboard --logdir {self.session.path.parent}"))
        return lines

    def _waits_for_data(self) -> bool:
        data_s, update_s = self.times.data_s, self.times.update_s
        return data_s > max((data_s + update_s) / 3, _WORTH_ADVICE_S)


def _shares(times: RunTimes) -> str:
    parts = {
        "data": times.data_s,
        "update": times.update_s,
        "validation": times.validation_s,
        "checkpoints": times.checkpoints_s,
    }
    whole = max(times.elapsed_s, sum(parts.values()), 1e-9)
    parts["other"] = whole - sum(parts.values())
    return ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in parts.items())


_WORTH_ADVICE_S = 0.5
_DATA_ADVICE = (
    "More than a third of an iteration is spent waiting for data: raise --data.n_workers, give the "
    "dataset\n`get_batch` to make a whole batch at once, or move transforms to the device "
    "(`on_after_batch_transfer`)."
)
