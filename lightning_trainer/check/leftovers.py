"""Settings that leave a run without validation, or with a part of its data."""

import math
from collections.abc import Iterator
from typing import Any

from lightning_trainer.check.findings import Finding, hint
from lightning_trainer.check.project import Project

_FEW = 10  # batches


def first_validation(project: Project) -> float:
    """The iteration of the first validation; infinite if there is none."""
    trainer = project.trainer
    if not trainer.limit_val_batches or not trainer.val_check_batch:
        return math.inf
    batches, every = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if every is not None:
        per_epoch = trainer.num_training_batches
        batches = min(batches, per_epoch) + (every - 1) * per_epoch
    return batches / trainer.accumulate_grad_batches


def n_iterations(project: Project) -> float:
    """Iterations of the whole run; infinite if it has no end."""
    n = project.once("n_iterations", lambda: project.trainer.estimated_stepping_batches)
    return math.inf if n in (-1, None) else float(n)


def find_leftovers(project: Project) -> Iterator[Finding]:
    """Compares the settings of the trainer with the length of the run and of the data."""
    trainer: Any = project.trainer
    first, last = first_validation(project), n_iterations(project)
    if last < first < math.inf:
        yield hint(
            "validated_once",
            f"the first validation would be at iteration {first:.0f}, the run ends at {last:.0f}",
            "the interval is that of a longer run: best.ckpt will be the last state, whatever came "
            "before",
            "lower `trainer.val_check_interval`",
        )
    limits = ("limit_train_batches", "limit_val_batches", "overfit_batches")
    for name in () if trainer.fast_dev_run else limits:
        limit = getattr(trainer, name)
        is_all = limit is None or (limit == 1 and isinstance(limit, float))  # 1 is one batch
        if is_all or not limit or (name == "limit_val_batches" and trainer.overfit_batches):
            continue
        mode = "val" if "val" in name else "train"
        whole = math.ceil(project.size(mode) / max(1, getattr(project.data, "batch_size", 1)))
        used = limit if isinstance(limit, int) else int(limit * whole)
        # More are a part of the data that is meant, e.g. to validate sooner.
        if name == "overfit_batches" or used < min(whole, _FEW):
            yield hint(
                "limited",
                f"`trainer.{name}` is {limit}: {used} of {whole} batches of {mode}_dataset",
                "a setting for debugging was left on",
                f"remove `trainer.{name}`, or keep it where a part of the data is meant",
            )
