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
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import torch
from common import alternate, report, spread, table
from conftest import TinyDataset, TinyModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
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


class Sum(nn.Module):
    """As many parameters as it is told to, each a tensor of one weight."""

    def __init__(self, n_tensors: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.ones(1) for _ in range(n_tensors))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.sum(1) * 0, x.sum(1)], 1) * torch.cat([*self.weights]).mean()


class TwoTensors(TinyModule):
    n_tensors = 2

    def create_model(self) -> None:
        self.model = Sum(self.n_tensors)

    def create_optimiser(self) -> None:
        self.optimiser = torch.optim.SGD(self.model.parameters(), 1e-3)


class ThousandTensors(TwoTensors):
    n_tensors = 1_000


def plain_step_s(kind: type[TwoTensors]) -> float:
    """The median time of an iteration without the layer; as `Clock` measures it."""
    module, ends = kind(), []
    for name in ("model", "loss", "optimiser", "metrics"):
        getattr(module, f"create_{name}")()
    for batch in DataLoader(TinyDataset(4 * 300), 4, shuffle=True):
        output = module.model(batch["x"])
        loss = module.loss_fn(output, batch["label"])
        module.optimiser.zero_grad()
        loss.backward()
        module.optimiser.step()
        module.train_metrics.update(output.detach(), batch["label"])
        ends.append(time.perf_counter())
    return statistics.median(after - before for before, after in pairwise(ends))


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
            gaps = (after - before for before, after in pairwise(self.ends))
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

        def step_s(model: str, n_steps: int = 1_000) -> float:
            train(n_steps, model, folder, (n_steps,))
            return float(Clock.seconds[n_steps])

        many = alternate(
            {
                "1 metric": lambda: step_s("conftest.TinyModule"),
                "50 metrics": lambda: step_s(f"{__name__}.ManyMetrics"),
            },
            5,
        )
        tensors = alternate(
            {
                "2 tensors, plain loop": lambda: plain_step_s(TwoTensors),
                "2 tensors, the layer": lambda: step_s(f"{__name__}.TwoTensors", 300),
                "1,000 tensors, plain loop": lambda: plain_step_s(ThousandTensors),
                "1,000 tensors, the layer": lambda: step_s(f"{__name__}.ThousandTensors", 300),
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
        f"Parameters, each a tensor, with SGD:\n\n{spread(tensors, 'us/iteration', 1e6)}\n\n"
        f"A session that goes on, until its metrics.csv takes the next row:\n\n"
        f"{spread(opening, 's')}",
    )
