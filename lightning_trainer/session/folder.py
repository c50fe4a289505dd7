"""Makes and finds session folders, and the checkpoints in them."""

import contextlib
import itertools
import math
import os
import re
import socket
from datetime import datetime
from pathlib import Path

from lightning_trainer.session.checkpoint_header import find_fault, reach
from lightning_trainer.session.described import DescribedFolder
from lightning_trainer.session.program import printed_command
from lightning_trainer.session.settings import read_yaml

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+@-]{0,99}")


class Session(DescribedFolder):
    """A session folder, which may be moved or renamed, between runs and while one is going."""

    @classmethod
    def create(cls, output_path: str, tag: str) -> "Session":
        """Makes `output_path/session_{machine}_{YYYY_MM_DD_HH_MM_SS}_{tag}`.

        A second run that starts in the same second gets a name that ends in _2.

        Raises:
            ValueError: If the tag can't be part of a folder's name.
            OSError: If the folder can't be made.
        """
        check_tag(tag)
        machine = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().split(".")[0])
        base = f"session_{machine}_{datetime.now():%Y_%m_%d_%H_%M_%S}_{tag}"
        try:
            Path(output_path).mkdir(parents=True, exist_ok=True)
            for n in itertools.count(1):
                path = Path(output_path, base if n == 1 else f"{base}_{n}")
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
        except OSError as ex:
            raise OSError(
                f"`output_path` is {output_path!r}, where no session folder can be made "
                f"({ex.strerror}): give a folder that you may write to"
            ) from ex
        return cls(path)

    @classmethod
    def around(cls, path: str | os.PathLike[str]) -> "Session | None":
        """The session of a session folder or of a checkpoint in one; None for other paths."""
        path = Path(path)
        if _is_of_session(path):
            return cls(path)
        folder = path.absolute().parent.parent
        if path.absolute().parent.name == "checkpoints" and _is_of_session(folder):
            relative = Path(os.path.relpath(folder))
            return cls(folder if ".." in relative.parts else relative)
        return None

    @classmethod
    def of_job(cls, output_path: str, job_id: str | None, command: str) -> "list[Session]":
        """The sessions that a scheduler's job started by this command, the newest first."""
        found: list[Session] = []
        for path in sorted(Path(output_path).glob("*/environment.yaml"), reverse=True):
            recorded = read_yaml(path) or {}
            if job_id and (recorded.get("job_id"), recorded.get("command")) == (job_id, command):
                found.append(cls(path.parent))
        return found

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def spare_checkpoint(self) -> Path:
        """The best one, while best.ckpt can't be replaced."""
        return self.path / "checkpoints" / "newest_best.ckpt"

    def log(self, rank: int = 0) -> Path:
        """The copy of one process's terminal output."""
        return self.path / (f"log_rank{rank}.txt" if rank else "log.txt")

    def find_checkpoint(self, best: bool) -> tuple[Path, list[str]]:
        """The undamaged checkpoint to use.

        Args:
            best: Prefers best.ckpt to last.ckpt; else prefers the one with more iterations.

        Returns:
            The path, and for each preferred checkpoint that can't be used its path and damage.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a newer version of this library has written one.
        """
        paths = (self.spare_checkpoint, self.best_checkpoint, self.last_checkpoint)
        reached = {path: reach(path) for path in paths if path.exists()}
        existing = list(reached)
        if not best:
            # An unreadable one may have the most iterations. At equal ones last.ckpt comes first.
            far = {path: (math.inf,) if isinstance(r, str) else r for path, r in reached.items()}
            existing = sorted(reversed(existing), key=lambda path: far[path], reverse=True)
        faults: list[str] = []
        for path in existing:
            reason = reached[path]
            fault = reason if isinstance(reason, str) else find_fault(path)
            if not fault:
                return path, faults
            faults.append(f"{path} {fault}: passed over")
        why = " and ".join(f.removesuffix(": passed over") for f in faults)
        why = why or "it stopped before its first one was written"
        raise FileNotFoundError(
            f"{self.path} has no checkpoint to use: {why}. Start again with "
            f"`fit --config {self.config}`"
        )

    def check_places(self) -> None:
        """Raises ValueError if something else is where a run writes its files, e.g. a folder."""
        files = ("log.txt", "metrics.csv", "run.json", "failure.txt", ".lock")
        for path in (self.config, self.environment, *(self.path / name for name in files)):
            if path.exists() and not path.is_file():
                raise ValueError(f"{path} is no file, and the run writes one there: move it away")


def check_tag(tag: str | None) -> None:
    """Raises ValueError for a tag that can't be part of a folder's name."""
    if not _TAG.fullmatch(tag or ""):
        raise ValueError(
            f"`tag` is {tag!r}: use 1 to 100 letters, digits and any of _ . , = + @ - "
            "(it becomes part of the folder's name)"
        )


def go_on_command(command: str, path: Path) -> str:
    """The command line that runs `command` (fit, test, ...) on a session folder."""
    return printed_command(command, "--ckpt_path", str(path))


def look_command(folder: Path) -> str:
    """The command line that shows the sessions of a folder in TensorBoard."""
    return printed_command("look", str(folder))


def _is_of_session(folder: Path) -> bool:
    """Whether a folder is a session's; one of its two files may be lost."""
    return any((folder / name).is_file() for name in ("config.yaml", "environment.yaml"))
