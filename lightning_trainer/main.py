"""Which command runs; imports no more than that one needs.

python cli.py fit --config configs/digits.yaml
python cli.py sessions
"""

import sys
from collections.abc import Sequence
from importlib import import_module

# Need no torch: each is a module with a function of that name, from arguments to exit code.
_LIGHT_COMMANDS = ("sessions", "compare", "new")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: Without the program's name; by default that of the process.
    """
    argv = sys.argv[1:] if args is None else list(args)
    if argv[:1] and argv[0] in _LIGHT_COMMANDS:
        command = getattr(import_module(f"lightning_trainer.{argv[0]}"), argv[0])
        sys.exit(command(argv[1:]))
    from lightning_trainer.cli import main as run

    run(argv)
