"""The process that copies what a run prints to the terminal and into log.txt.

`TerminalLog` runs this file as a script: each import here delays the start of a run.

    python log_helper.py LOG_NAME LOG [READER ORIGINAL ...]    (the last ones are file descriptors)

It is two processes. One copies. The other wakes it if it is stopped, and takes its place if it is
killed.
"""

import fcntl
import os
import re
import select
import signal
import sys
import termios
import time

_RULE = 82  # characters of a line between two blocks of the log
_DASHES = b"-" * 20  # in a line between two blocks on the narrowest terminal
_LONGEST = 2**20  # bytes of an unfinished line in memory

_ESCAPE = re.compile(  # CSI (colours, cursor); OSC and the like (titles, links); the short ones
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)|[ -/]*[0-~])"
)
_REDRAW = re.compile(rb"\r|\x1b\[(?:2K|[0-9;]*[ABEFGHdf])")  # erases the row or leaves its place
_UP = re.compile(rb"\x1b\[\d*A")


def copy_size(source: int, target: int) -> bool:
    """Gives terminal `target` the window size of `source`; returns whether that changed it."""
    try:
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8))
        if size == fcntl.ioctl(target, termios.TIOCGWINSZ, bytes(8)):
            return False
        fcntl.ioctl(target, termios.TIOCSWINSZ, size)
    except OSError:  # a pipe, or a closed terminal
        return False
    return True


class LogCopier:
    """Copies from each reader to its original and to the log.

    Args:
        name: The log's path, for messages.
        log: File descriptor of the log, to write and read.
        routes: The original of each reader, as file descriptors.
        known: Secrets, for which the log has ***.
    """

    def __init__(self, name: str, log: int, routes: dict[int, int], known: bytes) -> None:
        self.name, self.log, self.routes, self.known = name, log, routes, known
        self._missing = 0  # bytes that the log lacks, since it can't be written to

    def prepare(self) -> None:
        """Imports what hides secrets, which takes some time."""
        from lightning_trainer.session.hiding import Hider, read_rules

        read_rules()
        self._hide = Hider(self.known.split(b"\0")).hide_next

    def tell_end(self, code: int) -> None:
        """Tells, in the log as well, that the process before has ended, which lost at most a line.

        Args:
            code: Its exit code; if a signal has killed it, the signal's negative number.
        """
        text = f"The process that writes {self.name} has ended ({code}): another one goes on"
        self._show(text)
        self._file(f"{text}\n".encode())

    def copy(self) -> None:
        """Copies until the last writer has closed; `prepare` comes before."""
        partial = {reader: bytearray() for reader in self.routes}
        poll = select.poll()
        for reader in self.routes:
            poll.register(reader, select.POLLIN)
        while partial:
            for reader, _ in poll.poll():
                try:
                    data = os.read(reader, 2**16)
                except OSError:  # EIO: the end of a pty
                    data = b""
                _write(self.routes[reader], data)
                if data:
                    text = _with_whole_rules(_readable(partial[reader], data), self.routes[reader])
                    self._file(self._hide(text))
                else:
                    poll.unregister(reader)
                    last = _last_frame(bytes(partial.pop(reader)))
                    self._file(self._hide(last + b"\n" if last else b""))

    def _show(self, text: str) -> None:
        *_, original = self.routes.values()  # stderr's, where it is not that of stdout
        _write(original, f"\n{text}\n".encode())

    def _file(self, text: bytes) -> None:
        if not text:
            return
        if not os.fstat(self.log).st_nlink:
            self._open_again()
        if self._missing:
            note = f"\n[{self._missing} bytes are missing here: the file could not be written to]\n"
            if _write(self.log, note.encode())[0]:
                self._missing += len(text)
                return
            self._missing = 0
        self._missing, reason = _write(self.log, text)
        if reason:
            self._show(
                f"error: {self.name} can't be written to: {reason}. The run goes on; lines are "
                "missing there until there is room"
            )

    def _open_again(self) -> None:
        """Makes the log again, which has been deleted, with all that it had.

        Goes on in another file that has taken its place, as an editor puts one there.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            new = os.open(self.name, flags | os.O_CREAT | os.O_EXCL, 0o666)
            for start in range(0, os.fstat(self.log).st_size, _LONGEST):
                _write(new, os.pread(self.log, _LONGEST, start))
        except FileExistsError:
            try:
                new = os.open(self.name, flags)
            except OSError:  # a link, or a folder
                return
        except OSError:  # its folder has been deleted, or moved
            return
        os.dup2(new, self.log, inheritable=False)
        os.close(new)


def _with_whole_rules(text: bytes, terminal: int) -> bytes:
    """Gives a line of dashes that was as wide as a narrow terminal the width of any other log."""
    if _DASHES not in text:
        return text
    try:
        columns = os.get_terminal_size(terminal).columns
    except OSError:
        return text
    if not len(_DASHES) <= columns < _RULE:
        return text
    return re.sub(rb"(?m)^-{%d}$" % columns, b"-" * _RULE, text)


def _write(fd: int, data: bytes) -> tuple[int, str]:
    """Writes all of it; returns how many bytes it can't write, and why."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # another program has made the shared terminal non-blocking
            time.sleep(0.01)
        except OSError as ex:  # the log must survive a closed terminal, the terminal a full disk
            return len(rest), str(ex.strerror)
    return 0, ""


