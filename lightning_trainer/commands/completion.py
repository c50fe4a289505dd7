"""Completes command lines in a shell: eval "$(python cli.py completion bash)"."""

import argparse
import contextlib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from lightning_trainer.commands.options import CommandLine, CommandParser
from lightning_trainer.commands.registry import COMMANDS
from lightning_trainer.session.imports import NAME
from lightning_trainer.session.program import PACKAGE, is_console
from lightning_trainer.session.settings import flatten, read_yaml

SHELLS = ("bash", "zsh", "fish")
_DESCRIPTION = """Prints a script that lets a shell complete commands, options, the keys of the
config or session that the line names, sessions (also by the beginning of a tag) and config files.

    bash: eval "$({program} bash)"    in ~/.bashrc
    zsh:  eval "$({program} zsh)"     in ~/.zshrc, after compinit
    fish: {program} fish | source     in ~/.config/fish/config.fish
"""
_WORDS = "--words"  # by which the scripts ask: after it come the words of the line so far
_OF_SESSIONS = ("compare", "export", "look", "report")  # take sessions without an option
_OF_FOLDERS = ("sessions", "prune")
# How the scripts start this program: whatever lies in the current folder is not executed.
_START = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [{folder!r}]; "
    "from lightning_trainer.main import main; main()"
)
_MOST = 500  # sessions that are offered, the newest


def completion(argv: list[str]) -> int:
    """Runs the command with the words after `completion`; returns its exit code."""
    if argv[:1] == [_WORDS]:
        print(*complete(argv[1:]), sep="\n")
        return 0
    parser = CommandParser("completion", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = _DESCRIPTION.format(program=parser.prog)
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(argv).shell
    templates = resources.files("lightning_trainer.commands") / "templates"
    text = (templates / f"completion.{shell}.txt").read_text(encoding="utf-8")
    code = _START.format(folder=str(PACKAGE.parent))
    ask = shlex.join([sys.executable, "-c", code, "completion", _WORDS])
    print(text.replace("ASK", ask).replace("WITH_PYTHON", "false" if is_console() else "true"))
    return 0


def complete(words: list[str]) -> Iterator[str]:
    """What may stand for the last of the words of a command line, without the program.

    Yields:
        First the kind: `words`, `paths`, or `files`, where the shell is to complete any file. Then
        a line for each, with a tab and a description where there is one.
    """
    if len(words) < 2:
        yield "words"
        yield from (f"{name}\t{command.summary}" for name, command in COMMANDS.items())
        return
    words, start = _joined(words)
    command, current = words[0], words[-1]
    options = known_options(command)
    name, equals, value = current.partition("=")
    if not equals and words[-2].startswith("-"):
        name, equals, value = words[-2], "", current
    if current.startswith("-") and "=" not in current:
        yield "words"
        keys = (f"--{key}" for key in _keys(words[1:-1]))
        yield from sorted({*options, *keys, "--help"})
    elif name in ("--ckpt_path", "--init_from"):
        yield from _paths(_sessions(words, value), start)
    elif name in ("--config", "-c"):
        yield from _paths(_configs(value), start)
    elif choices := options.get(name):
        yield "words"
        yield from (f"{start}{choice}" for choice in choices)
    elif name in options and options[name] is not None:
        yield "files"
    else:
        yield from _arguments(command, words)


def _arguments(command: str, words: list[str]) -> Iterator[str]:
    """What a command takes without an option."""
    if command in _OF_SESSIONS:
        yield from _paths(_sessions(words, words[-1]), "")
    elif command == "completion":
        yield from ("words", *SHELLS)
    else:
        yield "files" if command in _OF_FOLDERS else "words"


def _joined(words: list[str]) -> tuple[list[str], str]:
    """The words with `--a=b` in one; what of it a shell that splits at = does not replace.

    bash gives `--a`, `=` and `b`, zsh and fish `--a=b`.
    """
    joined = list[str]()
    for n, word in enumerate(words):
        if n and (word == "=" or words[n - 1] == "="):
            joined[-1] += word
        else:
            joined.append(word)
    is_split = "=" in words[-2:]
    name, equals, _ = joined[-1].partition("=")
    return joined, f"{name}=" if equals and not is_split and name.startswith("--") else ""


def _paths(found: Iterable[str], start: str) -> Iterator[str]:
    yield "paths"
    # Another kind of name, which a stranger may have chosen, could be a command to the terminal.
    yield from (f"{start}{path}" for path in found if path.isprintable())


def known_options(command: str) -> dict[str, list[str] | None]:
    """The options of a command, as they were when the file was written: see its test.

    Returns:
        By name the values to choose from; none where any will do, None where it takes no value.
    """
    file = resources.files("lightning_trainer.commands") / "templates" / "options.txt"
    lines = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines())
    others = "fit" if command in ("check", "verify") else ""
    words = f"{lines.get(command, '')} {lines.get(others, '')}".split()
    parts = {name: (equals, values) for name, equals, values in (w.partition("=") for w in words)}
    return {
        name: [v for v in values.split(",") if v] if equals else None
        for name, (equals, values) in parts.items()
    }


def _keys(words: list[str]) -> set[str]:
    """The options that the config files and the session of a command line have."""
    line, keys = CommandLine.read(["fit", *words]), set[str]()
    paths = [Path(name) for name in line.configs]
    paths += [Path(line.ckpt_path, "config.yaml")] if line.ckpt_path else []
    for path in paths:
        settings: Any = read_yaml(path) or {}
        keys |= {key.replace(".init_args.", ".") for key in flatten(settings)}
    return {key for key in keys if re.fullmatch(r"[\w.]+", key)}


def _sessions(words: list[str], begin: str) -> Iterator[str]:
    """Paths of session folders: those that begin so, or whose tag does; the newest first."""
    line = CommandLine.read(words)
    folders = [w.partition("=")[2] for w in line.others if w.startswith("--output_path=")]
    folders += [b for a, b in itertools.pairwise(words) if a == "--output_path"]
    folder = os.path.dirname(begin) if "/" in begin else (folders or ["experiments"])[-1]
    with contextlib.suppress(OSError), os.scandir(os.path.expanduser(folder) or "/") as entries:
        names = [match for e in entries if e.is_dir() and (match := NAME.fullmatch(e.name))]
        names.sort(key=lambda match: match["started"], reverse=True)
        named = os.path.basename(begin) if "/" in begin else begin
        for name in names[:_MOST]:
            path = os.path.join(folder, name[0])
            if path.startswith(begin) or name["tag"].startswith(named):
                yield path


def _configs(begin: str) -> Iterator[str]:
    """YAML files and folders that begin so; in configs/ where nothing is typed."""
    if not begin and os.path.isdir("configs"):
        begin = "configs/"
    folder = os.path.dirname(begin)
    with contextlib.suppress(OSError), os.scandir(os.path.expanduser(folder) or ".") as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = os.path.join(folder, entry.name)
            hidden = entry.name.startswith(".") and not os.path.basename(begin).startswith(".")
            if path.startswith(begin) and not hidden:
                if entry.is_dir():
                    yield f"{path}/"
                elif path.endswith((".yaml", ".yml")):
                    yield path
