"""Lets one process at a time write into a session folder."""

import contextlib
import errno
import fcntl
import os
import struct
import sys
from pathlib import Path

from lightning_trainer.session.door import open_file, open_own
from lightning_trainer.session.run_record import now, process_name

_TAKEN = (errno.EAGAIN, errno.EACCES)  # POSIX allows either

_MOST_BYTES = 2**12  # of the text that names the holder

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
        self._command = ""

    def acquire(self, command: str) -> str | None:
        """Takes the lock for a command (fit, test, ...), unless another process has it.

        Prints a warning where the file system has no locks.

        Returns:
            None, or the other process: "process 7 on node1 (fit, since 2024-02-29T12:00:07+01:00)".
        """
        file = open_own(self.path, os.O_RDWR)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as ex:
            if ex.errno in _TAKEN:
                with os.fdopen(file, "rb") as holder:
                    return holder.read(_MOST_BYTES).decode(errors="replace") or "another process"
            print(
                f"{self.path} can't be locked ({ex.strerror}): see to it that no second run goes "
                "on with this session meanwhile",
                file=sys.stderr,
            )
        self._file, self._command = file, command
        try:
            os.ftruncate(file, 0)
            os.write(file, f"{process_name()} ({command}, since {now()})".encode())
        except OSError as ex:
            self.release()
            raise OSError(ex.errno, ex.strerror, str(self.path)) from ex
        return None

    def renew(self, folder: Path) -> str | None:
        """Takes the lock again if its file has been deleted or renamed; as `acquire`."""
        self.path = folder / ".lock"
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError as ex:
            same = self._file >= 0 and ex.errno != errno.ENOENT
        if same:
            return None
        self.release()
        return self.acquire(self._command)

    def is_held_for(self, command: str) -> bool:
        """Whether another process has taken the lock for this command.

        Asks without taking the lock, which could turn a starting run away.
        """
        fields = [0] * 5
        fields[_TYPE_AT] = fcntl.F_WRLCK
        with contextlib.suppress(OSError), open_file(self.path) as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, *fields))
            if struct.unpack(_FLOCK, answer)[_TYPE_AT] != fcntl.F_UNLCK:
                return f" ({command}, since ".encode() in file.read(_MOST_BYTES)
        return False

    def release(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)