def _readable(pending: bytearray, data: bytes) -> bytes:
    """The whole lines for the file; leaves the bytes of an unfinished line in `pending`."""
    pending += data
    if b"\n" not in data and len(pending) <= _LONGEST:
        return b""
    whole, newline, rest = bytes(pending).rpartition(b"\n")
    text = _file_text(whole) if newline else b""
    # Beyond the limit a bar loses its old frames, and other text becomes several lines.
    if len(rest) > _LONGEST:
        rest = b"\r".join(rest.split(b"\r")[-2:])
    if len(rest) > _LONGEST:
        text += _file_line(rest)
        rest = b""
    pending[:] = rest
    return text


def _file_text(lines: bytes) -> bytes:
    if b"\x1b" not in lines and b"\r" not in lines:
        return lines + b"\n"
    if not _REDRAW.search(lines):
        return _ESCAPE.sub(b"", lines) + b"\n"
    return b"".join(map(_file_line, lines.split(b"\n")))


def _file_line(line: bytes) -> bytes:
    # Leaves out a bar below another one, which is drawn again after each frame.
    *below, here = _UP.split(line)
    frame = _last_frame(here)
    return frame + b"\n" if frame.strip() or not below else b""


def _last_frame(line: bytes) -> bytes:
    """The last text on a row, or the one before it was erased."""
    frames = [_ESCAPE.sub(b"", frame) for frame in _REDRAW.split(line)]
    return next((frame for frame in reversed(frames) if frame.strip()), frames[0])


def _watch(copier: LogCopier) -> None:
    """Starts the process that copies and watches it; returns in the process that has to copy.

    A thread of the run could not watch it: C code may fill the pipe while it holds the GIL.
    """
    try:
        child = os.fork()
    except OSError:  # no more processes: it copies unwatched
        return
    while child:
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(child, signal.SIGCONT)
        elif status == 0:
            os._exit(0)
        else:
            number = os.waitstatus_to_exitcode(status)
            copier.tell_end(number)
            return


def _run_helper(name: str, log: int, *ends: int) -> None:
    sys.path.append(os.path.abspath(f"{__file__}/../../.."))
    routes = dict(zip(ends[::2], ends[1::2], strict=True))
    copier = LogCopier(name, log, routes, sys.stdin.buffer.read())

    def follow_size(*_: object) -> None:
        # Other processes may have read their pty's size too early: tell them to read it again.
        if any([copy_size(original, reader) for reader, original in copier.routes.items()]):
            os.kill(0, signal.SIGWINCH)

    for number in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        signal.signal(signal.Signals[number], signal.SIG_IGN)
    _watch(copier)
    signal.signal(signal.SIGWINCH, follow_size)
    follow_size()
    os.write(1, b"\n")  # ready
    copier.prepare()  # only now, when no run waits for it
    copier.copy()


if __name__ == "__main__":
    _run_helper(sys.argv[1], *map(int, sys.argv[2:]))
