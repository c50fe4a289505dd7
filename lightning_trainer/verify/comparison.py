"""Whether two sessions are bitwise the same, and where they first part.

Assumes that both were recorded by `RecordTrail`.
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

Line = dict[str, Any]  # of a trail; `RecordTrail` says what it holds

# What of a checkpoint a restart must get right. The rest are settings, and times, which differ.
_OF_CHECKPOINT = (
    "state_dict.",
    "current_model_state.",  # what is trained, where `state_dict` is its average
    "averaging_state.",
    "optimizer_states.",
    "lr_schedulers.",
    "global_step",
    f"{KEY}.best.",
    "loops.fit_loop.state_dict.combined_loader.",  # the position in the samples
)


@dataclass
class Difference:
    """The first line of a trail that is not as in the reference's.

    Attributes:
        rank: The process.
        n_restarts: How often the run had gone on before; 0 if it differs before any restart.
        iteration: Where it differs.
        found: A description by what differs: "samples", "loss", "weights", "scores" or "order".
    """

    rank: int
    n_restarts: int
    iteration: int
    found: dict[str, str]


@dataclass
class Comparison:
    """What of a session is not as in the reference.

    Attributes:
        first: Where its trails first differ; None if nowhere.
        compared: By file, the names of what was compared in it.
        differing: By file, the names of what differs.
    """

    first: Difference | None
    compared: dict[str, list[str]]
    differing: dict[str, list[str]]

    @property
    def equal(self) -> bool:
        """Whether all is bitwise the same."""
        return self.first is None and not any(self.differing.values())


def compare_bitwise(reference: Path, session: Path) -> Comparison:
    """Compares a session folder with that of the reference."""
    found = []
    for name in {p.name for folder in (reference, session) for p in folder.glob("trail_rank*")}:
        trails = read_trail(reference / name), read_trail(session / name)
        difference = first_difference(*trails, rank=int(name[len("trail_rank") : -len(".jsonl")]))
        found += [difference] if difference else []
    first = min(found, key=lambda d: (d.n_restarts, d.iteration, d.rank), default=None)
    compared, differing = {}, {}
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"):
        read = read_metrics if name == "metrics.csv" else read_checkpoint
        expected, got = read(reference / name), read(session / name)
        names = list(dict.fromkeys([*expected, *got]))
        compared[name] = names
        differing[name] = [key for key in names if expected.get(key) != got.get(key)]
    return Comparison(first, compared, differing)


def parse_trail(text: str) -> list[Line]:
    """The lines of a trail; those that a kill has cut off are left out."""
    lines = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def read_trail(path: Path) -> list[Line]:
    """All lines of a file, oldest first; none if there is no file."""
    return parse_trail(path.read_text()) if path.exists() else []


def first_difference(expected: list[Line], got: list[Line], rank: int = 0) -> Difference | None:
    """The first line of `got` that the reference does not have like that, or lacks at the end.

    A restart repeats what no checkpoint holds, so an iteration may be there several times. Each
    time counts.
    """
    reference = {_key(line): line for line in expected}
    n_starts = 0
    for line in got:
        n_starts += line["event"] == "start"
        if line["event"] in ("batch", "validated"):
            found = _differing(reference.get(_key(line)), line)
            if found:
                return Difference(rank, max(n_starts - 1, 0), line["iteration"], found)
    done = {_key(line) for line in got}
    for line in expected:
        if line["event"] in ("batch", "validated") and _key(line) not in done:
            found = {"order": f"{_name(line)} was left out"}
            return Difference(rank, max(n_starts - 1, 0), line["iteration"], found)
    return None


def read_checkpoint(path: Path) -> dict[str, str]:
    """By name, a digest of each value that a restart must get right; nothing if it is missing."""
    file = path / "meta.pt" if path.is_dir() else path
    if not file.exists():
        return {}
    checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    values = leaves({**checkpoint, KEY: layer_state(checkpoint)})
    return {name: digest(value) for name, value in values if name.startswith(_OF_CHECKPOINT)}


def read_metrics(path: Path) -> dict[str, str]:
    """What metrics.csv holds, timings left out, as "step 8: val/loss"; nothing if it is missing."""
    return {
        f"step {row['step']}: {name}": value
        for row in MetricsReader(path).rows()
        for name, value in row.items()
        if value and name != "step" and not name.startswith("timing/")
    }


def read_printed(path: Path) -> set[int]:
    """The iterations of the log lines: they alone have timings in metrics.csv."""
    return {
        int(row["step"])
        for row in MetricsReader(path).rows()
        if any(value for name, value in row.items() if name.startswith("timing/"))
    }


def shorten(names: list[str], n: int = 3) -> str:
    """The first names, and how many more there are."""
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
    names = _names(expected["weights"], got["weights"])
    if names:
        found["weights"] = (
            f"weights: {len(names)} of {len(expected['weights'])} tensors ({shorten(names)})"
        )
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
