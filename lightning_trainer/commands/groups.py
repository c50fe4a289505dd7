"""Puts sessions that differ only in some settings, e.g. the seed, into one row and one curve."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lightning_trainer.commands.columns import (
    NOT_COMPARED,
    differing,
    option_columns,
    score_of,
    shown_clock,
    shown_number,
    shown_setting,
)
from lightning_trainer.commands.options import CommandParser, did_you_mean
from lightning_trainer.commands.table import Column, show_text
from lightning_trainer.session.metrics_csv import Curve
from lightning_trainer.session.record import FINISHED, Record

# Settings that differ by nature: names and places.
_BY_NATURE = {*NOT_COMPARED, "output_path"} - {"trainer.max_steps"}
_PLACES = ("default_root_dir", "save_dir", "dirpath", "log_dir")
# The end of a tag that counts the runs: `lr3e-3_seed1`, `lr3e-3-2`.
_COUNT = re.compile(r"([_.,=+@-]+(seed|fold|run|s|f)?[_.,=+@-]*\d*|\d+)$")

Spread = tuple[list[float], list[float]]  # a mean minus and plus the standard deviation


@dataclass
class Group:
    """Sessions with the same settings but one."""

    records: list[Record]
    over: tuple[str, ...] = ()  # the settings in which they may differ
    label: str = ""

    @property
    def counted(self) -> list[Record]:
        """Those with a final score: of an unfinished or failed run it is not known.

        Of several with the same seed, which are the same run again, only the first.
        """
        found: dict[str, Record] = {}
        for record in self.records:
            if record.state == FINISHED and record.best_score is not None:
                found.setdefault(repr([record.settings.get(n) for n in self.over]), record)
        return [*found.values()]

    @property
    def kind(self) -> tuple[str | None, Any, Any]:
        """Only groups of one kind are compared: the score, and the classes of model and data."""
        classes = (self.records[0].settings.get(f"{n}.class_path") for n in ("model", "data"))
        return score_of(self.records[0]), next(classes), next(classes)

    @property
    def scores(self) -> list[float]:
        return [float(record.best_score or 0.0) for record in self.counted]

    @property
    def mean(self) -> float | None:
        return fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation, with n - 1; None for a single run."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def hours(self) -> float | None:
        known = [record.hours for record in self.counted if record.hours is not None]
        return fmean(known) if known else None

    @property
    def by_quality(self) -> list[float]:
        """The scores, the best first; empty where nothing says which are better."""
        mode = self.records[0].score_mode
        return sorted(self.scores, reverse=mode == "max") if mode else []


def add_over(parser: CommandParser) -> None:
    """Adds the option `--over`."""
    parser.add_argument(
        "--over",
        action="append",
        metavar="SETTING",
        help="sessions that differ only in it, e.g. seed_everything, are one: mean, standard "
        "deviation, best, worst; may be repeated",
    )


def group_sessions(records: Sequence[Record], over: Sequence[str]) -> tuple[list[Group], list[str]]:
    """The groups, in the order of their first sessions, and the options in which they differ.

    Raises:
        ValueError: If no session has a setting of `over`, or several do.
    """
    names = tuple(_full_name(records, name) for name in over)
    ignored = {*_BY_NATURE, *names}
    of_key: dict[str, Group] = {}
    for record in records:
        kept = {
            name: value
            for name, value in record.settings.items()
            if name not in ignored and name.rpartition(".")[2] not in _PLACES
        }
        key: list[Any] = [kept, score_of(record), None if kept else str(record.path)]
        text = json.dumps(key, sort_keys=True, default=str)
        of_key.setdefault(text, Group([], names)).records.append(record)
    groups = [*of_key.values()]
    options = [n for n in differing(group.records[0] for group in groups) if n not in ignored]
    for group, label in zip(groups, _labels(groups, options), strict=True):
        group.label = label
    return groups, options


def _full_name(records: Sequence[Record], name: str) -> str:
    options = dict.fromkeys(name for record in records for name in record.settings)
    found = [option for option in options if option == name or option.endswith(f".{name}")]
    if name in options or len(found) == 1:
        return name if name in options else found[0]
    lasts = [option.rpartition(".")[2] for option in options]
    near = did_you_mean(name, lasts, found or [option for option in options if name in option])
    many = "several have it" if found else "no session has such a setting"
    raise ValueError(f"`--over` is {name!r}: {many}{near}")


def _labels(groups: Sequence[Group], options: Sequence[str]) -> list[str]:
    """The common part of the tags; what differs is added where that is not unique."""
    names = [_common_tag([record.tag for record in group.records]) for group in groups]
    columns = option_columns([group.records[0] for group in groups], options)
    labels = [
        name
        if names.count(name) == 1
        else " ".join([name, *(f"{column.title}={column.cells[n]}" for column in columns)])
        for n, name in enumerate(names)
    ]
    return [
        show_text(label if labels.count(label) == 1 else f"{label} ({group.records[0].path.name})")
        for label, group in zip(labels, groups, strict=True)
    ]


def _common_tag(tags: Sequence[str]) -> str:
    if len({*tags}) == 1:
        return tags[0]
    first, last = min(tags), max(tags)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return _COUNT.sub("", first[:n]) or _COUNT.sub("", tags[0]) or tags[0]


def group_rows(groups: Sequence[Group], options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of each group by column name, in full; None for unknown ones."""
    for group in groups:
        first, ranked = group.records[0], group.by_quality
        yield {
            "group": group.label,
            "runs": len(group.records),
            "counted": len(group.scores),
            "score": first.score_name,
            "mode": first.score_mode,
            "mean": group.mean,
            "std": group.deviation,
            "best": ranked[0] if ranked else None,
            "worst": ranked[-1] if ranked else None,
            "hours": group.hours,
            **{name: shown_setting(first.settings, name) for name in options},
            "sessions": [str(record.path) for record in group.records],
        }


