"""Summarise: the words at the start and at the end of a run."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_trainer.base.data import SessionLoader
from lightning_trainer.checkpoints.early import early_end, options_to_go_on
from lightning_trainer.report.log_line import format_duration
from lightning_trainer.report.speed import speed_line
from lightning_trainer.report.usage import describe_use
from lightning_trainer.run.state import RunCallback, RunTimes, rule
from lightning_trainer.session.folder import go_on_command, look_command
from lightning_trainer.session.number import format_number
from lightning_trainer.session.run_record import RunRecord


class Summarise(RunCallback):
    """Prints the number of parameters at the start, and a summary however the run ends."""

    _training = _started = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = self.run
        if run.iteration >= run.n_iterations and run.validated and not run.kept_rows:
            self._refuse(trainer)
        self._training = self._started = True
        if trainer.is_global_zero:
            sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
            n_all, n_trainable = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
            print(f"Parameters: {n_all:,} (trainable: {n_trainable:,})", flush=True)
            if trainer.strategy.root_device.type != "cpu":
                print(speed_line(trainer, pl_module), flush=True)

    def on_fit_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Prints the summary, after the last checkpoint; refuses a run with nothing to do."""
        if not self._started and not self.run.kept_rows:
            self._refuse(trainer)
        self._print(trainer, f"Finished at iteration {trainer.global_step}")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._training:
            name = signal_of(exception)
            cause = f" by {name}" if name else ""
            self._print(trainer, f"\nStopped{cause} at iteration {trainer.global_step}")

    def _refuse(self, trainer: pl.Trainer) -> None:
        folder = self.run.session.path
        record = RunRecord.read(folder) if trainer.is_global_zero else None
        if record:
            record.end("finished", "nothing was left to do", "")
            record.write(folder)
        why, limit = f"iteration {trainer.global_step} is the last one", "max_epochs"
        if options_to_go_on(trainer):
            (_, why), limit = early_end(trainer), "max_time"
        raise ValueError(f"nothing left to do: {why}. To go on, raise `--trainer.{limit}`")

    def _print(self, trainer: pl.Trainer, title: str) -> None:
        self._training = False
        if not trainer.is_global_zero:
            return
        print(f"{title}\n{rule()}")
        for name, value in self._lines(trainer):
            print(f"{name + ':':<14} {value}")
        data_s, update_s = self.run.times.data_s, self.run.times.update_s
        if data_s > max((data_s + update_s) / 3, 0.5):  # half a second is worth no advice
            is_ours = isinstance(trainer.train_dataloader, SessionLoader)
            print(_WAITS, _ADVICE if is_ours else _ADVICE_FOR_OWN, sep="")
        sys.stdout.flush()

    def _lines(self, trainer: pl.Trainer) -> list[tuple[str, Any]]:
        session, best, times = self.run.session, self.run.best, self.run.times
        score = (
            f"{format_number(best.score, 4)} at iteration {best.iteration}" if best else "none yet"
        )
        is_early = self.run.iteration < self.run.n_iterations
        by, reason = early_end(trainer) if is_early else ("", "")
        lines: list[tuple[str, Any]] = [
            *([("Stopped by", f"{by}: {reason}")] if by else []),
            ("Best score", score),
            ("Total time", f"{format_duration(times.elapsed_s)} ({_shares(times)})"),
        ]
        if times.iterations_s:
            unit = getattr(trainer.lightning_module, "examples_unit", "examples").capitalize()
            lines.append((f"{unit}/s", f"{times.examples / times.iterations_s:.1f}"))
        if self.run.used:
            lines.append(("Memory", describe_use(self.run.used)))
        lines.append(("Folder", session.path))
        lines += self._ways_on(trainer)
        lines.append(("To look", look_command(session.path.parent)))
        return lines

    def _ways_on(self, trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
        """What to type next: commands, or calls where Python has called for the run."""
        session, is_called = self.run.session, self.run.is_called
        if session.last_checkpoint.exists():
            limit = "max_epochs" if trainer.max_steps < 0 else "max_steps"
            done = trainer.global_step >= trainer.estimated_stepping_batches
            more = f" --trainer.{limit} N" if done and self.run.complete else ""
            more += options_to_go_on(trainer)
            command = go_on_command("fit", session.path) + more
            yield "To go on", _as_call(session.path, more) if is_called else command
        if session.best_checkpoint.exists():
            if is_called:
                yield "To use", f"load({json.dumps(str(session.path))}).module"
            if type(trainer.lightning_module).__module__ != "__main__":
                yield "To test", go_on_command("test", session.path)


def signal_of(exception: BaseException) -> str:
    """The name of the signal that ends a run, e.g. "SIGTERM"; empty if none does."""
    if isinstance(exception, KeyboardInterrupt):
        return "SIGINT"
    if isinstance(exception, SIGTERMException):  # of Lightning, outside of training
        return "SIGTERM"
    code = exception.code if isinstance(exception, SystemExit) else None
    names = {128 + number: number.name for number in signal.Signals}
    return names.get(code, "") if isinstance(code, int) else ""


def _as_call(folder: Path, options: str) -> str:
    """What goes on in Python; `options` are those of the command line."""
    given = [f'"{name}": {value}' for name, value in re.findall(r"--trainer\.(\w+) (\S+)", options)]
    more = f", trainer={{{', '.join(given)}}}" if given else ""
    return f"fit(ckpt_path={json.dumps(str(folder))}{more})"


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


_WAITS = "More than a third of an iteration is spent waiting for data: "
_ADVICE = (
    "raise --data.n_workers, give the dataset\n`get_batch` to make a whole batch at once, or move "
    "transforms to the device (`on_after_batch_transfer`)."
)
_ADVICE_FOR_OWN = (
    "let the loader that\n`train_dataloader` returns fetch in more workers, or move transforms to "
    "the device (`on_after_batch_transfer`)."
)
