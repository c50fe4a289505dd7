"""Writes one checkpoint under one name or several, at once or while training goes on."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import lightning.pytorch as pl

from lightning_trainer.checkpoints.files import AtomicCheckpointIO
from lightning_trainer.checkpoints.names import (
    give_second_name,
    publish,
    remove_unused,
    replace,
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
        settle_best(run)
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
    if names[0].name == run.session.best_checkpoint.name:
        run.unsaved_best = None
    part, fault = trainer.strategy.broadcast(_prepare(trainer, run, names[-1]))
    steps: list[tuple[Path, Callable[[], object]]] = [(names[0], partial(_refuse, fault))]
    kept: list[tuple[Path, str]] = []
    if not fault:
        with io.put_off(meanwhile) if own else contextlib.nullcontext([]) as writes:  # type: ignore[attr-defined]
            trainer.save_checkpoint(part)
        name_it = partial(_give_name, run, part, names[0], kept)
        steps = [(names[0], step) for step in (*writes, name_it)]
        steps += [(name, partial(_give_second, run, names[0], kept, name)) for name in names[1:]]
    result = run.writer.submit(_take, steps if trainer.is_global_zero else [], kept)
    run.writing = Writing(names, trainer.global_step, result)
    written = meanwhile or finish(trainer, run)
    run.times.recent_checkpoint_s = perf_counter() - started_s
    run.times.checkpoints_s += run.times.recent_checkpoint_s
    return written


def _prepare(trainer: pl.Trainer, run: RunState, name: Path) -> tuple[Path, str]:
    """A path to write to at first, and why nothing can be written; the first process decides."""
    if trainer.is_global_zero:
        try:
            run.session.restore()
            name.parent.mkdir(exist_ok=True)
            settle_best(run)
            return unused_name(name), ""
        except OSError as ex:
            return name, ex.strerror or str(ex)
    return name, ""


def settle_best(run: RunState) -> None:
    """Gives the weights of the best score the name that they could not get before, if it can."""
    spare, best = run.session.spare_checkpoint, run.session.best_checkpoint
    if spare.exists():
        with contextlib.suppress(OSError):
            replace(spare, best)


def _give_name(run: RunState, part: Path, name: Path, kept: list[tuple[Path, str]]) -> None:
    """Gives a whole checkpoint its name; where best.ckpt can't be replaced now, another one.

    `kept` gets best.ckpt and the reason then.
    """
    spare, is_best = run.session.spare_checkpoint, name.name == run.session.best_checkpoint.name
    try:
        publish(part, name)
    except OSError as ex:
        if not is_best:
            raise
        publish(part, spare)
        kept.append((name, ex.strerror or str(ex)))
        return
    if is_best:
        with contextlib.suppress(OSError):
            spare.unlink()


def _give_second(run: RunState, first: Path, kept: Sequence[object], name: Path) -> None:
    give_second_name(run.session.spare_checkpoint if kept else first, name)


def finish(trainer: pl.Trainer, run: RunState) -> bool:
    """Waits for a checkpoint that is being written; returns everywhere whether it succeeded."""
    if run.writing is None:
        return True
    writing, run.writing = run.writing, None
    results = run.processes.gather(writing.result.result())
    failed, kept, reason = next(filter(None, results), (None, False, ""))
    is_best = failed is not None and failed.name == run.session.best_checkpoint.name
    if is_best:
        run.best_failure = f"{failed} can't be written: {reason}"
    if failed and not kept:
        run.save_failure = f"{failed} can't be written: {reason}"
        run.unsaved_best = writing.iteration if is_best else run.unsaved_best
        if run.session.is_deleted:
            raise_failure(run)
    elif run.session.last_checkpoint.name in [name.name for name in writing.names]:
        run.save_failure = ""
        run.saved_iteration = writing.iteration
    if trainer.is_global_zero and failed:
        _warn(run, f"{failed} can't be written: {reason}", kept)
    if not failed and writing.names[0].name == run.session.best_checkpoint.name:
        run.best_failure = ""
    return kept or not failed


def _warn(run: RunState, failure: str, kept: bool) -> None:
    still = f"last.ckpt is still that of iteration {run.saved_iteration}"
    still = f"its weights are in {run.session.spare_checkpoint.name}" if kept else still
    again = "Training goes on and tries again later"
    print(f"error: {failure}. {again}; {still}", file=sys.stderr, flush=True)


def raise_failure(run: RunState) -> None:
    """Raises an OSError if the newest last.ckpt, or the best one, could not be written."""
    if run.save_failure and run.session.is_deleted:
        raise OSError(f"{run.save_failure}: the run ends, because nothing can be saved")
    if run.save_failure:
        raise OSError(
            f"{run.save_failure}. Make room or give another `output_path`; what is saved is that "
            f"of iteration {run.saved_iteration}"
        )
    if run.best_failure and run.session.spare_checkpoint.exists():
        raise OSError(
            f"{run.best_failure}. Its weights are in {run.session.spare_checkpoint}: give it the "
            "name best.ckpt"
        )
    if run.best_failure and run.best is not run.newest_best:
        raise OSError(f"{run.best_failure}. The weights of the best score are not kept")


def _refuse(reason: str) -> None:
    raise OSError(reason)


def _take(
    steps: Sequence[tuple[Path, Callable[[], object]]], kept: Sequence[tuple[Path, str]]
) -> tuple[Path, bool, str] | None:
    """Takes the steps.

    Returns:
        The file of the first that fails, whether it has another name instead (then it is in
        `kept`), and the reason.
    """
    for path, step in steps:
        try:
            step()
        except OSError as ex:
            return path, False, ex.strerror or str(ex)
    return (kept[0][0], True, kept[0][1]) if kept else None
