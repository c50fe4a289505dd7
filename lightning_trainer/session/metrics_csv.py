"""The numbers in a session's metrics.csv: the newest ones, or whole columns."""

import contextlib
import csv
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

_TAIL_BYTES = 2**13

Curve = tuple[list[int], list[float]]  # iterations and values


class Curves:
    """Reads metrics.csv, which may be missing, damaged, or being written.

    Attributes:
        names: What is logged, in the order of the file's columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        with contextlib.suppress(OSError, csv.Error), path.open("rb") as file:
            self._columns = next(_rows([file.readline()]), [])
        self.names = [name for name in self._columns if name != "step"]

    def newest(self, name: str) -> dict[str, float]:
        """The newest value of a name, and the highest "step", from the end of the file only."""
        newest: dict[str, float] = {}
        wanted = (name, "step")
        with contextlib.suppress(OSError, csv.Error), self.path.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            file.readline()  # the file's first line, or a part of one
            for row in _rows(file):
                # Not always the last row's: a test is logged at the best checkpoint's iteration.
                highest = newest.get("step", 0.0)
                newest |= self._numbers(row, wanted)
                if newest:
                    newest["step"] = max(newest["step"], highest)
        return newest

    def read(self, names: Collection[str]) -> dict[str, Curve]:
        """The whole curves of some names; those without values are left out."""
        curves: dict[str, Curve] = {}
        wanted = {*names, "step"}
        with contextlib.suppress(OSError, csv.Error), self.path.open("rb") as file:
            file.readline()
            for row in _rows(file):
                numbers = self._numbers(row, wanted)
                for name in numbers.keys() - {"step"}:
                    iterations, values = curves.setdefault(name, ([], []))
                    iterations.append(int(numbers["step"]))
                    values.append(numbers[name])
        return curves

    def _numbers(self, row: list[str], wanted: Collection[str]) -> dict[str, float]:
        """The numbers of a row; none if it is damaged."""
        numbers: dict[str, float] = {}
        for name, text in zip(self._columns, row, strict=False):
            if name in wanted:
                with contextlib.suppress(ValueError):
                    numbers[name] = float(text)
        step = numbers.get("step", -1.0)
        return numbers if step >= 0 and step.is_integer() else {}


def _rows(lines: Iterable[bytes]) -> Iterator[list[str]]:
    """Whole rows: a kill in the middle of a write leaves a last line without its end."""
    whole = (line for line in lines if line.endswith(b"\n"))
    return csv.reader(line.replace(b"\0", b"").decode(errors="replace") for line in whole)
