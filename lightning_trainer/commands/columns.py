"""Chooses and sorts the columns of the table of sessions."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_trainer.commands.options import did_you_mean
from lightning_trainer.commands.table import Column, show_value
from lightning_trainer.session.imports import NAME
from lightning_trainer.session.number import format_number
from lightning_trainer.session.record import Record
from lightning_trainer.session.secrets import scrub

# Settings that get no column of their own: another column has them, or they say nothing.
NOT_COMPARED = ("tag", "output_path", "ckpt_path", "weights_only", "trainer.max_steps")
_ABSENT = object()


def differing(records: Iterable[Record]) -> list[str]:
    """The options with differing values, the project's first; skips sessions without settings."""
    known = [record.settings for record in records if record.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    found = [name for name in names if name not in NOT_COMPARED and _differ(name, known)]
    groups = ("model.", "data.")
    return sorted(found, key=lambda name: [not name.startswith(group) for group in groups])


def _differ(name: str, known: list[dict[str, Any]]) -> bool:
    """Whether an option has two values, or is missing in a session with the same class."""
    values = [settings[name] for settings in known if name in settings]
    if any(value != values[0] for value in values):
        return True
    class_path = f"{name.partition('.')[0]}.class_path"
    classes = [settings.get(class_path) for settings in known if name in settings]
    return any(name not in s and s.get(class_path) in classes for s in known)


def row(record: Record, options: Iterable[str]) -> dict[str, Any]:
    """A session's values by column name; None for unknown ones."""
    return {
        "session": str(record.path),
        "tag": record.tag,
        "started": record.started,
        "state": record.state,
        "silent_hours": record.silent_hours,
        "iterations": record.iteration,
        "max_steps": record.max_steps,
        "score": record.score_name,
        "mode": record.score_mode,
        "best": record.best_score,
        "at": record.best_iteration,
        "examples_per_s": record.examples_per_s,
        "hours": record.hours,
        "commit": record.commit,
        **{name: shown_setting(record.settings, name) for name in options},
    }


def shown_setting(settings: Mapping[str, Any], name: str, absent: Any = None) -> Any:
    """A setting without secrets; many sessions have the same one, and the search takes long."""
    value = settings.get(name, absent)
    if value is absent or value is None:
        return value
    key = name, type(value), repr(value)
    if key not in _SCRUBBED:
        _SCRUBBED[key] = scrub({name: value})[name]
    return _SCRUBBED[key]


_SCRUBBED: dict[tuple[str, type, str], Any] = {}


def sort(records: list[Record], column: str) -> list[Record]:
    """Sorts by a column, -COLUMN with the highest first; sessions without a value come last.

    Scores of different names or directions are not compared: "-best" has the sessions of each one
    together, the best of them first, whether that is the highest or the lowest.

    Raises:
        ValueError: If there is no such column.
    """
    name = column.removeprefix("-")
    options = dict.fromkeys(name for record in records for name in record.settings)
    own = row(Record(Path(), "", ""), ())
    columns = [*own, *options]
    short = [option for option in options if option.endswith(f".{name}")]
    if name not in columns and len(short) == 1:
        name = short[0]
    if records and name not in columns:
        last_words = [option.rpartition(".")[2] for option in options]
        near = did_you_mean(name, [*columns, *last_words], short)
        raise ValueError(f"`--sort` is {column!r}: there is no such column{near}")

    def value_of(record: Record) -> Any:
        return row(record, () if name in own else (name,))[name]

    def key(record: Record) -> tuple[bool, Any]:
        value = value_of(record)
        is_number = isinstance(value, int | float)
        return not is_number, value if is_number else str(value)

    known = [record for record in records if value_of(record) is not None]
    unknown = [record for record in records if value_of(record) is None]
    if name == "best":
        return _by_score(known, column.startswith("-")) + unknown
    return sorted(known, key=key, reverse=column.startswith("-")) + unknown


def _by_score(records: list[Record], best_first: bool) -> list[Record]:
    def key(record: Record) -> tuple[str, float]:
        score = record.best_score or 0.0
        return score_of(record) or "", -score if best_first == (
            record.score_mode != "min"
        ) else score

    return sorted(records, key=key)


def score_of(record: Record) -> str | None:
    """Name and direction of a session's score, e.g. "accuracy (max)"; None if it is not known."""
    name = record.score_name and record.score_name.removeprefix("val/")
    return f"{name} ({record.score_mode})" if name and record.score_mode else name


def shown_number(score: float | None) -> str | None:
    """A score as in tables; None if it is not known."""
    return None if score is None else format_number(score, 4)


def shown_columns(records: list[Record]) -> list[Column]:
    """The columns for a person, the most important first."""

    def cells(values: Iterable[Any], form: str = "") -> list[str]:
        return ["-" if value is None else format(value, form) for value in values]

    options = differing(records)
    return [
        Column("session", short_names(records), is_text=True),
        Column("state", [_state(record) for record in records], is_text=True),
        Column("iterations", [_iterations(record) for record in records]),
        Column("score", cells(map(score_of, records)), is_text=True),
        Column("best", cells(shown_number(record.best_score) for record in records)),
        Column("at", cells(record.best_iteration for record in records)),
        *option_columns(records, options),
        Column("hours", cells(shown_clock(record.hours) for record in records)),
        Column("examples/s", cells((record.examples_per_s for record in records), ".1f")),
        Column("commit", cells(record.commit for record in records), is_text=True),
    ]


def shown_clock(hours: float | None) -> str | None:
    """E.g. 1:02:03, with seconds for a test run's sake."""
    if hours is None:
        return None
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _state(record: Record) -> str:
    """E.g. "running, silent for 2 h": such a run may hang."""
    if record.silent_hours is None:
        return record.state
    hours = record.silent_hours
    told = f"{hours:.0f} h" if hours >= 1.5 else f"{hours * 60:.0f} min"
    return f"{record.state}, silent for {told}"


def _iterations(record: Record) -> str:
    done = "?" if record.iteration is None else str(record.iteration)
    return f"{done}/{record.max_steps}" if record.max_steps else done


def option_columns(records: Sequence[Record], options: Sequence[str]) -> list[Column]:
    """A column for each option; its title is the option's last word where that is unique."""
    lasts = [option.rpartition(".")[2] for option in options]
    return [
        _option_column(records, option, last if lasts.count(last) == 1 else option)
        for option, last in zip(options, lasts, strict=True)
    ]


def _option_column(records: Sequence[Record], option: str, title: str) -> Column:
    values = [shown_setting(record.settings, option, _ABSENT) for record in records]
    cells = ["-" if value is _ABSENT else show_value(value) for value in values]
    is_text = any(isinstance(value, str | list) for value in values)
    is_class = option.endswith(".class_path")
    short = [
        _class_names([value] if is_class else value) or cell
        for value, cell in zip(values, cells, strict=True)
    ]
    if len({*short}) == len({*cells}):  # class names without their modules are unique
        cells = short
    title = option.removesuffix(".class_path") if is_class else title
    return Column(title, cells, is_text)


def _class_names(value: Any) -> str:
    """The names of a class or a list of classes, e.g. callbacks; empty for other values."""
    parts = value if isinstance(value, list) else [value]
    paths = [part.get("class_path") if isinstance(part, dict) else part for part in parts]
    names = [path.rpartition(".")[2] for path in paths if isinstance(path, str) and "." in path]
    return ", ".join(names) if len(names) == len(paths) else ""


def short_names(records: list[Record]) -> list[str]:
    """The folders' names, without the prefix and, if all have the same, without the machine.

    Where sessions lie in several folders, e.g. in an archive, those below the first have theirs.
    """
    matches = [NAME.fullmatch(record.path.name) for record in records]
    machines = {match["machine"] if match else None for match in matches}
    prefix = f"session_{machines.pop()}_" if len(machines) == 1 and all(matches) else "session_"
    parents = [record.path.parent.absolute() for record in records]
    top = os.path.commonpath(parents) if len({*parents}) > 1 else None
    short = [record.path.name.removeprefix(prefix) for record in records]
    return [
        str(parent.relative_to(top) / name) if top else name
        for parent, name in zip(parents, short, strict=True)
    ]
