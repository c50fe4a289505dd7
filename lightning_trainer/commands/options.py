"""Takes command lines apart and reports errors in them, without torch."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning_trainer.session.program import printed_command

_UNKNOWN = re.compile(r"unrecognized arguments: ([^\s=]+)")


@dataclass(frozen=True)
class CommandLine:
    """The words after `cli.py`."""

    command: str  # the first word; empty where an option comes first
    configs: list[str]  # the values of `--config`, in their order
    ckpt_path: str  # the last value of `--ckpt_path`; empty without one
    others: list[str]  # all other words, also `--ckpt_path`, and `--config` without a value

    @classmethod
    def read(cls, argv: Sequence[str]) -> "CommandLine":
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
    """Parses the words after `cli.py COMMAND`; `command` is empty for the program itself."""

    def __init__(self, command: str = "", **kwargs: Any) -> None:
        # No abbreviations: each new option could change their meaning.
        super().__init__(prog=printed_command(*command.split()), allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints one message with near names and where to read more; exits with code 2."""
        if unknown := _UNKNOWN.match(message):
            options = re.findall(r"--?\w+", self.format_usage())
            message += did_you_mean(unknown[1], options)
        sys.stderr.write(f"error: {message}\n(more: {self.prog} --help)\n")
        sys.exit(2)


def did_you_mean(wrong: str, known: Iterable[str], near: Sequence[str] = ()) -> str:
    """The end of a message about an unknown name; empty without near names among the known."""
    names = near or get_close_matches(wrong, known)
    return f". Did you mean {' or '.join(f'`{name}`' for name in names)}?" if names else ""
