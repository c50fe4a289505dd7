"""A crash leaves the old checkpoint or the new one, never half of one."""

import collections
import enum
import errno
import itertools
import multiprocessing
import os
import random
import resource
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_trainer.checkpoints import files as checkpoint_io
from lightning_trainer.checkpoints import names
from lightning_trainer.checkpoints.files import AtomicCheckpointIO, replace
from lightning_trainer.session.checkpoint_header import find_fault

OLD, NEW = {"w": torch.zeros(50_000)}, {"w": torch.ones(50_000)}  # 200 kB each


@pytest.fixture
def io():
    return AtomicCheckpointIO()


@pytest.fixture
def target(io, tmp_path):
    """A checkpoint that is there already."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint(OLD, path)
    return path


def assert_is_old_and_alone(target):
    assert os.listdir(target.parent) == ["last.ckpt"]
    assert torch.equal(torch.load(target)["w"], OLD["w"])


def test_what_was_saved_is_loaded_and_leaves_no_temporary(io, target):
    io.save_checkpoint(NEW, target)
    assert os.listdir(target.parent) == ["last.ckpt"]
    assert torch.equal(io.load_checkpoint(target)["w"], NEW["w"])


def test_a_path_without_a_folder_is_in_the_current_one(io, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    io.save_checkpoint(NEW, "a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_write_that_breaks_off_leaves_the_old_file_whole(io, target, monkeypatch, error):
    def save(checkpoint, file):
        file.write(b"half of it")
        file.flush()
        assert sorted(os.listdir(target.parent)) == ["last.ckpt", "last.ckpt.tmp"]
        raise error

    monkeypatch.setattr(checkpoint_io.torch, "save", save)
    with pytest.raises(type(error)):
        io.save_checkpoint(NEW, target)
    monkeypatch.undo()
    assert_is_old_and_alone(target)


# torch writes the values in one piece, the rest in many: a disk can be full at any of them.
@pytest.mark.parametrize("n_bytes", [1, 700, 5_000, 150_000, 200_500])
def test_a_full_disk_is_an_os_error_and_leaves_the_old_file_whole(io, target, n_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        io.save_checkpoint(NEW, target)
        error = None
    except Exception as ex:
        error = ex
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_is_old_and_alone(target)
    assert isinstance(error, OSError), repr(error)


def test_a_failure_to_rename_leaves_the_old_file_whole(io, target, monkeypatch):
    def fail(*args):
        raise PermissionError(13, "not here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError):
        io.save_checkpoint(NEW, target)
    monkeypatch.undo()
    assert_is_old_and_alone(target)


def test_the_data_is_on_the_disk_before_the_name_changes(io, target, monkeypatch):
    calls = []
    real = {"fsync": os.fsync, "replace": os.replace}
    for name, function in real.items():

        def note(*args, name=name, function=function):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(os, name, note)
    io.save_checkpoint(NEW, target)
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_another_name_of_the_replaced_file_keeps_the_old_content(io, target):
    best = target.with_name("best.ckpt")
    os.link(target, best)
    io.save_checkpoint(NEW, target)
    assert torch.equal(torch.load(best)["w"], OLD["w"])
    assert torch.equal(torch.load(target)["w"], NEW["w"])


def test_a_temporary_that_a_kill_has_left_as_another_name_of_best_does_not_spoil_it(io, target):
    os.link(target, f"{target}.tmp")
    best = target.with_name("best.ckpt")
    os.link(target, best)
    io.save_checkpoint(NEW, target)
    assert torch.equal(torch.load(best)["w"], OLD["w"])
    assert torch.equal(torch.load(target)["w"], NEW["w"])


def test_replace_renames(tmp_path):
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    replace(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_text() == "new"


def write_again_and_again(target) -> None:
    """In a process of its own; returns never."""
    io = AtomicCheckpointIO()
    for i in itertools.count():
        io.save_checkpoint({"w": torch.full((500_000,), float(i))}, target)


@pytest.mark.long
def test_killed_at_any_moment_of_a_write_a_whole_file_is_there(target):
    moments = random.Random(0)
    found = set()
    limit_s = 0.05
    for n in range(30):
        process = multiprocessing.get_context("fork").Process(
            target=write_again_and_again, args=(target,), daemon=True
        )
        process.start()
        time.sleep(moments.uniform(0, limit_s))
        process.kill()
        process.join()
        assert find_fault(target) is None, f"broken by kill {n}"
        found.add(float(torch.load(target)["w"][0]))
        limit_s *= 1 if len(found) > 1 else 1.2  # on a busy machine a write takes longer
    assert len(found) > 1  # the writes went through in between


# What must not be executed, and what must load again -------------------------------------------


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("weights_only", [None, False, True])
def test_loading_executes_nothing_whatever_is_asked_for(io, tmp_path, monkeypatch, weights_only):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, victim = tmp_path / "a.ckpt", tmp_path / "executed"
    torch.save({"state_dict": {}, "global_step": 1, "x": Malicious(victim)}, path)
    with pytest.raises(Exception, match="Weights only load failed"):
        io.load_checkpoint(path, weights_only=weights_only)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # it is malicious


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Path("a"), "PosixPath"),
        (Colour.RED, "Colour"),
        (np.float64(1.0), "float64"),
        (np.zeros(2), "ndarray"),
        (collections.defaultdict(int), "defaultdict"),
        (torch.nn.ReLU, "type"),
    ],
)
def test_what_could_not_be_loaded_again_is_named_at_the_first_write(io, tmp_path, value, kind):
    path = tmp_path / "a.ckpt"
    with pytest.raises(TypeError) as caught:
        io.save_checkpoint({"epoch": 0, "hyper_parameters": {"a": 1, "b": [2, value]}}, path)
    assert f"a checkpoint with `hyper_parameters.b[1]`, a {kind}, could not" in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_can_not_flush_folders_is_written_to(io, target, monkeypatch, error):
    refuse_to_flush(monkeypatch, error, lambda mode: stat.S_ISDIR(mode))
    io.save_checkpoint(NEW, target)
    assert torch.equal(torch.load(target)["w"], NEW["w"])


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_disk_that_can_flush_nothing_is_written_to(io, target, monkeypatch, error):
    refuse_to_flush(monkeypatch, error, lambda mode: True)
    io.save_checkpoint(NEW, target)
    assert torch.equal(torch.load(target)["w"], NEW["w"])


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_a_disk_fails_to_flush_does_not_replace_the_old_one(
    io, target, monkeypatch, error
):
    refuse_to_flush(monkeypatch, error, lambda mode: stat.S_ISREG(mode))
    with pytest.raises(OSError) as raised:
        io.save_checkpoint(NEW, target)
    assert (raised.value.errno, raised.value.filename) == (error, str(target))
    assert_is_old_and_alone(target)


def refuse_to_flush(monkeypatch, error: int, refuses) -> None:
    real = os.fsync

    def fsync(descriptor):
        if refuses(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_disk_that_can_not_map_files_is_written_to(tmp_path, monkeypatch):
    real = torch.load

    def load(*args, mmap=False, **kwargs):
        if mmap:
            raise RuntimeError("unable to mmap 200 bytes: No such device (19)")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match="a checkpoint with `o`, a object, could not"):
        AtomicCheckpointIO().save_checkpoint({"o": object()}, tmp_path / "b.ckpt")


def test_the_reason_of_the_disk_is_told_and_not_torchs(io, target, monkeypatch):
    def refuse(self, data):
        self.error = OSError(errno.EIO, "Input/output error")
        raise self.error

    monkeypatch.setattr(checkpoint_io._Noting, "write", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        io.save_checkpoint(NEW, target)
    assert_is_old_and_alone(target)


def test_a_copy_in_place_of_a_link_is_flushed_and_leaves_nothing_where_it_fails(
    target, monkeypatch
):
    flushed = []
    monkeypatch.setattr(names, "flush_to_disk", lambda fd: flushed.append(os.fstat(fd).st_ino))
    monkeypatch.setattr(os, "link", fail)
    best = target.with_name("best.ckpt")
    names.give_second_name(target, best)
    assert flushed[0] == best.stat().st_ino != target.stat().st_ino
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        names.give_second_name(target, best)
    assert sorted(os.listdir(target.parent)) == ["best.ckpt", "last.ckpt"]


def fail(*args: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")
