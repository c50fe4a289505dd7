"""Lists all sessions with their progress, scores and differing settings: python cli.py sessions."""

import argparse
import contextlib
import csv
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_trainer.commands.columns import differing, row, shown_columns, sort
from lightning_trainer.commands.groups import add_over, group_columns, group_rows, group_sessions
from lightning_trainer.commands.options import CommandParser
from lightning_trainer.commands.sizes import disk_bytes, format_bytes
from lightning_trainer.commands.spread import describe_spread
from lightning_trainer.commands.table import Column, format_markdown, format_table, show_text
from lightning_trainer.session.imports import NAME
from lightning_trainer.session.record import (
    DAMAGED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    Record,
)

_DESCRIPTION = """Lists all sessions of a folder, with the settings in which they differ.

The state is running (its process lives), finished, interrupted (by a signal, or killed; it can go
on), failed (by an error) or damaged (a file in it can't be read: below the table stands which).
Sessions in folders below are listed as well, moved and renamed ones too.
"""
_DEEPEST = 3  # folders between the one that is given and the one with sessions
_COLUMNS = """columns: session, tag, started, state, iterations, max_steps, score, mode (max if
the highest score is best, or min), best, at (its iteration), examples_per_s, hours, commit (+:
uncommitted changes), and options such as model.learning_rate, for short learning_rate
"""


def sessions(argv: list[str]) -> int:
    """Runs the command with the words after `sessions`; returns its exit code."""
    parser = _parser()
    words = iter(argv)
    # argparse would take the `-best` of `--sort -best` for an option.
    joined = [
        f"--sort={column}" if word == "--sort" and (column := next(words, "")) else word
        for word in words
    ]
    options = parser.parse_args(joined)
    try:
        records = [Record.read(path) for path in find_sessions(Path(options.folder))]
        records = [r for r in records if options.tag in r.tag and options.state in (None, r.state)]
        records = sort(records, options.sort)
        groups, differ = group_sessions(records, options.over) if options.over else ([], [])
    except (OSError, ValueError) as ex:
        parser.error(str(ex))
    if not records:
        state = f"{options.state} " if options.state else ""
        tagged = f" with {options.tag!r} in the tag" if options.tag else ""
        print(f"{options.folder} has no {state}sessions{tagged}", file=sys.stderr)
    if groups:
        rows = [*group_rows(groups, differ)]
        print(format_rows(rows, group_columns(groups, differ), options.format), end="")
        if options.format in ("table", "markdown"):
            print("", *describe_spread(groups), sep="\n")
    elif records or options.format in ("csv", "json"):
        print(format_records(records, options.format, options.size), end="")
    tell_damage(records)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "sessions",
        description=_DESCRIPTION,
        epilog=_COLUMNS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder",
        nargs="?",
        default="experiments",
        metavar="FOLDER",
        help="what holds the session folders (default: experiments)",
    )
    parser.add_argument(
        "--sort",
        default="started",
        metavar="COLUMN",
        help="-COLUMN puts the highest first, -best the best of each score",
    )
    add_over(parser)
    parser.add_argument("--tag", default="", metavar="TEXT", help="only those with TEXT in the tag")
    states = (RUNNING, FINISHED, INTERRUPTED, FAILED, DAMAGED)
    parser.add_argument("--state", choices=states, help="only sessions in this state")
    parser.add_argument("--size", action="store_true", help="what each takes on the disk")
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json", "markdown"),
        default="table",
        help="csv and json have every column, and numbers in full",
    )
    return parser


def find_sessions(folder: Path) -> list[Path]:
    """A session folder itself, or the session folders in a folder and three levels below it.

    Raises:
        OSError: If the folder is missing or can't be read.
    """
    try:
        return [folder] if is_session(folder) else [*_sessions_in(folder, _DEEPEST)]
    except OSError as ex:
        raise OSError(
            f"{str(folder)!r} can't be read ({ex.strerror}): give the folder that holds the "
            "sessions, as `fit` has it in `--output_path`"
        ) from ex


def _sessions_in(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        inside = sorted(folder / entry.name for entry in entries if entry.is_dir())
    for path in inside:
        with contextlib.suppress(PermissionError):  # another user's folder
            if is_session(path):
                yield path
            elif depth and not path.name.startswith("."):
                yield from _sessions_in(path, depth - 1)


def is_session(path: Path) -> bool:
    """Whether a folder has a session's name, or its files where it was renamed."""
    if NAME.fullmatch(path.name):
        return True
    own, others = ("run.json", "environment.yaml"), ("config.yaml", "metrics.csv", "log.txt")
    return all(any(os.path.exists(path / n) for n in names) for names in (own, others))


def format_records(records: list[Record], form: str, with_size: bool = False) -> str:
    """The sessions as "csv", "json", "markdown", or "table" (as wide as the terminal)."""
    for_person = form in ("table", "markdown")
    options = [] if for_person else differing(records)
    rows = [row(record, options) for record in records or [Record(Path(), "", "")]]
    columns = shown_columns(records) if for_person else []
    if with_size:
        sizes = [disk_bytes(record.path) for record in records]
        for values, size in zip(rows, sizes, strict=False):
            values["bytes"] = size
        if for_person:
            columns.insert(2, Column("size", [format_bytes(size) for size in sizes]))
    return format_rows(rows[: len(records)], columns, form, rows[0])


def format_rows(
    rows: list[dict[str, Any]],
    columns: list[Column],
    form: str,
    names: Iterable[str] | None = None,
) -> str:
    """Rows for a program, or columns for a person, as `format_records`."""
    if form == "json":
        return json.dumps([_plain(values) for values in rows], indent=2, default=str) + "\n"
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, [*(names or rows[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    if form == "markdown":
        return format_markdown(columns)
    table, left_out = format_table(columns, terminal_width())
    more = f"Too wide for the terminal: {', '.join(left_out)} (`sessions --format csv` has all)\n"
    return table + (more if left_out else "")


def tell_damage(records: list[Record]) -> None:
    """Prints a line for each session with files that can't be read."""
    for record in records:
        if record.damage:
            print(show_text(f"{record.path}: {'; '.join(record.damage)}"), file=sys.stderr)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values with infinity and NaN as text, because JSON has neither."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def terminal_width() -> float:
    """Columns of the terminal; no limit where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
