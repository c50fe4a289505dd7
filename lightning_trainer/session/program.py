"""How the program was started, for the commands that it prints and those that it starts again."""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CONSOLE = "lightning-trainer"
# Files that notebooks start, which start no command of ours.
_NOTEBOOKS = ("ipykernel_launcher.py", "colab_kernel_launcher.py")
_called: list[bool] = []


@contextlib.contextmanager
def called_by_code() -> Iterator[None]:
    """Within it, the script that Python runs is not the command line: it has called a function."""
    _called.append(True)
    try:
        yield
    finally:
        _called.pop()


def program() -> list[str]:
    """The words after `python` that start the program: a script, or `-m lightning_trainer`.

    A notebook, `python -c` or the code of others is no program of ours: cli.py is, where it lies in
    the current folder, or else the package.
    """
    script = Path(sys.argv[0])
    if script.absolute().parent == PACKAGE:
        return ["-m", PACKAGE.name]
    if is_console() or (script.suffix == ".py" and not _called and _is_command_line(script)):
        return [sys.argv[0]]
    return ["cli.py"] if is_our_script(Path("cli.py")) else ["-m", PACKAGE.name]


def is_console() -> bool:
    """Whether the installed command was started."""
    return os.path.basename(sys.argv[0]) == CONSOLE


def is_our_script(path: Path) -> bool:
    """Whether a file starts this program."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return "lightning_trainer" in path.read_text(encoding="utf-8")
    return False


def code_folder() -> Path:
    """Where the project's code is taken to lie: with the script, else the current folder."""
    *module, script = program()
    return Path() if module or is_console() else Path(script).absolute().parent


def recorded_command(*words: str) -> str:
    """The command line as it is kept: the same wherever and by whichever Python it is started."""
    return shlex.join([*([CONSOLE] if is_console() else ["python", *program()]), *words])


def printed_command(*words: str) -> str:
    """A command line of this program that can be pasted in the current folder."""
    if is_console():
        found = shutil.which(CONSOLE) or ""
        name = CONSOLE if _is_same(found, sys.argv[0]) else _shortest(sys.argv[0])
        return shlex.join([name, *words])
    *module, script = program()
    return shlex.join([_python(), *module, script if module else os.path.relpath(script), *words])


def _is_command_line(script: Path) -> bool:
    return script.name not in _NOTEBOOKS and script.parent.name not in ("pytest", "IPython")


def _python() -> str:
    """`python`, where that is this one; else its path."""
    for name in ("python", "python3"):
        if _is_same(shutil.which(name) or "", sys.executable):
            return name
    return _shortest(sys.executable) if sys.executable else "python"


def _is_same(found: str, started: str) -> bool:
    """Whether two paths are one program: a link elsewhere may belong to another environment."""
    with contextlib.suppress(OSError):
        folders = (os.path.realpath(os.path.dirname(path)) for path in (found, started))
        return len({*folders}) == 1 and os.path.samefile(found, started)
    return False


def _shortest(path: str) -> str:
    """A path from the current folder where the file lies within it, else the whole path."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative
