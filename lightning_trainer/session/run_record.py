"""Writes and reads run.json: a run's progress, score and end."""

import contextlib
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lightning_trainer.session.secrets import hide
from lightning_trainer.session.settings import replace_text

_NAME = "run.json"
_VERSION = 1
_MOST_BYTES = 2**20  # a larger file is damaged
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("version", "iteration", "pid"), (int,)),
    **dict.fromkeys(("command", "state", "reason", "by", "started", "updated", "host"), (str,)),
    **{"n_iterations": (int, type(None)), "score": (dict, type(None)), "times": (dict,)},
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
    score: dict[str, Any] | None = None  # name, mode ("max" or "min"), best, its iteration
    times: dict[str, Any] = field(default_factory=dict)  # the fields of `RunTimes`
    started: str = field(default_factory=now)  # this start of the run
    updated: str = ""  # the newest write
    host: str = field(default_factory=socket.gethostname)  # machine of the writing process
    pid: int = field(default_factory=os.getpid)  # id of the writing process

    def write(self, folder: Path) -> None:
        self.updated = now()
        replace_text(folder / _NAME, json.dumps(asdict(self), indent=2) + "\n")

    def end(
        self, state: Literal["finished", "interrupted", "failed"], reason: str, by: str
    ) -> None:
        self.state, self.reason, self.by = state, reason, by

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """Reads a folder's run.json; None if it is missing, damaged or of a newer version."""
        try:
            with (folder / _NAME).open("rb") as file:
                content = json.loads(file.read(_MOST_BYTES))  # a cut file is not JSON
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            return None
        known: dict[str, Any] = {f.name: content.get(f.name) for f in fields(cls)}
        typed = all(type(value) in _TYPES[name] for name, value in known.items())
        return cls(**known) if typed else None


def note_start(folder: Path, command: str) -> None:
    """Marks the run in a session folder as running, with the numbers that it had reached."""
    record, before = RunRecord(command=command), RunRecord.read(folder)
    if before and before.command == command:
        record.iteration, record.n_iterations = before.iteration, before.n_iterations
        record.score, record.times = before.score, before.times
    record.write(folder)


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
