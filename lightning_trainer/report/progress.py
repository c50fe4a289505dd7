"""PrintProgress: iterations done, speed and the time left, in the log line."""

import math
from collections import deque
from dataclasses import asdict
from time import perf_counter
from typing import Any

import lightning.pytorch as pl

from lightning_trainer.base.data import SessionLoader
from lightning_trainer.base.optimising import by_name
from lightning_trainer.base.results import in_training
from lightning_trainer.checkpoints.finite import check_line
from lightning_trainer.internals import is_compiled
from lightning_trainer.report.clock import DeviceClock
from lightning_trainer.report.first_guess import guess_validation_s
from lightning_trainer.report.gathering import of_all_processes, slow_process
from lightning_trainer.report.log_line import format_line
from lightning_trainer.report.loggers import log_to_all
from lightning_trainer.run.device import on_gpu, settle
from lightning_trainer.run.schedule import validations_left
from lightning_trainer.run.state import Progress, RunCallback, RunTimes
from lightning_trainer.session.checkpoint_header import KEY, layer_state


class _Window:
    """Sums over the iterations since the last line, on one process."""

    def __init__(self, started_s: float) -> None:
        self.started_s = started_s
        self.excluded_s = self.fetch_s = self.update_s = 0.0
        self.n_iterations = self.n_examples = 0


