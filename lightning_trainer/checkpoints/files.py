"""Writes checkpoint files: a crash leaves the whole old one or the whole new one."""

import contextlib
import errno
import itertools
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_trainer.checkpoints.staging import Staging
from lightning_trainer.session.checkpoint_header import find_fault


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, reads back and renames; loads without unpickling.

    Lightning writes to the temporary folder and moves the file from there. On another file system
    that is a copy, and a crash or a full disk within it destroys the old file. Lightning also
    ignores a missing permission in silence, and holds the file a second time in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writes: list[Callable[[], None]] | None = None
        self._copying = False
        self._staging = Staging()
        self._proven = False
        self._n_bytes = 0  # of the newest file

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Writes `checkpoint` to `path`; within `put_off` only prepares to.

        Raises:
            OSError: If it can't be written; the file that was there is still whole.
            TypeError: If the first checkpoint of a run has a part that can't be loaded safely.
        """
        write = partial(self._save, target=os.fspath(path))
        if self._writes is None:
            write(checkpoint)
        elif self._copying:
            self._writes.append(self._staging.stage(checkpoint, write))
        else:
            self._writes.append(partial(write, checkpoint))

    def load_checkpoint(
        self,
        path: Any,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a checkpoint without executing code from it, whatever `weights_only` says."""
        return super().load_checkpoint(os.fspath(path), map_location, weights_only=True)

    @contextlib.contextmanager
    def put_off(self, copying: bool) -> Iterator[list[Callable[[], None]]]:
        """Yields a list that collects, for each checkpoint saved within, a function that writes it.

        Only the first process writes: if it raised within, the others would wait for it in vain.

        Args:
            copying: Whether training goes on before those functions are called.
        """
        self._writes, self._copying = [], copying
        try:
            yield self._writes
        finally:
            self._writes = None

    def _save(self, checkpoint: dict[str, Any], target: str) -> None:
        temporary = f"{target}.tmp"
        try:
            os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # a kill may have left it, as another name of a good file
            _write(checkpoint, temporary)
            if fault := find_fault(temporary):
                raise OSError(f"{temporary} is not as it was written: it {fault}")
            if not self._proven:
                _check_that_it_loads(checkpoint, temporary)
                self._proven = True
            self._n_bytes = os.path.getsize(temporary)
            replace(temporary, target)
        except BaseException as ex:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(ex, OSError):
                raise _with_needs(ex, target, self._n_bytes) from None
            raise


def _write(checkpoint: dict[str, Any], path: str) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as ex:
        # torch reports that too few bytes were written, but not why.
        if "inline_container" in str(ex) or "PytorchStreamWriter" in str(ex):
            raise OSError(errno.ENOSPC, "the disk is full or a quota reached") from ex
        raise


def _with_needs(ex: OSError, target: str, n_bytes: int) -> OSError:
    """The error with the free space, and the size of the newest file if there is one."""
    reason = ex.strerror or str(ex)
    if ex.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += f", {shutil.disk_usage(os.path.dirname(target) or '.').free / 2**20:.1f} MiB free"
        reason += f", about {n_bytes / 2**20:.1f} MiB needed" if n_bytes else ""
    return type(ex)(ex.errno, reason, target)


def _check_that_it_loads(checkpoint: dict[str, Any], path: str) -> None:
    try:
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as ex:
        where = next(_unsafe(checkpoint), "something in it")
        raise TypeError(
            f"a checkpoint with {where} could not be loaded again: only tensors, numbers, text, "
            "None, and lists, tuples, sets and dicts of them load without executing code. Turn it "
            "into one of those, or leave it out by `save_hyperparameters(ignore=[...])`"
        ) from ex


_SAFE = (
    *(torch.Tensor, torch.Size, torch.dtype, torch.device),
    *(int, float, complex, str, bytes, type(None)),
)
_SAFE_MODULES = ("builtins", "torch", "torch.nn.parameter")


def _unsafe(value: Any, where: str = "") -> Iterator[str]:
    """The parts that `torch.load` would refuse, named by their keys."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            yield from _unsafe(item, f"{where}.{key}" if where else str(key))
    elif type(value) in (list, tuple, set):
        for i, item in enumerate(value):
            yield from _unsafe(item, f"{where}[{i}]")
    elif not isinstance(value, _SAFE) or type(value).__module__ not in _SAFE_MODULES:
        yield f"`{where}`, a {type(value).__name__},"


def unused_name(target: Path) -> Path:
    """A path beside `target` to write to before `publish`, e.g. `last.ckpt.3`.

    A sharded checkpoint is a folder, which can't replace another in one step: it keeps this name,
    and `target` becomes a link to it.
    """
    return next(p for n in itertools.count() if not (p := Path(f"{target}.{n}")).exists())


def publish(written: Path, target: Path) -> None:
    """Gives a whole checkpoint the name `target`, in one step; the old one is removed.

    Raises:
        OSError: If that fails; the old one is still whole.
    """
    if not written.is_dir():
        replace(written, target)
        return
    for file in written.iterdir():
        _flush(file)
    _link(written.name, target)
    remove_unused(target.parent)


def give_second_name(source: Path, target: Path) -> None:
    """Gives the checkpoint `source` the name `target` too, without a copy if the disk can.

    Safe, because a checkpoint is never written to again, only replaced.
    """
    if source.is_symlink():
        _link(os.readlink(source), target)
        remove_unused(target.parent)
        return
    second = f"{target}.tmp"
    Path(second).unlink(missing_ok=True)
    try:
        os.link(source, second)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, second)
    replace(second, target)


def replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Renames `source` to `target` and flushes the folder, so that a crash keeps the name."""
    os.replace(source, target)
    _flush(os.path.dirname(target) or ".")


def _link(name: str, target: Path) -> None:
    link = Path(f"{target}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    replace(link, target)


def remove_unused(folder: Path) -> None:
    """Removes the remains of a killed write, and folders that no link leads to any more."""
    used = {path.resolve() for path in folder.iterdir() if path.is_symlink()}
    for path in folder.glob("*.ckpt.*"):
        if path.is_dir() and not path.is_symlink():
            if path.resolve() not in used:
                shutil.rmtree(path)
        else:
            path.unlink()


def _flush(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
