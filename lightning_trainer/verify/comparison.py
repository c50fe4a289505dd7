"""Compares two sessions bitwise and finds their first difference.

Assumes that `RecordTrail` recorded both.
"""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_trainer.session.checkpoint_header import KEY, layer_state
from lightning_trainer.session.metrics_csv import MetricsReader
from lightning_trainer.verify.digests import digest, leaves
from lightning_trainer.verify.own import is_generator

Line = dict[str, Any]  # a line of a trail, see `RecordTrail`
_COMPARED = ("batch", "validated")  # events of a trail

_LOOP = "loops.fit_loop.epoch_loop"
# What a restart need not reproduce in a checkpoint. All else is compared.
_LEFT_OUT = (
    f"{KEY}.settings.",  # they say where the sessions lie
    f"{KEY}.times.",
    "callbacks.Timer.",  # a time, too
    # Lightning's counts of validations that were run again, and of a batch that a checkpoint before
    # or in a validation does not count yet. A restart sets the latter anew.
    f"{_LOOP}.val_loop.",
    f"{_LOOP}.batch_progress.total.completed",
    f"{_LOOP}.batch_progress.current.completed",
    f"{_LOOP}.state_dict._batches_that_stepped",
)


@dataclass
class Difference:
    """The first line of a trail that differs from the reference's."""

    rank: int  # the process
    n_restarts: int  # number of restarts before it
    iteration: int  # the line's iteration
    # Descriptions of "order", "samples" or "draws" (of equal samples), "before", "loss", "weights",
    # "scores", and last of "own".
    found: dict[str, str]


@dataclass
class Comparison:
    """The differences between a session and the reference."""

    first: Difference | None  # the first difference of the trails, if any
    compared: dict[str, list[str]]  # by file, the names of the compared values
    differing: dict[str, list[str]]  # by file, the names of the differing values
    own: str = ""  # what differs at the end of what no checkpoint holds

    @property
    def equal(self) -> bool:
        return self.first is None and not any(self.differing.values())


def compare_bitwise(reference: Path, session: Path) -> Comparison:
    """Compares a session folder with the reference's."""
    found: list[Difference] = []
    own = ""
    for name in {p.name for folder in (reference, session) for p in folder.glob("trail_rank*")}:
        trails = read_trail(reference / name), read_trail(session / name)
        rank = int(name.removeprefix("trail_rank").removesuffix(".jsonl"))
        found += filter(None, [first_difference(*trails, rank)])
        own = own or _differing_own(*(_newest(trail).get("own", {}) for trail in trails))
    first = min(found, key=lambda d: (d.n_restarts, d.iteration, d.rank), default=None)
    compared, differing = {}, {}
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"):
        read = read_metrics if name == "metrics.csv" else read_checkpoint
        expected, got = read(reference / name), read(session / name)
        compared[name] = [*{**expected, **got}]
        differing[name] = _names(expected, got)
    return Comparison(first, compared, differing, own)


def parse_trail(text: str) -> list[Line]:
    """The lines of a trail, without those that a kill has cut off."""
    lines = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def read_trail(path: Path) -> list[Line]:
    """All lines of a file; empty if there is no file."""
    return parse_trail(path.read_text(encoding="utf-8")) if path.exists() else []


def first_difference(expected: list[Line], got: list[Line], rank: int = 0) -> Difference | None:
    """The first line of `got` that differs from its line of `expected`, or else a missing line.

    A restart repeats iterations after the checkpoint. All repetitions are compared.
    """
    reference = {_key(line): line for line in expected if line["event"] in _COMPARED}
    n_starts = 0
    for line in got:
        n_starts += line["event"] == "start"
        if line["event"] in _COMPARED and (found := _differing(reference.get(_key(line)), line)):
            return Difference(rank, max(n_starts - 1, 0), line["iteration"], found)
    done = {_key(line) for line in got}
    for key, line in reference.items():
        if key not in done:
            found = {"order": f"{_name(line)} was left out"}
            return Difference(rank, max(n_starts - 1, 0), line["iteration"], found)
    return None


def read_checkpoint(path: Path) -> dict[str, str]:
    """By name, a digest of each value that a restart must reproduce; empty without a file.

    Paths into the session folder count from there.
    """
    file = path / "meta.pt" if path.is_dir() else path
    if not file.exists():
        return {}
    checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    folder = str(path.parent.parent)

    def relative(value: Any) -> Any:
        return value.replace(folder, "") if isinstance(value, str) else value

    values = leaves({**checkpoint, KEY: layer_state(checkpoint)})
    return {
        relative(name): digest(relative(value))
        for name, value in values
        if not name.startswith(_LEFT_OUT)
    }


