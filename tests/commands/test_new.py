"""`new` makes a project that trains at once, and never changes what is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from forks import ForkedProcess

from lightning_trainer.commands.new import project_files

MADE = [
    "configs/spirals.schema.json",
    "configs/spirals.yaml",
    "projects/spirals/__init__.py",
    "projects/spirals/data.py",
    "projects/spirals/module.py",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A folder with nothing but cli.py, as the current one."""
    shutil.copy(ROOT / "cli.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def start(*args: str, popen: type[subprocess.Popen] = subprocess.Popen) -> tuple[int, str, str]:
    """`python cli.py` in the current folder, in a process that knows only the library."""
    process = popen(
        [sys.executable, "cli.py", *args],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.long
def test_a_new_project_trains_at_once_and_well_and_all_that_is_said_to_do_next_exists(run, place):
    code, out, err = run("new", "spirals")
    assert (code, err) == (0, "")
    assert files(Path("configs")) + files(Path("projects")) == MADE
    assert all(name in out for name in MADE)
    command = re.search(r"python cli.py (fit .*)", out)[1]
    code, out, err = start(*command.split(), popen=ForkedProcess)
    assert code == 0, err
    assert float(re.search(r"Best score: +(\S+)", out)[1]) > 0.95
    assert "UserWarning" not in err
    [session] = Path("experiments").iterdir()
    code, out, err = start("check", "--config", "configs/spirals.yaml", popen=ForkedProcess)
    assert code == 0 and "\n0 certain mistakes, 0 hints; " in f"\n{out}", out + err
    code, out, err = start("test", "--ckpt_path", str(session), popen=ForkedProcess)
    assert code == 0, err
    assert "Test score" in out


def test_its_names_are_made_of_the_projects_name():
    texts = project_files("my_3d_net", Path("projects", "my_3d_net"))
    assert list(map(str, texts)) == [
        "projects/my_3d_net/__init__.py",
        "projects/my_3d_net/data.py",
        "projects/my_3d_net/module.py",
        "configs/my_3d_net.yaml",
        "configs/my_3d_net.schema.json",
    ]
    assert "from projects.my_3d_net.data import My3dNetData" in next(iter(texts.values()))
    assert not re.search("NAME|CLASS", "".join(texts.values()))


def test_every_hook_is_there_with_a_word_on_it(place):
    hooks = "create_model create_loss create_optimiser create_metrics forward_model forward_loss"
    optional = "update_metrics visualise prepare_data create_data"
    text = "".join(project_files("a", Path("projects", "a")).values())
    for hook in [*hooks.split(), *optional.split()]:
        assert re.search(rf'def {hook}\(.*\n +"""', text), hook


def test_its_files_are_short():
    assert all(
        len(text.splitlines()) <= 70 for text in project_files("a", Path("projects", "a")).values()
    )


@pytest.mark.parametrize(
    "name", ["", "3d", "my-net", "my net", "../x", "class", "_a", "größe", "a."]
)
def test_a_name_that_is_no_identifier_is_refused(run, place, name):
    code, out, err = run("new", name)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: `NAME` is {name!r}: give a name for a Python package")
    assert not Path("projects").exists()


@pytest.mark.parametrize("name", ["torch", "random", "lightning_trainer", "yaml", "sys"])
def test_a_name_that_python_finds_already_is_refused(run, place, name):
    code, _, err = run("new", name)
    assert code == 2
    assert err.startswith(f"error: `NAME` is {name!r}, which `import {name}` finds already")
    assert not Path("projects").exists()


def test_a_folder_that_is_no_package_may_lend_its_name(run, place):
    Path("data").mkdir()
    assert run("new", "data")[0] == 0


@pytest.mark.parametrize("existing", ["projects/mine/kept.txt", "configs/mine.yaml"])
def test_what_exists_is_left_alone(run, place, existing):
    path = Path(existing)
    path.parent.mkdir(parents=True)
    path.write_text("kept")
    before = files(place)
    code, _, err = run("new", "mine")
    assert code == 2
    assert "exists: nothing was changed. Give another name, or remove it" in err
    assert (files(place), path.read_text()) == (before, "kept")


@pytest.mark.parametrize(
    ("there", "folder", "package"),
    [
        ([], "mine", "mine"),
        (["paper/__init__.py"], "mine", "mine"),
        (["projects/old/data.py"], "projects/mine", "projects.mine"),
        (["src/"], "src/mine", "mine"),
        (["src/paper/__init__.py"], "src/paper/mine", "paper.mine"),
        (["src/paper/__init__.py", "src/other/__init__.py"], "src/mine", "mine"),
        (["src/paper/__init__.py", "cli.py"], "src/paper/mine", "paper.mine"),
        (["src/paper/__init__.py", "projects/"], "projects/mine", "projects.mine"),
    ],
)
def test_it_is_made_wherever_one_stands(run, tmp_path, monkeypatch, there, folder, package):
    monkeypatch.chdir(tmp_path)
    for path in map(Path, there):
        path.parent.mkdir(parents=True, exist_ok=True)
    for name in there:
        Path(name).mkdir(parents=True) if name.endswith("/") else Path(name).touch()
    code, out, err = run("new", "mine")
    assert (code, err) == (0, "")
    assert f"Made in {tmp_path}:\n\n    {folder}/__init__.py\n" in out
    assert f"class_path: {package}.MineModule" in Path("configs/mine.yaml").read_text()
    assert f"from {package}.data import MineData" in Path(folder, "__init__.py").read_text()


def test_a_folder_that_may_not_be_written_is_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("src").touch()  # root may write everywhere
    Path("projects").touch()
    Path("configs").touch()
    code, out, err = run("new", "mine")
    assert (code, out, err.splitlines()[0]) == (2, "", "error: configs can't be made: File exists")


def test_torch_is_not_imported(place):
    code = (
        "import sys; from lightning_trainer.main import main\n"
        "try: main(['new', 'mine'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'lightning'} & {*sys.modules}\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
