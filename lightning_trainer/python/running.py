"""Runs a command from Python: its errors are exceptions, and are not printed as well."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from lightning_trainer.python.run_error import RunError
from lightning_trainer.session.door import open_own
from lightning_trainer.session.environment import is_first_process
from lightning_trainer.session.imports import guarded_imports
from lightning_trainer.session.program import called_by_code
from lightning_trainer.session.run_record import describe
from lightning_trainer.session.secrets import hide
from lightning_trainer.session.utf8 import as_utf8
from lightning_trainer.start.cli import SessionCLI, run_trainer
from lightning_trainer.start.failure import of_project
from lightning_trainer.start.launch import layout, n_processes
from lightning_trainer.start.opening import HasEnded, is_started_by_run
from lightning_trainer.start.parser import SessionParser

_T = TypeVar("_T")
_ERROR = "error: "
_MAIN = ("__main__.", "__mp_main__.")  # the second in a process that multiprocessing spawned
_started_others: list[bool] = []  # has one, once this process has started others for a run
_one_thread = threading.RLock()  # a run diverts the streams of the whole process


class _Failed(SystemExit):
    """Ends a run from within; passes what catches errors, as the command line's exit does."""

    def __init__(self, text: str, cause: BaseException | None = None, log: Path = Path()) -> None:
        super().__init__(1)
        self.text, self.cause, self.log = text, cause, log


class _RaisingParser(SessionParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # an inner parser, for one of several types
            super().error(message, ex)
        raise _Failed(_ERROR + self.refusal_text(message, ex))


class PythonCLI(SessionCLI):
    """A command that Python calls."""

    kind_of_parser = _RaisingParser
    is_called = True

    def before_instantiate_classes(self) -> None:
        """Tells of classes that no other program finds.

        Raises:
            ValueError: If the processes of the run would begin this one's script anew, and so with
                a run before this one.
        """
        config = self.config[self.subcommand]
        if starts_others := n_processes(config.trainer.as_dict()) > 1 and not layout():
            if _started_others:
                raise ValueError(
                    "this process has begun a run on several devices before, and what is started "
                    "for another would begin with that one: start a process for each"
                )
            _started_others.append(starts_others)
        super().before_instantiate_classes()
        own = [c.class_path for c in (config.model, config.data) if c.class_path.startswith(_MAIN)]
        if own and is_first_process():
            names = " and ".join(f"`{path.partition('.')[2]}`" for path in own)
            print(
                f"{names}: defined in this notebook or script, which alone can go on with the "
                "session or load it. The commands find classes of modules only",
                flush=True,
            )

    def end_failed(self, text: str, cause: BaseException) -> NoReturn:
        """Raises what `run_command` catches, which writes the text into log.txt."""
        is_written = hasattr(self, "session") and self.session.path.name and not self.is_guest
        log = self.session.log(int(os.environ.get("LOCAL_RANK", 0))) if is_written else Path()
        raise _Failed(hide(text, self._secrets), cause, log)


def run_command(run: Callable[[], _T]) -> _T:
    """Calls a function that runs a `PythonCLI`.

    Raises:
        RunError: If the run is refused or fails.
        KeyboardInterrupt: If Ctrl-C, or a notebook's button, has ended it; all is saved.
        SystemExit: If another signal has, which is meant for the process.
    """
    if not _one_thread.acquire(blocking=False):
        raise RunError(
            "another thread of this process is in a run: wait for it, or start a process"
        )
    try:
        with as_utf8(), guarded_imports(), called_by_code():
            return run()
    except _Failed as ex:
        failed = ex
    except SystemExit as ex:
        code = ex.code if isinstance(ex.code, int) else 1
        if code == 130:
            raise KeyboardInterrupt("the run has ended, and all is saved") from None
        if code > 128:
            raise
        raise RunError(f"the project has ended the run by `sys.exit({ex.code!r})`") from ex
    finally:
        _one_thread.release()
    _raise(failed)


def _raise(failed: _Failed) -> NoReturn:
    """Raises the error: a fault in code as the cause, with its traceback; others by their words."""
    folder = failed.log.parent if failed.log.name else None
    if folder:
        with contextlib.suppress(OSError):  # a full disk, which may be the error itself
            log = open_own(failed.log, os.O_WRONLY | os.O_APPEND)
            os.write(log, failed.text.encode(errors="backslashreplace"))
            os.close(log)
    if failed.cause is None or failed.text.startswith(_ERROR):
        raise RunError(failed.text.removeprefix(_ERROR).strip(), folder) from None
    cause = failed.cause.with_traceback(of_project(failed.cause))
    raise RunError(describe(cause, ()), folder) from cause


def fit_by_words(words: list[str]) -> Path:
    """Runs `fit` by its command line; returns the session's folder, and raises as `run_command`.

    A process that Lightning has started for the run ends here: the program is the first one's.
    """
    is_helper = is_started_by_run()

    def run() -> Path:
        try:
            return run_trainer(words, PythonCLI).path
        except HasEnded as ended:
            return ended.folder

    folder = run_command(run)
    if is_helper:
        sys.exit(0)
    return folder
