"""Writes one checkpoint under one name or several, at once or while training goes on."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import lightning.pytorch as pl

from lightning_trainer.checkpoints.files import (
    AtomicCheckpointIO,
    give_second_name,
    publish,
    remove_unused,
    unused_name,
)
from lightning_trainer.run.device import settle
from lightning_trainer.run.state import RunState, Writing


def goes_on_meanwhile(trainer: pl.Trainer) -> bool:
    """Whether training goes on while a checkpoint is written.

    That needs a copy of the weights on the host. Weights on the CPU would be there twice, and so
    would those of an Apple GPU, which has no memory of its own.
    """
    return trainer.strategy.root_device.type not in ("cpu", "mps")


def begin(trainer: pl.Trainer, run: RunState) -> None:
    """Notes the iteration of last.ckpt at the start, and removes the remains of a killed write."""
    run.saved_iteration = trainer.global_step
    folder = run.session.last_checkpoint.parent
    if trainer.is_global_zero and folder.exists():
        remove_unused(folder)


def write(trainer: pl.Trainer, run: RunState, *names: Path) -> bool:
    """Writes a checkpoint under each name; returns False if that has failed already.

    All processes meet here. Only the first one writes, in a thread; Lightning writes a sharded
    checkpoint at once, on all.
    """
    settle(trainer, run)
    finish(trainer, run)
    started_s = perf_counter()
    meanwhile = goes_on_meanwhile(trainer)
    io = trainer.strategy.checkpoint_io
    own = isinstance(io, AtomicCheckpointIO)
    part = trainer.strategy.broadcast(unused_name(names[0]))
    with io.put_off(meanwhile) if own else contextlib.nullcontext([]) as writes:  # type: ignore[attr-defined]
        trainer.save_checkpoint(part)
    steps = [(names[0], step) for step in (*writes, partial(publish, part, names[0]))]
    steps += [(name, partial(give_second_name, names[0], name)) for name in names[1:]]
    result = run.writer.submit(_take, steps if trainer.is_global_zero else [])
    run.writing = Writing(names, trainer.global_step, result)
    written = meanwhile or finish(trainer, run)
    run.times.recent_checkpoint_s = perf_counter() - started_s
    run.times.checkpoints_s += run.times.recent_checkpoint_s
    return written


def finish(trainer: pl.Trainer, run: RunState) -> bool:
    """Waits for a checkpoint that is being written; returns everywhere whether it succeeded."""
    if run.writing is None:
        return True
    writing, run.writing = run.writing, None
    results = run.processes.gather(writing.result.result())
    failed, reason = next(filter(None, results), (None, ""))
    if failed:
        run.save_failure = f"{failed} can't be written: {reason}"
        if trainer.is_global_zero:
            print(
                f"error: {run.save_failure}. Training goes on and tries again later; last.ckpt is "
                f"still that of iteration {run.saved_iteration}",
                file=sys.stderr,
                flush=True,
            )
        if failed == run.session.best_checkpoint:
            run.unsaved_best = writing.iteration
    elif run.session.last_checkpoint in writing.names:
        run.save_failure = ""
        run.saved_iteration = writing.iteration
    return not failed


def raise_failure(run: RunState) -> None:
    """Raises an OSError if the newest last.ckpt could not be written."""
    if run.save_failure:
        raise OSError(
            f"{run.save_failure}. Make room or give another `output_path`; what is saved is that "
            f"of iteration {run.saved_iteration}"
        )


def _take(steps: Sequence[tuple[Path, Callable[[], None]]]) -> tuple[Path, str] | None:
    """Takes the steps; returns the file of the first that fails, and the reason."""
    for path, step in steps:
        try:
            step()
        except OSError as ex:
            return path, ex.strerror or str(ex)
    return None
