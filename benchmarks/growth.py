"""Whether a step, the memory and a session stay as they are when a run grows.

python benchmarks/growth.py
"""

import contextlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
from common import alternate, report, spread, table
from conftest import TinyModule
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_trainer.report.loggers import MetricsFile
from lightning_trainer.session.folder import Session
from lightning_trainer.start.cli import run_trainer

POINTS, WINDOW = (100, 1_000, 10_000, 100_000), 500


class ManyMetrics(TinyModule):
    """Fifty scores whose sums torchmetrics keeps once, because they need the same."""

    def create_metrics(self) -> None:
        scores = {
            f"accuracy_{i}": MulticlassAccuracy(2, average="micro", validate_args=False)
            for i in range(50)
        }
        self.train_metrics = MetricCollection(scores)
        self.val_metrics = self.train_metrics.clone()


class Clock(pl.Callback):
    """The median time of the iterations before each point, and the most memory until then."""

    def __init__(self, points: tuple[int, ...] = POINTS) -> None:
        self.points = points

    def on_train_start(self, trainer: pl.Trainer, *args: object) -> None:
        Clock.seconds, Clock.megabytes = {}, {}
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        step = trainer.global_step
        if any(point - WINDOW <= step <= point for point in self.points):
            self.ends.append(time.perf_counter())
        if step in self.points:
            gaps = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
            Clock.seconds[step] = statistics.median(gaps)
            Clock.megabytes[step] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            self.ends = []


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        yield


def train(n_steps: int, model: str, folder: str, points: tuple[int, ...]) -> None:
    clock = f"{{class_path: {__name__}.Clock, init_args: {{points: {list(points)}}}}}"
    flags = [f"--model={model}", "--data=conftest.TinyData", "--data.n_samples=40000"]
    flags += [f"--trainer.max_steps={n_steps}", f"--trainer.callbacks=[{clock}]"]
    flags += ["--trainer.accelerator=cpu", "--trainer.val_check_interval=10000"]
    with silent():
        run_trainer(["fit", *flags, f"--output_path={folder}"])


def open_session(n_rows: int, folder: Path) -> float:
    """Seconds until a session of so many rows of eight numbers takes the next one."""
    path = folder / "metrics.csv"
    names = [f"number_{i}" for i in range(8)]
    with path.open("w") as file:
        file.write(",".join(["step", *names]) + "\n")
        for step in range(1, n_rows + 1):
            file.write(",".join([str(step), *["0.123456789"] * 8]) + "\n")
    started_s = time.perf_counter()
    logger = MetricsFile(Session(folder), purge_step=n_rows)
    logger.log_metrics(dict.fromkeys(names, 0.5), step=n_rows)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        train(POINTS[-1], "conftest.TinyModule", folder, POINTS)
        rows = [
            [f"{n:,}", f"{Clock.seconds[n] * 1e6:.0f}", f"{Clock.megabytes[n]:.0f}"] for n in POINTS
        ]
        steps = table(["iterations done", "us/iteration", "memory, MB"], rows)

        def metrics(model: str) -> float:
            train(1_000, model, folder, (1_000,))
            return float(Clock.seconds[1_000])

        many = alternate(
            {
                "1 metric": lambda: metrics("conftest.TinyModule"),
                "50 metrics": lambda: metrics(f"{__name__}.ManyMetrics"),
            },
            5,
        )
        opening = alternate(
            {
                f"{n_rows * 8:,} numbers": lambda n_rows=n_rows: open_session(n_rows, Path(folder))
                for n_rows in (1_250, 125_000)
            },
            3,
        )
    report(
        "Growth",
        f"The near-empty network of `benchmarks/steps.py`. One run, medians of {WINDOW} iterations:"
        f"\n\n{steps}\n\nMetrics that share their sums:\n\n{spread(many, 'us/iteration', 1e6)}\n\n"
        f"A session that goes on, until its metrics.csv takes the next row:\n\n"
        f"{spread(opening, 's')}",
    )
