"""Gives checkpoints their names, each in one step, and flushes what the disk can flush."""

import contextlib
import errno
import itertools
import os
import shutil
from pathlib import Path

from lightning_trainer.session.archive import seal
from lightning_trainer.session.door import open_anew, open_file
from lightning_trainer.session.shards import METADATA

_WITHOUT_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


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
    _seal_shards(written)
    for file in written.iterdir():
        _flush_file(file)
    _link(written.name, target)
    remove_unused(target.parent)


def _seal_shards(folder: Path) -> None:
    """Seals the metadata of a sharded checkpoint, which Lightning has written."""
    metadata = folder / METADATA
    with open_file(folder / "meta.pt") as file:
        content = file.read()
    with open_anew(folder / "meta.pt") as file:
        file.write(content)
        seal(file, metadata.read_bytes() if metadata.exists() else b"")


def give_second_name(source: Path, target: Path) -> None:
    """Gives the checkpoint `source` the name `target` too, without a copy if the disk can.

    Safe, because a checkpoint is never written to again, only replaced.
    """
    if source.is_symlink():
        _link(os.readlink(source), target)
        remove_unused(target.parent)
        return
    second = Path(f"{target}.tmp")
    second.unlink(missing_ok=True)
    try:
        try:
            os.link(source, second)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, second)
            _flush_file(second)
        replace(second, target)
    except OSError:
        with contextlib.suppress(OSError):
            second.unlink()
        raise


def replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Renames `source` to `target` and flushes the folder, so that a crash keeps the name.

    Many file systems can't flush a folder. SQLite ignores every error of that too: a crash would
    then bring back the old file, which is whole.
    """
    os.replace(source, target)
    with contextlib.suppress(OSError):
        _flush_file(os.path.dirname(target) or ".")


def _link(name: str, target: Path) -> None:
    link = Path(f"{target}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    replace(link, target)


def remove_unused(folder: Path) -> None:
    """Removes the remains of a killed write, and folders that no link leads to any more.

    What can't be removed now is tried again the next time.
    """
    used = {path.resolve() for path in folder.iterdir() if path.is_symlink()}
    for path in folder.glob("*.ckpt.*"):
        if path.is_dir() and not path.is_symlink():
            if path.resolve() not in used:
                shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def flush_to_disk(descriptor: int) -> None:
    """Flushes a file to the disk, where the file system can do that.

    Raises:
        OSError: If the disk failed, or is full.
    """
    try:
        os.fsync(descriptor)
    except OSError as ex:
        if ex.errno not in _WITHOUT_FLUSH:
            raise


def _flush_file(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)
