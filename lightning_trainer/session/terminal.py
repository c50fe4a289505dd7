"""Copies all terminal output of a run into a file, even of a run that is killed.

    print, warning, traceback, C code, worker, child
        -> file descriptors 1 and 2
        -> a pty where there was a terminal, a pipe elsewhere
        -> helper process -> the terminal (bytes unchanged)
                          -> the file (bars as their last frame, no colours)

The helper is a process, because a thread would lose the last lines of a killed run. Also, C code
that fills the pipe while it holds the GIL would wait for the thread for ever. The helper is this
file, run as a script: each import here delays the start of a run.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time

PATIENCE_S = 3.0
_LONGEST = 2**20  # bytes of an unfinished line in the helper's memory

_ESCAPE = re.compile(  # CSI (colours, cursor); OSC and the like (titles, links); the short ones
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])"
)
_REDRAW = re.compile(rb"\r|\x1b\[(?:2K|[0-9;]*[ABEFGHdf])")  # erases the row or leaves its place
_UP = re.compile(rb"\x1b\[\d*A")


class TerminalLog:
    """Copies the terminal output of this process and its children to a file.

    Works from `start` to `stop`, or as a context manager. A child may have another log of its own.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._owner = -1
        self._helper: subprocess.Popen[bytes] | None = None
        self._originals: dict[int, int] = {}
        self._line_buffering: list[tuple[io.TextIOWrapper, bool]] = []

    def __enter__(self) -> TerminalLog:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Appends to `path` until `stop` or the end of the process.

        Raises:
            OSError: If `path` can't be opened; its folder must exist.
            RuntimeError: If the helper can't run.
        """
        if self._originals:
            return
        log = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        _flush()
        self._owner = os.getpid()
        self._originals = {fd: os.dup(fd) for fd in (1, 2)}
        atexit.register(self.stop)
        try:
            self._divert(log)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(log)

    def stop(self) -> None:
        """Gives the streams back and waits until all is written, at most `PATIENCE_S`.

        The helper goes on for processes that outlive this one.
        """
        # In a forked child the streams belong to the parent's log.
        if not self._originals or os.getpid() != self._owner:
            return
        atexit.unregister(self.stop)
        _flush()
        for fd, original in self._originals.items():
            os.dup2(original, fd)
            os.close(original)
        self._originals.clear()
        for stream, before in self._line_buffering:
            with contextlib.suppress(ValueError):  # closed meanwhile
                stream.reconfigure(line_buffering=before)
        self._line_buffering.clear()
        if self._helper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._helper.wait(PATIENCE_S)

    def _divert(self, log: int) -> None:
        # Two channels to the same file would mix up the order of its lines.
        channels = (1,) if os.path.sameopenfile(1, 2) else (1, 2)
        ends = {fd: _open_ends(fd) for fd in channels}
        try:
            routes = {reader: self._originals[fd] for fd, (reader, _) in ends.items()}
            self._helper = _start_helper(log, routes)
            for fd in self._originals:
                os.dup2(ends.get(fd, ends[1])[1], fd)
        finally:
            # The helper sees the end of the data only when all others have closed the writer.
            for reader, writer in ends.values():
                os.close(reader)
                os.close(writer)
        # Python buffers a pipe by blocks: a killed run would lose the last block.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                self._line_buffering.append((stream, stream.line_buffering))
                stream.reconfigure(line_buffering=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            # A replaced stream may be closed or lack `flush`; the disk may be full.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
    # C code has a buffer too. libc would flush it only after `stop`, past the log.
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import ctypes  # not at the top, where it would delay the helper

        libc = ctypes.CDLL(None)
        libc.fflush(ctypes.c_void_p.in_dll(libc, "stdout"))


def _open_ends(fd: int) -> tuple[int, int]:
    """A reader and a writer: a pty as wide as the terminal on `fd`, else a pipe."""
    if not os.isatty(fd):
        return os.pipe()
    reader, writer = os.openpty()
    mode = termios.tcgetattr(writer)
    mode[1] &= ~termios.OPOST  # only the real terminal shall turn "\n" into "\r\n"
    termios.tcsetattr(writer, termios.TCSANOW, mode)
    _copy_size(fd, writer)
    return reader, writer


def _copy_size(source: int, target: int) -> bool:
    """Gives `target` the window size of `source`; returns whether that changed anything."""
    try:
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8))
        if size == fcntl.ioctl(target, termios.TIOCGWINSZ, bytes(8)):
            return False
        fcntl.ioctl(target, termios.TIOCSWINSZ, size)
    except OSError:  # a pipe, or a closed terminal
        return False
    return True


def _start_helper(log: int, routes: dict[int, int]) -> subprocess.Popen[bytes]:
    """Starts the helper; returns once it ignores signals and is ready."""
    fds = [log, *(end for route in routes.items() for end in route)]
    helper = subprocess.Popen(
        # -I, or the modules in this folder would hide the standard library's.
        [sys.executable, "-I", "-S", __file__, *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=fds,
    )
    assert helper.stdout is not None
    with helper.stdout as ready:
        if not ready.read(1):
            raise RuntimeError(
                f"the helper of `TerminalLog` ended with status {helper.wait()}: what it printed "
                f"says why, or `sys.executable`, {sys.executable!r}, is no Python"
            )
    return helper


def _pump(log: int, routes: dict[int, int]) -> None:
    """Copies from each reader to its original and the log until the last writer has closed."""
    partial = dict.fromkeys(routes, b"")
    poll = select.poll()
    for reader in routes:
        poll.register(reader, select.POLLIN)
    while partial:
        for reader, _ in poll.poll():
            try:
                data = os.read(reader, 2**16)
            except OSError:  # EIO: the end of a pty
                data = b""
            _write(routes[reader], data)
            if data:
                text, partial[reader] = _readable(partial[reader] + data)
            else:
                poll.unregister(reader)
                last = _last_frame(partial.pop(reader))
                text = last + b"\n" if last else b""
            _write(log, text)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # another program has made the shared terminal non-blocking
            time.sleep(0.01)
        except OSError:  # the log must survive a closed terminal, the terminal a full disk
            return


def _readable(pending: bytes) -> tuple[bytes, bytes]:
    """The whole lines for the file, and the bytes of an unfinished line."""
    # Beyond the limit a bar loses its old frames, and other text becomes several lines.
    *lines, rest = pending.split(b"\n")
    if len(rest) > _LONGEST:
        rest = b"\r".join(rest.split(b"\r")[-2:])
    if len(rest) > _LONGEST:
        lines.append(rest)
        rest = b""
    return b"".join(map(_file_line, lines)), rest


def _file_line(line: bytes) -> bytes:
    # Leaves out a bar below another one, which is drawn again after each frame.
    *below, here = _UP.split(line)
    frame = _last_frame(here)
    return frame + b"\n" if frame.strip() or not below else b""


def _last_frame(line: bytes) -> bytes:
    """The last text on a row, or the one before it was erased."""
    frames = [_ESCAPE.sub(b"", frame) for frame in _REDRAW.split(line)]
    return next((frame for frame in reversed(frames) if frame.strip()), frames[0])


def _run_helper(log: int, *ends: int) -> None:
    routes = dict(zip(ends[::2], ends[1::2], strict=True))

    def follow_size(*_: object) -> None:
        # Other processes may have read their pty's size too early: tell them to read it again.
        if any([_copy_size(original, reader) for reader, original in routes.items()]):
            os.kill(0, signal.SIGWINCH)

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    signal.signal(signal.SIGWINCH, follow_size)
    follow_size()
    os.write(1, b"\n")  # ready
    _pump(log, routes)


if __name__ == "__main__":
    _run_helper(*map(int, sys.argv[1:]))
