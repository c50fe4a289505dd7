"""Copies all terminal output of a run into a file, even of a run that is killed.

    print, warning, traceback, C code, worker, child
        -> file descriptors 1 and 2 (where Python prints past them, a pipe besides: tee.py)
        -> a pty where there was a terminal, a pipe elsewhere
        -> helper process -> the terminal (bytes unchanged)
                          -> the file (bars as their last frame, no colours)

The helper (log_helper.py) is a process, because a thread would lose the last lines of a killed run.
Also, C code that fills the pipe while it holds the GIL would wait for the thread for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from typing import Any

from lightning_trainer.session import log_helper
from lightning_trainer.session.door import open_own
from lightning_trainer.session.log_helper import LogCopier, copy_size
from lightning_trainer.session.tee import is_past_descriptors, tee_streams

PATIENCE_S = 3.0
_WAKE_MS = 1000


class TerminalLog:
    """Copies the terminal output of this process and its children to a file.

    The file has *** in place of secrets; `known` are texts that are ones, from `secret_forms`.
    Works from `start` to `stop`, or as a context manager. A child may have another log of its own.
    """

    def __init__(self, path: str | os.PathLike[str], known: bytes = b"") -> None:
        self.path = os.fspath(path)
        self._known = known
        self._owner = -1
        self._helper: subprocess.Popen[bytes] | None = None
        self._guard: threading.Thread | None = None
        self._originals: dict[int, int] = {}
        self._line_buffering: list[tuple[io.TextIOWrapper, bool]] = []
        self._put_back: Callable[[], None] | None = None

    def __enter__(self) -> TerminalLog:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Appends to `path` until `stop` or the end of the process.

        Raises:
            OSError: If `path` can't be opened, or is a link; its folder must exist.
            RuntimeError: If the helper can't run.
        """
        if self._originals:
            return
        with contextlib.ExitStack() as stack:  # closes what is open if a step fails
            log = open_own(self.path, os.O_RDWR | os.O_APPEND)
            stack.callback(os.close, log)
            _flush()
            for fd in (1, 2):
                self._originals[fd] = os.dup(fd)
                stack.callback(os.close, self._originals[fd])
            self._owner = os.getpid()
            atexit.register(self.stop)
            try:
                self._divert(log, stack)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Gives the streams back and waits until all is written, at most `PATIENCE_S`.

        The helper goes on for processes that outlive this one.
        """
        # In a forked child the streams belong to the parent's log.
        if not self._originals or os.getpid() != self._owner:
            return
        atexit.unregister(self.stop)
        _flush()
        if self._put_back:
            self._put_back()
        originals, self._originals = self._originals, {}  # so that the guard expects the end
        for fd, original in originals.items():
            os.dup2(original, fd)
        for stream, before in self._line_buffering:
            with contextlib.suppress(ValueError):  # closed meanwhile
                stream.reconfigure(line_buffering=before)
        self._line_buffering.clear()
        if self._guard is not None:
            self._guard.join(PATIENCE_S)

    def _divert(self, log: int, stack: contextlib.ExitStack) -> None:
        # Two channels to the same file would mix up the order of its lines.
        channels = (1,) if os.path.sameopenfile(1, 2) else (1, 2)
        # The helper sees the end of the data only when all others have closed the writer.
        with contextlib.ExitStack() as writers:
            ends = {fd: _open_ends(fd, stack, writers) for fd in channels}
            past = [n for n in ("stdout", "stderr") if is_past_descriptors(getattr(sys, n))]
            routes = self._tee(past, stack) if past else {}
            routes |= {reader: self._originals[fd] for fd, (reader, _) in ends.items()}
            copier = LogCopier(self.path, log, routes, self._known)
            copier.prepare()  # later there may be no free descriptors
            self._helper = helper = _start_helper(copier, stack)
            for fd in self._originals:
                os.dup2(ends.get(fd, ends[1])[1], fd)
        arguments = (helper, copier, stack.pop_all())
        self._guard = threading.Thread(target=self._watch_over, args=arguments, daemon=True)
        self._guard.start()
        # Python buffers a pipe by blocks: a killed run would lose the last block.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                self._line_buffering.append((stream, stream.line_buffering))
                stream.reconfigure(line_buffering=True)

    def _tee(self, names: list[str], stack: contextlib.ExitStack) -> dict[int, int]:
        """Opens a pipe for streams that reach their readers by themselves; returns its route."""
        reader, writer = os.pipe()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for end in (reader, nowhere):
            stack.callback(os.close, end)
        put_back = tee_streams(names, writer)

        def stop() -> None:
            put_back()
            os.close(writer)
            self._put_back = None

        self._put_back = stop
        return {reader: nowhere}

    def _watch_over(
        self, helper: subprocess.Popen[bytes], copier: LogCopier, stack: contextlib.ExitStack
    ) -> None:
        """Wakes the helper if it is stopped, and copies in its place if all of it is killed.

        This process has the reader open as well: so nothing in the pipe is lost, and those who
        print meet no closed pipe.
        """
        with stack:
            assert helper.stdout is not None
            poll = select.poll()
            poll.register(helper.stdout, select.POLLIN)
            while not poll.poll(_WAKE_MS) or os.read(helper.stdout.fileno(), 1):
                helper.send_signal(signal.SIGCONT)
            code = helper.wait()
            if code and self._originals:
                copier.tell_end(code)
            copier.copy()


def keep_log(path: str | os.PathLike[str], known: bytes = b"") -> Callable[[], None]:
    """Starts a log, or tells why there is none; returns what ends it."""
    log = TerminalLog(path, known)
    try:
        log.start()
    except (OSError, RuntimeError) as ex:
        print(f"{path} is not written, the run goes on without it: {ex}", file=sys.stderr)
    return log.stop


def can_redraw() -> bool:
    """Whether stderr shows a row that is drawn again as one: on most terminals, in notebooks."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None:
        return True
    is_plain = os.environ.get("TERM", "dumb") in ("dumb", "") or os.environ.get("CI") == "true"
    return sys.stderr is not None and sys.stderr.isatty() and not is_plain


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            # A replaced stream may be closed or lack `flush`; the disk may be full.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
    # C code has a buffer too. libc would flush it only after `stop`, past the log.
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import ctypes

        libc = ctypes.CDLL(None)
        libc.fflush(ctypes.c_void_p.in_dll(libc, "stdout"))


