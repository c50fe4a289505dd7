"""The texts of a session that a report shows: warnings, the end of the log, settings, changes."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_trainer.commands.columns import shown_setting
from lightning_trainer.commands.table import show_value
from lightning_trainer.session.door import open_file, read_bounded
from lightning_trainer.session.secrets import hide, scrub, secret_texts
from lightning_trainer.session.settings import flatten, read_yaml

_PART_OF_LOG = 2**22  # bytes, at its begin and at its end
_LONGEST = 600  # characters of a warning
_WARNING = re.compile(r"^(?:\S.*?:\d+: )?(\w*Warning: .*(?:\n(?=\S).*)?|error: .*)", re.MULTILINE)


def read_start(path: Path, most_bytes: int) -> tuple[str, int]:
    """The begin of a text file without secrets, and how many bytes are left out."""
    try:
        with open_file(path) as file:
            content = file.read(most_bytes)
            rest = max(os.fstat(file.fileno()).st_size - len(content), 0)
    except OSError:
        return "", 0
    if rest:
        content = content[: content.rfind(b"\n") + 1] or content
    return _hidden(content), rest


def read_log(folder: Path, most: int) -> tuple[list[tuple[str, int]], str]:
    """Warnings and errors of the log, with how often each came; the log's end.

    `most` are the characters of either.
    """
    begin, rest = _raw(folder / "log.txt", 0)
    end = _raw(folder / "log.txt", -_PART_OF_LOG)[0] if rest else ""
    found = Counter(
        " ".join(line.split())[:_LONGEST]
        for part in (begin, end)
        for line in _WARNING.findall(part)
    )
    shown = within([(hide(text, _secrets()), n) for text, n in found.items()], min(most, 20_000))
    return shown, _hidden((end or begin)[-min(most, 6000) :].encode())


def read_failure(folder: Path) -> str:
    """What failure.txt says of the process that failed."""
    with contextlib.suppress(OSError, ValueError):
        return _hidden(read_bounded(folder / "failure.txt", 2**16))
    return ""


def shown_settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, without secrets."""
    return [(name, show_value(shown_setting(settings, name))) for name in settings]


def read_environment(folder: Path) -> list[tuple[str, str]]:
    """What environment.yaml says of the first start and of each later one, without secrets."""
    content = read_yaml(folder / "environment.yaml") or {}
    restarts = content.pop("restarts", None)
    restarts = restarts if isinstance(restarts, list) else []
    rows = [*scrub(flatten(content)).items()]
    for n, start in enumerate(restarts, start=1):
        known = flatten(start) if isinstance(start, dict) else {}
        changed = {key: v for key, v in known.items() if v != flatten(content).get(key)}
        rows += [(f"restart {n}: {key}", value) for key, value in scrub(changed).items()]
    return [(str(key), show_value(value)) for key, value in rows]


def within(rows: Iterable[tuple[str, Any]], most: int) -> list[tuple[str, Any]]:
    """The first rows, of so many characters in all."""
    shown = []
    for row in rows:
        most -= sum(len(str(cell)) for cell in row)
        if most < 0:
            shown.append(("... and more", row[1] if isinstance(row[1], int) else ""))
            break
        shown.append(row)
    return shown


def _raw(path: Path, start: int) -> tuple[str, int]:
    """A part of a log from its begin or end on, and the bytes behind it."""
    with contextlib.suppress(OSError), open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size + start, 0) if start < 0 else start)
        text = file.read(_PART_OF_LOG).decode(errors="replace")
        return text, max(size - file.tell(), 0)
    return "", 0


def _hidden(content: bytes) -> str:
    return hide(content.decode(errors="replace"), _secrets())


def _secrets() -> list[str]:
    """Those of this process's environment; texts are searched for the shapes of others."""
    return secret_texts({})
