"""Whatever lies under a name is read within bounds, and no link is followed for writing."""

import os
import socket
import time
from pathlib import Path

import pytest

from lightning_trainer.session.door import (
    check_own_folder,
    open_anew,
    open_file,
    open_own,
    read_bounded,
    write_anew,
)
from lightning_trainer.session.folder import Session
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.metrics_csv import MetricsWriter
from lightning_trainer.session.run_record import RunRecord
from lightning_trainer.session.settings import load_yaml, replace_text
from lightning_trainer.session.terminal import TerminalLog


def put(path: Path, kind: str) -> Path:
    """Something else in a file's place."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            os.chdir(path.parent)  # the name of a socket is short
            made.bind(path.name)
    else:
        path.symlink_to({"zero": "/dev/zero", "tty": "/dev/tty", "loop": path.name}.get(kind, kind))
    return path


KINDS = ["folder", "pipe", "socket", "zero", "tty", "loop", "missing"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = put(tmp_path / "a", kind)
    started_s = time.monotonic()
    with pytest.raises(OSError, match=r"where a file should be|No such|loop|symbolic"):
        open_file(path)
    assert time.monotonic() - started_s < 0.5


def test_a_file_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    assert read_bounded(path, 10) == b"x" * 10
    with pytest.raises(ValueError, match="is larger than 0 MiB"):
        read_bounded(path, 9)
    os.truncate(path, 2**40)  # a sparse file
    with pytest.raises(ValueError, match="is larger than 1 MiB"):
        read_bounded(path, 2**20)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_run_itself_is_not_written_elsewhere(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = put(tmp_path / "a", kind)
    with pytest.raises(OSError):
        open_own(path)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("kind", ["pipe", "socket", "zero", "loop", "missing", "precious"])
def test_a_new_file_takes_the_place_of_whatever_is_there(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").write_text("mine")
    write_anew(put(tmp_path / "a", kind), b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "missing").exists()


def log(folder: Path) -> None:
    TerminalLog(folder / "log.txt").start()


def config(folder: Path) -> None:
    folder.joinpath("config.yaml").write_text("a: 1\n")
    Session(folder).write_config("a: 2\n")


def add(folder: Path) -> None:
    writer = MetricsWriter(folder / "metrics.csv")
    writer.add(1, {"a": 1.0})
    writer.add(2, {"a": 1.0})


WRITERS = {
    ".lock": lambda folder: SessionLock(folder).acquire("fit"),
    "log.txt": log,
    "config.yaml": lambda folder: Session(folder).write_config("a: 2\n"),
    "config.yaml.tmp": config,
    "config_1.yaml": config,
    "environment.yaml": lambda folder: Session(folder).record_environment({"a": 1}, "patch"),
    "environment.yaml.tmp": lambda folder: Session(folder).record_environment({"a": 1}, ""),
    "uncommitted.patch": lambda folder: Session(folder).record_environment({"a": 1}, "patch"),
    "run.json": lambda folder: RunRecord(command="fit").write(folder),
    "run.json.tmp": lambda folder: RunRecord(command="fit").write(folder),
    "metrics.csv": add,
    "metrics.tmp": add,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("target", ["precious", "missing"])
def test_no_link_of_a_session_folder_is_written_through(tmp_path, name, target):
    folder = tmp_path / "session"
    folder.mkdir()
    (tmp_path / "precious").write_text("mine")
    (folder / name).symlink_to(tmp_path / target)
    try:
        WRITERS[name](folder)
    except OSError as ex:
        assert "is a link to" in str(ex)
        assert name in (".lock", "log.txt")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "missing").exists()


def test_a_file_is_open_for_reading_too(tmp_path):
    with open_anew(tmp_path / "a") as file:
        file.write(b"abc")
        file.seek(1)
        assert file.read() == b"bc"


def test_a_folder_in_a_files_place_is_named(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(OSError, match="is a folder where a file should be: move it away"):
        RunRecord(command="fit").write(tmp_path)


# The folder of the checkpoints --------------------------------------------------------------------


def link(tmp_path: Path, *names: str) -> Path:
    disk = tmp_path / "disk" / "checkpoints"
    disk.mkdir(parents=True)
    for name in names:
        (disk / name).touch()
    (tmp_path / "checkpoints").symlink_to(disk)
    return tmp_path / "checkpoints"


def test_checkpoints_may_lie_on_another_disk(tmp_path):
    check_own_folder(tmp_path)
    check_own_folder(tmp_path / "missing")
    check_own_folder(link(tmp_path, "last.ckpt", "best.ckpt", "last.ckpt.3", "last.ckpt.tmp"))


@pytest.mark.parametrize("names", [["thesis.tex"], ["last.ckpt", "resnet.ckpt"]])
def test_a_link_to_others_files_is_refused(tmp_path, names):
    with pytest.raises(OSError, match=r"is a link to .* put a folder in its place"):
        check_own_folder(link(tmp_path, *names))


def test_a_link_to_another_sessions_checkpoints_is_refused(tmp_path):
    folder = link(tmp_path, "last.ckpt")
    (tmp_path / "disk" / "config.yaml").touch()
    with pytest.raises(OSError, match="is a link to"):
        check_own_folder(folder)


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "checkpoints").symlink_to("nowhere")
    with pytest.raises(OSError, match="is a link to"):
        check_own_folder(tmp_path / "checkpoints")


# YAML ---------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "has more than 40,000 parts"),
        ("a: &a [*a]", "has more than 40,000 parts"),
        ("a: " + "[" * 500 + "]" * 500, "is too deep"),
        ("a: " + "1" * 10**6, "has a number of more than 400 digits"),
        ("a: " + ":".join(["59"] * 10**5), "has a number of more than 400 digits"),
        ("a: [" + "1," * 10**6 + "]", "has more than 40,000 parts"),
        ("a: " + "x" * 2**23, "is larger than 4 MiB"),
        ("\0", "is not YAML"),
        ("[1]", "holds no settings"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
    ids=range(10),
)
def test_a_yaml_of_any_cost_is_refused_at_once(tmp_path, text, reason):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    started_s = time.monotonic()
    with pytest.raises(ValueError, match=reason):
        load_yaml(path)
    assert time.monotonic() - started_s < 2


def test_a_yaml_with_names_for_its_parts_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    replace_text(path, "a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: &s text}\nf: *s\n")
    assert load_yaml(path) == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": {"b": [1, 2], "e": "text"},
        "f": "text",
    }