def read_metrics(path: Path) -> dict[str, str]:
    """By names like "step 8: val/loss", the numbers of a metrics.csv, without timings."""
    return {
        f"step {row['step']}: {name}": value
        for row in MetricsReader(path).rows()
        for name, value in row.items()
        if value and name != "step" and not name.startswith("timing/")
    }


def read_printed(path: Path) -> set[int]:
    """The iterations of log lines: only their rows of a metrics.csv have timings."""
    return {
        int(row["step"])
        for row in MetricsReader(path).rows()
        if any(value for name, value in row.items() if name.startswith("timing/"))
    }


def shorten(names: list[str], n: int = 3) -> str:
    """The first n names, and the number of the others."""
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def _key(line: Line) -> tuple[Any, ...]:
    return line["event"], line["iteration"], line.get("batch")


def _name(line: Line) -> str:
    return "the validation" if line["event"] == "validated" else f"batch {line['batch']}"


def _differing(expected: Line | None, got: Line) -> dict[str, str]:
    if expected is None:
        return {"order": f"{_name(got)} is not in the uninterrupted run"}
    found: dict[str, str] = {}
    if got["event"] == "validated":
        names = _names(expected["scores"], got["scores"])
        values = [
            f"{n} {_number(got['scores'], n)}, not {_number(expected['scores'], n)}" for n in names
        ]
        return {"scores": f"scores: {shorten(values)}"} if names else {}
    if expected["samples"] != got["samples"]:
        found |= _differing_samples(expected["samples"], got["samples"])
    if expected.get("before") != got.get("before"):
        found["before"] = (
            "weights before the step: changed in a hook between two steps, such as "
            "`on_train_epoch_start` or `on_validation_end`, or lost"
        )
    if expected["loss"] != got["loss"]:
        found["loss"] = f"loss: {_number(got, 'loss')}, not {_number(expected, 'loss')}"
    if names := _names(expected["weights"], got["weights"]):
        n = len(expected["weights"])
        found["weights"] = f"weights: {len(names)} of {n} tensors ({shorten(names)})"
    own = _differing_own(
        expected.get("own", {}), got.get("own", {}), {"samples", "draws"} & {*found}
    )
    if found and own:
        found["own"] = f"in no checkpoint: {own}"
    return found


def _differing_own(
    expected: Mapping[str, Any], got: Mapping[str, Any], of_data: Collection[str] = ()
) -> str:
    """What differs, and generators of the data: with workers, their copies there are used."""
    names = _names(expected, got)
    if of_data:
        names += [n for n in got if n.startswith("data.") and is_generator(got[n][0])]
    values = {**expected, **got}
    return shorten([f"`{name}` ({values[name][0]})" for name in dict.fromkeys(names)])


def _newest(trail: list[Line]) -> Line:
    return next((line for line in reversed(trail) if line["event"] == "batch"), {})


def _names(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    return [name for name in {**expected, **got} if expected.get(name) != got.get(name)]


def _number(values: Mapping[str, Any], name: str) -> str:
    text = values.get(name)
    return "none" if text is None else repr(float.fromhex(text))


def _differing_samples(
    expected: Mapping[str, list[str]], got: Mapping[str, list[str]]
) -> dict[str, str]:
    if names := [*(expected.keys() ^ got.keys())]:
        return {"samples": f"samples: {shorten(names)} only in one of the two"}
    rows, others = ([*zip(*columns.values(), strict=True)] for columns in (expected, got))
    if len(rows) != len(others):
        return {"samples": f"samples: a batch of {len(others)}, not {len(rows)}"}
    if sorted(rows) == sorted(others):
        return {"samples": f"samples: the same {len(rows)} in another order"}
    numbers = [str(i) for i, (a, b) in enumerate(zip(rows, others, strict=True)) if a != b]
    which = f"{len(numbers)} of the batch's {len(rows)}, from 0: {shorten(numbers, 5)}"
    if len(numbers) == len(rows):
        which = f"all {len(rows)} of the batch"
    columns = [name for name in expected if expected[name] != got[name]]
    if len(columns) == len(expected):
        return {"samples": f"samples: {which}"}
    return {"draws": f"samples: `{shorten(columns)}` of {which}"}
