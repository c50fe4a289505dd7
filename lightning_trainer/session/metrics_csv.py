"""Reads and writes metrics.csv: a row for each logged step, a column for each name.

The first column is `step`. A reader skips damaged lines: a kill leaves an incomplete last line, a
power cut leaves zeros.
"""

import contextlib
import csv
import io
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_trainer.session.door import open_anew, open_file, open_own

_TAIL_BYTES = 2**13
_LONGEST = 2**20  # bytes of a line; 10,000 numbers take a fifth
_STEP = re.compile("[0-9]{1,18}")

Curve = tuple[list[int], list[float]]  # iterations and values


class MetricsReader:
    """Reads a metrics.csv, which may be missing, damaged, or being written.

    Errors of the kind `ignored` make it count as empty.
    """

    def __init__(self, path: Path, ignored: type[OSError] = OSError) -> None:
        self.path = path
        self._ignored = ignored

    @property
    def names(self) -> list[str]:
        return next(self.lines(), [])[1:]

    @property
    def has_columns(self) -> bool:
        """Whether the first line is one of columns: without it no row can be read."""
        return next(self.lines(), None) is not None

    @property
    def n_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def rows(self) -> Iterator[dict[str, str]]:
        """Each undamaged row, as texts by column name."""
        lines = self.lines()
        columns = next(lines, [])
        for fields in lines:
            yield dict(zip(columns, fields, strict=True))

    def at(self, step: int) -> dict[str, float]:
        """The numbers of a step."""
        found = {}
        for row in self.rows():
            if int(row.pop("step")) == step:
                found = {name: n for name in row if (n := _number(row[name])) is not None}
        return found

    def newest(self, name: str) -> tuple[int | None, float | None]:
        """The highest step, and the newest value of a name; reads only the end of the file."""
        lines = self.lines(only_tail=True)
        columns = next(lines, [])
        step = value = None
        for fields in lines:
            # The last row may have a lower one: a test is logged at the best checkpoint's step.
            step = max(int(fields[0]), step or 0)
            if name in columns and (number := _number(fields[columns.index(name)])) is not None:
                value = number
        return step, value

    def curves(self, names: Collection[str]) -> dict[str, Curve]:
        """The curves of the names; leaves out names without values."""
        curves: dict[str, Curve] = {}
        for row in self.rows():
            for name in {*names} - {"step"}:
                if (number := _number(row.get(name, ""))) is not None:
                    iterations, values = curves.setdefault(name, ([], []))
                    iterations.append(int(row["step"]))
                    values.append(number)
        return curves

    def lines(self, only_tail: bool = False) -> Iterator[list[str]]:
        """The columns, then the fields of each undamaged row, or only of the last ones."""
        with contextlib.suppress(self._ignored), open_file(self.path) as file:
            columns = _split(file.readline(_LONGEST))
            if columns[:1] != ["step"]:
                return
            yield columns
            start = file.tell()
            if only_tail and file.seek(0, 2) - _TAIL_BYTES > start:
                file.seek(-_TAIL_BYTES, 2)
                file.readline(_LONGEST)  # the rest of a cut line
            else:
                file.seek(start)
            while line := file.readline(_LONGEST):  # a longer one becomes damaged ones
                fields = _split(line)
                if len(fields) == len(columns) and _STEP.fullmatch(fields[0]):
                    yield fields


