"""Tells the failure of a run, and in a run of several processes the first failure."""

import contextlib
import errno
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_trainer.internals import root_cause
from lightning_trainer.run.state import RunCallback, RunState
from lightning_trainer.session.secrets import hide
from lightning_trainer.start.likely import likely_cause, remedy_for

FILE_NAME = "failure.txt"

_OWN = Path(__file__).parent.parent
_PYTHON = Path(traceback.__file__).parent

# Faults of the machine, not of the code.
_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.EMFILE, errno.ENFILE),
)
_LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "[NCCL]")
_BROKEN_GPU = ("CUDA error", "Triton Error [CUDA]", "cuDNN error", "HIP error")
_PATIENCE_S = 3.0
_LAST_WRITES_S = 10.0
_ENDED = (
    "error: contact with another process was lost, which ended by itself or was killed, e.g. "
    "because memory ran out\n"
)
_TIMED_OUT = (
    "error: another process did not start, or does not answer, within `--timeout_minutes`: see its "
    "log_rank1.txt (...) and whether all have the same MASTER_ADDR and MASTER_PORT\n"
)


def failure_text(
    ex: BaseException,
    folder: Path | None,
    trainer: pl.Trainer | None,
    secrets: Sequence[str] = (),
) -> str:
    """What to print of the error.

    In a run of several processes, the process that fails first writes its error into failure.txt.
    The others only lose contact with it. Process 0 prints that file at its end.

    The folder is None before there is one, and empty in a process that does not know it yet.
    """
    cause = root_cause(ex)
    text = f"error: {_message(cause)}\n"
    if isinstance(cause, OSError) and cause.errno and not cause.filename and folder is not None:
        text = f"error: {folder}: {cause}\n"
    if not (_is_explained(cause) or _is_of_session(cause, folder)):
        likely = likely_cause(cause)
        text = f"error: {likely}\n" if likely else _traceback(cause)
    if trainer is not None and trainer.world_size > 1 and folder is not None and folder.name:
        text = _of_first_failure(cause, hide(text, secrets), folder / FILE_NAME, trainer)
    return text


class SkipTeardown(RunCallback):
    """Keeps Lightning from tearing down a run whose process has lost contact with another one.

    Lightning would copy the weights to the host. On a GPU that waits for all that is queued, which
    may wait for the other process for ever.
    """

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if has_lost_contact(exception, trainer):
            raise exception


def has_lost_contact(ex: BaseException, trainer: pl.Trainer) -> bool:
    """Whether the error is that another process has ended or does not answer."""
    return trainer.world_size > 1 and (_is_closed(ex) or _is_timeout(ex))


def must_end_at_once(ex: BaseException, trainer: pl.Trainer, is_called: bool) -> bool:
    """Whether the process can't end as usual.

    So it is without the other processes, and after a kernel has failed: the GPU then refuses all,
    and Python's own end aborts the process. Python code that has called for the run lives on.
    """
    broken = isinstance(ex, RuntimeError) and any(text in str(ex) for text in _BROKEN_GPU)
    return has_lost_contact(ex, trainer) or (broken and not is_called)


def end_at_once(trainer: pl.Trainer, run: RunState, clean_up: contextlib.ExitStack) -> NoReturn:
    """Ends the process with exit code 1, whatever a GPU is waiting for.

    Numbers, the log, and a checkpoint that is being written have `_LAST_WRITES_S` to be completed.
    """

    def limit() -> None:
        time.sleep(_LAST_WRITES_S)
        os._exit(1)

    threading.Thread(target=limit, daemon=True).start()
    try:
        for logger in trainer.loggers:
            logger.finalize("failed")
        run.writer.shutdown()
        clean_up.close()
    finally:
        os._exit(1)


def _is_closed(ex: BaseException) -> bool:
    return isinstance(ex, dist.DistError) or _says(ex, *_LOST_CONTACT)


def _is_timeout(ex: BaseException) -> bool:
    return _says(ex, "Timed out", "timed out", "wait timeout")  # the last where a group is made


def _says(ex: BaseException, *texts: str) -> bool:
    # torch's errors are RuntimeErrors; Python's own, of a project's connections, are OSErrors.
    return isinstance(ex, RuntimeError) and any(text in str(ex) for text in texts)


