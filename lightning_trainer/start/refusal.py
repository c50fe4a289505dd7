"""Refusal: what an error of jsonargparse says, for a message with near names and the remedy."""

import os
import re
import sys
import traceback
from dataclasses import dataclass
from pkgutil import resolve_name
from types import ModuleType

from lightning_trainer.internals import root_cause
from lightning_trainer.session.imports import namesake
from lightning_trainer.session.program import is_console, program
from lightning_trainer.start.failure import is_of_project

BASES = {"BaseModule": "model", "BaseDataModule": "data"}
_PACKAGES = {  # by what is imported, where the package has another name
    **{"sklearn": "scikit-learn", "skimage": "scikit-image", "cv2": "opencv-python"},
    **{"PIL": "pillow", "yaml": "PyYAML"},
}


@dataclass(frozen=True)
class Refusal:
    """jsonargparse's error, read from the wording of its message.

    jsonargparse 4.51: its exceptions carry nothing but the message.
    """

    message: str  # in one line, without Python's notation
    unknown: str  # the option, key or command that does not exist
    is_option: bool  # whether `unknown` was typed as `--unknown`
    class_path: str  # the class that has no such argument
    lacks: tuple[str, str] | None  # a module, and the name that it does not have
    is_incomplete: bool  # whether a required setting is missing

    @classmethod
    def read(cls, message: str, ex: BaseException | None = None) -> "Refusal":
        """Reads the message that a parser's `error` gets, and the exception behind it."""
        key = re.match(r'Parser key "([^"]+)"', message)
        if ex is not None and (cause := root_cause(ex)) is not ex:
            told = _with_place(cause)
            message = f"`{key[1]}`: {told}" if key else told
        unknown = re.search(
            r"unrecognized arguments: --([^\s=]+)|does not accept option '([^']+)'"
            r"|Option '([^']+)' is not accepted|invalid choice: '([^']+)'",
            message,
        )
        class_path = re.search(r"class_path '([^']+)'", message)
        lacks = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
        plain = re.sub(r"\s*\n\s*", " ", message.strip())
        plain = re.sub(r"<class '([\w.]+)'>", r"\1", plain)
        no_group = "`init_args` must be a group of settings, or be left out"
        plain = re.sub(r"'\w+' object has no attribute 'keys'", no_group, plain)
        plain = re.sub(r'Parser key "([^"]+)"', r"`\1`", plain)
        return cls(
            message=_explained(plain),
            unknown=next(filter(None, unknown.groups())) if unknown else "",
            is_option=unknown is not None and unknown[1] is not None,
            class_path=class_path[1] if class_path else "",
            lacks=(lacks[1], lacks[2]) if lacks else None,
            is_incomplete="arguments are required" in message,
        )


def _with_place(ex: BaseException) -> str:
    """An error's message, with the line of a project's file that has raised it on its import."""
    if isinstance(ex, SyntaxError):
        return f"{ex.msg} ({ex.filename}, line {ex.lineno})"
    frames = traceback.extract_tb(ex.__traceback__)
    ours = [f for f in frames if is_of_project(f.filename) and f.name == "<module>"]
    if not ours:
        return str(ex)
    return f"{type(ex).__name__}: {ex} ({ours[-1].filename}, line {ours[-1].lineno})"


def _explained(message: str) -> str:
    """The message, in other words where jsonargparse's don't tell what to do."""
    if found := re.search(r"^`(\w+)`: .*Import path (\S+) does not .* subclass of (\w+)$", message):
        return _of_wrong_class(*found.groups())
    if found := re.search(r"^`(\w+)`: .*class_path 'lightning_trainer\.Base\w+'", message):
        return (
            f"`{found[1]}` names no class of a project: give its `class_path`, e.g. "
            f"projects.digits.Digits{'Module' if found[1] == 'model' else 'Data'}"
        )
    if found := re.fullmatch(r"unrecognized arguments: ([^-\s]\S*\.ya?ml)", message):
        return f"{message}. Did you mean `--config {found[1]}`?"
    if found := re.search(r"No module named '([\w.]+)'|import of ([\w.]+) halted", message):
        root = (found[1] or found[2]).partition(".")[0]
        named = re.search(r"class_path '(\w+)", message)
        if sys.modules.get(root) or (named and named[1] == root):
            return f"{message}: {namesake(root) or _searched()}"
        package = _PACKAGES.get(root, root)
        return f"{message}. Is a package missing? `pip install {package}`"
    named = re.search(r"class_path '([\w.]+)'", message)
    other = namesake(named[1]) if named else ""
    return f"{message}. {other}" if other else message


def _searched() -> str:
    """Where a project's modules are looked for."""
    *module, script = program()
    beside = "" if is_console() or module else f"beside {os.path.basename(script)}, "
    return f"it is looked for {beside}in {os.getcwd()}, its src/, and PYTHONPATH"


def _of_wrong_class(group: str, path: str, base: str) -> str:
    """What to do about a class path that leads to something else than a class of `base`."""
    if base not in BASES:
        return f"`{group}`: {path} is no {base}"
    wanted = resolve_name(f"lightning_trainer.{base}")
    other = resolve_name(f"lightning_trainer.{next(name for name in BASES if name != base)}")
    given = resolve_name(path)
    if isinstance(given, ModuleType):
        classes = [v for v in vars(given).values() if isinstance(v, type) and issubclass(v, wanted)]
        names = [f"{path}.{c.__name__}" for c in classes if c is not wanted]
        return f"`{group}` is {path}, a module: name the class in it" + (
            f", {' or '.join(names)}" if names else f", a {base}"
        )
    if isinstance(given, type) and issubclass(given, other):
        return f"`{group}` is {path}, which belongs below `{BASES[other.__name__]}`"
    return f"`{group}` is {path}, which is no {base}: derive it from `lightning_trainer.{base}`"
