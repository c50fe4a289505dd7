"""Keeps modules that lie in a session folder from being imported.

Settings name classes, and a session folder comes with settings. A module that comes with it as
well would be the code of whoever sent the folder.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# The name that `Session.create` gives a folder.
NAME = re.compile(r"session_(?P<machine>.+?)_(?P<started>\d{4}(_\d\d){5})_(?P<tag>.+)")


@contextlib.contextmanager
def guarded_imports() -> Iterator[None]:
    """Within it, no module is imported that lies in a session folder."""
    for guard in _guards():  # of a run within which another one runs: two would ask each other
        before = guard.refusal
        yield
        guard.refusal = before
        return
    guard = _Guard()
    sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        sys.meta_path.remove(guard)


def add_current_folder() -> None:
    """Lets modules of the current folder and its src/ be found, after all others.

    Python does so by itself for a script that lies there, and for `-m`, but not for an installed
    command. They come last: a file of yours that is called as a package hides none.
    """
    with contextlib.suppress(OSError):  # the folder has been deleted
        for path in (os.getcwd(), os.path.abspath("src")):
            if path not in sys.path and os.path.isdir(path):
                sys.path.append(path)


def namesake(class_path: str) -> str:
    """What to say where a class comes from elsewhere, though the current folder has its package."""
    root, _, rest = class_path.partition(".")
    if (module := sys.modules.get(root)) is None:
        return ""
    found = [os.path.realpath(path) for path in getattr(module, "__path__", [])]
    found = found or [os.path.realpath(getattr(module, "__file__", None) or ".")]
    inside = rest.partition(".")[0] or "__init__"
    for folder in ("", "src/"):
        package = f"{folder}{root}"
        marks = (f"{package}/__init__.py", f"{package}/{inside}.py", f"{package}/{inside}")
        own = package if any(map(os.path.exists, marks)) else f"{package}.py"
        if os.path.exists(own) and (path := os.path.realpath(own)) not in found:
            return f"`{root}` is {found[0]}, not {path}: uninstall the one, or rename the other"
    return ""


def distrust(folder: Path) -> None:
    """Takes a session folder for one, whatever it is called and holds, or a lone checkpoint.

    So it does with the folder around it, which may have come with it, unless the project lies there
    too: the program, the working folder, or a folder of the search path.
    """
    for guard in _guards():
        guard.add(os.path.abspath(folder))


def refused_import() -> str:
    """Why a module was not imported; empty if none was refused. Other errors may have hidden it."""
    return next((guard.refusal for guard in _guards()), "")


def _guards() -> list["_Guard"]:
    return [finder for finder in sys.meta_path if isinstance(finder, _Guard)]


class _Guard:
    """Asks all other finders, and refuses what they find in a session folder."""

    def __init__(self) -> None:
        self.refusal = ""
        self._given: set[str] = set()
        self._known: dict[str, str | None] = {}
        program = os.path.dirname(os.path.abspath(sys.argv[0] or "."))
        self._program = os.path.realpath(program)

    def add(self, folder: str) -> None:
        own = {os.path.realpath(path or ".") for path in [*sys.path, "."]}
        for path in {folder, os.path.realpath(folder)}:
            around = os.path.dirname(path)
            if not any(_is_within(one, around) for one in {self._program, *own} - {path}):
                self._given.add(around)
            self._given.add(path)
        self._known.clear()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find and finder != self else None
            if spec is None:
                continue
            for folder in filter(None, map(self._session_around, _folders(spec))):
                self.refusal = (
                    f"`{name}` lies in {folder}, with a session: what comes with one is not "
                    "executed. If it is yours, move it to your project"
                )
                raise ImportError(self.refusal, name=name)
            return spec
        return None

    def _session_around(self, folder: str) -> str | None:
        """The session folder around a folder, as it is written or as links lead."""
        found = self._look(os.path.abspath(folder))
        if found is None and folder not in self._known:
            found = self._known[folder] = self._look(os.path.realpath(folder))
        return found or self._known.get(folder)

    def _look(self, folder: str) -> str | None:
        if folder not in self._known:
            above = os.path.dirname(folder)
            is_one = folder in self._given or is_session_folder(folder)
            if is_one and _is_within(self._program, folder):
                is_one = False  # the user has started the code that lies there
            found = folder if is_one else self._look(above) if above != folder else None
            self._known[folder] = found
        return self._known[folder]


def is_session_folder(folder: str) -> bool:
    """Whether a path is a session folder, by its name or, where it was renamed, by its files."""
    if NAME.fullmatch(os.path.basename(folder)):
        return True
    return os.path.exists(f"{folder}/run.json") and os.path.exists(f"{folder}/config.yaml")


def _folders(spec: ModuleSpec) -> Iterator[str]:
    """Where a module lies."""
    if spec.origin and spec.has_location:
        origin = os.path.realpath(spec.origin) if os.path.islink(spec.origin) else spec.origin
        yield os.path.dirname(origin)
    yield from spec.submodule_search_locations or ()


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
