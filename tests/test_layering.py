"""Imports go one way: library, then projects, then the entry point."""

import ast
import importlib
import os
import re
import subprocess
import sys
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

import lightning_trainer


def module_name(path: Path) -> str:
    """E.g. lightning_trainer.run.state; a package's is that of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


LIBRARY = {module_name(path): path for path in files("lightning_trainer")}
PROJECTS = {module_name(path): path for path in files("projects")}


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


# What is imported by another name than the package's.
PACKAGES = {"yaml": "PyYAML", "lightning_utilities": "lightning"}


def test_the_library_requires_what_it_imports_and_no_more():
    text = (ROOT / "pyproject.toml").read_text()
    block = text.partition("dependencies = [")[2].partition("\n]")[0]
    required = set(re.findall(r'^    "([\w-]+)', block, re.MULTILINE))
    assert "torch" in required and not required & {"torchvision", "scikit-learn"}
    roots = {root for path in LIBRARY.values() for root in roots_of(path)}
    others = roots - sys.stdlib_module_names - {"lightning_trainer"}
    # Are named with their extra where they are missing; torchvision, which needs PIL, also in a
    # docstring.
    optional = {"safetensors", "scipy", "onnxruntime", "pandas", "pyarrow", "pynvml"}
    optional |= {"torchvision", "PIL"}
    assert {PACKAGES.get(root, root) for root in others} - optional == required


@pytest.mark.slow
def test_it_trains_where_the_packages_of_the_examples_are_not_installed(config, tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(pytest.__file__).parent.parent.iterdir():
        if not re.match("torchvision|sklearn|scikit_learn|safetensors", path.name):
            (packages / path.name).symlink_to(path)
    paths = map(str, [packages, ROOT, ROOT / "tests", ROOT / "tests/loaders"])
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    python = [Path(sys.base_prefix, "bin/python3"), "-S", "cli.py", "fit"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(paths)}
    flags = ["--config", str(config), "--trainer.max_steps=5"]
    done = run([*python, *flags], env=environment)
    assert done.returncode == 0 and "Finished at iteration 5" in done.stdout, done.stderr
    done = run([*python, "--config", "configs/digits.yaml"], env=environment)
    assert done.returncode == 2
    told = "No module named 'sklearn'. Is a package missing? `pip install scikit-learn`"
    assert told in done.stderr.splitlines()[0] and len(done.stderr.splitlines()) == 2


def test_all_ways_to_import_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "lightning_trainer" / "report" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import torch.nn as nn, os\n"
        "from lightning_trainer.base.data import BaseDataModule as B\n"
        "def f():\n"
        "    from projects import digits\n"
        "    from . import log_line\n"
        "    from ..session.folder import Session\n"
    )
    assert imports_of(path) == {
        "torch.nn",
        "os",
        "lightning_trainer.base.data.BaseDataModule",
        "projects.digits",
        "lightning_trainer.report.log_line",
        "lightning_trainer.session.folder.Session",
    }
    assert modules_of(path) == {
        "lightning_trainer.base.data",
        "lightning_trainer.session.folder",
        "lightning_trainer.report",
        "lightning_trainer.report.log_line",
    }


# Each folder imports those before it, and itself. `main` imports a command when it is asked for.
ORDER = ["session", "base", "run", "checkpoints", "report", "images", "commands", "verify"]
ORDER += ["check", "start", "python"]
WITHOUT_TORCH = ["session", "commands"]


def folder_of(name: str) -> str:
    """E.g. "session"; empty for the few modules that lie in no folder."""
    return name.split(".")[1] if name.count(".") > 1 else ""


@pytest.mark.parametrize("name", LIBRARY)
def test_a_folder_imports_only_those_below_it(name):
    folder = folder_of(name)
    if folder:
        imported = {folder_of(module) for module in modules_of(LIBRARY[name])} - {""}
        assert imported <= {*ORDER[: ORDER.index(folder) + 1]}


def test_the_order_names_every_folder():
    assert {folder_of(name) for name in LIBRARY} - {""} <= {*ORDER}
    assert {path.name for path in (ROOT / "lightning_trainer").iterdir() if path.is_dir()} - {
        "__pycache__"
    } == {*ORDER}


def reached_from(name: str) -> set[str]:
    """A module of the library and all those that it imports, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        if (module := waiting.pop()) not in found and module != "lightning_trainer":
            found.add(module)
            waiting += modules_of(LIBRARY[module])
    return found


@pytest.mark.parametrize("name", [n for n in LIBRARY if folder_of(n) in WITHOUT_TORCH])
def test_what_looks_at_sessions_knows_neither_torch_nor_lightning(name):
    known = set().union(*(roots_of(LIBRARY[module]) for module in reached_from(name)))
    assert not known & {"torch", "torchmetrics", "torchvision", "lightning", "pytorch_lightning"}


def test_the_library_has_no_circle_of_imports():
    # Packages are left out: each of their modules is imported after them.
    graph = {
        name: {m for m in modules_of(path) if LIBRARY[m].name != "__init__.py"} - {name}
        for name, path in LIBRARY.items()
    }
    assert "lightning_trainer.base.module" in graph["lightning_trainer.start.cli"]
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
    assert imports_of(ROOT / "cli.py") == {"lightning_trainer.main.run_process"}


def test_the_public_names_are_those_a_project_needs():
    assert lightning_trainer.__all__ == [
        *("AverageWeights", "BaseDataModule", "BaseModule", "KeepReport", "ReportFlops"),
        *("RunError", "ShowMistakes", "TrainedSession", "draw_predictions", "fit", "load"),
        *("random_crop_and_flip", "read_image", "read_images"),
    ]
    assert all(hasattr(lightning_trainer, name) for name in lightning_trainer.__all__)
