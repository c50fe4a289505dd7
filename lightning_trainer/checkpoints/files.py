"""Writes checkpoint files: a crash leaves the whole old one or the whole new one."""

import contextlib
import errno
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_trainer.checkpoints.names import flush_to_disk, replace
from lightning_trainer.checkpoints.staging import Staging
from lightning_trainer.session.archive import seal
from lightning_trainer.session.checkpoint_header import find_fault
from lightning_trainer.session.door import open_anew


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
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
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


class _Noting:
    """A file that keeps the first error: torch's own says that writing failed, but not why."""

    error: OSError | None = None

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as ex:
            self.error = self.error or ex
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(value: Any, path: str) -> None:
    # A kill may have left the file, as another name of a good one, which is only unlinked.
    with open_anew(path) as file:
        noting = _Noting(file)
        try:
            torch.save(value, noting)  # type: ignore[arg-type]
        except RuntimeError as ex:
            raise noting.error or ex from ex
        seal(file)
        file.flush()
        flush_to_disk(file.fileno())


def write_whole(value: Any, path: str | os.PathLike[str]) -> None:
    """Writes what `torch.save` can, so that a failure leaves no part of a file.

    Raises:
        OSError: If it can't be written; the file that was there is still whole.
    """
    temporary = f"{os.fspath(path)}.tmp"
    try:
        _write(value, temporary)
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _with_needs(ex: OSError, target: str, n_bytes: int) -> OSError:
    """The error with the free space, and the size of the newest file if there is one."""
    reason = ex.strerror or str(ex)
    if ex.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(os.path.dirname(target) or ".").free
            reason += f", {free / 2**20:.1f} MiB free"
        reason += f", about {n_bytes / 2**20:.1f} MiB needed" if n_bytes else ""
    return type(ex)(ex.errno, reason, target)


def _check_that_it_loads(checkpoint: dict[str, Any], path: str) -> None:
    load = partial(torch.load, path, map_location="cpu", weights_only=True)
    try:
        try:
            load(mmap=True)  # without a second copy in memory
        except RuntimeError:  # a file system that can't map files
            load()
    except OSError:
        raise
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
