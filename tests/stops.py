"""Runs of random kinds that are stopped at random places, compared bitwise.

As a script it is one of the processes of a case: python tests/stops.py CASE FOLDER
"""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import CONFIG
from pair import newest, run
from restarts import load, result, same
from stop_kinds import COUNTINGS, KINDS, PRECISIONS

from lightning_trainer.checkpoints.saving import SaveCheckpoints

_PLACES = {"batch": "on_train_batch_end", "validation": "on_validation_batch_end"}
# Lightning's BackboneFinetuning thaws parameters that DDP has not seen. What hooks draw is added to
# the weights, to others in each process. Workers take processes too.
_ON_ONE_ONLY = ("BackboneFinetuning", "draws in hooks")
_ON_FEW_ONLY = ("2 workers",)


@dataclass(frozen=True)
class Stop:
    """A place where a run is killed."""

    place: str  # "batch" or "validation"
    number: int  # of the batches, or of the batches of validations, since the process has started
    again: int = 0  # the batch of the run that goes on at which it is killed again; 0: it is not


@dataclass(frozen=True)
class Case:
    """A run, and where it is stopped."""

    kind: str
    counting: str
    precision: str
    n_processes: int
    saves_each: bool  # whether each iteration is saved, or validations only
    stops: tuple[Stop, ...]

    @property
    def flags(self) -> list[str]:
        return [
            *KINDS[self.kind],
            *PRECISIONS[self.precision],
            *COUNTINGS[self.counting],
            f"--data.n_samples={26 * self.n_processes}",  # the last batch has two for each process
            f"--trainer.devices={self.n_processes}",
            f"--save_minutes={0 if self.saves_each else 10}",
            "--seed_everything=1",
        ]

    @classmethod
    def read(cls, text: str) -> "Case":
        values = json.loads(text)
        return cls(**{**values, "stops": tuple(Stop(**stop) for stop in values["stops"])})

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def draw_case(
    generator: random.Random, n_stops: int, most_processes: int = 4, compiled: bool = True
) -> Case:
    kind, counting = generator.choice([*KINDS]), generator.choice([*COUNTINGS])
    most = 1 if kind in _ON_ONE_ONLY else 2 if kind in _ON_FEW_ONLY else most_processes
    n_processes = generator.randint(1, most)
    precisions = ["32-true", "bf16-mixed", "16-mixed", *(["compiled"] if compiled else [])]
    precision = generator.choices(precisions, [4, 2, 2, 1][: len(precisions)])[0]
    if precision == "compiled":  # its model is that of the tiny project
        kind = generator.choice(["tiny", "accumulation", "get_batch"])
    if (kind, precision) == ("two optimisers", "16-mixed"):
        precision = "bf16-mixed"  # a loss that the project scales itself
    stops = (
        Stop(
            generator.choice([*_PLACES]),
            generator.randint(1, 20),
            generator.choice([0, 0, generator.randint(1, 8)]),
        )
        for _ in range(n_stops)
    )
    saves_each = generator.random() < 0.8
    return Case(kind, counting, precision, n_processes, saves_each, tuple(dict.fromkeys(stops)))


def check_case(case: Case, folder: Path) -> Iterator[tuple[Stop, str]]:
    """For each stop "equal", "not reached", or what differs; all processes of the case call it.

    The first one copies and compares.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "tiny.yaml"
    config.write_text(CONFIG.format(output_path=folder / "experiments"))
    numbers = {stop: i for i, stop in enumerate(case.stops)}
    copies = {(s.place, s.number): folder / f"first_{s.place}_{s.number}" for s in numbers}
    _run(["fit", "--config", config, *case.flags], copies)
    expected = whole_result(newest(folder / "experiments")) if _is_first() else {}
    for stop, i in numbers.items():
        first, session = copies[stop.place, stop.number], folder / f"stopped_{i}"
        if not first.exists():
            yield stop, "not reached"
            continue
        _copy(first, session)
        if stop.again:
            twice = folder / f"again_{i}"
            _run(["fit", "--ckpt_path", session], {("batch", stop.again): twice})
            session = twice if twice.exists() else session
        if session.name.startswith("again") or not stop.again:
            _run(["fit", "--ckpt_path", session], {})
        got = whole_result(session) if _is_first() else {}
        different = [name for name in expected if not same(got.get(name), expected[name])]
        yield stop, f"different: {', '.join(different)}" if different else "equal"


def whole_result(session: Path) -> dict:
    """All of `result`, the scale of the loss, the callbacks' states and the layer's own."""
    last = load(session / "checkpoints/last.ckpt")
    layer = {k: v for k, v in last["lightning_trainer"].items() if k not in ("settings", "times")}
    parts = ("MixedPrecision", "callbacks", "epoch", "current_model_state", "averaging_state")
    return {**result(session), **{name: last.get(name) for name in parts}, "layer": layer}


def _run(args: list[object], copies: dict[tuple[str, int], Path]) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for place, hook in _PLACES.items():
            _copy_at(patch, hook, {n: copy for (p, n), copy in copies.items() if p == place})
        torch.compiler.reset()  # as in a new process
        printed = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(contextlib.redirect_stdout(printed))
        code = run(*args)
    assert code == 0, printed.getvalue()
    assert "Traceback" not in printed.getvalue(), printed.getvalue()


def _copy_at(patch: pytest.MonkeyPatch, hook: str, copies: dict[int, Path]) -> None:
    """Copies the session where a kill would leave it, after the n-th call of the hook."""
    original, calls = getattr(SaveCheckpoints, hook), [0]

    def copying(self, trainer, *args, **kwargs):
        original(self, trainer, *args, **kwargs)
        calls[0] += not trainer.sanity_checking
        if calls[0] in copies and not trainer.sanity_checking:
            _copy(self.run.session.path, copies[calls[0]])

    patch.setattr(SaveCheckpoints, hook, copying)


def _copy(session: Path, copy: Path) -> None:
    """The first process copies, the others wait for it."""
    if _is_first() and not copy.exists():
        part = copy.with_name(f"{copy.name}.part")
        shutil.copytree(session, part, symlinks=True)
        part.rename(copy)
    while not copy.exists():
        time.sleep(0.01)


def _is_first() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def only(case: Case, stop: Stop) -> Case:
    """The same case with one of its stops, to look at a failure."""
    return replace(case, stops=(stop,))


if __name__ == "__main__":
    from lightning_trainer.report.curves import DrawCurves

    DrawCurves._draw = lambda self: None
    for stop, told in check_case(Case.read(sys.argv[1]), Path(sys.argv[2])):
        print(f"RESULT {json.dumps([asdict(stop), told])}", flush=True)