def _open_ends(
    fd: int, readers: contextlib.ExitStack, writers: contextlib.ExitStack
) -> tuple[int, int]:
    """A reader and a writer, which the stacks close: of a pty as wide as `fd`, or of a pipe."""
    is_terminal = os.isatty(fd)
    reader, writer = os.openpty() if is_terminal else os.pipe()
    readers.callback(os.close, reader)
    writers.callback(os.close, writer)
    if is_terminal:
        mode = termios.tcgetattr(writer)
        mode[1] &= ~termios.OPOST  # only the real terminal shall turn "\n" into "\r\n"
        termios.tcsetattr(writer, termios.TCSANOW, mode)
        copy_size(fd, writer)
    return reader, writer


def _start_helper(copier: LogCopier, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """Starts the helper; returns once it ignores signals and is ready.

    Its stdout tells its end: all of its processes hold it.
    """
    fds = [copier.log, *(end for route in copier.routes.items() for end in route)]
    helper = subprocess.Popen(
        # -I, or the modules in this folder would hide the standard library's.
        [sys.executable, "-I", "-S", log_helper.__file__, copier.name, *map(str, fds)],
        stdin=subprocess.PIPE,  # other users can read a command line
        stdout=subprocess.PIPE,
        pass_fds=fds,
    )
    assert helper.stdin is not None and helper.stdout is not None
    with contextlib.suppress(BrokenPipeError), helper.stdin as stdin:
        stdin.write(copier.known)
    stack.callback(helper.stdout.close)
    if not os.read(helper.stdout.fileno(), 1):
        raise RuntimeError(
            f"the helper of `TerminalLog` ended with status {helper.wait()}: what it printed "
            f"says why, or `sys.executable`, {sys.executable!r}, is no Python"
        )
    return helper
