"""What a command line says, and errors in it, without torch."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

_UNKNOWN = re.compile(r"unrecognized arguments: ([^\s=]+)")


@dataclass(frozen=True)
class CommandLine:
    """What is typed after `cli.py`, taken apart once.

    Attributes:
        command: The first word; empty where an option comes first.
        configs: The values of `--config`, in their order.
        ckpt_path: The last value of `--ckpt_path`; empty without one.
        others: All other words in their order, with `--ckpt_path`, and with an option of the two
            that lacks its value.
    """

    command: str
    configs: list[str]
    ckpt_path: str
    others: list[str]

    @classmethod
    def read(cls, argv: Sequence[str]) -> "CommandLine":
        """Takes a command line apart; it may be wrong."""
        configs, paths, others = list[str](), [""], list[str]()
        words = list(reversed(argv))
        while words:
            name, equals, value = words.pop().partition("=")
            has_value = equals or (words and not words[-1].startswith("-"))
            if name not in ("-c", "--config", "--ckpt_path") or not has_value:
                others.append(name + equals + value)
                continue
            value = value if equals else words.pop()
            if name == "--ckpt_path":
                paths.append(value)
                others.append(f"{name}={value}")
            else:
                configs.append(value)
        command = "" if not others or others[0].startswith("-") else others.pop(0)
        return cls(command, configs, paths[-1], others)


class CommandParser(argparse.ArgumentParser):
    """Says in one message what was wrong and where to read more, with exit code 2.

    Args:
        command: What is typed after `cli.py`; empty for the program itself.
    """

    def __init__(self, command: str = "", **kwargs: Any) -> None:
        # No abbreviations: what they stand for changes with each new option.
        super().__init__(prog=f"python cli.py {command}".strip(), allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        if unknown := _UNKNOWN.match(message):
            options = re.findall(r"--?\w+", self.format_usage())
            message += did_you_mean(get_close_matches(unknown[1], options))
        sys.stderr.write(f"error: {message}\n(more: {self.prog} --help)\n")
        sys.exit(2)


def did_you_mean(names: list[str]) -> str:
    """The end of a message about an unknown name; empty without near ones."""
    return f". Did you mean {' or '.join(f'`{name}`' for name in names)}?" if names else ""
