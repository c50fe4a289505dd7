"""What comes with a session folder is not imported; what is the user's own is."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from lightning_trainer.session.imports import (
    add_current_folder,
    distrust,
    guarded_imports,
    namesake,
)

NAME = "session_node1_2024_02_29_12_00_00_gift"
EVIL = "open('executed', 'w')\nfrom conftest import TinyModule as M\n"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The working folder, from which Python imports; what tests import is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "cli.py")])
    before = {*sys.modules}
    importlib.invalidate_caches()
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]


def session(path: str, *, files: tuple[str, ...] = ("config.yaml", "run.json")) -> Path:
    folder = Path(path)
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()
    (folder / "evil.py").write_text(EVIL)
    return folder


def refuses(module: str) -> bool:
    importlib.invalidate_caches()
    with guarded_imports():
        try:
            importlib.import_module(module)
        except ImportError as ex:
            assert "what comes with one is not executed" in str(ex)
            assert len(str(ex).splitlines()) == 1
            assert not os.path.exists("executed")
            return True
    return False


def test_a_folder_is_a_session_by_its_name_or_its_files():
    session(f"experiments/{NAME}", files=())
    session("experiments/renamed")
    session("plain", files=("config.yaml", "environment.yaml"))  # a project may have both
    assert refuses(f"experiments.{NAME}.evil")
    assert refuses("experiments.renamed.evil")
    assert not refuses("plain.evil")


@pytest.mark.parametrize("way", ["PYTHONPATH", "pth", "link", "file link", "package", "cwd"])
def test_no_way_leads_into_a_session_folder(project, monkeypatch, way):
    folder = session(f"experiments/{NAME}")
    module = "evil"
    if way == "PYTHONPATH":
        monkeypatch.setattr(sys, "path", [str(project / folder), *sys.path])
    elif way == "pth":
        (project / "site").mkdir()
        (project / "site" / "a.pth").write_text(str(project / folder))
        import site

        site.addsitedir(str(project / "site"))
    elif way == "link":
        os.symlink(folder, "innocent")
        module = "innocent.evil"
    elif way == "file link":
        os.symlink(folder / "evil.py", "innocent.py")
        module = "innocent"
    elif way == "package":
        (folder / "json").mkdir()
        (folder / "json/__init__.py").write_text(EVIL)
        monkeypatch.delitem(sys.modules, "json")
        monkeypatch.setattr(sys, "path", [str(project / folder), *sys.path])
        module = "json"
    elif way == "cwd":
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert refuses(module)


def test_the_folder_that_is_read_counts_whatever_it_is_called(project):
    gift, beside = session("gifts/a", files=()), session("gifts/b", files=())
    (project / "mine").mkdir()
    (project / "mine" / "good.py").touch()
    importlib.invalidate_caches()
    with guarded_imports():
        distrust(gift)
        for name in (gift, beside):
            with pytest.raises(ImportError, match="with a session"):
                importlib.import_module(f"gifts.{name.name}.evil")
        importlib.import_module("mine.good")
    assert not os.path.exists("executed")


def test_a_session_or_checkpoint_among_the_projects_own_folders_takes_none_of_them(project):
    session("gift", files=())
    (project / "good.py").touch()
    importlib.invalidate_caches()
    with guarded_imports():
        distrust(Path("gift"))
        distrust(Path("last.ckpt"))
        importlib.import_module("good")
        with pytest.raises(ImportError, match="with a session"):
            importlib.import_module("gift.evil")


def test_a_program_that_lies_in_a_session_folder_is_the_users_choice(project, monkeypatch):
    folder = session(f"experiments/{NAME}")
    (folder / "evil.py").write_text("")
    monkeypatch.setattr(sys, "argv", [str(folder / "cli.py")])
    assert not refuses(f"experiments.{NAME}.evil")


def test_the_guard_is_gone_afterwards():
    before = [*sys.meta_path]
    with guarded_imports():
        assert len(sys.meta_path) == len(before) + 1
    assert sys.meta_path == before


# The command line ---------------------------------------------------------------------------------

SETTINGS = {
    "model": "model: {class_path: EVIL.M}",
    "data": "data: {class_path: EVIL.M}",
    "callbacks": "trainer: {callbacks: [{class_path: EVIL.M}]}",
    "logger": "trainer: {logger: {class_path: EVIL.M}}",
    "plugins": "trainer: {plugins: [{class_path: EVIL.M}]}",
    "strategy": "trainer: {strategy: {class_path: EVIL.M}}",
    "profiler": "trainer: {profiler: {class_path: EVIL.M}}",
    "a function": "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {on_fit_start: EVIL.M}}]}",
    "a tag": "model: !!python/object/apply:os.mkdir [executed]",
    "a module's tag": "model: !!python/name:EVIL.M",
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("command", ["test", "fit"])
def test_no_setting_of_a_session_imports_from_it(run, half, project, command, setting):
    gift = Path(shutil.copytree(half, "experiments/gift"))
    (gift / "evil.py").write_text(EVIL)
    key, _, value = SETTINGS[setting].replace("EVIL", "experiments.gift.evil").partition(": ")
    lines = (gift / "config.yaml").read_text().splitlines(keepends=True)
    at = lines.index(f"{key}:\n")
    end = next((n for n in range(at + 1, len(lines)) if lines[n][0] != " "), len(lines))
    (gift / "config.yaml").write_text("".join([*lines[:at], f"{key}: {value}\n", *lines[end:]]))
    code, out, err = run(command, "--ckpt_path", gift)
    assert not os.path.exists("executed")
    assert "Traceback" not in out + err
    if not setting.endswith("tag"):  # with such a tag it is no config: the checkpoint's is taken
        [message] = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, "is not executed" in message) == (2, True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    return tmp_path


def test_the_current_folder_comes_after_all_that_is_installed(here):
    (here / "src").mkdir()
    (here / "json.py").write_text("raise SystemExit")
    before = [*sys.path]
    add_current_folder()
    add_current_folder()
    assert sys.path == [*before, str(here), str(here / "src")]


def test_a_current_folder_that_is_deleted_ends_nothing(here):
    here.rmdir()
    before = [*sys.path]
    add_current_folder()
    assert sys.path == before


@pytest.mark.parametrize(
    "own",
    [
        *("json/__init__.py", "src/json/__init__.py", "json.py", "src/json.py"),
        *("json/decoder.py", "src/json/decoder/__init__.py"),
    ],
)
def test_a_package_of_the_current_folder_that_is_hidden_is_told(here, own):
    assert namesake("json.decoder.JSONDecoder") == ""
    (here / own).parent.mkdir(parents=True, exist_ok=True)
    (here / own).touch()
    path = here / (own.partition("json")[0] + ("json.py" if "json.py" in own else "json"))
    told = namesake("json.decoder.JSONDecoder")
    assert told.endswith(f"not {path}: uninstall the one, or rename the other")
    assert namesake("never_imported.Model") == ""


def test_a_package_of_the_current_folder_that_is_found_is_not_told(here, monkeypatch):
    (here / "found_here").mkdir()
    (here / "found_here/__init__.py").touch()
    monkeypatch.syspath_prepend(here)
    importlib.import_module("found_here")
    assert namesake("found_here.Model") == ""
