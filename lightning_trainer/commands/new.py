"""Starts a project from the templates: python cli.py new NAME."""

import importlib.util
import keyword
import re
import sys
from importlib import resources
from pathlib import Path

from lightning_trainer.commands.options import CommandParser
from lightning_trainer.session.folder import check_tag
from lightning_trainer.session.program import is_our_script, printed_command, recorded_command

_DESCRIPTION = """Makes a package NAME and configs/NAME.yaml in the current folder, which train at
once on made-up data. Each hook is explained where it stands. The package lies in projects/ where
there is such a folder or a cli.py, else below src/ where there is one (in the package there, if it
is the only one), else beside configs/."""


def new(argv: list[str]) -> int:
    """Runs the command with the words after `new`; returns its exit code."""
    parser = CommandParser("new", description=_DESCRIPTION)
    parser.add_argument("name", metavar="NAME", help="name of the project, e.g. segmentation")
    name = parser.parse_args(argv).name
    try:
        check_name(name)
        folder = package_folder(name)
        files = project_files(name, folder)
        _check_absent(*files)
        folder.mkdir(parents=True)
        Path("configs").mkdir(exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except ValueError as ex:
        parser.error(str(ex))
    except OSError as ex:
        parser.error(f"{ex.filename or 'the current folder'} can't be made: {ex.strerror}")
    print(_fill("next", name, folder, printed_command()), end="")
    return 0


def check_name(name: str) -> None:
    """Raises ValueError for a name that a project can't have."""
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name[0] == "_":
        raise ValueError(
            f"`NAME` is {name!r}: give a name for a Python package, i.e. letters, digits and _, "
            "with a letter first, and no word of the language"
        )
    check_tag(name)
    found = importlib.util.find_spec(name)  # a folder without an __init__.py has no origin
    if name in sys.stdlib_module_names or (found and found.origin is not None):
        raise ValueError(
            f"`NAME` is {name!r}, which `import {name}` finds already: a test beside the project "
            f"would hide it. Give another name, e.g. {name}_project"
        )


def _check_absent(package: Path, *others: Path) -> None:
    for path in (package.parent, *others[2:]):
        if path.exists():
            raise ValueError(f"{path} exists: nothing was changed. Give another name, or remove it")


def package_folder(name: str) -> Path:
    """Where the package of a new project goes, seen from the current folder.

    A repository of one's own mostly has one package below src/; then the project is a part of it.
    """
    if Path("projects").is_dir() or is_our_script(Path("cli.py")):
        return Path("projects", name)
    if not Path("src").is_dir():
        return Path(name)
    packages = [path.parent for path in Path("src").glob("*/__init__.py")]
    return (packages[0] if len(packages) == 1 else Path("src")) / name


def project_files(name: str, folder: Path) -> dict[Path, str]:
    """The files of a new project, from the package's templates: text by path."""
    files = ("__init__.py", "data.py", "module.py")
    paths = {file: folder / file for file in files}
    paths["config.yaml"] = Path("configs", f"{name}.yaml")
    paths["schema.json"] = Path("configs", f"{name}.schema.json")
    return {path: _fill(file, name, folder, recorded_command()) for file, path in paths.items()}


def _fill(template: str, name: str, folder: Path, command: str) -> str:
    """A template's text, with what the words in capitals stand for."""
    words = {
        "NAME": name,
        "CLASS": "".join(word[:1].upper() + word[1:] for word in name.split("_")),
        "PACKAGE": ".".join(part for part in folder.parts if part != "src"),
        "FOLDER": folder.as_posix(),
        "HERE": str(Path.cwd()),
        "COMMAND": command,
    }
    templates = resources.files("lightning_trainer.commands") / "templates"
    text = (templates / f"{template}.txt").read_text(encoding="utf-8")
    return re.sub("|".join(words), lambda match: words[match[0]], text)
