"""Runs one command, and imports only its code: python cli.py fit --config configs/digits.yaml."""

import atexit
import gc
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lightning_trainer import __version__
from lightning_trainer.commands.options import CommandLine, CommandParser, did_you_mean
from lightning_trainer.commands.registry import COMMANDS, OF_SEEDS, help_text
from lightning_trainer.session.imports import add_current_folder, guarded_imports
from lightning_trainer.session.utf8 import as_utf8

if TYPE_CHECKING:
    from lightning_trainer.python.trained_session import TrainedSession


@as_utf8()
def main(args: Sequence[str] | None = None) -> "TrainedSession | None":
    """Runs the command line `args` (without the program's name), by default the process's own.

    Returns:
        The session of `fit`, `validate`, `test` and `predict`, if `args` is given.
    """
    _open_closed_streams()
    if args is None:  # at its end Python would search all that is imported for garbage: 0.5 s
        atexit.register(gc.disable)
    try:
        try:
            session = _run(sys.argv[1:] if args is None else list(args), is_own=args is None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except OSError as ex:
        if ex.filename is not None:
            raise
        _end_unread(ex)
    return session if args is not None else None


def run_process() -> None:
    """Runs the process's own command line, and ends the process at once.

    Python's own end frees each object of torch and Lightning, which takes 1.4 s. Here nothing is
    freed; all else that belongs to an end is done: threads are waited for, functions of `atexit`
    are called, files flushed. `__del__` is not called, which Python promises of no object that is
    left at the end. One of several processes, a debugger, a profiler, `python -i` and an error get
    Python's own end.
    """
    code: object = None
    try:
        main()
    except SystemExit as ex:
        code = ex.code
    watched = sys.gettrace() or sys.getprofile() or sys.flags.inspect
    if "torch" in sys.modules and isinstance(code, int | None) and not watched:
        from torch import distributed

        from lightning_trainer.internals_of_ends import end_process

        if not (distributed.is_available() and distributed.is_initialized()):
            end_process(code or 0)
    sys.exit(code)  # type: ignore[arg-type]


def _open_closed_streams() -> None:
    """Opens streams that were closed at the start (`>&-`): a file would take their place."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `fd`
        if getattr(sys, name) is None:
            stream = open(fd, "w" if fd else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _end_unread(ex: OSError) -> NoReturn:
    """Ends as other programs do whose output can't be written: silently if its reader has gone."""
    code = 128 + signal.SIGPIPE
    if not isinstance(ex, BrokenPipeError):
        code = 1
        with suppress(OSError):
            print(f"error: writing failed: {ex.strerror}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python tries again at its exit, and would complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _run(argv: list[str], is_own: bool) -> "TrainedSession | None":
    """Runs a command line, which may be the process's own."""
    line = CommandLine.read(argv)
    if line.command not in COMMANDS:
        _answer(line)
        return None
    command = COMMANDS[line.command]
    if command.imports_project:
        _check_config_files(line)
        _check_environment(line.command)
        if is_own:
            add_current_folder()
        if any(word.partition("=")[0] == "--seeds" for word in line.others):
            command = OF_SEEDS
        else:
            _tell_of_the_imports(line)
    with guarded_imports():
        collects = gc.isenabled()
        gc.disable()  # imports make little garbage; the search for it took a sixth of their time
        run = command.load()
        if collects:
            gc.enable()
        if command.is_lightnings:
            folder = run(argv).path
            from lightning_trainer.python.trained_session import TrainedSession

            return TrainedSession(folder)
        argv.remove(line.command)
        sys.exit(run(argv))


def _answer(line: CommandLine) -> None:
    """Answers `--help` and `--version`; refuses a command line without a known command."""
    parser = CommandParser()
    first = line.command or (line.others[0] if line.others else "")
    if first in ("-h", "--help"):
        print(help_text(), end="")
    elif first == "--version":
        print(f"lightning_trainer {__version__}")
    elif line.command:
        near = did_you_mean(first, COMMANDS)
        every = ", ".join(COMMANDS)
        parser.error(f"there is no command `{first}`: the commands are {every}{near}")
    else:
        if not (first or line.configs):
            sys.stderr.write(help_text() + "\n")
        near = did_you_mean(first, ("--help", "--version"))
        parser.error(f"no command before the options: give one, e.g. `fit`{near}")


def _tell_of_the_imports(line: CommandLine) -> None:
    """Prints a sign of life, unless the output is a help text or for a program to read."""
    from lightning_trainer.session.environment import is_first_process

    read = re.compile(r"--(print_\w+|format|([\w.]+\.)?help)\b|(--output=)?-$|-h$")
    is_read = any(map(read.match, line.others))
    if sys.modules.get("torch") is None and is_first_process() and not is_read:
        print(f"Starting `{line.command}`: torch and lightning are imported", flush=True)


def _check_config_files(line: CommandLine) -> None:
    """Refuses missing and damaged files, before the import of torch takes seconds."""
    for name in line.configs:
        is_yaml_itself = ": " in name or "{" in name
        is_local = name.endswith((".yaml", ".yml")) and "://" not in name
        if is_local and not is_yaml_itself and (fault := _find_fault(Path(name).expanduser())):
            CommandParser(line.command).error(f"`--config` is {name!r}{fault}")


def _check_environment(command: str) -> None:
    """Refuses variables that are called as a setting: they would have no effect."""
    for name in os.environ:
        if found := re.fullmatch(
            r"LIGHTNING_TRAINER_(?:(?:FIT|TEST|PREDICT|VALIDATE)__)?(.+)", name
        ):
            from lightning_trainer.commands.completion import known_options

            key = found[1].lower().replace("__", ".")
            if f"--{key.partition('.')[0]}" in known_options("fit"):
                CommandParser(command).error(
                    f"`{name}` is in the environment, where no settings are read: unset it, and "
                    f'give --{key} "${name}"'
                )


def _find_fault(path: Path) -> str:
    """Why a file is missing or not YAML; empty if it is YAML or can't be read."""
    import yaml

    try:
        list(yaml.parse(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (FileNotFoundError, NotADirectoryError):
        return ": there is no such file"
    except OSError:  # the command's own parser reports it
        return ""
    except yaml.MarkedYAMLError as ex:
        where = f" in line {ex.problem_mark.line + 1}" if ex.problem_mark else ""
        return f", which is not YAML{where}: {ex.problem or ex.context}"
    except (yaml.YAMLError, ValueError) as ex:
        return f", which is not YAML: {' '.join(str(ex).split())}"
    return ""


if __name__ == "__main__":
    main()
