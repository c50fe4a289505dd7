"""What a run needs: its time, memory and disk, and whether going on will be exact."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lightning_trainer.base.data import SessionLoader
from lightning_trainer.check.leftovers import first_validation, n_iterations
from lightning_trainer.check.nested import tensors_in
from lightning_trainer.check.project import Project
from lightning_trainer.verify.own import own_state

_WORKERS = (0, 2, 4)
_N, _LIMIT_S = 20, 2.0  # batches, and seconds, of each measurement
_COPIES = 3  # checkpoints of a session: last, best, and one that is being written


@dataclass
class Needs:
    """Measured with what else the machine does at that time; None where it can't be known."""

    update_ms: float | None = None  # forward, backward and optimiser step of a batch
    data_ms: dict[int, float] = field(default_factory=dict)  # of a batch, by the workers
    workers: int | None = None  # the fewest that are about as fast as the best number
    iteration_ms: float | None = None  # with as many workers as are given
    run_s: float | None = None  # of the whole run, without validations
    n_iterations: float | None = None
    validation_s: float | None = None  # of one validation
    first_validation: float | None = None  # its iteration
    memory_mib: float | None = None  # the peak: of the GPU, else of this process
    checkpoint_mib: float | None = None
    session_mib: float | None = None
    free_mib: float | None = None  # on the disk of the sessions
    inexact: list[str] = field(default_factory=list)  # why going on may differ


def needs_of_run(project: Project, output_path: str) -> Needs:
    """Trains some iterations in a scratch copy, and fetches batches with 0, 2 and 4 workers."""
    needs = Needs(first_validation=first_validation(project), n_iterations=n_iterations(project))
    before = own_state(project.module, project.data)
    with project.scratch():
        needs.update_ms = _time(_updates(project), project)
        needs.checkpoint_mib = _checkpoint_mib(project)
    needs.inexact = _inexact(project, before)
    needs.memory_mib = _memory_mib(project)
    needs.session_mib = _COPIES * needs.checkpoint_mib
    needs.free_mib = _free_mib(Path(output_path))
    if project.has("train"):
        for n_workers in _WORKERS:
            needs.data_ms[n_workers] = _time(_fetches(project, n_workers), project)
    _conclude(project, needs)
    return needs


def _conclude(project: Project, needs: Needs) -> None:
    """What follows from the times of parts."""
    update = needs.update_ms or 0.0
    if needs.data_ms and needs.update_ms is not None:
        waits = {n: ms if n == 0 else max(0.0, ms - update) for n, ms in needs.data_ms.items()}
        # A worker needs a core of its own, and is worth it for a tenth of the time.
        possible = [n for n in waits if n == 0 or n < (os.cpu_count() or 1)]
        best = min(waits[n] for n in possible)
        needs.workers = min(n for n in possible if update + waits[n] <= 1.1 * (update + best))
        given = getattr(project.data, "n_workers", 0)
        nearest = min(waits, key=lambda n: abs(n - given))
        needs.iteration_ms = (update + waits[nearest]) * project.trainer.accumulate_grad_batches
        needs.run_s = needs.iteration_ms / 1e3 * float(needs.n_iterations or 0)
    loader = project.loaders["val"]
    if project.has("val"):
        batch_ms = _time(_evaluations(project), project, 3)
        data_ms = min(needs.data_ms.values(), default=0.0)
        limit = project.trainer.num_val_batches
        n_batches = min(len(loader), *limit) if limit else len(loader)
        needs.validation_s = n_batches * (batch_ms + data_ms) / 1e3


def _time(steps: Iterator[None], project: Project, n: int = _N) -> float:
    """Milliseconds of a step, on average, without the first one."""
    next(steps, None)
    _wait(project)
    started_s, done = time.perf_counter(), 0
    for _ in islice(steps, n):
        done += 1
        if time.perf_counter() - started_s > _LIMIT_S:
            break
    _wait(project)
    return 1e3 * (time.perf_counter() - started_s) / max(done, 1)


def _wait(project: Project) -> None:
    if project.module.device.type == "cuda":
        torch.cuda.synchronize(project.module.device)


def _keys(project: Project) -> Iterator[list[int]]:
    """Keys of whole batches, without end."""
    order, size = project.order("train"), min(project.data.batch_size, project.size("train"))
    start = 0
    while True:
        yield order[start : start + size]
        start = start + size if start + 2 * size <= len(order) else 0


def _updates(project: Project) -> Iterator[None]:
    """Trains; the time of fetching is not part of it, as the batch is the same each time."""
    indexed = project.has("train")
    batch = project.batch_of("train", next(_keys(project))) if indexed else project.batch()
    while True:
        project.step(batch)
        yield


def _evaluations(project: Project) -> Iterator[None]:
    batch = project.batch("val", project.data.batch_size)
    while True:
        project.forward(batch, training=False, grad=False)
        yield


def _fetches(project: Project, n_workers: int) -> Iterator[None]:
    """Fetches whole batches as the run's loader does, with another number of workers."""
    loader = project.loaders["train"]
    keys = _keys(project)
    many = DataLoader(
        project.dataset("train"),
        batch_sampler=[next(keys) for _ in range(_N + 1)],
        num_workers=n_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
    )
    for _ in many:
        yield


def _checkpoint_mib(project: Project) -> float:
    """Weights, buffers and the state of the optimisers after a step."""
    held = [project.module.state_dict(), *(each.state_dict() for each in project.optimisers)]
    sizes = [t.numel() * t.element_size() for part in held for t in tensors_in(part).values()]
    return sum(sizes) / 2**20


def _memory_mib(project: Project) -> float:
    device = project.module.device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _free_mib(folder: Path) -> float:
    """Free space where the folder is, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**20


def _inexact(project: Project, before: dict[str, list[str]]) -> list[str]:
    """Reasons that are known without a restart; `verify` trains and compares."""
    loader, module = project.loaders["train"], project.module
    reasons: list[str] = []
    if not isinstance(loader, SessionLoader) and not hasattr(loader, "load_state_dict"):
        reasons.append("the training loader can't say where it stopped: see docs/loaders.md")
    after = own_state(module, project.data)
    changed = [
        name
        for name, value in after.items()
        if before.get(name, value) != value and "_metrics." not in name
    ]
    if changed:
        reasons.append(f"no checkpoint holds {', '.join(changed[:3])}, which training changes")
    if module.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        reasons.append("kernels need not be deterministic: `--trainer.deterministic true`")
    return reasons
