"""Imports go one way: library, then projects, then the entry point."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

import lightning_trainer


def module_name(path: Path) -> str:
    """E.g. lightning_trainer.callbacks.times; a package's is that of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


LIBRARY = {module_name(path): path for path in files("lightning_trainer")}
PROJECTS = {module_name(path): path for path in files("projects")}
BELOW_CLI = sorted(LIBRARY.keys() - {"lightning_trainer.cli", "lightning_trainer.main"})


def imports_of(path: Path) -> set[str]:
    """All that a file imports, wherever it does: "a.b" for `import a.b`, `from a import b`."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def modules_of(path: Path) -> set[str]:
    """The modules of the library that a file imports, of `from a.b import c` the one that is."""
    imported = imports_of(path)
    parents = {name.rpartition(".")[0] for name in imported}
    # Importing `a.b.c` by name from its package counts as the module where there is one.
    return {name for name in imported | parents if name in LIBRARY}


def roots_of(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


def test_all_ways_to_import_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "lightning_trainer" / "callbacks" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import torch.nn as nn, os\n"
        "from lightning_trainer.data import BaseDataModule as B\n"
        "def f():\n"
        "    from projects import digits\n"
        "    from . import line\n"
        "    from ..session import Session\n"
    )
    assert imports_of(path) == {
        "torch.nn",
        "os",
        "lightning_trainer.data.BaseDataModule",
        "projects.digits",
        "lightning_trainer.callbacks.line",
        "lightning_trainer.session.Session",
    }
    assert modules_of(path) == {
        "lightning_trainer.data",
        "lightning_trainer.session",
        "lightning_trainer.callbacks",
        "lightning_trainer.callbacks.line",
    }


LOWEST = ["session", "terminal", "lock", "secrets", "sampling", "hooks"]
LOWEST += ["header", "curves", "options", "table"]
WITHOUT_TORCH = ["session", "terminal", "lock", "secrets", "header", "curves", "options", "table"]
WITHOUT_TORCH += ["record", "columns", "sessions", "compare", "drawing", "new", "session_picture"]


@pytest.mark.parametrize("name", LOWEST)
def test_the_lowest_modules_know_nothing_of_ours(name):
    assert "lightning_trainer" not in roots_of(LIBRARY[f"lightning_trainer.{name}"])


def reached_from(name: str) -> set[str]:
    """A module of the library and all those that it imports, directly or not."""
    found, waiting = set(), [f"lightning_trainer.{name}"]
    while waiting:
        if (module := waiting.pop()) not in found and module != "lightning_trainer":
            found.add(module)
            waiting += modules_of(LIBRARY[module])
    return found


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_the_folder_the_terminal_and_what_looks_at_them_know_neither_torch_nor_lightning(name):
    known = set().union(*(roots_of(LIBRARY[module]) for module in reached_from(name)))
    assert not known & {"torch", "torchmetrics", "torchvision", "lightning", "pytorch_lightning"}


@pytest.mark.parametrize("name", BELOW_CLI)
def test_only_the_command_line_knows_the_command_line(name):
    assert "lightning_trainer.cli" not in modules_of(LIBRARY[name])


def test_the_library_has_no_circle_of_imports():
    # The package itself is left out: each of its modules is imported after it.
    graph = {
        name: modules_of(path) - {name, "lightning_trainer", name.rpartition(".")[0]}
        for name, path in LIBRARY.items()
    }
    assert "lightning_trainer.module" in graph["lightning_trainer.cli"]
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_names_no_project_and_no_test(name):
    tests = {path.stem for path in files("tests")} | {"tests", "projects", "benchmarks", "pytest"}
    assert not roots_of(LIBRARY[name]) & tests


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_knows_only_the_public_names_of_the_library(name):
    public = {f"lightning_trainer.{public}" for public in lightning_trainer.__all__}
    imported = {i for i in imports_of(PROJECTS[name]) if i.split(".")[0] == "lightning_trainer"}
    assert imported <= public


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_is_self_contained(name):
    """It can be copied: it knows itself, what it extends by its public names, and no test."""
    own = ".".join(name.split(".")[:2])
    imported = {i for i in imports_of(PROJECTS[name]) if i.split(".")[0] == "projects"}
    for other in {i for i in imported if i != own and not i.startswith(f"{own}.")}:
        project, _, public = other.rpartition(".")
        assert public in importlib.import_module(project).__all__
    assert not roots_of(PROJECTS[name]) & {"tests", "conftest"}


def test_each_project_uses_the_library():
    users = {
        name.split(".")[1]
        for name, path in PROJECTS.items()
        if "lightning_trainer" in roots_of(path)
    }
    assert users == {path.name for path in (ROOT / "projects").iterdir() if any(path.glob("*.py"))}


def test_the_entry_point_knows_only_the_command_line():
    assert imports_of(ROOT / "cli.py") == {"lightning_trainer.main.main"}


def test_the_public_names_are_those_a_project_needs():
    assert lightning_trainer.__all__ == [
        *("BaseDataModule", "BaseModule", "ReportFlops", "ShowMistakes"),
        *("draw_predictions", "random_crop_and_flip"),
    ]
    assert all(hasattr(lightning_trainer, name) for name in lightning_trainer.__all__)
