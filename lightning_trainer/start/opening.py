"""Makes or reopens a run's session folder, locks it, and writes its first files."""

import os
import shlex
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.session.checkpoint_header import reach
from lightning_trainer.session.door import check_own_folder
from lightning_trainer.session.environment import (
    describe_environment,
    installed_packages,
    is_first_process,
    job_id,
    uncommitted_changes,
)
from lightning_trainer.session.folder import Session
from lightning_trainer.session.imports import namesake
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.run_record import note_start
from lightning_trainer.session.secrets import scrub, secret_texts
from lightning_trainer.session.settings import differences, dump_settings
from lightning_trainer.start.launch import end_with_parent, n_processes

# Passes the folder on to the processes that Lightning starts on this machine.
_SESSION_VARIABLE = "LIGHTNING_TRAINER_SESSION"


@dataclass(frozen=True)
class Request:
    """A command line, as parsed."""

    command: str  # "fit", "test", ...
    typed: str  # the command line, without secrets
    resolved: dict[str, Any]  # every setting as plain types, with secrets
    restart: Restart | None  # the checkpoint to start from, if any
    left_out: dict[
        str, dict[str, Any]
    ]  # of `resolved`: by "model" and "data", what YAML can't hold

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting without secrets, for config.yaml and checkpoints."""
        return dict(scrub(self.resolved, self.secrets))

    @cached_property
    def secrets(self) -> list[str]:
        return secret_texts(self.resolved)

    @property
    def records(self) -> bool:
        """Whether the run may replace config.yaml, environment.yaml and run.json.

        A test, validation or prediction in a trained session must not.
        """
        return self.command == "fit" or not (self.restart and self.restart.session)

    @property
    def continued(self) -> Restart | None:
        """The checkpoint of a training that goes on in its own session."""
        goes_on = self.command == "fit" and self.restart and self.restart.session
        return self.restart if goes_on else None


class HasEnded(SystemExit):
    """Ends a command that has nothing to do, without an error."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0)
        self.folder = folder
        print(f"{folder} has ended before: nothing left to do", flush=True)


def restart_of_job(config: Any, typed: str) -> Restart | None:
    """The checkpoint of a job that SLURM starts again with the same command line.

    Of several sessions of the job, which one that was lost for a while can leave, it takes the one
    that has come furthest.

    Raises:
        HasEnded: If its run has.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
        return None
    restarts: list[Restart] = []
    for session in Session.of_job(config.output_path, job_id(), typed):
        with suppress(OSError, ValueError):  # stopped before its first checkpoint
            restarts.append(Restart.find(str(session.path), "fit", new_session=False))
    if not restarts:
        return None
    restart = max(restarts, key=lambda each: (each.iteration, each.validated))
    if not restart.is_before(config.trainer.max_steps):
        # A job of several runs repeats its finished ones too.
        raise HasEnded(restart.checkpoint.parent.parent)
    return restart


def is_started_by_run() -> bool:
    """Whether Lightning has started this process on its machine, from the first one of a run."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 and _SESSION_VARIABLE in os.environ


def open_folder(request: Request, stack: ExitStack) -> tuple[Session, bool]:
    """Makes or reopens the folder, or finds it in a process that another one has started.

    Returns:
        The session, without a path where ShareSession sets it later. Whether this run is a guest:
        another process is using the folder, and this run writes nothing into it.

    Raises:
        ValueError: If the folder is in use and the run has to write.
    """
    if is_started_by_run():
        end_with_parent()
        return Session(os.environ[_SESSION_VARIABLE]), False
    if not is_first_process():
        return Session(), False
    resolved, restart = request.resolved, request.restart
    session = restart.session if restart else None
    if session:
        session.check_places()
    session = session or Session.create(resolved["output_path"], resolved["tag"])
    is_guest = not _lock(session, request, stack)
    os.environ[_SESSION_VARIABLE] = str(session.path)
    stack.callback(os.environ.pop, _SESSION_VARIABLE, None)
    return session, is_guest


