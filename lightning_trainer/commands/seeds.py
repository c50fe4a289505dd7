"""Trains with one seed after the other: python cli.py fit --config X --seeds 0,1,2."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lightning_trainer.commands.options import CommandLine, CommandParser
from lightning_trainer.commands.sessions import find_sessions
from lightning_trainer.session.environment import shown_command
from lightning_trainer.session.notices import Wishes
from lightning_trainer.session.program import printed_command, program
from lightning_trainer.session.record import FINISHED, RUNNING, Record
from lightning_trainer.session.settings import flatten, load_yaml, read_yaml

_DEFAULT_FOLDER = "experiments"
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def fit_seeds(argv: Sequence[str]) -> int:
    """Starts `fit` for each seed, with the words after `fit`.

    Returns the exit code of the first run that ended badly, else 0.

    A seed whose run has finished is left out, one whose run was stopped goes on: they are found by
    the command line that environment.yaml has. So the same command goes on with a loop that was
    interrupted. A signal ends the run, and the loop with it; a run that fails does not.
    """
    parser = CommandParser("fit")
    words, seeds = _take_seeds(argv, parser)
    try:
        wishes, words = Wishes.take(words)  # which no session keeps
    except ValueError as ex:
        parser.error(str(ex))
    worst = 0
    with_signals = _Forwarder()
    for seed in seeds:
        command = [*words, "--seed_everything", seed]
        before = _session_of(command, parser)
        if before and before.state == FINISHED:
            print(f"Seed {seed}: {before.path} has finished", flush=True)
            continue
        if before and before.state == RUNNING:
            print(f"Seed {seed}: {before.path} is running", flush=True)
            continue
        goes_on = before and (before.path / "checkpoints" / "last.ckpt").exists()
        if before and goes_on:
            command = ["fit", "--ckpt_path", str(before.path)]
        print(f"Seed {seed}: {printed_command(*command)}", flush=True)
        code = with_signals.run([sys.executable, *program(), *command, *wishes.options()])
        worst = worst or code
        if code > 128 or code < 0:
            break
    return worst if worst >= 0 else 128 - worst


def _take_seeds(argv: Sequence[str], parser: CommandParser) -> tuple[list[str], list[str]]:
    """The words without `--seeds`, and the seeds."""
    words, text = ["fit", *argv], ""
    for n, word in enumerate(words):
        name, equals, text = word.partition("=")
        if name == "--seeds":
            text = text if equals else (words[n + 1] if n + 1 < len(words) else "")
            del words[n : n + (1 if equals else 2)]
            break
    seeds = text.split(",")
    if not all(re.fullmatch("[0-9]{1,10}", seed) for seed in seeds) or len({*seeds}) < len(seeds):
        parser.error(f"`--seeds` is {text!r}: give different numbers with commas, e.g. 0,1,2")
    line = CommandLine.read(words)
    if line.ckpt_path or any(w.partition("=")[0] == "--seed_everything" for w in line.others):
        parser.error("`--seeds` begins new sessions: leave out --ckpt_path and --seed_everything")
    return words, seeds


def _session_of(command: list[str], parser: CommandParser) -> Record | None:
    """The session that this command line has begun, the one that is furthest."""
    typed, line = shown_command(command), CommandLine.read(command)
    folder = Path(_value_of("output_path", line) or _DEFAULT_FOLDER)
    found = [
        Record.read(path)
        for path in (find_sessions(folder) if folder.is_dir() else ())
        if (read_yaml(path / "environment.yaml") or {}).get("command") == typed
    ]
    if not found:
        return None
    best = max(found, key=lambda r: (r.state == FINISHED, r.state == RUNNING, r.iteration or 0))
    if changes := _changes(line, best):
        parser.error(
            f"{best.path} was begun by this command, but config files have changed since: "
            f"{'; '.join(changes)}. Give another --tag to begin anew"
        )
    return best


def _value_of(name: str, line: CommandLine) -> str | None:
    """A setting of the command line: of its options, else of its config files."""
    words = line.others
    for n, word in reversed([*enumerate(words)]):
        key, equals, value = word.partition("=")
        if key == f"--{name}":
            return value if equals else (words[n + 1] if n + 1 < len(words) else None)
    found = [settings.get(name) for settings in map(_settings, line.configs)]
    return next((str(value) for value in reversed(found) if value is not None), None)


def _settings(config: str) -> dict[str, Any]:
    try:
        return flatten(load_yaml(Path(config).expanduser()))
    except (OSError, ValueError):  # `fit` says what is wrong with it
        return {}


def _changes(line: CommandLine, record: Record) -> list[str]:
    """What the config files have now that the session has not begun with."""
    now: dict[str, Any] = {}
    for config in line.configs:
        now |= _settings(config)
    typed = {word.partition("=")[0].removeprefix("--") for word in line.others}
    began = flatten(read_yaml(record.path / "config_1.yaml") or {}) or record.settings
    return [
        f"{name} {began[name]} -> {value}"
        for name, value in now.items()
        if name in began and name not in typed and not _is_same(began[name], value)
    ]


def _is_same(old: Any, new: Any) -> bool:
    """Of two plain values; PyYAML takes 3e-3 for a text. Of other values nothing is known."""
    if not all(isinstance(value, int | float | str) for value in (old, new)):
        return True
    try:
        return float(old) == float(new)
    except ValueError:
        return str(old) == str(new)


class _Forwarder:
    """Runs programs one after the other, and gives them the signals that this process gets."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._got = 0

    def run(self, command: Sequence[str]) -> int:
        """The exit code. Ctrl-C reaches the program by the terminal: here it is only noted."""
        before = {n: signal.signal(n, self._pass_on) for n in (*_SIGNALS, signal.SIGINT)}
        try:
            self._process = subprocess.Popen(command)
            if self._got:  # came between two runs
                self._process.send_signal(self._got)
            code = self._process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 128 + self._got if self._got and code == 0 else code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._got = number
        if self._process and number != signal.SIGINT:
            self._process.send_signal(number)
