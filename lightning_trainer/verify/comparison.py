"""Compares two sessions bitwise and finds their first difference.

Assumes that `RecordTrail` recorded both.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_trainer.session.checkpoint_header import KEY, layer_state
from lightning_trainer.session.metrics_csv import MetricsReader
from lightning_trainer.verify.trail import digest, leaves

Line = dict[str, Any]  # a line of a trail, see `RecordTrail`
_COMPARED = ("batch", "validated")  # events of a trail

# The parts of a checkpoint that a restart must reproduce. The rest are settings and times.
_OF_CHECKPOINT = (
    "state_dict.",
    "current_model_state.",  # the trained weights, where `state_dict` is their average
    "averaging_state.",
    "optimizer_states.",
    "lr_schedulers.",
    "MixedPrecision.",  # the scale of the loss, with `--trainer.precision 16-mixed`
    "global_step",
    f"{KEY}.best.",
    "loops.fit_loop.state_dict.combined_loader.",  # the position in the samples
)


@dataclass
class Difference:
    """The first line of a trail that differs from the reference's."""

    rank: int  # the process
    n_restarts: int  # number of restarts before it
    iteration: int  # the line's iteration
    found: dict[str, str]  # descriptions of "samples", "loss", "weights", "scores" or "order"


@dataclass
class Comparison:
    """The differences between a session and the reference."""

    first: Difference | None  # the first difference of the trails, if any
    compared: dict[str, list[str]]  # by file, the names of the compared values
    differing: dict[str, list[str]]  # by file, the names of the differing values

    @property
    def equal(self) -> bool:
        return self.first is None and not any(self.differing.values())


def compare_bitwise(reference: Path, session: Path) -> Comparison:
    """Compares a session folder with the reference's."""
    found: list[Difference] = []
    for name in {p.name for folder in (reference, session) for p in folder.glob("trail_rank*")}:
        trails = read_trail(reference / name), read_trail(session / name)
        rank = int(name.removeprefix("trail_rank").removesuffix(".jsonl"))
        found += filter(None, [first_difference(*trails, rank)])
    first = min(found, key=lambda d: (d.n_restarts, d.iteration, d.rank), default=None)
    compared, differing = {}, {}
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"):
        read = read_metrics if name == "metrics.csv" else read_checkpoint
        expected, got = read(reference / name), read(session / name)
        compared[name] = [*{**expected, **got}]
        differing[name] = _names(expected, got)
    return Comparison(first, compared, differing)


def parse_trail(text: str) -> list[Line]:
    """The lines of a trail, without those that a kill has cut off."""
    lines = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def read_trail(path: Path) -> list[Line]:
    """All lines of a file; empty if there is no file."""
    return parse_trail(path.read_text()) if path.exists() else []


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
    """By name, a digest of each value that a restart must reproduce; empty without a file."""
    file = path / "meta.pt" if path.is_dir() else path
    if not file.exists():
        return {}
    checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    values = leaves({**checkpoint, KEY: layer_state(checkpoint)})
    return {name: digest(value) for name, value in values if name.startswith(_OF_CHECKPOINT)}


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
        found["samples"] = _differing_samples(expected["samples"], got["samples"])
    if expected["loss"] != got["loss"]:
        found["loss"] = f"loss: {_number(got, 'loss')}, not {_number(expected, 'loss')}"
    if names := _names(expected["weights"], got["weights"]):
        n = len(expected["weights"])
        found["weights"] = f"weights: {len(names)} of {n} tensors ({shorten(names)})"
    return found


def _names(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    return [name for name in {**expected, **got} if expected.get(name) != got.get(name)]


def _number(values: Mapping[str, Any], name: str) -> str:
    text = values.get(name)
    return "none" if text is None else repr(float.fromhex(text))


def _differing_samples(expected: list[str], got: list[str]) -> str:
    if len(expected) != len(got):
        return f"samples: a batch of {len(got)}, not {len(expected)}"
    if sorted(expected) == sorted(got):
        return f"samples: the same {len(got)} in another order"
    pairs = zip(expected, got, strict=True)
    numbers = [str(i) for i, (one, other) in enumerate(pairs) if one != other]
    if len(numbers) == len(got):
        return f"samples: all {len(got)} of the batch"
    return f"samples: {len(numbers)} of the batch's {len(got)}, from 0: {shorten(numbers, 5)}"
