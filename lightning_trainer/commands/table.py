"""Formats a table for a terminal of some width, or as markdown."""

import json
from dataclasses import dataclass
from typing import Any

_GAP = "  "
_SHORTEST = 14  # characters that a shortened cell keeps
_LONGEST = 1000  # characters of a cell


@dataclass
class Column:
    """A column of a table."""

    title: str
    cells: list[str]
    # Aligned left, and shortened there, because names mostly differ at their ends; else a number.
    is_text: bool = False

    def __post_init__(self) -> None:
        self.title, *self.cells = map(show_text, [self.title, *self.cells])

    @property
    def width(self) -> int:
        return max(len(text) for text in [self.title, *self.cells])

    @property
    def shortest(self) -> int:
        return min(self.width, _SHORTEST) if self.is_text else self.width

    def lines(self, width: int) -> list[str]:
        """Title and cells, padded or shortened to one width."""
        texts = [text if len(text) <= width else f"..{text[2 - width :]}"
                 for text in [self.title, *self.cells]]  # fmt: skip
        return [text.ljust(width) if self.is_text else text.rjust(width) for text in texts]


def format_table(columns: list[Column], width: float) -> tuple[str, list[str]]:
    """The table at a terminal's width, and the titles of the last columns if they don't fit in."""
    shown = list(columns)
    while len(shown) > 1 and _total([column.shortest for column in shown]) > width:
        shown.pop()
    widths = [column.width for column in shown]
    while _total(widths) > width and widths != (shortest := [column.shortest for column in shown]):
        long = [i for i, n in enumerate(widths) if n > shortest[i]]
        widths[max(long, key=lambda i: widths[i])] -= 1
    lines = [column.lines(n) for column, n in zip(shown, widths, strict=True)]
    text = "".join(f"{_GAP.join(row).rstrip()}\n" for row in zip(*lines, strict=True))
    return text, [column.title for column in columns[len(shown) :]]


def _total(widths: list[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def format_markdown(columns: list[Column]) -> str:
    """The table as markdown."""
    rows = zip(*([c.title, "---" if c.is_text else "---:", *c.cells] for c in columns), strict=True)
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def show_text(text: str) -> str:
    """The text without what a terminal would take for a command, and no longer than a line."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST])
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]}.."


def show_value(value: Any) -> str:
    """A setting's value in one line, as on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return " ".join(value.split())
    return json.dumps(value, default=str)
