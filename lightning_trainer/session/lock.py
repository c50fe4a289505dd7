"""Lets one process at a time write into a session folder."""

import contextlib
import errno
import fcntl
import os
import struct
import sys
from pathlib import Path

from lightning_trainer.session.run_record import now, process_name

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# C's `struct flock`: the types of its fields, and the position of `l_type`.
_FLOCK, _TYPE_AT = ("qqihh", 3) if sys.platform == "darwin" else ("hhqqi4x", 0)


class SessionLock:
    """A lock on a session folder, which the system releases at the end of the process.

    It is a POSIX lock. The data loader's workers, which outlive a killed main process by seconds,
    would inherit one of `flock`. Trap: closing any descriptor of the file releases the lock. The
    file is never removed: a lock on a removed file protects nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file = -1

    def acquire(self, command: str) -> str | None:
        """Takes the lock for a command (fit, test, ...), unless another process has it.

        Prints a warning where the file system has no locks.

        Returns:
            None, or the other process: "process 7 on node1 (fit, since 2024-02-29T12:00:07+01:00)".
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            with os.fdopen(file) as text:
                return text.read() or "another process"
        except OSError as ex:
            if ex.errno not in _WITHOUT_LOCKS:
                raise
            print(
                f"{self.path} can't be locked ({ex.strerror}): see to it that no second run goes "
                "on with this session meanwhile",
                file=sys.stderr,
            )
        os.ftruncate(file, 0)
        os.write(file, f"{process_name()} ({command}, since {now()})".encode())
        self._file = file
        return None

    def is_held_for(self, command: str) -> bool:
        """Whether another process has taken the lock for this command.

        Asks without taking the lock, which could turn a starting run away.
        """
        fields = [0] * 5
        fields[_TYPE_AT] = fcntl.F_WRLCK
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, *fields))
            if struct.unpack(_FLOCK, answer)[_TYPE_AT] != fcntl.F_UNLCK:
                return f" ({command}, since " in file.read().decode(errors="replace")
        return False

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
