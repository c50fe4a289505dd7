"""CONTRIBUTING's plan of the house is that of the code.

python tests/test_house.py prints the table anew.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "lightning_trainer"
# From the ground up: a folder imports those before it.
FOLDERS = [
    *(
        "session",
        "base",
        "run",
        "checkpoints",
        "report",
        "images",
        "commands",
        "verify",
        "check",
        "start",
        "python",
    ),
]
MOST_LINES, MOST_LINES_OF_FUNCTION = 260, 40


def imports_of(folder: str) -> list[str]:
    """The folders that a folder imports, in the order of FOLDERS."""
    text = "\n".join(path.read_text() for path in (LIBRARY / folder).glob("*.py"))
    found = {*re.findall(r"^\s*from lightning_trainer\.(\w+)\.", text, re.M)} - {folder}
    return [name for name in FOLDERS if name in found]


def table() -> str:
    """A row for each folder: its job, its files, the folders that it imports."""
    rows = ["| folder | what it holds | files | imports |", "|---|---|---|---|"]
    for folder in FOLDERS:
        job = ast.get_docstring(ast.parse((LIBRARY / folder / "__init__.py").read_text()))
        files = sorted(path.stem for path in (LIBRARY / folder).glob("[a-z]*.py"))
        imports = ", ".join(imports_of(folder)) or "-"
        cells = (f"`{folder}/`", (job or "").rstrip("."), ", ".join(files), imports)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_table_of_contributing_is_that_of_the_code():
    assert table() in (ROOT / "CONTRIBUTING.md").read_text()


def test_no_file_and_no_function_is_long():
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= MOST_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MOST_LINES_OF_FUNCTION, (path, node.name)


def test_no_two_files_and_no_two_public_functions_or_classes_have_one_name():
    files = [path.stem for path in LIBRARY.rglob("[a-z]*.py")]
    names = [
        node.name
        for path in LIBRARY.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    for found in (files, names):
        assert sorted(found) == sorted({*found})


def test_each_file_says_its_job_in_its_first_line():
    for path in LIBRARY.rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        assert first.endswith("."), path


def private_parts(code: ast.AST) -> set[str]:
    """Attributes that begin with one underscore, of anything but the object or its class."""
    attributes = [node for node in ast.walk(code) if isinstance(node, ast.Attribute)]
    own = ("self", "cls", "super()")
    found = {node.attr for node in attributes if ast.unparse(node.value) not in own}
    return {name for name in found if name[0] == "_" and name[:2] != "__"}


OF = "ends graphs hooks loading logging optimising steps updates validations"
PRIVATE = ("", *(f"_of_{name}" for name in OF.split()))


def test_private_parts_of_others_are_touched_in_few_files_only():
    assert private_parts(ast.parse("a.b._c = self._d.e(super()._f).__g__")) == {"_c"}
    for path in LIBRARY.rglob("*.py"):
        code = ast.parse(path.read_text())
        own = {node.name for node in ast.walk(code) if isinstance(node, ast.FunctionDef)}
        others = private_parts(code) - own - {"_exit"}  # os._exit is public
        assert path.stem in [f"internals{of}" for of in PRIVATE] or not others, path


def test_the_places_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for place in re.findall(r"`((?:\w+/)+\w+\.\w+)`", text):
        assert (LIBRARY / place).exists() or (ROOT / place).exists(), place


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
