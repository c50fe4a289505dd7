"""RunState: one writer a field, and no callback that holds another."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import ROOT
from lightning.pytorch.callbacks import Callback

from lightning_trainer.run.state import Best, LossSum, Progress, RunState
from lightning_trainer.session.folder import Session
from lightning_trainer.start.callbacks import all_callbacks

LIBRARY = ROOT / "lightning_trainer"


def writers() -> dict[str, set[str]]:
    """By field, the files that assign to it as `run.FIELD` or `self.run.FIELD`."""
    found: dict[str, set[str]] = {}
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets += [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []
            for target in targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(part, ast.Attribute) and re.fullmatch(
                        r"(self\.)?run", ast.unparse(part.value)
                    ):
                        found.setdefault(part.attr, set()).add(path.stem)
    return found


def named_writers() -> dict[str, str]:
    """By field, the writer that the comment above its group names."""
    source = inspect.getsource(RunState)
    named, writer = {}, ""
    for line in source.splitlines():
        if comment := re.match(r"    # (\S+?)[,.]?( |$)", line):
            writer = comment[1]
        elif field := re.match(r"    (\w+): ", line):
            named[field[1]] = writer
    return {name: named[name] for name in (f.name for f in fields(RunState))}


def file_of(writer: str) -> str:
    """The file of a callback's class, or the file itself."""
    if writer.endswith(".py"):
        return Path(writer).stem
    [path] = [p for p in LIBRARY.rglob("*.py") if f"class {writer}(" in p.read_text()]
    return path.stem


def test_each_field_is_written_by_the_one_that_is_named_beside_it():
    named, found = named_writers(), writers()
    assert found.keys() <= named.keys()
    for field, files in found.items():
        assert files == {file_of(named[field])}, field
    written = found.keys() | {"losses", "named_losses", "writer"}  # these change within
    given = {name for name, writer in named.items() if writer == "start/trainer.py"}
    assert named.keys() - given == written


def test_every_built_in_callback_takes_the_run_alone_and_holds_no_other():
    run = RunState(Session())
    callbacks = all_callbacks(run)
    assert len(callbacks) == len({type(callback) for callback in callbacks})
    for callback in callbacks:
        assert [*inspect.signature(type(callback)).parameters] == ["run"], callback
        assert vars(callback)["run"] is run
        assert not any(isinstance(value, Callback) for value in vars(callback).values())


def test_the_callbacks_of_a_project_come_before_those_that_stop_and_save():
    added = [Callback()]
    names = [type(c).__name__ for c in all_callbacks(RunState(Session()), added)]
    assert names.index("SaveEnd") < names.index("Callback") < names.index("StopOnSignal")
    assert names[-1] == "SaveCheckpoints"


def test_without_checkpoints_no_callback_saves():
    names = {type(c).__name__ for c in all_callbacks(RunState(Session(), saves=False))}
    assert not names & {"SaveCheckpoints", "SaveEnd"}


def test_the_run_of_a_trainer_is_found_by_it():
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(TypeError, match="`Callback` needs a run of the command line"):
        RunState.of(trainer, Callback())
    run = RunState(Session())
    run.attach(trainer)
    assert RunState.of(trainer, Callback()) is run


def test_the_best_score_whose_weights_could_not_be_kept_is_not_the_best():
    run = RunState(Session())
    first, second = (Best("val/accuracy", "max", 0.1 * i, i) for i in (1, 2))
    run.newest_best = first
    assert run.best == first
    run.best_before, run.newest_best, run.unsaved_best = first, second, 2
    assert run.best == first
    run.unsaved_best = 1
    assert run.best == second


def test_losses_count_since_the_newest_line_or_since_training_went_back():
    run = RunState(Session())
    assert run.window_start == 0
    run.line = Progress(4, 10, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert run.window_start == 4
    run.skipped_at = 6
    assert run.window_start == 6


def test_a_sum_that_is_out_of_date_counts_as_empty_and_begins_anew():
    losses = LossSum()
    losses.restore(3.0, 2)
    losses.add(torch.tensor(2.0), 3, since=0)
    assert losses.total(0) == (9.0, 3)
    assert losses.mean(0) == 3.0
    assert losses.total(4) == (0.0, 0)
    assert losses.mean(4) == 0.0
    losses.add(torch.tensor(5.0), 1, since=4)
    assert losses.total(4) == (5.0, 1)
