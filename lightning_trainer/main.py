"""Which command runs; imports no more than that one needs.

python cli.py fit --config configs/digits.yaml
python cli.py sessions
"""

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lightning_trainer.commands.options import CommandParser, option_values

_HELP = """\
usage: python cli.py COMMAND [--config FILE] [--ckpt_path PATH] [--OPTION VALUE ...]

Trains, tests and applies a project's model. Each run has a session folder.

    fit --config configs/digits.yaml             a new session
    fit --ckpt_path experiments/session_...      goes on exactly where that session stopped
    test --ckpt_path experiments/session_...     its best checkpoint; so do validate and predict
    verify --config configs/digits.yaml          proves that restarts of this project are exact
    new NAME                                     starts a project that trains at once
    sessions                                     a table of all sessions
    compare SESSION SESSION ...                  what differs, and their curves in one picture

Any key of a config file is an option as well and wins over the file:

    fit --config configs/cifar.yaml --tag lr3e-3 --model.learning_rate 3e-3

All options of a command: python cli.py COMMAND --help
"""

# Need no torch: each is a module with a function of that name, from arguments to exit code.
_LIGHT_COMMANDS = ("sessions", "compare", "new")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: Without the program's name; by default that of the process.
    """
    argv = sys.argv[1:] if args is None else list(args)
    if argv[:1] and argv[0] in _LIGHT_COMMANDS:
        command = getattr(import_module(f"lightning_trainer.commands.{argv[0]}"), argv[0])
        sys.exit(command(argv[1:]))
    if argv[:1] in (["-h"], ["--help"]):
        print(_HELP, end="")
        return
    _check_config_files(argv)
    if argv[:1] == ["verify"]:
        from lightning_trainer.verify.command import verify

        sys.exit(verify(argv[1:]))
    gc.disable()  # looking for garbage, of which imports make little, took a sixth of their time
    from lightning_trainer.start.cli import main as run

    gc.enable()
    run(argv)


def _check_config_files(argv: list[str]) -> None:
    """Refuses names of nothing, which else are told after the seconds that torch takes."""
    for name in option_values(argv[1:], "--config", "-c"):
        is_yaml_itself = ": " in name or "{" in name
        is_local = name.endswith((".yaml", ".yml")) and "://" not in name
        if is_local and not is_yaml_itself and not Path(name).expanduser().exists():
            CommandParser(argv[0]).error(f"`--config` is {name!r}: there is no such file")
