"""The commands: what each one does, how it is typed, and where its code is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command of `cli.py`.

    Attributes:
        name: What is typed.
        summary: What it does, in a sentence.
        place: Its function, as module:function. It is imported when the command is asked for.
        examples: What `cli.py --help` shows: options, and what they do.
        is_lightnings: Whether it is a method of Lightning's trainer.
        takes_configs: Whether `--config` names files.
    """

    name: str
    summary: str
    place: str
    examples: Mapping[str, str] = field(default_factory=dict)
    is_lightnings: bool = False
    takes_configs: bool = False

    def load(self) -> Callable[..., Any]:
        """Imports its function."""
        module, _, name = self.place.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


def _of_lightning(name: str, summary: str, examples: Mapping[str, str]) -> Command:
    place = "lightning_trainer.start.cli:main"
    return Command(name, summary, place, examples, is_lightnings=True, takes_configs=True)


_ALL = (
    _of_lightning(
        "fit",
        "Trains a model: a new session, or with --ckpt_path one that goes on.",
        {
            "--config configs/digits.yaml": "a new session",
            "--ckpt_path experiments/session_...": "goes on exactly where that session stopped",
        },
    ),
    _of_lightning("validate", "Scores a session's best checkpoint on the validation data.", {}),
    _of_lightning(
        "test",
        "Scores a session's best checkpoint on the test data.",
        {"--ckpt_path experiments/session_...": "its best checkpoint; so do validate and predict"},
    ),
    _of_lightning("predict", "Writes a session's best checkpoint's outputs to predictions.pt.", {}),
    Command(
        "verify",
        "Proves that restarts of a project are exact.",
        "lightning_trainer.verify.command:verify",
        {"--config configs/digits.yaml": "proves that restarts of this project are exact"},
        takes_configs=True,
    ),
    Command(
        "new",
        "Starts a project that trains at once.",
        "lightning_trainer.commands.new:new",
        {"NAME": "starts a project that trains at once"},
    ),
    Command(
        "sessions",
        "Lists all sessions in a table.",
        "lightning_trainer.commands.sessions:sessions",
        {"": "a table of all sessions"},
    ),
    Command(
        "compare",
        "Shows what differs between sessions, and draws their curves.",
        "lightning_trainer.commands.compare:compare",
        {"SESSION SESSION ...": "what differs, and their curves in one picture"},
    ),
)
COMMANDS = {command.name: command for command in _ALL}

_HELP = """\
usage: python cli.py COMMAND [--config FILE] [--ckpt_path PATH] [--OPTION VALUE ...]

Trains, tests and applies a project's model. Each run has a session folder.

{examples}

Any key of a config file is an option as well and wins over the file:

    fit --config configs/cifar.yaml --tag lr3e-3 --model.learning_rate 3e-3

All options of a command: python cli.py COMMAND --help
"""


def help_text() -> str:
    """What `cli.py --help` prints."""
    lines = [
        f"    {f'{command.name} {options}':<44} {effect}"
        for command in COMMANDS.values()
        for options, effect in command.examples.items()
    ]
    return _HELP.format(examples="\n".join(lines))