def group_columns(groups: Sequence[Group], options: Sequence[str]) -> list[Column]:
    """The columns for a person. `runs` are those that count, "2 of 3" where one does not."""

    def numbers(values: Sequence[float | None]) -> list[str]:
        return [shown_number(value) or "-" for value in values]

    rows = [*group_rows(groups, options)]
    runs = [
        str(row["runs"]) if row["runs"] == row["counted"] else f"{row['counted']} of {row['runs']}"
        for row in rows
    ]
    scores = [score_of(group.records[0]) or "-" for group in groups]
    return [
        Column("group", [group.label for group in groups], is_text=True),
        Column("runs", runs),
        Column("score", scores, is_text=True),
        *(Column(n, numbers([row[n] for row in rows])) for n in ("mean", "std", "best", "worst")),
        *option_columns([group.records[0] for group in groups], options),
        Column("hours", [shown_clock(group.hours) or "-" for group in groups]),
    ]


def mean_curves(
    curves: Mapping[str, Mapping[str, Curve]], members: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, Curve]], dict[str, dict[str, Spread]]]:
    """The mean curve of each group, and where it has several runs mean -+ standard deviation.

    `curves` are by number and session, `members` the sessions of a group. A mean is over the
    iterations that all of them have, or where there are none, over those that each has.
    """
    means: dict[str, dict[str, Curve]] = {}
    spreads: dict[str, dict[str, Spread]] = {}
    for number, of_session in curves.items():
        for label, sessions in members.items():
            points = [dict(zip(*of_session[s], strict=True)) for s in sessions if s in of_session]
            if not points:
                continue
            every = {step for each in points for step in each}
            steps = sorted(every.intersection(*points) or every)
            values = [[each[step] for each in points if step in each] for step in steps]
            both = [_mean_and_deviation(v) for v in values]
            means.setdefault(number, {})[label] = (steps, [m for m, _ in both])
            if len(points) > 1:
                band = [m - d for m, d in both], [m + d for m, d in both]
                spreads.setdefault(number, {})[label] = band
    return means, spreads


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    if not all(map(math.isfinite, values)):  # of a run that has diverged
        return sum(values) / len(values), math.nan
    return fmean(values), stdev(values) if len(values) > 1 else 0.0