def _of_first_failure(cause: BaseException, text: str, file: Path, trainer: pl.Trainer) -> str:
    """The text for this process to print; empty if another process prints it."""
    lost_contact = _is_closed(cause)
    if _is_timeout(cause):
        text += _TIMED_OUT
    elif lost_contact:
        text += _ENDED
    rank, n = trainer.global_rank, trainer.world_size
    text = f"Process {rank} of {n} on {socket.gethostname()} failed:\n{text}"
    shown = False
    if lost_contact and not file.exists():
        if trainer.is_global_zero:  # at once: Lightning's launcher may kill it within seconds
            shown = True
            print(text, end="", file=sys.stderr, flush=True)
        deadline_s = time.monotonic() + _PATIENCE_S
        while not file.exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
    try:
        with file.open("x", encoding="utf-8", errors="backslashreplace") as new:
            new.write(text)
    except FileExistsError:
        with contextlib.suppress(OSError):
            return file.read_text(encoding="utf-8") if trainer.is_global_zero else ""
    except OSError:  # a full disk
        pass
    return "" if shown else text


def _is_explained(ex: BaseException) -> bool:
    """Whether the message needs no traceback.

    So it is for faults of the machine, for what this library can't do with a file, for a file that
    is not where it should be, for every `raise` in this library and Lightning's callbacks, for what
    torchmetrics and Lightning say of what a hook gives them, and for every `raise` elsewhere before
    the first batch. All other errors are faults in code.
    """
    if isinstance(ex, OSError) and ex.errno in _OF_THE_MACHINE:
        return True
    if isinstance(ex, FileNotFoundError | NotADirectoryError) and ex.filename:
        return True
    frames = traceback.extract_tb(ex.__traceback__)
    if remedy_for(ex) or (isinstance(ex, OSError) and ex.errno and _is_on_own_file(frames)):
        return True
    if not frames or not (frames[-1].line or "").lstrip().startswith("raise "):
        return False
    files = [Path(frame.filename) for frame in frames]
    loops, callbacks = (Path(pl.__file__).parent / name for name in ("loops", "callbacks"))
    if "torchmetrics" in files[-1].parts or isinstance(ex, MisconfigurationException):
        return True
    is_told = any(files[-1].is_relative_to(folder) for folder in (_OWN, callbacks))
    return is_told or not any(f.is_relative_to(loops) for f in files)


def _is_on_own_file(frames: Sequence[traceback.FrameSummary]) -> bool:
    """Whether this library, and no project, has called what could not be done with a file."""
    files = [Path(frame.filename) for frame in frames]
    callers = [f for f in files if _is_package(f) or not f.is_relative_to(_PYTHON)]
    return bool(callers) and callers[-1].is_relative_to(_OWN)


def _is_of_session(ex: BaseException, folder: Path | None) -> bool:
    """Whether a file in the session folder can't be used, which is no fault in code."""
    name = ex.filename if isinstance(ex, OSError) else None
    return bool(name and folder and Path(str(name)).is_relative_to(folder))


def _message(ex: BaseException) -> str:
    """The message, with the project's line if a library called there has raised it, and a remedy.

    The line also where a file is missing, of which Python itself tells.
    """
    frames = traceback.extract_tb(ex.__traceback__)
    ours = [frame for frame in frames if is_of_project(frame.filename)]
    if not ours or not (_is_package(Path(frames[-1].filename)) or isinstance(ex, OSError)):
        told = str(ex)
    else:
        told = f"{ex} (in `{ours[-1].name}`, {ours[-1].filename}, line {ours[-1].lineno})"
    remedy = remedy_for(ex)
    return f"{told.rstrip('.')}. {remedy}" if remedy else told


def _traceback(ex: BaseException) -> str:
    return "".join(traceback.format_exception(type(ex), ex, of_project(ex)))


def of_project(ex: BaseException) -> TracebackType | None:
    """The traceback from the project's first frame on: the frames above are always the same."""
    begin = ex.__traceback__
    while begin is not None and not is_of_project(begin.tb_frame.f_code.co_filename):
        begin = begin.tb_next
    return begin or ex.__traceback__


def is_of_project(file: str) -> bool:
    """Whether a file with code is neither this library's, Python's nor a package's."""
    path = Path(file)
    return not (path.is_relative_to(_OWN) or path.is_relative_to(_PYTHON) or _is_package(path))


def _is_package(path: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
