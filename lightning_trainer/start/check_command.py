"""Finds silent mistakes: python cli.py check --config configs/digits.yaml."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_trainer.base.hook_checks import require_begun
from lightning_trainer.check.inspection import Inspected, Inspection, quieten
from lightning_trainer.check.limits import kept_generators
from lightning_trainer.check.loaded import watched_loads
from lightning_trainer.check.project import Load
from lightning_trainer.check.telling import format_json, format_text
from lightning_trainer.checkpoints.beginning import BeginModel
from lightning_trainer.commands.options import CommandLine, CommandParser
from lightning_trainer.internals_of_hooks import without_profiler
from lightning_trainer.start.cli import SessionCLI, run_trainer

_DESCRIPTION = """\
Says which well-known silent mistakes a project has, before it trains: for each its evidence, the
likely cause and the remedy. A CERTAIN one is a fact of the graph, the data or the settings; a HINT
may be meant. Takes the options of `fit`, makes the objects as `fit` does, and stops before the
first iteration. Writes no file, makes no session, runs no callback of the project, reads no test
data. Exit code: 0 without a certain mistake, 1 with one, 2 if the command line is wrong.
"""

# Settings of the trainer that would write, or call what is not to be checked.
_LEFT_OUT = {
    "callbacks": None,
    "logger": False,
    "profiler": None,
    "fast_dev_run": False,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class CheckCLI(SessionCLI):
    """Makes the objects of `fit`, without a session."""

    loads: list[Load]

    def before_instantiate_classes(self) -> None:
        """Leaves out what a check must not run, and takes one device."""
        config = self.config.fit
        if config.matmul_precision:
            torch.set_float32_matmul_precision(config.matmul_precision)
        self.notes = _take_one_device(config.trainer)
        self._callback_classes = _classes_of(config.trainer.callbacks)
        if config.trainer.callbacks:
            self.notes.append("the callbacks of the config were left out")
        arguments = config.model.get("init_args") or {}
        if arguments.get("compile"):
            arguments["compile"] = False
            self.notes.append("checked without `model.compile`")
        for name, value in _LEFT_OUT.items():
            config.trainer[name] = value

    def instantiate_classes(self) -> None:
        """Without a search of tuner callbacks; weights may be loaded in `__init__`."""
        self.loads = self._stack.enter_context(watched_loads())
        super(SessionCLI, self).instantiate_classes()
        require_begun(self.model, self.datamodule)
        quieten(self.model)

    def _beginning(self) -> BeginModel:
        """Makes the model as in `fit`, with the weights of `--init_from`."""
        state: Any = SimpleNamespace(settings={"init_from": self.config.fit.init_from})
        begin = BeginModel(state)
        begin.tells = False
        return begin

    def _inspection(self) -> Inspection:
        return Inspection(
            self.loads,
            self.notes,
            left_out=self._callback_classes,
            output_path=self.config.fit.output_path,
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        own = {
            "logger": [DummyLogger()],
            "callbacks": [self._beginning(), self._inspection()],
            "profiler": without_profiler(),
        }
        return LightningCLI.instantiate_trainer(self, **own, **kwargs)


def _classes_of(callbacks: Any) -> list[type]:
    settings = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    return [resolve_name(setting.class_path) for setting in settings]


def _take_one_device(trainer: Any) -> list[str]:
    """Changes the settings to one process; returns what to say of it."""
    devices, several = trainer.devices, str(trainer.devices) not in ("auto", "1", "-1")
    trainer.devices = [devices[0]] if isinstance(devices, list) and devices else 1
    several |= trainer.num_nodes > 1 or trainer.strategy != "auto"
    trainer.num_nodes, trainer.strategy = 1, "auto"
    return ["checked in one process, on one device"] if several else []


def check(argv: list[str]) -> int:
    """Runs the command with options of `fit`; returns its exit code."""
    if "--format=json" not in argv and ("--format", "json") not in pairwise(argv):
        return _check(argv)
    errors = _Heard(sys.stderr)
    try:
        with contextlib.redirect_stderr(errors):
            return _check(argv)
    except SystemExit as ex:
        if ex.code:
            print(json.dumps({"error": errors.text.strip(), "exit_code": ex.code}), flush=True)
        raise


class _Heard:
    """Another stream, and the text that is written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.text = stream, ""

    def write(self, text: str) -> int:
        self.text += text
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _check(argv: list[str]) -> int:
    parser = CommandParser(
        "check",
        usage="%(prog)s --config FILE [--format {text,json}] [--OPTION VALUE ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    own, options = parser.parse_known_args(argv)
    if CommandLine.read(options).ckpt_path:
        parser.error("`check` takes no `--ckpt_path`: it looks at a training from its start")
    if not options:
        parser.error("`check` needs to know the project: give `--config FILE`")
    is_json = own.format == "json"
    try:
        with _given_back(), contextlib.ExitStack() as stack:
            if is_json:  # what a project prints is no part of the object
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            run_trainer(["fit", *options], CheckCLI)
    except Inspected as ended:
        report = ended.report
        print(format_json(report) if is_json else format_text(report, ended.module), flush=True)
        return 1 if report.certain else 0
    sys.stderr.write("error: the run has ended before its first epoch: nothing was checked\n")
    sys.exit(1)


@contextlib.contextmanager
def _given_back() -> Iterator[None]:
    """Gives back random streams, and the variables that Lightning sets for a run."""
    variables = dict(os.environ)
    try:
        with kept_generators():
            yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
