"""Compares sessions in a table and a picture: python cli.py compare baseline lr3e-3."""

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_trainer.commands.beside import write_beside
from lightning_trainer.commands.columns import score_of, short_names, shown_columns
from lightning_trainer.commands.groups import (
    Group,
    add_over,
    group_columns,
    group_sessions,
    mean_curves,
)
from lightning_trainer.commands.options import CommandParser, did_you_mean
from lightning_trainer.commands.sessions import (
    find_sessions,
    format_rows,
    tell_damage,
    terminal_width,
)
from lightning_trainer.commands.spread import describe_spread
from lightning_trainer.commands.table import Column, format_table, show_text
from lightning_trainer.session.imports import NAME
from lightning_trainer.session.metrics_csv import Curve, MetricsReader
from lightning_trainer.session.record import Record

_DESCRIPTION = (
    "Shows scores and differing settings of sessions side by side, and draws their curves."
)
_MOST_NAMED = 5


def compare(argv: list[str]) -> int:
    """Runs the command with the words after `compare`; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        records = find_records(options.sessions, Path(options.folder))
        groups, differ = group_sessions(records, options.over) if options.over else ([], [])
    except (OSError, ValueError) as ex:
        parser.error(str(ex))
    columns = group_columns(groups, differ) if groups else shown_columns(records)
    labels = [group.label for group in groups] or session_labels(records)
    print(_side_by_side(labels, columns), *describe_spread(groups), sep="\n", flush=True)
    tell_damage(records)
    _tell_scores(records)
    try:
        _draw(records, groups, options)
        if options.predictions:
            folders = {
                label: r.path for label, r in zip(session_labels(records), records, strict=True)
            }
            print(*write_beside(folders, options.predictions), sep="\n")
            print(f"Predictions: {options.predictions}")
    except OSError as ex:
        parser.error(f"`--predictions` is {str(options.predictions)!r}: {ex.strerror}")
    except ValueError as ex:
        parser.error(str(ex))
    return 0


def _draw(records: list[Record], groups: Sequence[Group], options: argparse.Namespace) -> None:
    curves, spreads, title = read_curves(records, options.number), None, ""
    if groups:
        title = f"mean over {' and '.join(options.over)}, with its standard deviation"
        named = dict(zip(map(id, records), session_labels(records), strict=True))
        members = {g.label: [named[id(r)] for r in g.counted or g.records] for g in groups}
        curves, spreads = mean_curves(curves, members)
    from lightning_trainer.session.drawing import draw_curves  # matplotlib takes half a second

    try:
        modes: dict[str | None, str | None] = {r.score_name: r.score_mode for r in records}
        modes |= {name: "min" for name in curves if name.rpartition("/")[2] == "loss"}
        draw_curves(curves, options.smooth, options.output, None, modes, spreads, title)
    except (OSError, ValueError) as ex:
        reason = ex.strerror if isinstance(ex, OSError) else ex
        raise ValueError(
            f"`--output` is {str(options.output)!r}, which can't be written: {reason}"
        ) from None
    print(f"Curves: {options.output}")


def _parser() -> CommandParser:
    parser = CommandParser("compare", description=_DESCRIPTION)
    parser.add_argument(
        "sessions",
        nargs="+",
        metavar="SESSION",
        help="a session folder, a folder of several, a tag (all sessions that have it), or a part "
        "of a session's name",
    )
    parser.add_argument(
        "--folder",
        default="experiments",
        help="where tags and names are looked for (default: experiments)",
    )
    add_over(parser)
    parser.add_argument(
        "--number",
        action="append",
        metavar="NAME",
        help="what to draw, e.g. val/loss; may be repeated (default: loss and score)",
    )
    what = "writes a CSV: the sessions' predictions beside each other"
    parser.add_argument("--predictions", type=Path, metavar="FILE", help=what)
    parser.add_argument(
        "--smooth",
        type=_weight,
        default=0.0,
        metavar="WEIGHT",
        help="weight of what came before in a moving mean, from 0 to below 1 (default: 0)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("compare.png"),
        metavar="FILE",
        help="the picture: .png, .pdf or .svg (default: compare.png)",
    )
    return parser


def _weight(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to below 1")


def find_records(names: list[str], folder: Path) -> list[Record]:
    """The sessions of folders and, looked for in `folder`, of tags and parts of names, each once.

    Raises:
        OSError: If the folder can't be read.
        ValueError: If no session has one of the names.
    """
    found: dict[Path, Record] = {}
    known: list[Record] = []
    for name in names:
        if Path(name).is_dir():
            chosen = [Record.read(path) for path in find_sessions(Path(name))]
            if not chosen:
                raise ValueError(f"{name!r} is no session folder, and there is none in it")
        else:
            known = known or [Record.read(path) for path in find_sessions(folder)]
            chosen = _named(name, known, folder)
        found |= {record.path.resolve(): record for record in chosen}
    return list(found.values())


def _named(name: str, records: list[Record], folder: Path) -> list[Record]:
    """The sessions with this tag, or else with this text in their folder's name."""
    tagged = [record for record in records if record.tag == name]
    if found := tagged or [record for record in records if name in record.path.name]:
        return found
    near = did_you_mean(name, {record.tag for record in records})
    raise ValueError(
        f"{name!r} is no session, nor a tag or a part of a session's name in {folder}{near}"
    )


