"""The session folder of a run: made or reopened, locked, and what it says of the run at first."""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.session.checkpoint_header import reach
from lightning_trainer.session.environment import describe_environment, uncommitted_changes
from lightning_trainer.session.folder import Session
from lightning_trainer.session.lock import SessionLock
from lightning_trainer.session.secrets import scrub, secret_texts
from lightning_trainer.session.settings import differences, dump_settings
from lightning_trainer.session.terminal import TerminalLog
from lightning_trainer.start.launch import end_with_parent, is_first_process, n_processes

# Tells the folder to the processes that Lightning starts on this machine.
_SESSION_VARIABLE = "LIGHTNING_TRAINER_SESSION"


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        command: "fit", "test", ...
        typed: The command line, without secrets.
        resolved: Every setting as plain types, with secrets.
        restart: What the run starts from, if anything.
    """

    command: str
    typed: str
    resolved: dict[str, Any]
    restart: Restart | None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting without secrets: what config.yaml and checkpoints hold."""
        return dict(scrub(self.resolved))

    @property
    def secrets(self) -> list[str]:
        """Texts that nothing in the folder may show."""
        return secret_texts(self.resolved)

    @property
    def records(self) -> bool:
        """Whether the session's config.yaml, environment.yaml and run.json are those of this run.

        Not so in a test of a session that was trained.
        """
        return self.command == "fit" or not (self.restart and self.restart.session)

    @property
    def continued(self) -> Restart | None:
        """What the run starts from if it is training that goes on in its own session."""
        goes_on = self.command == "fit" and self.restart and self.restart.session
        return self.restart if goes_on else None


def open_folder(request: Request, stack: ExitStack) -> tuple[Session, bool]:
    """Makes or reopens the folder; in a process that was started by another one, finds it.

    Args:
        request: What is asked for.
        stack: Gets what gives the folder back.

    Returns:
        The session, and whether this run is a guest: another process is using the folder, and this
        one leaves no trace in it. The session has no path in a process that ShareSession will tell.

    Raises:
        ValueError: If the folder is in use and the run has to write.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0 and _SESSION_VARIABLE in os.environ:
        end_with_parent()
        return Session(os.environ[_SESSION_VARIABLE]), False
    if not is_first_process():
        return Session(), False
    resolved, restart = request.resolved, request.restart
    session = restart.session if restart else None
    session = session or Session.create(resolved["output_path"], resolved["tag"])
    is_guest = not _lock(session, request, stack)
    os.environ[_SESSION_VARIABLE] = str(session.path)
    stack.callback(os.environ.pop, _SESSION_VARIABLE, None)
    return session, is_guest


def _lock(session: Session, request: Request, stack: ExitStack) -> bool:
    """Keeps other processes out of the folder; whether it could."""
    lock = SessionLock(session.path)
    holder = lock.acquire(request.command)
    if holder and request.command != "fit":
        print(f"{session.path} is in use by {holder}: results are shown but not logged")
        return False
    if holder:
        raise ValueError(
            f"{session.path} is in use by {holder}: wait until that ends, stop it, or "
            "start a new session with `--config`"
        )
    stack.callback(lock.release)
    before = request.continued
    # A run that ended since the checkpoint was read would lose the last rows of its files.
    if before and reach(before.checkpoint) != (before.iteration, before.validated):
        raise ValueError(f"{session.path} has gone on meanwhile: try again")
    return True


def log_terminal(session: Session, rank: int, stack: ExitStack) -> None:
    """Copies what the terminal shows into the process's log until the stack is closed."""
    terminal = TerminalLog(session.log(rank))
    terminal.start()
    stack.callback(terminal.stop)


def announce(session: Session, request: Request) -> None:
    """Prints the first lines: which session, from which checkpoint."""
    restart = request.restart
    for path in restart.passed_over if restart else ():
        print(f"{path}: passed over", file=sys.stderr)
    if restart is None:
        print(f"Session: {session.path}", flush=True)
    elif request.continued:
        print(f"Going on with {session.path} after iteration {restart.iteration}")
    else:
        print(f"Session: {session.path}")
        print(f"Checkpoint: {restart.checkpoint} (iteration {restart.iteration})", flush=True)


def record(session: Session, request: Request) -> None:
    """Writes config.yaml and environment.yaml, and tells what differs from before."""
    settings = dict(request.settings)
    changes: list[str] = []
    if request.restart and request.restart.session:
        settings["ckpt_path"] = None
        changes = differences(scrub(request.restart.config), settings)
    session.write_config(dump_settings(settings))
    sessions, n = session.path.parent, n_processes(settings["trainer"])
    changes += session.record_environment(
        describe_environment(request.typed, n, sessions),
        uncommitted_changes(sessions, request.secrets),
    )
    if changes:
        print("What differs from before:", *changes, sep="\n    ", flush=True)