def _lock(session: Session, request: Request, stack: ExitStack) -> bool:
    """Locks the folder; returns False if this run can't write into it and can do without."""
    lock = SessionLock(session.path)
    own = bool(request.restart and request.restart.session)  # else a new folder
    holder, fault = None, _what_is_read_only(session) if own else ""
    try:
        holder = None if fault else lock.acquire(request.command)
    except OSError as ex:
        if not own:
            raise
        fault = str(ex.strerror)
    if request.command != "fit" and (holder or fault):
        why = f"is in use by {holder}" if holder else f"can't be written to ({fault})"
        print(f"{session.path} {why}: results are shown but not logged", flush=True)
        return False
    if fault and request.restart:
        new = shlex.join(
            ["--config", str(session.config), "--ckpt_path", str(request.restart.checkpoint)]
        )
        raise ValueError(
            f"{session.path} can't be written to ({fault}): make it writable, or start a new "
            f"session from its checkpoint with `fit {new} --output_path FOLDER`"
        )
    if holder:
        raise ValueError(
            f"{session.path} is in use by {holder}: wait until that ends, stop it, or "
            "start a new session with `--config`"
        )
    session.hold(lock)
    stack.callback(session.release)
    try:
        check_own_folder(session.last_checkpoint.parent)
    except OSError as ex:
        raise ValueError(f"{ex.filename} {ex.strerror}") from None
    before = request.continued
    # Another run may have ended since the checkpoint was read: its last rows would be lost.
    if before and reach(before.checkpoint) != (before.iteration, before.validated):
        raise ValueError(f"{session.path} has gone on meanwhile: try again")
    return True


def _what_is_read_only(session: Session) -> str:
    """What a run would write and may only read; empty if there is nothing."""
    for name in ("", ".lock", "log.txt", "metrics.csv", "checkpoints"):
        path = session.path / name
        if path.exists() and not os.access(path, os.W_OK):
            return f"{name or 'the folder'} is read-only"
    return ""


def announce(session: Session, request: Request) -> None:
    """Prints the session and the checkpoint."""
    restart = request.restart
    for line in restart.passed_over if restart else ():
        print(line, file=sys.stderr)
    if restart is None:
        print(f"Session: {session.path}", flush=True)
    elif request.continued:
        print(f"Going on with {session.path} after iteration {restart.iteration}")
    else:
        print(f"Session: {session.path}")
        print(f"Checkpoint: {restart.checkpoint} (iteration {restart.iteration})", flush=True)
    chosen = filter(None, (request.settings[name] for name in ("model", "data")))
    paths = [*(setting["class_path"] for setting in chosen), __name__]
    for told in sorted({*map(namesake, paths)} - {""}):
        print(f"warning: {told}", file=sys.stderr, flush=True)


def record(session: Session, request: Request) -> None:
    """Writes config.yaml and environment.yaml, and prints the differences from before."""
    settings, restart = dict(request.settings), request.restart
    changes: list[str] = []
    before = ""
    if restart and restart.session:
        settings["ckpt_path"] = None
        first = session.first_config() or restart.stored or restart.config
        changes = differences(scrub({**first, "ckpt_path": None}, request.secrets), settings)
        stored, found = ({**c, "ckpt_path": None} for c in (restart.stored, restart.config))
        before = dump_settings(stored) if restart.stored and stored != found else ""
    session.write_config(dump_settings(settings), before, request.secrets)
    sessions, n = session.path.parent, n_processes(settings["trainer"])
    changes += session.record_environment(
        describe_environment(request.typed, n, sessions),
        uncommitted_changes(sessions, request.secrets),
    )
    changes += session.record_packages(installed_packages())
    changes += note_start(session.path, request.command)
    if changes:
        print("What differs from before:", *changes, sep="\n    ", flush=True)