def session_labels(records: list[Record]) -> list[str]:
    """The unique tags; for sessions without one, and renamed ones, the names of their folders."""
    tags = [record.tag if NAME.fullmatch(record.path.name) else "" for record in records]
    paths = [str(record.path) for record in records]
    pairs = zip(tags, short_names(records), strict=True)
    labels = [show_text(tag if tag and tags.count(tag) == 1 else name) for tag, name in pairs]
    return labels if len({*labels}) == len(labels) else paths


def _side_by_side(labels: list[str], columns: list[Column]) -> str:
    """A column for each label, or a row where the columns are too wide for the terminal."""
    rows = columns[1:]  # the label replaces the first
    titles = Column("", [column.title for column in rows], is_text=True)
    cells = zip(*(column.cells for column in rows), strict=True)
    turned = [Column(label, list(column)) for label, column in zip(labels, cells, strict=True)]
    text, left_out = format_table([titles, *turned], terminal_width())
    return (format_rows([], columns, "table") if left_out else text).rstrip("\n")


def _tell_scores(records: list[Record]) -> None:
    """Prints which sessions have which score, if they differ: such scores can't be compared."""
    labels = zip(records, session_labels(records), strict=True)
    named = [(score, label) for record, label in labels if (score := score_of(record))]
    of_score = {score: [label for other, label in named if other == score] for score, _ in named}
    if len(of_score) > 1:
        parts = [f"{show_text(score)} of {', '.join(of)}" for score, of in of_score.items()]
        print(f"Different scores, not to be compared: {'; '.join(parts)}", file=sys.stderr)


def read_curves(records: list[Record], names: list[str] | None) -> dict[str, dict[str, Curve]]:
    """Curves by number and session; prints which sessions have none.

    Without names it takes the loss and the scores.

    Raises:
        ValueError: If no session has logged one of the numbers.
    """
    scores = [record.score_name for record in records if record.score_name]
    wanted = list(dict.fromkeys(names or ["train/loss", *scores]))
    files = [MetricsReader(record.path / "metrics.csv") for record in records]
    read = dict(zip(session_labels(records), (file.curves(wanted) for file in files), strict=True))
    logged = list(dict.fromkeys(name for file in files for name in file.names))
    drawn = {
        name: {
            label: curves[name]
            for label, curves in read.items()
            if name in curves and any(map(math.isfinite, curves[name][1]))
        }
        for name in wanted
    }
    empty = [name for name in wanted if not drawn[name]]
    if empty and (names or empty == wanted):  # else a session failed before its first score
        choice = f": there is {', '.join(logged)}" if logged else ", nor any other"
        near = did_you_mean(empty[0], logged) or choice
        raise ValueError(f"no session has logged the number {empty[0]!r}{near}")
    drawn = {name: curves for name, curves in drawn.items() if curves}
    for name, curves in drawn.items():
        if without := [label for label in read if label not in curves]:
            many = f"{len(without)} of {len(read)} sessions"
            where = many if len(without) > _MOST_NAMED else ", ".join(without)
            print(f"No {name} in {where}", file=sys.stderr)
    return drawn