class PrintProgress(RunCallback):
    """Prints the log line every `log_every_n_steps` iterations and logs the same numbers.

    A step costs a few clock readings. The device is waited for only where a line is printed or
    training pauses. Timings leave out validations, the writing of checkpoints and the first
    iteration after a start (it allocates, tunes and compiles); on a GPU also the second one of
    several processes (DDP has rearranged its buckets) or a compiled model (another graph).
    """

    _started = _interrupted = False
    _batch_ended_s = 0.0
    _clock: DeviceClock | None = None  # of a GPU

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self._pause()
        times = asdict(self.run.times)
        if self._started:
            fetch_s, update_s = self._measured_s()  # since the last line
            times["elapsed_s"] = self._elapsed_s()
            times["data_s"] += fetch_s
            times["update_s"] += update_s
        checkpoint[KEY]["times"] = times

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self.run.times = RunTimes(**(layer_state(checkpoint).get("times") or {}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._elapsed_before_s = self.run.times.elapsed_s
        self._interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._clock = DeviceClock() if on_gpu(trainer) else None
        self._unit = getattr(pl_module, "examples_unit", "examples")
        self._find_loader(trainer)
        self._learning_rates: dict[str, float] = {}
        self._timed_from = self.run.iteration + 1
        if self._clock and (trainer.world_size > 1 or is_compiled(pl_module)):
            self._timed_from += 1
        self._interrupted = False
        self._recent_iterations_s: deque[float] = deque(maxlen=10)
        self._start_window()
        self._started_s = self._batch_ended_s
        self._started = True

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._find_loader(trainer)  # `reload_dataloaders_every_n_epochs` makes new ones

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        now = perf_counter()
        asked_s = self._loader.fetch_started_s if self._loader else self._batch_ended_s
        if self._clock:
            self._clock.start_step(after_pause=self._interrupted)
        if self._interrupted:
            # The time of asking a project's own loader is not known: leave out all until now.
            resumed_s = asked_s if self._loader else now
            self._window.excluded_s += resumed_s - self._batch_ended_s
            asked_s, self._interrupted = resumed_s, False
        self._window.fetch_s += now - asked_s
        if self._interval and (self.run.iteration + 1) % self._interval == 0:
            self._learning_rates = _learning_rates(trainer)  # before the scheduler steps
        self._batch_started_s = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Counts the batch, and prints the line if it is due."""
        run, window = self.run, self._window
        if self._clock:
            self._clock.end_step()
        self._batch_ended_s = now = perf_counter()
        window.update_s += now - self._batch_started_s
        if hasattr(pl_module, "count_examples"):
            window.n_examples += pl_module.count_examples(batch)
        if not run.stepped:
            return
        window.n_iterations += run.stepped
        before = run.iteration - run.stepped
        if self._interval and run.iteration // self._interval > before // self._interval:
            self._print_line(trainer)
            self._start_window()
        elif before < self._timed_from <= run.iteration:
            settle(trainer, run)  # waits for the device, once a start
            self._start_window()

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        settle(trainer, self.run)
        self._pause()
        self._validation_started_s = perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        settle(trainer, self.run)
        if in_training(trainer):
            times = self.run.times
            times.recent_validation_s = perf_counter() - self._validation_started_s
            times.validation_s += times.recent_validation_s

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        settle(trainer, self.run)
        self._pause()
        self._close(trainer)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._started:
            self._clock = None  # the device may have failed
            self._close(trainer)

    def _close(self, trainer: pl.Trainer) -> None:
        """Counts the iterations since the last line."""
        self._window.fetch_s, self._window.update_s = self._measured_s()
        n_examples = self._window.n_examples * trainer.world_size  # without asking the others
        self._add_window(self._batch_ended_s, n_examples)
        self._start_window()
        self.run.times.elapsed_s = self._elapsed_s()

    def _find_loader(self, trainer: pl.Trainer) -> None:
        loader = trainer.train_dataloader
        self._loader = loader if isinstance(loader, SessionLoader) else None
        if self._clock:
            self._clock.listen_to(self._loader)

    def _pause(self) -> None:
        """Ends the time of the newest batch; a pause must not count as a wait for the next one."""
        if not self._interrupted:
            self._interrupted = True
            self._batch_ended_s = max(self._batch_ended_s, self.run.settled_s)

    def _measured_s(self) -> tuple[float, float]:
        """The window's fetches and updates, by a GPU's clock if there is one; waits for it."""
        window = self._window
        return self._clock.totals_s() if self._clock else (window.fetch_s, window.update_s)

    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + perf_counter() - self._started_s

    def _start_window(self) -> None:
        if self._clock:
            self._clock.clear()
        self._batch_ended_s = perf_counter()
        self._window = _Window(self._batch_ended_s)

    def _add_window(self, ended_s: float, n_examples: int) -> float:
        """Adds the window to the run's times; returns its wall-clock time in seconds."""
        window, times = self._window, self.run.times
        wall_s = max(ended_s - window.started_s - window.excluded_s, 1e-9)
        times.data_s += window.fetch_s
        times.update_s += window.update_s
        times.iterations_s += wall_s
        times.examples += n_examples
        return wall_s

    def _print_line(self, trainer: pl.Trainer) -> None:
        run, window = self.run, self._window
        loss = run.losses.mean(run.window_start)  # waits for the device
        since, parts = run.window_start, run.named_losses
        means = {n: p.mean(since) for n, p in parts.items() if not p.is_empty(since)}
        ended_s = perf_counter()
        window.fetch_s, window.update_s = self._measured_s()
        own = (loss, window.n_examples, window.fetch_s, window.update_s, *means.values())
        figures = of_all_processes(trainer, own)  # (processes, 4 + parts of the loss)
        n, n_examples = window.n_iterations, int(figures[:, 1].sum().item())
        wall_s = self._add_window(ended_s, n_examples)
        self._recent_iterations_s.append(wall_s / n)
        line = Progress(
            iteration=run.iteration,
            n_iterations=run.n_iterations,
            examples_per_s=n_examples / wall_s,
            loss=figures[:, 0].mean().item(),
            elapsed_s=self._elapsed_s(),
            left_s=self._left_s(trainer),
            fetch_ms=figures[:, 2].max().item() / n * 1e3,
            update_ms=figures[:, 3].mean().item() / n * 1e3,
            losses=dict(zip(means, figures[:, 4:].mean(dim=0).tolist(), strict=True)),
            unit=self._unit,
        )
        if trainer.is_global_zero:
            print(format_line(line), flush=True)
            if slow := slow_process(figures[:, 2] / n, wall_s / n):
                print(slow, flush=True)
        self._log(trainer, line)
        run.line = line
        check_line(trainer, run, line.loss)

    def _left_s(self, trainer: pl.Trainer) -> float:
        """Time for the iterations, validations and checkpoints left, by recent durations."""
        run = self.run
        n_left = run.n_iterations - run.iteration
        iteration_s = sum(self._recent_iterations_s) / len(self._recent_iterations_s)
        if not math.isfinite(n_left):
            return n_left
        validation_s = run.times.recent_validation_s or guess_validation_s(
            trainer, run, iteration_s
        )
        evaluation_s = validation_s + run.times.recent_checkpoint_s
        return n_left * iteration_s + validations_left(trainer, run) * evaluation_s

    def _log(self, trainer: pl.Trainer, line: Progress) -> None:
        metrics = {
            "train/loss": line.loss,
            **{f"train/loss_{name}": loss for name, loss in line.losses.items()},
            "timing/examples_per_s": line.examples_per_s,
            "timing/fetch_ms": line.fetch_ms,
            "timing/update_ms": line.update_ms,
            **(self._learning_rates or _learning_rates(trainer)),
        }
        self._learning_rates = {}
        log_to_all(trainer, metrics, line.iteration)


def _learning_rates(trainer: pl.Trainer) -> dict[str, float]:
    """Of each optimiser, by its name if there are several, and of each of its groups."""
    optimisers = by_name(getattr(trainer.lightning_module, "optimiser", None))
    groups = {name: optimiser.param_groups for name, optimiser in optimisers.items()}
    if len(groups) != len(trainer.optimizers):  # those of a project's own `configure_optimizers`
        groups = {"": [group for each in trainer.optimizers for group in each.param_groups]}
    rates: dict[str, float] = {}
    for name, of_one in groups.items():
        prefix = f"learning_rate/{name}".rstrip("/")
        for i, group in enumerate(of_one):
            rates[prefix if len(of_one) == 1 else f"{prefix}/group_{i}"] = float(group["lr"])
    return rates
