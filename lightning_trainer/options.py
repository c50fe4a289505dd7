"""The command line of the commands that need no torch: errors as those of the others look."""

import argparse
import re
import sys
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
