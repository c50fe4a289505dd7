"""Runs the checks at the moment when `fit` would begin to train."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_trainer.check.catalogue import CHECKS
from lightning_trainer.check.checking import Check, run_checks
from lightning_trainer.check.findings import CheckReport
from lightning_trainer.check.limits import kept_generators
from lightning_trainer.check.loaded import watched_loads
from lightning_trainer.check.needs import needs_of_run
from lightning_trainer.check.project import Load, Project


class Inspected(SystemExit):
    """Ends `fit` before its first batch, with what was found. No part of Lightning stops it."""

    def __init__(self, report: CheckReport, module: str) -> None:
        super().__init__(1 if report.certain else 0)
        self.report, self.module = report, module  # and the name of the module's class


class Inspection(Callback):
    """Runs the checks once model, data and optimiser are as in a run, and raises `Inspected`."""

    def __init__(
        self,
        loads: Sequence[Load],
        notes: Sequence[str] = (),
        checks: Mapping[str, Check] | None = None,
        left_out: Sequence[type] = (),
        output_path: str | None = None,
    ) -> None:
        self._loads, self._notes, self._left_out = loads, notes, left_out
        self._output_path = output_path  # None: what a run needs is not measured
        self._checks = CHECKS if checks is None else checks

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        val = data.val_dataloader() if trainer.limit_val_batches else None
        project = Project(trainer, pl_module, self._loads, val, self._left_out)
        report = run_checks(project, self._checks)
        if self._output_path is not None:
            _measure(project, report, self._output_path)
        report.notes += self._notes
        raise Inspected(report, type(pl_module).__name__)


def _measure(project: Project, report: CheckReport, output_path: str) -> None:
    """Adds what a run needs; a project that can't be trained here gets a note instead."""
    try:
        with warnings.catch_warnings(), kept_generators():
            warnings.simplefilter("ignore")  # of more workers than cores
            report.needs = needs_of_run(project, output_path)
    except Exception as ex:
        report.notes.append(f"what a run needs could not be measured: {type(ex).__name__}: {ex}")


def quieten(module: Any) -> Any:
    """Leaves out the module's own callbacks, and what it would log; returns the module."""
    module.configure_callbacks = list
    module.log = module.log_dict = _ignore
    return module


def inspect(
    trainer: pl.Trainer,
    module: Any,
    data: Any,
    checks: Mapping[str, Check] | None = None,
    left_out: Sequence[type] = (),
) -> CheckReport:
    """What the checks find in a module and its data, which should not be used afterwards.

    `trainer` is one without checkpoints, and with `num_sanity_val_steps=0`; `left_out` are the
    classes of callbacks that the run has and the trainer does not.
    """
    with watched_loads() as loads:
        trainer.callbacks.append(Inspection(loads, checks=checks, left_out=left_out))  # type: ignore[attr-defined]
        try:
            trainer.fit(quieten(module), datamodule=data)
        except Inspected as ended:
            return ended.report
    raise RuntimeError("the run has ended before its first epoch: there is nothing to check")


def _ignore(*args: Any, **kwargs: Any) -> None:
    return None
