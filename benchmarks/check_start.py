"""What the warnings of mistakes take at the start of each `fit`, in the projects of the gallery.

python benchmarks/check_start.py

They are looked for once, in `on_train_start`, and nothing is done in a step.
"""

import contextlib
import logging
import statistics
import time
import warnings

import torch
from check_projects import GALLERY, load, make_trainer
from common import report, table

from lightning_trainer.check.at_start import AT_START
from lightning_trainer.check.checking import run_checks
from lightning_trainer.check.findings import CheckReport
from lightning_trainer.check.inspection import Inspected, Inspection, quieten
from lightning_trainer.check.project import Project

_N = 20


class Timed(Inspection):
    """Looks for mistakes several times, and ends the run."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.times_ms: list[tuple[float, float]] = []
        for _ in range(_N):
            started_s = time.perf_counter(), time.thread_time()
            run_checks(Project(trainer, pl_module), AT_START, own=False)
            ended_s = time.perf_counter(), time.thread_time()
            self.times_ms.append(
                tuple(1e3 * (b - a) for a, b in zip(started_s, ended_s, strict=True))
            )
        raise Inspected(CheckReport(), "")


def measure(project: str) -> list[object]:
    kind, timed = load(project), Timed([])
    trainer = make_trainer(kind, callbacks=[timed])
    module, data = kind.module(**kind.model_args), kind.data(**kind.data_args)
    with contextlib.suppress(Inspected):
        trainer.fit(quieten(module), datamodule=data)
    wall, work = zip(*timed.times_ms, strict=True)
    n_weights = sum(weight.numel() for weight in module.parameters())
    return [project, f"{n_weights:,}", *(f"{statistics.median(each):.1f}" for each in (work, wall))]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    head = ["project", "weights", "processor ms", "ms"]
    rows = [measure(project) for project in GALLERY]
    text = f"Medians of {_N}, once at the start of a run.\n\n{table(head, rows)}"
    report("check: the warnings of each fit", text)


if __name__ == "__main__":
    main()
