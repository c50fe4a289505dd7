"""A run finds its folder again, and writes again what has been deleted in it."""

import os
import shutil
from pathlib import Path

import pytest

from lightning_trainer.session.folder import Session
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.place import HeldFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "parent" / "session"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def session(folder):
    """As a run holds it."""
    session, lock = Session(folder), SessionLock(folder)
    assert lock.acquire("fit") is None
    session.hold(lock)
    session.write_config("tag: a\n")
    yield session
    session.release()


@pytest.fixture
def held(folder):
    held = HeldFolder(folder, SessionLock(folder))
    yield held
    held.close()


def test_a_folder_is_found_where_it_or_its_parent_has_been_moved_to(held, folder, tmp_path):
    assert held.find(folder) == folder
    folder.rename(tmp_path / "renamed")
    assert held.find(folder) == tmp_path / "renamed"
    (tmp_path / "renamed").rename(folder)
    folder.parent.rename(tmp_path / "other")
    assert held.find(folder) == tmp_path / "other" / "session"
    assert not held.is_deleted


@pytest.mark.parametrize("replaced", [False, True])
def test_a_deleted_folder_is_lost_also_where_another_has_its_name(held, folder, replaced):
    folder.rmdir()
    if replaced:
        folder.mkdir()
    assert held.find(folder) == folder
    assert held.is_deleted
    with pytest.raises(FileNotFoundError, match="the session folder has been deleted"):
        held.restore(folder)


def test_the_session_says_once_that_it_has_moved(session, folder, tmp_path, capsys):
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert (session.path, session.path) == (moved, moved)
    assert capsys.readouterr().out == f"The session folder has moved: it is {moved} now\n"


def test_a_relative_path_holds_where_the_project_changes_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("session").mkdir()
    session = Session("session")
    session.hold(SessionLock(session.path))
    monkeypatch.chdir("/")
    assert session.path == tmp_path / "session"
    session.release()


def test_files_of_the_start_and_the_lock_are_written_again(session, folder):
    text = session.config.read_text()
    session.config.rename(folder / "mine.yaml")
    (folder / ".lock").unlink()
    session.restore()
    assert session.config.read_text() == text
    assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_nothing_is_written_into_a_session_that_another_run_has_taken(session, folder):
    (folder / ".lock").unlink()
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done[1])
        SessionLock(folder).acquire("fit")
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    session.config.unlink()
    for _ in range(2):
        with pytest.raises(OSError, match=f"the session is in use by process {child} on "):
            session.restore()
    assert not session.config.exists()
    os.close(done[1])
    os.waitpid(child, 0)
    session.restore()
    assert session.config.exists()
    for end in (*ready, done[0]):
        os.close(end)


def test_a_deleted_folder_is_not_made_again(session, folder):
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="the session folder has been deleted"):
        session.restore()
    assert session.is_deleted
    assert not folder.exists()
