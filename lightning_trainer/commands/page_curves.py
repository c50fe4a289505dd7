"""The charts of a report: which numbers are drawn together, and their points."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_trainer.session.door import open_file
from lightning_trainer.session.metrics_csv import MetricsReader
from lightning_trainer.session.record import Record
from lightning_trainer.session.shown_curve import ShownCurve, is_wide

_POINTS = 60_000  # of all curves together: about a megabyte
_MOST, _FEWEST = 2000, 20  # of one curve
_LONGEST_NAME = 200  # characters
_PART_OF_LOG = 2**23  # bytes, of a longer log those at its begin and its end
_MOST_TIMES = 400
_LINE = re.compile(rb"^Iteration +(\d{1,15})/.*?time elapsed: (\d+)h(\d\d)m(\d\d)s", re.M)
_PARTS = ("train", "val", "test")


@dataclass
class Numbers:
    """What a session has logged."""

    curves: dict[str, ShownCurve] = field(default_factory=dict)
    n_left_out: int = 0  # names beyond the limit


def read_numbers(folder: Path, most: int) -> Numbers:
    """The first numbers of a session, by name."""
    lines = MetricsReader(folder / "metrics.csv").lines()
    names = next(lines, [])[1:]
    curves = [ShownCurve(name.startswith("train/")) for name in names[:most]]
    for step, *fields in lines:
        for curve, text in zip(curves, fields, strict=False):
            if text:
                try:
                    curve.add(int(step), float(text))
                except ValueError:  # no number
                    continue
    named = zip(names, curves, strict=False)
    found = {n: curve for n, curve in named if curve.n_points and len(n) <= _LONGEST_NAME}
    return Numbers(found, max(len(names) - most, 0))


def charts(records: list[Record], numbers: list[Numbers]) -> list[dict[str, Any]]:
    """The charts, the most important first: loss, scores, what training and validation share."""
    grouped: dict[str, list[tuple[int, str, ShownCurve]]] = {}
    for session, of_one in enumerate(numbers):
        for name, curve in of_one.curves.items():
            chart, part = split_name(name)
            grouped.setdefault(chart, []).append((session, part, curve))
    n_curves = sum(map(len, grouped.values()))
    most = max(_FEWEST, min(_MOST, _POINTS // max(n_curves, 1)))
    scores = [split_name(record.score_name)[0] for record in records if record.score_name]
    modes = {split_name(r.score_name)[0]: r.score_mode for r in records if r.score_name}
    made = [_chart(name, curves, most, modes.get(name)) for name, curves in grouped.items()]
    first = ["loss", *dict.fromkeys(scores)]

    def place(chart: dict[str, Any]) -> tuple[int, bool]:
        at = first.index(chart["name"]) if chart["name"] in first else len(first)
        return at, not chart["main"]

    for each in made:
        parts = {curve["part"] for curve in each["curves"]}
        each["main"] = each["name"] in first or len(parts) > 1
    return sorted(made, key=place)


def split_name(name: str) -> tuple[str, str]:
    """The chart of a number and its part of it: "val/night/loss" is "val/night" of "loss"."""
    first, *rest = name.split("/")
    if first not in _PARTS or not rest:
        return name, ""
    return rest[-1], "/".join([first, *rest[:-1]])


def _chart(
    name: str, curves: list[tuple[int, str, ShownCurve]], most: int, mode: str | None
) -> dict[str, Any]:
    is_loss = name == "loss" or name.startswith("loss_")
    better = mode or ("min" if is_loss else "")
    drawn = [_drawn(session, part, curve, most) for session, part, curve in curves]
    wide = is_wide([y for y in curve["y"] if y is not None] for curve in drawn)
    return {"name": name, "better": better, "log": better != "max" and wide, "curves": drawn}


def _drawn(session: int, part: str, curve: ShownCurve, most: int) -> dict[str, Any]:
    x, y = curve.points(most)
    return {
        "session": session,
        "part": part,
        "x": [int(at) if at == int(at) else at for at in x],
        "y": [float(f"{value:.8g}") if math.isfinite(value) else None for value in y],
        "n": curve.n_points,
        "strange": curve.n_strange,
    }


def read_times(folder: Path) -> tuple[list[int], list[int]]:
    """Iterations and the seconds of training that they had taken, by the lines of the log.

    A line's time is in whole seconds: of each second the first line counts.
    """
    iterations, seconds = [0], [0]
    for iteration, second in _told(folder / "log.txt"):
        while iterations and iterations[-1] >= iteration:  # the run went on from before
            iterations.pop()
            seconds.pop()
        if not seconds or second > seconds[-1]:
            iterations.append(iteration)
            seconds.append(second)
    every = math.ceil(len(seconds) / _MOST_TIMES)
    if len(seconds) < 2:
        return [], []
    return [*iterations[:-1:every], iterations[-1]], [*seconds[:-1:every], seconds[-1]]


def _told(path: Path) -> Iterator[tuple[int, int]]:
    for text in _ends(path):
        for line in _LINE.finditer(text):
            iteration, hours, minutes, seconds = (int(group) for group in line.groups())
            yield iteration, hours * 3600 + minutes * 60 + seconds


def _ends(path: Path) -> Iterable[bytes]:
    """The begin of a file, and its end if that is another part."""
    try:
        with open_file(path) as file:
            yield file.read(_PART_OF_LOG)
            if file.seek(0, 2) > _PART_OF_LOG:
                file.seek(max(file.tell() - _PART_OF_LOG, _PART_OF_LOG))
                yield file.read(_PART_OF_LOG)
    except OSError:
        return
