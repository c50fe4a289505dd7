"""HeldFolder: finds a folder again that is moved or renamed while a run uses it."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.settings import replace_text


class HeldFolder:
    """A folder that a run has locked, whatever its path becomes.

    It is recognised by the number of its inode, which the open descriptor keeps from being used
    again. Linux and macOS tell the path of a descriptor.

    Attributes:
        written: By file name, what this run has written at its start.
    """

    def __init__(self, path: Path, lock: SessionLock) -> None:
        self._lock = lock
        self._descriptor = os.open(path, os.O_RDONLY)
        self._identity = os.fstat(self._descriptor)
        self.written: dict[str, str] = {}

    def find(self, path: Path) -> Path:
        """Where the folder is: at `path`, its place so far, or elsewhere; `path` if it is lost."""
        if self._is_at(path) or not self._is_at(now := self._name()):
            return path
        print(f"The session folder has moved: it is {now} now", flush=True)
        return Path(now)

    def restore(self, path: Path) -> None:
        """Writes again what has been deleted or renamed in the folder.

        Raises:
            OSError: If the folder is not there: nothing may be written, which would make another
                one. Also if another run has taken the session after its lock was deleted.
        """
        path = self.find(path)
        if not self._is_at(path):
            why = "has been deleted or moved to another disk" if self.is_deleted else "is not there"
            raise FileNotFoundError(errno.ENOENT, f"the session folder {why}", str(path))
        if holder := self._lock.renew(path):
            raise OSError(errno.EBUSY, f"the session is in use by {holder}", str(path))
        for name, text in self.written.items():
            if not (path / name).exists():
                replace_text(path / name, text)

    @property
    def is_deleted(self) -> bool:
        """Whether it will not come back: deleted, or moved to another disk."""
        try:
            return os.fstat(self._descriptor).st_nlink == 0 or self._name().endswith(" (deleted)")
        except OSError as ex:
            return ex.errno == errno.ESTALE  # NFS: deleted by another machine

    def close(self) -> None:
        """Lets go of the folder, and unlocks it."""
        with contextlib.suppress(OSError):  # nothing was written by it
            os.close(self._descriptor)
        self._lock.release()

    def _is_at(self, path: str | Path) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(path), self._identity)
        return False

    def _name(self) -> str:
        with contextlib.suppress(OSError):
            if hasattr(fcntl, "F_GETPATH"):
                name: bytes = fcntl.fcntl(self._descriptor, fcntl.F_GETPATH, bytes(1024))
                return os.fsdecode(name.rstrip(b"\0"))
            return os.readlink(f"/proc/self/fd/{self._descriptor}")
        return ""
