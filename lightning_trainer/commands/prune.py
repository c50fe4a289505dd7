"""Deletes what no one needs of old sessions: python cli.py prune, and --yes."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_trainer.commands.columns import short_names
from lightning_trainer.commands.options import CommandParser
from lightning_trainer.commands.sessions import find_sessions, terminal_width
from lightning_trainer.commands.sizes import disk_bytes, format_bytes
from lightning_trainer.commands.table import Column, format_table, show_text
from lightning_trainer.session.checkpoint_header import find_fault
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.record import FAILED, FINISHED, Record

_DESCRIPTION = """Shows what could be deleted: sessions that failed before their first validation,
and last.ckpt of finished ones that have a whole best.ckpt (`fit --ckpt_path` then goes on from
that). Deletes it with --yes. Never a session in use, never best.ckpt; links are not followed."""


@dataclass(frozen=True)
class _Waste:
    session: Record
    path: Path  # a file, or the whole folder
    reason: str
    n_bytes: int


def prune(argv: list[str]) -> int:
    """Runs the command with the words after `prune`; returns its exit code."""
    parser = CommandParser("prune", description=_DESCRIPTION)
    parser.add_argument("folder", nargs="?", default="experiments", metavar="FOLDER")
    parser.add_argument("--tag", default="", metavar="TEXT", help="only those with TEXT in the tag")
    parser.add_argument("--yes", action="store_true", help="delete it")
    options = parser.parse_args(argv)
    folder = Path(options.folder)
    try:
        paths = [path for path in find_sessions(folder) if not _is_behind_link(path, folder)]
    except OSError as ex:
        parser.error(str(ex))
    records = [Record.read(path) for path in paths]
    wastes = [w for r in records if options.tag in r.tag for w in _wastes(r)]
    if not wastes:
        print(f"{show_text(str(folder))} has nothing to delete")
        return 0
    print(_table(wastes), end="")
    total = format_bytes(sum(waste.n_bytes for waste in wastes))
    if not options.yes:
        print(f"{total} could be deleted: `prune --yes` does it")
        return 0
    failures = [failure for waste in wastes if (failure := _delete(waste))]
    print(*failures, sep="\n", end="\n" if failures else "", file=sys.stderr)
    print(f"Deleted: {len(wastes) - len(failures)} of {len(wastes)}")
    return 1 if failures else 0


def _is_behind_link(path: Path, folder: Path) -> bool:
    """Whether a session below a folder is reached by a link."""
    relative = path.relative_to(folder) if path != folder else Path()
    return path.resolve() != folder.resolve() / relative or path.is_symlink()


def _wastes(record: Record) -> Iterator[_Waste]:
    """What could be deleted of a session now."""
    best = record.path / "checkpoints" / "best.ckpt"
    last = best.with_name("last.ckpt")
    is_new = record.best_score is None and not os.path.lexists(best)
    # Without validations last.ckpt is all that a training has come to.
    validates = record.settings.get("trainer.limit_val_batches") != 0 or not os.path.lexists(last)
    if record.state == FAILED and is_new and validates:
        reason = "failed before its first validation"
        yield _Waste(record, record.path, reason, disk_bytes(record.path))
    # A link leads to a sharded checkpoint, or to another disk.
    is_plain = not any(path.is_symlink() for path in (best.parent, best, last))
    if record.state == FINISHED and is_plain and last.is_file() and best.is_file():
        if os.path.samefile(best, last):  # two names of one file
            return
        yield _Waste(record, last, "finished: best.ckpt stays", disk_bytes(last))


def _table(wastes: list[_Waste]) -> str:
    names = short_names([waste.session for waste in wastes])
    parts = [
        "the folder" if waste.path == waste.session.path else waste.path.name for waste in wastes
    ]
    columns = [
        Column("session", names, is_text=True),
        Column("deletes", parts, is_text=True),
        Column("why", [waste.reason for waste in wastes], is_text=True),
        Column("size", [format_bytes(waste.n_bytes) for waste in wastes]),
    ]
    return format_table(columns, terminal_width())[0]


def _delete(waste: _Waste) -> str:
    """Deletes it, while no run can take the session; returns why not, or nothing."""
    path, folder = waste.path, waste.session.path
    lock = SessionLock(folder)
    try:
        if holder := lock.acquire("prune"):
            return f"{folder} is in use by {holder}: left alone"
        if not any(now.path == path for now in _wastes(Record.read(folder))):
            return f"{path} has changed meanwhile: left alone"
        if path == folder:
            shutil.rmtree(path)  # refuses a link, and follows none
        elif fault := find_fault(path.with_name("best.ckpt")):
            return f"{path.with_name('best.ckpt')} {fault}: {path.name} is left"
        else:
            path.unlink()
    except (OSError, ValueError) as ex:
        return f"{path} is left: {ex}"
    finally:
        with contextlib.suppress(OSError):
            lock.release()
    return ""
