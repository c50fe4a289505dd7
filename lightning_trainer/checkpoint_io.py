"""Writes checkpoints so that a crash leaves the old one or the new one, never half of one."""

import os
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames.

    Lightning writes to the temporary folder and moves from there: on another file system that is a
    copy, during which a crash or a full disk destroys the old file. It also ignores a missing
    permission in silence, and holds the file a second time in memory.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            OSError: If it can't be written; the file that was there is still whole.
        """
        target = os.fspath(path)
        folder = os.path.dirname(target) or "."
        os.makedirs(folder, exist_ok=True)
        temporary = f"{target}.tmp"
        try:
            _write(checkpoint, temporary)
            replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
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
            raise OSError(f"{path} can't be written: the disk is full or a quota reached") from ex
        raise


def replace(source: str, target: str) -> None:
    """Renames `source` to `target` and flushes the folder, so that a crash keeps the name."""
    os.replace(source, target)
    folder = os.open(os.path.dirname(target) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
