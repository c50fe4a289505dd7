"""Opens what may come from someone else: read within bounds, and no link followed for writing.

Whoever sends a session folder or a checkpoint chooses what lies under each name in it: a pipe that
never ends, a file of any size, a link to a file of yours.
"""

import contextlib
import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

_MIB = 2**20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a regular file, or a link to one, for reading; never waits.

    Raises:
        OSError: If it is missing, can't be read, or is something else than a file.
    """
    _check_kind(path, os.stat(path))  # to open a device may do something
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    try:
        _check_kind(path, os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def is_endless(path: str) -> bool:
    """Whether a text is the path of a pipe, a socket or a device."""
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def read_bounded(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: As `open_file`.
        ValueError: If it is larger than `most_bytes`.
    """
    with open_file(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"is larger than {most_bytes / _MIB:.0f} MiB")
    return content


def open_own(path: str | os.PathLike[str], flags: int = os.O_WRONLY) -> int:
    """Opens a file of this run's own for writing, or makes it, and returns its descriptor.

    Raises:
        OSError: If it can't be opened, is a link, or something else than a file.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as ex:
        if ex.errno in (errno.ELOOP, errno.EMLINK):
            where = os.readlink(path)
            reason = f"is a link to {where!r}, and links are not followed for writing: remove it"
            raise OSError(errno.ELOOP, reason, os.fspath(path)) from None
        raise
    status = os.fstat(descriptor)
    try:
        if not stat.S_ISCHR(status.st_mode):  # only root can put a device there
            _check_kind(path, status)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_anew(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens an empty file for writing and reading in place of whatever file or link is there.

    Raises:
        OSError: If that is not possible.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "w+b")


def write_anew(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file in place of whatever file or link is there; raises as `open_anew`."""
    with open_anew(path) as file:
        file.write(content)


def without_link(path: Path) -> Path:
    """The path of a file that another library writes, after a link there is removed."""
    if path.is_symlink():
        path.unlink()
    return path


def _check_kind(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        code = errno.EISDIR if kind == "a folder" else errno.EINVAL
        raise OSError(code, f"is {kind} where a file should be", os.fspath(path))


def check_own_folder(folder: Path) -> None:
    """Refuses a folder for checkpoints that is a link to what is not this session's.

    A link to another disk is honest: what it leads to holds nothing but this session's checkpoints.

    Raises:
        OSError: Names the link and where it leads.
    """
    if not folder.is_symlink():
        return
    target = folder.resolve()
    names = {path.name.split(".ckpt")[0] for path in target.iterdir()} if target.is_dir() else None
    beside = target.parent / "config.yaml"
    if names is None or not names <= {"last", "best"} or beside.exists():
        raise OSError(
            errno.ELOOP,
            f"is a link to {str(target)!r}, which is no folder of this session's checkpoints alone "
            "(last.ckpt, best.ckpt): put a folder in its place",
            str(folder),
        )
