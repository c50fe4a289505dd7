"""Writes checkpoints so that a crash leaves the old one or the new one, never half of one."""

import contextlib
import errno
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_trainer.session import find_fault


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, reads back and renames; loads without unpickling.

    Lightning writes to the temporary folder and moves from there: on another file system that is a
    copy, during which a crash or a full disk destroys the old file. It also ignores a missing
    permission in silence, and holds the file a second time in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._errors: list[OSError] | None = None
        self._proven = False

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            OSError: If it can't be written; the file that was there is still whole. Within
                `errors_collected` it is kept instead.
            TypeError: If it holds what can't be loaded safely; found at the first one of a run.
        """
        try:
            self._save(checkpoint, os.fspath(path))
        except OSError as ex:
            ex = _with_needs(ex, os.fspath(path))
            if self._errors is None:
                raise ex from None
            self._errors.append(ex)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a checkpoint; whatever is asked for, nothing in it is executed."""
        return super().load_checkpoint(os.fspath(path), map_location, weights_only=True)

    @contextlib.contextmanager
    def errors_collected(self, errors: list[OSError]) -> Iterator[None]:
        """Adds what can't be written to a list instead of raising it.

        Only the first process writes: if it raised, the others would wait for it in vain.
        """
        self._errors = errors
        try:
            yield
        finally:
            self._errors = None

    def _save(self, checkpoint: dict[str, Any], target: str) -> None:
        folder = os.path.dirname(target) or "."
        os.makedirs(folder, exist_ok=True)
        temporary = f"{target}.tmp"
        try:
            _write(checkpoint, temporary)
            if fault := find_fault(temporary):
                raise OSError(f"{temporary} is not as it was written: it {fault}")
            if not self._proven:
                _check_that_it_loads(checkpoint, temporary)
                self._proven = True
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


def _with_needs(ex: OSError, target: str) -> OSError:
    """The error with what is free and what the file needs, as far as that is known."""
    reason = ex.strerror or str(ex)
    if ex.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += f", {shutil.disk_usage(os.path.dirname(target) or '.').free / 2**20:.1f} MiB free"
        if os.path.exists(target):
            reason += f", about {os.path.getsize(target) / 2**20:.1f} MiB needed"
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


def replace(source: str, target: str) -> None:
    """Renames `source` to `target` and flushes the folder, so that a crash keeps the name."""
    os.replace(source, target)
    folder = os.open(os.path.dirname(target) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
