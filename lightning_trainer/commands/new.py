"""Starts a project from the templates: python cli.py new NAME."""

import importlib.util
import keyword
import re
import sys
from importlib import resources
from pathlib import Path

from lightning_trainer.commands.options import CommandParser
from lightning_trainer.session.folder import check_tag

_DESCRIPTION = """Makes projects/NAME and configs/NAME.yaml, which train at once on made-up data.
Each hook is explained where it stands."""


def new(argv: list[str]) -> int:
    """Runs the command with the words after `new`; returns its exit code."""
    parser = CommandParser("new", description=_DESCRIPTION)
    parser.add_argument("name", metavar="NAME", help="name of the project, e.g. segmentation")
    name = parser.parse_args(argv).name
    files = project_files(name)
    try:
        check_name(name)
        _check_place(name)
        Path("projects", name).mkdir(parents=True)
        Path("configs").mkdir(exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except ValueError as ex:
        parser.error(str(ex))
    except OSError as ex:
        parser.error(f"{ex.filename} can't be made: {ex.strerror}")
    print(_fill("next", name), end="")
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


def _check_place(name: str) -> None:
    if not Path("cli.py").is_file():
        raise ValueError(f"{Path.cwd()} has no cli.py: go to the folder that has, and try again")
    for path in (Path("projects", name), Path("configs", f"{name}.yaml")):
        if path.exists():
            raise ValueError(f"{path} exists: nothing was changed. Give another name, or remove it")


def project_files(name: str) -> dict[Path, str]:
    """The files of a new project, from the package's templates: text by path."""
    files = ("__init__.py", "data.py", "module.py")
    paths = {file: Path("projects", name, file) for file in files}
    paths["config.yaml"] = Path("configs", f"{name}.yaml")
    return {path: _fill(template, name) for template, path in paths.items()}


def _fill(template: str, name: str) -> str:
    """A template's text, with the project's name in place of NAME and CLASS."""
    templates = resources.files("lightning_trainer.commands") / "templates"
    class_name = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    text = (templates / f"{template}.txt").read_text(encoding="utf-8")
    return re.sub("CLASS|NAME", lambda match: class_name if match[0] == "CLASS" else name, text)
