"""Writes checkpoints so that a crash leaves the old one or the new one, never half of one."""

import contextlib
import copy
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

from lightning_trainer.session.checkpoint_header import find_fault


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, reads back and renames; loads without unpickling.

    Lightning writes to the temporary folder and moves from there: on another file system that is a
    copy, during which a crash or a full disk destroys the old file. It also ignores a missing
    permission in silence, and holds the file a second time in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writes: list[Callable[[], None]] | None = None
        self._copying = False
        self._proven = False
        self._n_bytes = 0  # of the newest one

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Writes `checkpoint` to `path`, or within `put_off` keeps what does so.

        Raises:
            OSError: If it can't be written; the file that was there is still whole.
            TypeError: If it holds what can't be loaded safely; found at the first one of a run.
        """
        if self._writes is None:
            self._save(checkpoint, os.fspath(path))
        else:
            kept = copy_to_host(checkpoint) if self._copying else checkpoint
            self._writes.append(partial(self._save, kept, os.fspath(path)))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a checkpoint; whatever is asked for, nothing in it is executed."""
        return super().load_checkpoint(os.fspath(path), map_location, weights_only=True)

    @contextlib.contextmanager
    def put_off(self, copying: bool) -> Iterator[list[Callable[[], None]]]:
        """Gives what writes the checkpoints that are saved within, to be called later.

        Only the first process writes: if it raised within, the others would wait for it in vain.

        Args:
            copying: Whether training goes on before that.
        """
        self._writes, self._copying = [], copying
        try:
            yield self._writes
        finally:
            self._writes = None

    def _save(self, checkpoint: dict[str, Any], target: str) -> None:
        try:
            self._write(checkpoint, target)
        except OSError as ex:
            raise _with_needs(ex, target, self._n_bytes) from None

    def _write(self, checkpoint: dict[str, Any], target: str) -> None:
        folder = os.path.dirname(target) or "."
        os.makedirs(folder, exist_ok=True)
        temporary = f"{target}.tmp"
        try:
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
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _write(checkpoint: dict[str, Any], path: str) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as ex:
        # torch notices that fewer bytes were written than it handed over, but not why.
        if "inline_container" in str(ex) or "PytorchStreamWriter" in str(ex):
            raise OSError(errno.ENOSPC, "the disk is full or a quota reached") from ex
        raise


def _with_needs(ex: OSError, target: str, n_bytes: int) -> OSError:
    """The error with what is free and what the file needs, as far as that is known."""
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


_TORCH = ("torch", "torch.nn.parameter")
_SAFE = (
    *(torch.Tensor, torch.Size, torch.dtype, torch.device),
    *(int, float, complex, str, bytes, type(None)),
)


def _unsafe(value: Any, where: str = "") -> Iterator[str]:
    """What `torch.load` would refuse, named by its keys."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            yield from _unsafe(item, f"{where}.{key}" if where else str(key))
    elif type(value) in (list, tuple, set):
        for i, item in enumerate(value):
            yield from _unsafe(item, f"{where}[{i}]")
    elif not (isinstance(value, _SAFE) and type(value).__module__ in ("builtins", *_TORCH)):
        yield f"`{where}`, a {type(value).__name__},"


def copy_to_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy that training does not change, with all tensors in the host's memory.

    What shares memory, as tied weights do, shares it in the copy.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    copies: dict[int, Any] = {}

    def copy_tensors(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
            copies[id(value)] = value.detach().cpu().clone()
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in storages:
                storages[storage.data_ptr()] = storage.cpu() if value.is_cuda else storage.clone()
            host = torch.empty(0, dtype=value.dtype)
            host.set_(
                storages[storage.data_ptr()], value.storage_offset(), value.shape, value.stride()
            )
            copies[id(value)] = host
        elif isinstance(value, dict):
            for item in value.values():
                copy_tensors(item)
        elif isinstance(value, list | tuple | set):
            for item in value:
                copy_tensors(item)

    copy_tensors(checkpoint)
    return copy.deepcopy(checkpoint, copies)


# Names ------------------------------------------------------------------------------------------


def unused_name(target: Path) -> Path:
    """Where to write what shall become `target`: beside it, e.g. `last.ckpt.3`.

    A sharded checkpoint is a folder, which can't take the place of another in one step: its name
    remains, and `target` becomes a link to it.
    """
    return next(p for n in itertools.count() if not (p := Path(f"{target}.{n}")).exists())


def publish(written: Path, target: Path) -> None:
    """Makes a whole checkpoint known as `target`, in one step; what was there before goes.

    Raises:
        OSError: If it can't; what was there is still whole.
    """
    if not written.is_dir():
        replace(written, target)
        return
    for file in written.iterdir():
        _flush(file)
    _link(written.name, target)
    remove_unused(target.parent)


def give_second_name(source: Path, target: Path) -> None:
    """Makes the checkpoint `source` known as `target` too, without a copy where that can be.

    It is never written to again, only replaced.
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
    """Removes what a kill within a write has left, and folders that no link leads to any more."""
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
