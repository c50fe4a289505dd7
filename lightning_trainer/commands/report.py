"""Writes one HTML page on sessions: python cli.py report baseline lr3e-3.

A run that keeps its own page up to date (`KeepReport`) writes it in a process of its own:

python -m lightning_trainer.commands.report WORKING_FOLDER SESSION PROGRAM
"""

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

if __name__ == "__main__":
    os.nice(19)  # before the imports, which would slow training down

from lightning_trainer.commands.columns import shown_columns
from lightning_trainer.commands.compare import find_records, session_labels
from lightning_trainer.commands.groups import Group, add_over, group_columns, group_sessions
from lightning_trainer.commands.options import CommandParser
from lightning_trainer.commands.page import (
    Html,
    breakable,
    element,
    folded,
    join,
    table,
    whole_page,
)
from lightning_trainer.commands.page_curves import charts, read_numbers, read_times
from lightning_trainer.commands.page_session import Limits, session_section
from lightning_trainer.commands.sessions import tell_damage
from lightning_trainer.commands.sizes import format_bytes
from lightning_trainer.commands.spread import describe_spread
from lightning_trainer.session.record import RUNNING, Record
from lightning_trainer.session.run_record import RunRecord
from lightning_trainer.session.settings import replace_text

_DESCRIPTION = """Writes one HTML page on one or several sessions: scores, curves that can be zoomed
and smoothed, pictures, warnings, settings, changes of the code. It needs no network and no other
file: send it, print it, read it on a phone."""
_MOST_SESSIONS = 100
_BESIDE = 4  # sessions that have a column each, others have a row
_OPEN = 1  # sessions whose section is open at first
_PICTURES, _TEXTS = 1_500_000, 1_000_000  # bytes of all sessions together
_NUMBERS, _MOST_NUMBERS = 3000, 300  # of all sessions together, and of one
_MOST_COLUMNS = 60  # of the table of sessions


def report(argv: list[str]) -> int:
    """Runs the command with the words after `report`; returns its exit code."""
    parser = CommandParser("report", description=_DESCRIPTION)
    what = "a session folder, a folder of several, a tag, or a part of a session's name"
    parser.add_argument("sessions", nargs="+", metavar="SESSION", help=what)
    where = "where tags and names are looked for (default: experiments)"
    parser.add_argument("--folder", default="experiments", help=where)
    add_over(parser)
    output = "the page (default: report.html)"
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help=output
    )
    options = parser.parse_args(argv)
    try:
        records = find_records(options.sessions, Path(options.folder))
        groups, differ = group_sessions(records, options.over) if options.over else ([], [])
    except (OSError, ValueError) as ex:
        parser.error(str(ex))
    if len(records) > _MOST_SESSIONS:
        parser.error(f"{len(records)} sessions: a page has {_MOST_SESSIONS} at most, name fewer")
    tell_damage(records)
    try:
        replace_text(options.output, make_page(records, groups, differ))
    except OSError as ex:
        parser.error(
            f"`--output` is {str(options.output)!r}, which can't be written: {ex.strerror}"
        )
    print(f"Report: {options.output} ({format_bytes(options.output.stat().st_size)})")
    return 0


def make_page(
    records: list[Record], groups: Sequence[Group] = (), differ: Sequence[str] = ()
) -> str:
    """The page on sessions; those of a group, which differ in the settings `differ`, look alike."""
    labels = session_labels(records)
    most = min(_NUMBERS // len(records), _MOST_NUMBERS)
    numbers = [read_numbers(record.path, most) for record in records]
    drawn = charts(records, numbers)
    limits = Limits(_PICTURES // len(records), _TEXTS // len(records))
    is_open = len(records) <= _OPEN
    sections = [
        session_section(record, label, limits, is_open)
        for record, label in zip(records, labels, strict=True)
    ]
    title = labels[0] if len(records) == 1 else f"{len(records)} sessions"
    now = datetime.now().astimezone()
    body = join(
        [
            element("h1", title),
            element("p", f"Report of {now:%Y-%m-%d %H:%M}", class_="note"),
            _group_table(groups, differ) if groups else Html(),
            _overview(records, labels, bool(groups)) if len(records) > 1 else Html(),
            _curves(sum(of_one.n_left_out for of_one in numbers)) if drawn else _NO_CURVES,
            *sections,
        ]
    )
    place = {id(record): n for n, group in enumerate(groups) for record in group.records}
    about = [
        {**_about(record, label), "group": place.get(id(record), n)}
        for n, (record, label) in enumerate(zip(records, labels, strict=True))
    ]
    data = {"charts": drawn, "sessions": about, "groups": [group.label for group in groups]}
    return whole_page(title, element("main", body), data)


_NO_CURVES = element("p", "No numbers have been logged.")


def _group_table(groups: Sequence[Group], differ: Sequence[str]) -> Html:
    """Means and spreads, and whether the groups differ by more."""
    columns = group_columns(list(groups), list(differ))[:_MOST_COLUMNS]
    rows = zip(*(column.cells for column in columns), strict=True)
    shown = table([breakable(column.title) for column in columns], rows, class_="overview")
    told = element("pre", "\n".join(describe_spread(list(groups))))
    return join([element("h2", "Groups"), shown, told])


def _overview(records: list[Record], labels: list[str], is_folded: bool) -> Html:
    """The table of scores and of the settings in which the sessions differ."""
    columns = shown_columns(records)[1:_MOST_COLUMNS]
    titles = [breakable(column.title) for column in columns]
    if len(records) <= _BESIDE:
        rows = [[title, *column.cells] for title, column in zip(titles, columns, strict=True)]
        whole = table(["", *labels], rows, class_="overview")
    else:
        lines = zip(labels, *(column.cells for column in columns), strict=True)
        whole = table(["session", *titles], lines, class_="overview")
    if is_folded:
        return folded("Each session's score and differing settings", whole)
    return join([element("h2", "Scores and differing settings"), whole])


def _curves(n_left_out: int) -> Html:
    """The place where the page's script puts the charts."""
    more = f"{n_left_out:,} more numbers are in metrics.csv." if n_left_out else ""
    without = "The curves need JavaScript; curves.png in the session folder does not."
    return join(
        [
            element("h2", "Curves"),
            element("noscript", element("p", without)),
            element("div", id="charts"),
            element("p", more, class_="note") if more else Html(),
        ]
    )


def _about(record: Record, label: str) -> dict[str, object]:
    """What the page's script knows of a session."""
    run = RunRecord.read(record.path)
    iterations, seconds = read_times(record.path)
    best = [record.best_iteration, record.best_score]
    return {
        "label": label,
        "score": record.score_name,
        "best": best if None not in best else None,
        "iterations": iterations,
        "seconds": seconds,
        "epoch": run.epoch_iterations if run else None,
    }


def _keep(folder: Path) -> None:
    """Writes the page of a session, whose run has begun this process."""
    record, run = Record.read(folder), RunRecord.read(folder)
    if run and run.state != RUNNING:  # the run, which still holds the lock, has told its end
        record.state, record.silent_hours = run.state, None
    replace_text(folder / "report.html", make_page([record]))


if __name__ == "__main__":
    _working_folder, _session_folder, *sys.argv = sys.argv[1:]  # commands name the run's program
    os.chdir(_working_folder)
    _keep(Path(_session_folder))
