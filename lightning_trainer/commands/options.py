"""What a command line says, and errors in it, without torch."""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

_UNKNOWN = re.compile(r"unrecognized arguments: ([^\s=]+)")


class CommandParser(argparse.ArgumentParser):
    """Says in one message what was wrong and where to read more, with exit code 2.

    Args:
        command: What is typed after `cli.py`.
    """

    def __init__(self, command: str, **kwargs: Any) -> None:
        # No abbreviations: what they stand for changes with each new option.
        super().__init__(prog=f"python cli.py {command}", allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        unknown = _UNKNOWN.match(message)
        near = get_close_matches(unknown[1], self._option_string_actions) if unknown else []
        message += did_you_mean(near)
        sys.stderr.write(f"error: {message}\n(more: {self.prog} --help)\n")
        sys.exit(2)


def did_you_mean(names: list[str]) -> str:
    """The end of a message about an unknown name; empty without near ones."""
    return f". Did you mean {' or '.join(f'`{name}`' for name in names)}?" if names else ""


def option_values(argv: Sequence[str], *names: str) -> list[str]:
    """The values that an option has on a command line."""
    values = []
    for i, argument in enumerate(argv):
        name, has_value, value = argument.partition("=")
        if name in names and (has_value or i + 1 < len(argv)):
            values.append(value if has_value else argv[i + 1])
    return values


def split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The config files of a command line, and the rest of it."""
    files: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(argv):
        width = 2 if argv[i] in ("-c", "--config") else 1
        is_file = width == 2 or argv[i].startswith(("--config=", "-c="))
        (files if is_file else rest).extend(argv[i : i + width])
        i += width
    return files, rest
