"""The table of the commands, and the help text of the program."""

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from lightning_trainer.session.program import printed_command

_OF_LIGHTNING = "start.cli:run_trainer"


@dataclass(frozen=True)
class Command:
    """One command of `cli.py`."""

    summary: str  # its description, one sentence
    place: str = _OF_LIGHTNING  # its function, as module:function
    trains: bool = False  # whether it makes a project's objects, as Lightning's commands do

    @property
    def is_lightnings(self) -> bool:
        """Whether Lightning's trainer has a method of that name."""
        return self.place == _OF_LIGHTNING

    @property
    def imports_project(self) -> bool:
        """Whether it needs the classes of a project, and with them torch."""
        return self.is_lightnings or self.trains

    def load(self) -> Callable[..., Any]:
        function: Callable[..., Any] = resolve_name(f"lightning_trainer.{self.place}")
        return function


COMMANDS = {
    "fit": Command("Trains a model: a new session, or with --ckpt_path one that goes on."),
    "validate": Command("Scores a session's best checkpoint on the validation data."),
    "test": Command("Scores a session's best checkpoint on the test data."),
    "predict": Command("Writes the outputs of a session's best checkpoint to a table."),
    "check": Command(
        "Finds well-known silent mistakes before a training.", "start.check_command:check", True
    ),
    "verify": Command(
        "Proves that restarts of a project are exact.", "verify.command:verify", True
    ),
    "export": Command("Writes a session's weights alone.", "start.export_command:export", True),
    "schema": Command(
        "Writes what an editor checks and completes a config with.",
        "start.schema_command:schema",
        True,
    ),
    "new": Command("Starts a project that trains at once.", "commands.new:new"),
    "sessions": Command("Lists all sessions in a table.", "commands.sessions:sessions"),
    "look": Command("Starts TensorBoard, with sessions called by tag.", "commands.look:look"),
    "prune": Command("Deletes what no one needs of old sessions.", "commands.prune:prune"),
    "compare": Command(
        "Shows what differs between sessions, and draws their curves.", "commands.compare:compare"
    ),
    "report": Command("Writes one page on sessions, to read or to send.", "commands.report:report"),
    "completion": Command("Lets a shell complete command lines.", "commands.completion:completion"),
}

# `fit` with the option `--seeds`.
OF_SEEDS = Command("Trains with one seed after the other.", "commands.seeds:fit_seeds")

HELP = """\
usage: python cli.py COMMAND [--config FILE] [--ckpt_path PATH] [--OPTION VALUE ...]

Trains, tests and applies a project's model. Each run has a session folder.

    fit --config configs/digits.yaml             a new session
    fit --config ... --seeds 0,1,2               a session for each seed; again: the unfinished ones
    fit --config ... --on_event 'COMMAND'        tells of new best scores and the end; --notify URL
    fit --config ... --init_from PATH            a new session that begins with other weights
    fit --ckpt_path experiments/session_...      goes on exactly where that session stopped
    test --ckpt_path experiments/session_...     its best checkpoint; so do validate and predict
    export experiments/session_...               its weights alone; --onnx: the model as well
    check --config configs/digits.yaml           finds well-known silent mistakes beforehand
    verify --config configs/digits.yaml          proves that restarts of this project are exact
    schema --config configs/digits.yaml          lets editors check and complete that file
    new NAME                                     starts a project that trains at once
    sessions                                     a table of all sessions
    sessions --over seed_everything              a row for each setting: mean and spread over seeds
    compare SESSION SESSION ...                  what differs, and their curves in one picture
    report SESSION ...                           one HTML page on them, to read or to send
    look                                         TensorBoard, with sessions called by their tags
    prune                                        what could be deleted; --yes deletes it
    completion bash                              lets a shell complete all this; also zsh, fish

Any key of a config file is an option as well and wins over the file:

    fit --config configs/cifar.yaml --tag lr3e-3 --model.learning_rate 3e-3

All options of a command: python cli.py COMMAND --help
"""


def help_text() -> str:
    """The help of the program, with the words that start it."""
    return HELP.replace("python cli.py", printed_command())