def _split(line: bytes) -> list[str]:
    """The fields of a line; empty if it is damaged."""
    if line.endswith(b"\n") and b"\0" not in line:
        with contextlib.suppress(csv.Error, StopIteration):
            return next(csv.reader([line.decode(errors="replace")]))
    return []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class MetricsWriter:
    """Writes a metrics.csv, or goes on with one, each row at once.

    A new name makes it write the whole file again. It first drops an earlier start's rows from
    `purge_step` on. A file that is deleted or renamed meanwhile is written again with all its rows,
    which the open file still has.
    """

    def __init__(self, path: Path, purge_step: int | None = None) -> None:
        self.path = path
        self.unwritten: list[dict[str, Any]] = []  # rows that could not be written
        self._purge_step = purge_step
        self._columns: list[str] = []
        self._last: dict[str, Any] = {}
        self._last_offset = self._size = 0
        self._descriptor = -1  # of the file that this writer has left

    def add(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds numbers to the last row, or a new row.

        Raises:
            OSError: If the row can't be written, e.g. on a full disk; the next call writes it too.
        """
        row = {"step": str(step), **numbers}
        same_step = self._last.get("step") == row["step"]
        self._last = row = {**self._last, **row} if same_step else row
        try:
            known = self._columns and not self.unwritten and row.keys() <= {*self._columns}
            if known and self._is_as_left():
                self._append(row, same_step)
            else:
                self._rewrite([*self.unwritten, row])
            self.unwritten = []
        except OSError:
            self.unwritten = [*(r for r in self.unwritten if r["step"] != row["step"]), row]
            raise

    def complete(self, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes the rows that could not be written, and those of `kept` that are not there.

        Raises:
            OSError: If that fails again.
        """
        there: dict[str, set[str]] = {}
        for row in MetricsReader(self.path, FileNotFoundError).rows() if kept else ():
            there[row["step"]] = {name for name, text in row.items() if text}
        self.unwritten += [dict(r) for r in kept if not r.keys() <= there.get(r["step"], set())]
        if self.unwritten:
            self._rewrite(self.unwritten)
            self.unwritten = []

    def close(self) -> None:
        """Lets go of the file; the next row opens it again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):  # nothing was written by it
                os.close(descriptor)

    __del__ = close

    def _is_as_left(self) -> bool:
        """Whether the file is there as this writer has left it; brings back a deleted one."""
        if self._descriptor < 0:
            return False
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            temporary = self.path.with_suffix(".tmp")
            with open(os.dup(self._descriptor), "rb") as old, temporary.open("wb") as new:
                old.seek(0)
                shutil.copyfileobj(old, new)
            temporary.replace(self.path)
            return False
        return now.st_size == self._size and os.path.samestat(now, os.fstat(self._descriptor))

    def _append(self, row: dict[str, Any], same_step: bool) -> None:
        descriptor = open_own(self.path, os.O_RDWR)
        with open(descriptor, "r+", encoding="utf-8", newline="") as file:
            file.seek(self._last_offset if same_step else 0, 0 if same_step else 2)
            file.truncate()
            self._last_offset = file.tell()
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
            self._size = file.tell()

    def _rewrite(self, new: list[dict[str, Any]]) -> None:
        """Writes the file again with new rows; the first may add to the file's last row."""
        reader = MetricsReader(self.path, ignored=FileNotFoundError)
        if reader.n_bytes and not reader.has_columns:
            aside = self.path.with_name("metrics_damaged.csv")
            self.path.replace(aside)
            print(f"{self.path} is damaged: it is kept as {aside.name}", file=sys.stderr)
        rows: list[dict[str, Any]] = [*reader.rows()]
        if self._purge_step is not None:
            rows = [row for row in rows if int(row["step"]) < self._purge_step]
        names = ["step", *reader.names]
        for row in new:
            names += row
            if rows and rows[-1]["step"] == row["step"]:
                row = {**rows.pop(), **row}
            rows.append(row)
        columns = [*dict.fromkeys(names)]
        temporary = self.path.with_suffix(".tmp")
        with io.TextIOWrapper(open_anew(temporary), encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[:-1])
            offset = file.tell()
            writer.writerow(rows[-1])
            size = file.tell()
        temporary.replace(self.path)
        self._columns, self._last = columns, rows[-1]
        self._last_offset, self._size = offset, size
        self._purge_step = None
        self._hold()

    def _hold(self) -> None:
        self.close()
        with contextlib.suppress(OSError):
            self._descriptor = os.open(self.path, os.O_RDONLY)
