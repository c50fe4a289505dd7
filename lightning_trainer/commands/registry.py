"""The table of the commands, and the help text that lists them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

_OF_LIGHTNING = "start.cli:run_trainer"


@dataclass(frozen=True)
class Command:
    """One command of `cli.py`."""

    name: str  # the word on the command line
    place: str  # its function, as module:function
    summary: str  # its description, one sentence
    examples: Mapping[str, str] = field(default_factory=dict)  # for the help: options, and effect

    @property
    def is_lightnings(self) -> bool:
        """Whether Lightning's trainer has a method of that name."""
        return self.place == _OF_LIGHTNING

    @property
    def takes_configs(self) -> bool:
        return self.is_lightnings or self.name == "verify"

    def load(self) -> Callable[..., Any]:
        module, _, name = self.place.partition(":")
        function: Callable[..., Any] = getattr(import_module(f"lightning_trainer.{module}"), name)
        return function


_SESSION, _CONFIG = "--ckpt_path experiments/session_...", "--config configs/digits.yaml"
_ALL = (
    Command(
        *("fit", _OF_LIGHTNING),
        "Trains a model: a new session, or with --ckpt_path one that goes on.",
        {_CONFIG: "a new session", _SESSION: "goes on exactly where that session stopped"},
    ),
    Command(
        *("validate", _OF_LIGHTNING),
        "Scores a session's best checkpoint on the validation data.",
    ),
    Command(
        *("test", _OF_LIGHTNING),
        "Scores a session's best checkpoint on the test data.",
        {_SESSION: "its best checkpoint; so do validate and predict"},
    ),
    Command(
        *("predict", _OF_LIGHTNING),
        "Writes a session's best checkpoint's outputs to predictions.pt.",
    ),
    Command(
        *("verify", "verify.command:verify"),
        "Proves that restarts of a project are exact.",
        {_CONFIG: "proves that restarts of this project are exact"},
    ),
    Command(
        *("new", "commands.new:new"),
        "Starts a project that trains at once.",
        {"NAME": "starts a project that trains at once"},
    ),
    Command(
        *("sessions", "commands.sessions:sessions"),
        "Lists all sessions in a table.",
        {"": "a table of all sessions"},
    ),
    Command(
        *("compare", "commands.compare:compare"),
        "Shows what differs between sessions, and draws their curves.",
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
    """The text of `cli.py --help`."""
    lines = [
        f"    {f'{command.name} {options}':<44} {effect}"
        for command in COMMANDS.values()
        for options, effect in command.examples.items()
    ]
    return _HELP.format(examples="\n".join(lines))
