"""Writes and reads run.json: a run's progress, score and end."""

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lightning_trainer.session.door import read_bounded
from lightning_trainer.session.secrets import hide
from lightning_trainer.session.settings import replace_text

_NAME = "run.json"
_VERSION = 1
_MOST_BYTES = 2**20  # a larger file is damaged
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("version", "iteration", "pid"), (int,)),
    **dict.fromkeys(("command", "state", "reason", "by", "started", "updated", "host"), (str,)),
    **dict.fromkeys(("n_iterations", "epoch_iterations"), (int, type(None))),
    **{"score": (dict, type(None)), "times": (dict,)},
    **dict.fromkeys(("used", "facts"), (dict, type(None))),
}


def now() -> str:
    """The local time with its zone, e.g. 2024-02-29T12:00:07+01:00."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass(kw_only=True)
class RunRecord:
    """The content of run.json."""

    version: int = _VERSION
    command: str  # "fit", "validate", "test" or "predict"
    # "running" also after a kill, which leaves no time to write.
    state: Literal["running", "finished", "interrupted", "failed"] = "running"
    reason: str = ""  # why the run ended, e.g. "all 600 iterations are done" or "ValueError: ..."
    by: str = ""  # who ended it, e.g. "signal", "process 1 on node1" or a callback's name
    iteration: int = 0  # iterations done
    n_iterations: int | None = None  # iterations of the whole run; None if something else ends it
    epoch_iterations: int | None = None  # iterations of an epoch; None if it has no end
    score: dict[str, Any] | None = None  # name, mode ("max" or "min"), best, its iteration
    times: dict[str, Any] = field(default_factory=dict)  # the fields of `RunTimes`
    used: dict[str, Any] | None = None  # memory_gb, gpu_memory_gb, gpu_percent, gpu_kwh
    facts: dict[str, Any] | None = None  # of the session's other files: session/facts.py
    started: str = field(default_factory=now)  # this start of the run
    updated: str = ""  # the newest write
    host: str = field(default_factory=socket.gethostname)  # machine of the writing process
    pid: int = field(default_factory=os.getpid)  # id of the writing process

    def write(self, folder: Path) -> None:
        self.updated = now()
        replace_text(folder / _NAME, json.dumps(vars(self), indent=2) + "\n")

    def end(
        self, state: Literal["finished", "interrupted", "failed"], reason: str, by: str
    ) -> None:
        self.state, self.reason, self.by = state, reason, by

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """Reads a folder's run.json; None if it is missing, damaged or of a newer version."""
        try:
            return cls.load(folder)
        except (OSError, ValueError, NotImplementedError):
            return None

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Reads a folder's run.json.

        Raises:
            OSError: If it is missing, or can't be read.
            NotImplementedError: If a newer version of this library has written it.
            ValueError: If it is damaged.
        """
        try:
            content = json.loads(read_bounded(folder / _NAME, _MOST_BYTES))
        except RecursionError:
            raise ValueError("is too deep") from None
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > _VERSION:
            raise NotImplementedError(f"has version {version}")
        if version != _VERSION:
            raise ValueError("is no record of a run")
        known: dict[str, Any] = {f.name: content.get(f.name) for f in fields(cls)}
        for name, value in known.items():
            if type(value) not in _TYPES[name]:
                raise ValueError(f"has a wrong `{name}`")
        return cls(**known)


def note_start(folder: Path, command: str) -> list[str]:
    """Marks the run in a session folder as running, with the numbers that it had reached.

    Returns:
        A line if there was a record that can't be read.
    """
    record, before = RunRecord(command=command), RunRecord.read(folder)
    is_damaged = before is None and (folder / _NAME).exists()
    if before and before.command == command:
        record.iteration, record.n_iterations = before.iteration, before.n_iterations
        record.score, record.times = before.score, before.times
    record.write(folder)
    return [f"{folder / _NAME} is damaged: written anew"] if is_damaged else []


def note_failure(folder: Path, command: str, ex: BaseException, secrets: Iterable[str]) -> None:
    """Writes an error into the run.json of a session folder, unless the session has finished."""
    record = RunRecord.read(folder) or RunRecord(command=command)
    if record.state == "finished":
        return
    record.end("failed", describe(ex, secrets), process_name())
    with contextlib.suppress(OSError):  # a full disk, which may be the error itself
        record.write(folder)


def describe(ex: BaseException, secrets: Iterable[str]) -> str:
    """An error in one line, e.g. "ValueError: ...", with *** in place of secrets."""
    first_line = str(ex).strip().partition("\n")[0]
    return hide(f"{type(ex).__name__}: {first_line}", secrets)


def process_name() -> str:
    """E.g. "process 1234 on node1"."""
    return f"process {os.getpid()} on {socket.gethostname()}"
