"""Small scripts run as processes of their own; what reached the terminal and the file is read."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import IO

import pytest

from lightning_trainer.session import terminal
from lightning_trainer.session.secret_forms import known_forms
from lightning_trainer.session.terminal import TerminalLog

# The file alone, because the package around it takes seconds to import.
PREAMBLE = f"""
import ctypes, faulthandler, fcntl, importlib.util, io, multiprocessing, os, resource, signal
import subprocess, sys, termios, time, warnings
spec = importlib.util.spec_from_file_location("terminal", {terminal.__file__!r})
terminal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(terminal)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
log = terminal.TerminalLog(sys.argv[1])
"""


def popen(
    script: str,
    log: Path | str,
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, str(log)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def run(script: str, log: Path | str, *, together: bool = False) -> tuple[int, bytes, bytes]:
    """Exit status, stdout, stderr; `together` makes the last two one file."""
    process = popen(script, log, stderr=subprocess.STDOUT if together else subprocess.PIPE)
    # Returns when the helper too has ended, because it holds the same pipes.
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr or b""


def open_terminal() -> tuple[int, int]:
    screen, tty = pty.openpty()
    resize(screen, 24, 80)
    return screen, tty


def resize(screen: int, rows: int, columns: int) -> None:
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


def read_screen(screen: int, until: bytes | None = None) -> bytes:
    """What the terminal got, up to `until`, else until its last user has gone."""
    seen = b""
    while until is None or until not in seen:
        try:
            data = os.read(screen, 2**16)
        except OSError:
            data = b""
        if not data:
            assert until is None, (until, seen)
            break
        seen += data
    return seen


def run_in_terminal(script: str, log: Path, columns: int = 80) -> tuple[int, bytes]:
    screen, tty = open_terminal()
    resize(screen, 24, columns)
    process = popen(script, log, stdin=tty, stdout=tty, stderr=tty)
    os.close(tty)
    seen = read_screen(screen)
    os.close(screen)
    return process.wait(60), seen


def filed(data: bytes, log: Path) -> bytes:
    """The file's text for `data` on stdout."""
    with TerminalLog(log):
        os.write(1, data)
    return log.read_bytes()


# The processes of the helper: the one that watches, and the one that copies.
HELPERS = """
def pids():
    watching = log._helper.pid
    with open(f"/proc/{watching}/task/{watching}/children") as file:
        return [watching, *map(int, file.read().split())]

def kill(places, number):
    for pid in [pids()[place] for place in places]:
        os.kill(pid, number)
        while number == signal.SIGKILL and state(pid) not in "ZX":
            time.sleep(0.001)

def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0]
    except OSError:
        return "X"
"""

# What is caught


def test_prints_warnings_and_tracebacks_are_in_the_file(tmp_path: Path) -> None:
    script = """
log.start()
print("a print")
warnings.warn("a warning")
raise KeyError("an error")
"""
    status, stdout, stderr = run(script, tmp_path / "log.txt")
    text = (tmp_path / "log.txt").read_text()
    assert status == 1
    assert stdout == b"a print\n"
    assert b"UserWarning: a warning" in stderr and b"KeyError: 'an error'" in stderr
    assert "a print\n" in text
    assert "UserWarning: a warning" in text and "Traceback" in text and "KeyError" in text


def test_text_printed_before_the_start_is_not_in_the_file(tmp_path: Path) -> None:
    script = "print('early'); ctypes.CDLL(None).puts(b'early C'); log.start(); print('late')"
    _, stdout, _ = run(script, tmp_path / "log.txt")
    assert sorted(stdout.splitlines()) == [b"early", b"early C", b"late"]
    assert (tmp_path / "log.txt").read_text() == "late\n"


def test_output_of_c_code_is_in_the_file_even_from_its_own_buffer(tmp_path: Path) -> None:
    script = "log.start(); os.write(2, b'raw\\n'); ctypes.CDLL(None).puts(b'puts')"
    _, stdout, stderr = run(script, tmp_path / "log.txt")
    assert (stdout, stderr) == (b"puts\n", b"raw\n")
    assert sorted((tmp_path / "log.txt").read_text().split()) == ["puts", "raw"]


def test_output_of_children_is_in_the_file(tmp_path: Path) -> None:
    script = """
log.start()
subprocess.run(["sh", "-c", "echo child; echo complaint >&2"])
worker = multiprocessing.get_context("fork").Process(target=print, args=("worker",))
worker.start()
worker.join()
if os.fork() == 0:
    print("forked")
    sys.exit()  # runs the parent's atexit functions, which must leave the parent's log alone
os.wait()
print("parent")
"""
    status, stdout, _ = run(script, tmp_path / "log.txt")
    assert status == 0
    assert stdout.split() == [b"child", b"worker", b"forked", b"parent"]
    assert sorted((tmp_path / "log.txt").read_text().split()) == sorted(
        ["child", "complaint", "worker", "forked", "parent"]
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
@pytest.mark.parametrize("in_terminal", [False, True])
def test_nothing_is_lost_when_the_run_is_killed(
    tmp_path: Path, number: signal.Signals, in_terminal: bool
) -> None:
    script = f"""
faulthandler.enable()
log.start()
for number in range(5000):
    print(number)
sys.stdout.write("cut")
sys.stdout.flush()
os.kill(os.getpid(), {int(number)})
"""
    log = tmp_path / "log.txt"
    status = run_in_terminal(script, log)[0] if in_terminal else run(script, log, together=True)[0]
    lines = log.read_text().splitlines()
    assert status == -number
    assert lines[:5000] == [str(number) for number in range(5000)]
    assert lines[5000].startswith("cut")
    assert ("Segmentation fault" in log.read_text()) == (number == signal.SIGSEGV)


def test_signals_to_the_whole_group_leave_the_helper_at_work(tmp_path: Path) -> None:
    script = """
names = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")
numbers = [signal.Signals["SIG" + name] for name in names]
for number in numbers:
    signal.signal(number, signal.SIG_IGN)
log.start()
for number in numbers:
    os.killpg(0, number)
    print("after", number.name)
"""
    status, stdout, _ = run(script, tmp_path / "log.txt")
    assert status == 0
    names = (b"INT", b"TERM", b"HUP", b"QUIT", b"USR1", b"USR2")
    assert stdout.split()[1::2] == [b"SIG" + name for name in names]
    assert (tmp_path / "log.txt").read_bytes() == stdout


def test_c_code_that_holds_the_gil_does_not_hang(tmp_path: Path) -> None:
    script = """
log.start()
data = b"line of text\\n" * 25_000
ctypes.PyDLL(None).write(1, data, len(data))
"""
    _, stdout, _ = run(script, tmp_path / "log.txt")
    assert stdout == b"line of text\n" * 25_000
    assert (tmp_path / "log.txt").read_bytes() == stdout


# Streams


def test_stdout_and_stderr_stay_apart(tmp_path: Path) -> None:
    _, stdout, stderr = run(
        "log.start(); print('out'); print('err', file=sys.stderr)", tmp_path / "log.txt"
    )
    assert (stdout, stderr) == (b"out\n", b"err\n")
    assert sorted((tmp_path / "log.txt").read_text().split()) == ["err", "out"]


@pytest.mark.parametrize("in_terminal", [False, True])
def test_order_is_exact_when_stdout_and_stderr_are_one_file(
    tmp_path: Path, in_terminal: bool
) -> None:
    script = """
log.start()
for number in range(1000):
    print(number, file=(sys.stdout, sys.stderr)[number % 2])
"""
    log = tmp_path / "log.txt"
    expected = "".join(f"{number}\n" for number in range(1000))
    if in_terminal:
        shown = run_in_terminal(script, log)[1].replace(b"\r\n", b"\n")
    else:
        shown = run(script, log, together=True)[1]
    assert shown.decode() == expected
    assert log.read_text() == expected


def test_terminal_stays_a_terminal_of_the_same_size(tmp_path: Path) -> None:
    script = """
log.start()
print(os.isatty(1), os.isatty(2), *os.get_terminal_size(1))
os.write(2, b"\\x1b[31mred\\x1b[0m\\n")
"""
    status, seen = run_in_terminal(script, tmp_path / "log.txt")
    assert status == 0
    assert seen == b"True True 80 24\r\n\x1b[31mred\x1b[0m\r\n"
    assert (tmp_path / "log.txt").read_bytes() == b"True True 80 24\nred\n"


def test_a_pipe_beside_a_terminal_stays_a_pipe(tmp_path: Path) -> None:
    screen, tty = open_terminal()
    process = popen(
        "log.start(); print(os.isatty(1), os.isatty(2))", tmp_path / "log.txt", stderr=tty
    )
    os.close(tty)
    assert process.communicate(timeout=60)[0] == b"False True\n"
    os.close(screen)


def test_nested_terminals_follow_the_window_size_and_are_told(tmp_path: Path) -> None:
    script = """
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
told = []
signal.signal(signal.SIGWINCH, lambda *_: told.append(os.get_terminal_size(1).columns))
outer = terminal.TerminalLog(sys.argv[1] + ".outer")
outer.start()
log.start()
print("ready")
end = time.monotonic() + 20
while 132 not in told and time.monotonic() < end:
    time.sleep(0.01)
print("told", *os.get_terminal_size(1), 132 in told)
"""
    screen, tty = open_terminal()
    process = popen(script, tmp_path / "log.txt", stdin=tty, stdout=tty, stderr=tty)
    os.close(tty)
    read_screen(screen, until=b"ready")
    resize(screen, 50, 132)
    assert b"told 132 50 True" in read_screen(screen)
    os.close(screen)
    assert process.wait(60) == 0


def test_streams_and_descriptors_are_given_back(tmp_path: Path) -> None:
    script = """
def state():
    files = [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in (1, 2)]
    buffering = [sys.stdout.line_buffering, sys.stderr.line_buffering]
    return files, buffering, os.listdir("/proc/self/fd")

before = state()
log.start()
during = state()
print("inside")
log.stop()
log.stop()
assert state() == before, (state(), before)
assert during[0] != before[0]
assert before[1] != during[1] == [True, True]
assert log._helper.returncode == 0
print("outside")
with log:
    print("inside again")
"""
    status, stdout, stderr = run(script, tmp_path / "log.txt")
    assert (status, stderr) == (0, b"")
    assert stdout == b"inside\noutside\ninside again\n"
    assert (tmp_path / "log.txt").read_text() == "inside\ninside again\n"


def test_a_replaced_stdout_gets_its_text_and_the_log_has_it_too(tmp_path: Path) -> None:
    script = """
sys.stdout = io.StringIO()
sys.stderr = None
with log:
    print("kept by the replacement")
    os.write(1, b"to the descriptor\\n")
sys.__stdout__.write(sys.stdout.getvalue())
"""
    status, stdout, _ = run(script, tmp_path / "log.txt")
    assert status == 0
    assert stdout == b"to the descriptor\nkept by the replacement\n"
    log = (tmp_path / "log.txt").read_text()
    assert sorted(log.splitlines()) == ["kept by the replacement", "to the descriptor"]


def test_works_under_the_capture_of_pytest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with TerminalLog(tmp_path / "log.txt"):
        os.write(1, b"text\n")
    assert capfd.readouterr().out == "text\n"
    assert (tmp_path / "log.txt").read_text() == "text\n"


def test_a_child_with_its_own_log_still_appears_in_the_parents(tmp_path: Path) -> None:
    child = f"{PREAMBLE}\nlog.start()\nprint('child')"
    script = f"""
log.start()
print("parent")
subprocess.run([sys.executable, "-c", {child!r}, sys.argv[1] + ".child"])
"""
    _, stdout, _ = run(script, tmp_path / "log.txt")
    assert stdout == b"parent\nchild\n"
    assert (tmp_path / "log.txt").read_text() == "parent\nchild\n"
    assert (tmp_path / "log.txt.child").read_text() == "child\n"


# The end


def test_stop_does_not_wait_for_a_process_that_stays_and_its_text_still_arrives(
    tmp_path: Path,
) -> None:
    script = """
terminal.PATIENCE_S = 0.2
log.start()
child = subprocess.Popen(["sh", "-c", "read end; echo late"], stdin=subprocess.PIPE)
log.stop()
print("stopped")
"""
    status, stdout, _ = run(script, tmp_path / "log.txt")
    assert status == 0
    assert stdout == b"stopped\nlate\n"
    assert (tmp_path / "log.txt").read_text() == "late\n"


def test_start_and_stop_are_quick(tmp_path: Path) -> None:
    begin = time.monotonic()
    with TerminalLog(tmp_path / "log.txt"):
        pass
    assert time.monotonic() - begin < 2 < terminal.PATIENCE_S <= 3  # 50 ms on an idle machine


@pytest.mark.parametrize(
    ("act", "filed_then"),
    [
        ("os.remove(path)", b"before\nafter\n"),
        ("os.remove(path)\nopen(path, 'w').write('edited\\n')", b"edited\nafter\n"),
        ("os.remove(path)\nos.symlink('elsewhere', path)", None),
        ("os.remove(path)\nos.rmdir(os.path.dirname(path))", None),
    ],
    ids=["deleted", "replaced", "a link in its place", "with its folder"],
)
def test_a_deleted_log_is_written_again_with_all_that_it_had(tmp_path, act, filed_then) -> None:
    script = f"""
path = sys.argv[1]
log.start()
print("before")
while open(path).read() != "before\\n":
    time.sleep(0.01)
{act}
print("after")
"""
    (tmp_path / "session").mkdir()
    path = tmp_path / "session/log.txt"
    assert run(script, path) == (0, b"before\nafter\n", b"")
    assert (path.read_bytes() if path.is_file() else None) == filed_then
    assert not (tmp_path / "session/elsewhere").exists()


def test_a_full_disk_does_not_stop_the_run() -> None:
    script = "log.start()\nfor number in range(100_000): print(number)"
    status, stdout, stderr = run(script, "/dev/full")
    assert (status, stderr.decode().strip()) == (
        0,
        "error: /dev/full can't be written to: No space left on device. The run goes on; lines are "
        "missing there until there is room",
    )
    assert stdout.decode() == "".join(f"{number}\n" for number in range(100_000))


def test_what_a_full_disk_has_kept_from_the_file_is_told_there_once_there_is_room(
    tmp_path: Path,
) -> None:
    script = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
def wait_for(text):
    while text not in open(sys.argv[1]).read():
        time.sleep(0.01)
log.start()
print("first")
wait_for("first")
for text in ("second", "third"):
    print(text)
    time.sleep(0.3)
for pid in pids():
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
print("fourth")
"""
    status, stdout, stderr = run(HELPERS + script, tmp_path / "log.txt")
    assert (status, stdout) == (0, b"first\nsecond\nthird\nfourth\n")
    assert stderr.count(b"can't be written to: File too large") == 1
    assert (tmp_path / "log.txt").read_text() == (
        "first\nseco\n[9 bytes are missing here: the file could not be written to]\nfourth\n"
    )


def test_the_file_goes_on_when_the_terminal_has_gone(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
log.start()
print("before")
try:
    while os.read(0, 1):
        pass
except OSError:
    pass  # empty or an error: the terminal has gone
for number in range(100_000):
    print(number)
"""
    log = tmp_path / "log.txt"
    screen, tty = open_terminal()
    process = popen(script, log, stdin=tty, stdout=tty, stderr=tty)
    os.close(tty)
    read_screen(screen, until=b"before")
    os.close(screen)
    assert process.wait(60) == 0
    assert log.read_text() == "".join(f"{line}\n" for line in ["before", *range(100_000)])


def test_the_file_goes_on_when_the_reader_of_a_pipe_has_gone(tmp_path: Path) -> None:
    script = "log.start(); print('before'); sys.stdin.read(); print('x' * 300_000); print('after')"
    process = popen(script, tmp_path / "log.txt", stdin=subprocess.PIPE)
    with process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == b"before\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert (tmp_path / "log.txt").read_text() == f"before\n{'x' * 300_000}\nafter\n"


def test_a_terminal_that_does_not_block_loses_nothing(tmp_path: Path) -> None:
    script = "os.set_blocking(1, False); log.start(); os.write(1, b'0123456789abcde\\n' * 40_000)"
    process = popen(script, tmp_path / "log.txt")
    time.sleep(0.5)  # long enough to fill the pipe, which nobody reads
    stdout, _ = process.communicate(timeout=60)
    assert stdout == b"0123456789abcde\n" * 40_000
    assert (tmp_path / "log.txt").read_bytes() == stdout


def test_a_helper_that_cannot_run_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    script = """
before = os.listdir("/proc/self/fd")
sys.executable = "/bin/false"
try:
    log.start()
except RuntimeError as error:
    print(error)
assert os.listdir("/proc/self/fd") == before
"""
    status, stdout, stderr = run(script, tmp_path / "log.txt")
    assert (status, stderr) == (0, b"")
    assert b"`TerminalLog` ended with status 1" in stdout


# The helper is killed, stopped or hindered


@pytest.mark.parametrize("in_terminal", [False, True])
@pytest.mark.parametrize(("places", "told"), [((1,), 1), ((0,), 0), ((0, 1), 1)], ids=str)
def test_a_helper_that_is_killed_loses_nothing_and_is_replaced(
    tmp_path: Path, places: tuple[int, ...], told: int, in_terminal: bool
) -> None:
    script = f"""
log.start()
print("before")
time.sleep(0.2)
kill({places}, signal.SIGKILL)
for number in range(20_000):
    print(number)
subprocess.run(["sh", "-c", "echo child"])
"""
    log = tmp_path / "log.txt"
    if in_terminal:
        status, shown = run_in_terminal(HELPERS + script, log)
    else:
        status, shown, _ = run(HELPERS + script, log, together=True)
    expected = ["before", *map(str, range(20_000)), "child"]
    for text in (shown.decode(), log.read_text()):
        lines = text.replace("\r", "").splitlines()
        messages = [line for line in lines if "has ended (-9): another one goes on" in line]
        assert [line for line in lines if line and line not in messages] == expected
        assert len(messages) == told
    assert status == 0


@pytest.mark.parametrize("places", [(1,), (0,), (0, 1)], ids=str)
def test_a_helper_that_is_stopped_goes_on(tmp_path: Path, places: tuple[int, ...]) -> None:
    script = f"""
log.start()
kill({places}, signal.SIGSTOP)
for number in range(40_000):
    print(number)
"""
    status, shown, _ = run(HELPERS + script, tmp_path / "log.txt", together=True)
    assert status == 0
    assert shown.decode() == "".join(f"{number}\n" for number in range(40_000))
    assert (tmp_path / "log.txt").read_bytes() == shown


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_c_code_that_holds_the_gil_does_not_hang_where_the_helper_is_hindered(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = f"""
log.start()
data = b"line of text\\n" * 25_000
write = ctypes.PyDLL(None).write
os.kill(pids()[1], {int(number)})
write(1, data, len(data))
"""
    status, shown, _ = run(HELPERS + script, tmp_path / "log.txt")
    assert status == 0
    assert shown == b"line of text\n" * 25_000


def test_a_helper_that_gets_little_time_slows_down_only(tmp_path: Path) -> None:
    script = """
log.start()
for pid in pids():
    os.setpriority(os.PRIO_PROCESS, pid, 19)
for number in range(40_000):
    print(number)
"""
    _, shown, _ = run(HELPERS + script, tmp_path / "log.txt")
    assert shown == (tmp_path / "log.txt").read_bytes()
    assert shown.decode() == "".join(f"{number}\n" for number in range(40_000))


def test_a_run_without_free_descriptors_keeps_its_log_and_the_helper_killed_its_lines(
    tmp_path: Path,
) -> None:
    script = """
log.start()
both = pids()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for pid in both:
    os.kill(pid, signal.SIGKILL)
for number in range(20_000):
    print(number)
"""
    status, shown, _ = run(HELPERS + script, tmp_path / "log.txt")
    assert status == 0
    assert shown.decode() == "".join(f"{number}\n" for number in range(20_000))
    assert shown.decode() in (tmp_path / "log.txt").read_text()


def test_where_no_log_can_be_started_nothing_has_changed(tmp_path: Path) -> None:
    script = """
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
for number in range(3, 20):
    before = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, limits[1]))
    try:
        with log:
            started = True
    except OSError as error:
        started = False
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.listdir("/proc/self/fd") == before, (number, before)
assert started
print("after")
"""
    status, shown, _ = run(script, tmp_path / "log.txt")
    assert (status, shown) == (0, b"after\n")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TerminalLog(tmp_path / "none" / "log.txt").start()


# Secrets

KEY = f"-----BEGIN PRIVATE KEY-----\n{'MIIEvQIBADAN' * 5}\nkiG9w0B=\n-----END PRIVATE KEY-----\n"


def filed_in_parts(parts: list[bytes], log: Path, secrets: list[str]) -> str:
    with TerminalLog(log, known_forms(secrets)):
        for part in parts:
            os.write(1, part)
            time.sleep(0.05)  # the helper reads each for itself
    return log.read_text()


def test_a_secret_is_hidden_in_the_file_and_shown_on_the_terminal(tmp_path, capfd) -> None:
    parts = [b"with hunt", b"er2-or-so: ", b"ok\n", b"password=abc", b"defgh\n", b"loss 0.5\n"]
    text = filed_in_parts(parts, tmp_path / "log.txt", ["hunter2-or-so"])
    assert text == "with ***: ok\npassword=***\nloss 0.5\n"
    assert capfd.readouterr().out == b"".join(parts).decode()


def test_a_key_that_comes_in_parts_is_hidden_and_what_follows_is_not(tmp_path: Path) -> None:
    parts = [line.encode() for line in KEY.splitlines(keepends=True)] + [b"Done.\n", b"done\n"]
    text = filed_in_parts(parts, tmp_path / "log.txt", [])
    begin, end = KEY.splitlines()[0], KEY.splitlines()[-1]
    assert text == f"{begin}\n***\n***\n{end}\nDone.\ndone\n"


def test_a_key_without_an_end_hides_no_more_than_its_lines(tmp_path: Path) -> None:
    parts = [b"-----BEGIN PRIVATE KEY-----\nMIIE\n", b"0004/10 | loss: 0.5\n", b"done\n"]
    text = filed_in_parts(parts, tmp_path / "log.txt", [])
    assert text == "-----BEGIN PRIVATE KEY-----\n***\n0004/10 | loss: 0.5\ndone\n"


def test_the_helpers_command_line_does_not_show_a_secret(tmp_path: Path) -> None:
    with TerminalLog(tmp_path / "log.txt", known_forms(["hunter2-or-so"])) as log:
        assert log._helper is not None
        assert b"hunter2" not in Path(f"/proc/{log._helper.pid}/cmdline").read_bytes()


def test_binary_output_with_secrets_stays_in_order(tmp_path: Path, capfd) -> None:
    log = tmp_path / "log.txt"
    blocks = [bytes([n]) * 20 for n in range(128, 256)] * 20
    with TerminalLog(log, known_forms(["hunter2-or-so"])):
        for block in blocks:
            os.write(1, block + b" hunter2-or-so\n")
    assert len(capfd.readouterr().out) > len(blocks) * 20
    assert log.read_bytes() == b"".join(block + b" ***\n" for block in blocks)


# The file


def test_a_second_run_appends(tmp_path: Path) -> None:
    assert filed(b"first, cut off", tmp_path / "log.txt") == b"first, cut off\n"
    assert filed(b"second\n", tmp_path / "log.txt") == b"first, cut off\nsecond\n"


def test_nothing_is_made_before_the_start(tmp_path: Path) -> None:
    TerminalLog(tmp_path / "log.txt").stop()
    assert not (tmp_path / "log.txt").exists()


def test_the_file_follows_the_umask(tmp_path: Path) -> None:
    run("os.umask(0o027); log.start()", tmp_path / "log.txt")
    assert (tmp_path / "log.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"  plain \tline \n\n   \n", b"  plain \tline \n\n   \n", id="plain"),
        pytest.param(
            "naïve 😀 \xff\n".encode("latin-1", "replace"),
            "na\xefve ? \xff\n".encode("latin-1"),
            id="bytes",
        ),
        pytest.param(b"\r 10%\r 50%\r100%\ndone\n", b"100%\ndone\n", id="bar"),
        pytest.param(b"\r100%\r    \rerased\n", b"erased\n", id="bar that is erased"),
        pytest.param(b"one\r\ntwo\r\r\n", b"one\ntwo\n", id="carriage return and newline"),
        pytest.param(b"\r 10%\r 50%", b" 50%\n", id="bar cut off"),
        pytest.param(b"\x1b[1;31mred\x1b[0m \x1b[Kplain\x1b[?25h\n", b"red plain\n", id="colours"),
        pytest.param(
            b"\x1b]0;title\x07a\x1b]8;;u\x1b\\link\x1b]8;;\x1b\\\x1b(B\n", b"alink\n", id="links"
        ),
        pytest.param(
            b"\x1b[2K 10%\x1b[1G\x1b[2K 50%\n", b" 50%\n", id="bar without carriage return"
        ),
        pytest.param(b"\x1b[?25l", b"", id="nothing visible"),
    ],
)
def test_the_file_has_the_text_last_seen(tmp_path: Path, data: bytes, expected: bytes) -> None:
    assert filed(data, tmp_path / "log.txt") == expected


def test_bars_below_bars_leave_their_ends_only(tmp_path: Path) -> None:
    def below(text: str) -> str:
        return f"\n\r{text}\x1b[A"

    data = "\router 0/2" + below("inner 0/2") + below("inner 1/2")
    data += "\r       \r" + below("     ") + "\ra message\n\router 0/2" + below("inner 1/2")
    data += "\rinner 2/2\n" + "\router 1/2" + below("inner 0/2") + "\rinner 2/2\n\router 2/2\n"
    assert filed(data.encode(), tmp_path / "log.txt").decode().splitlines() == [
        "outer 0/2",
        "a message",
        "outer 0/2",
        "inner 2/2",
        "outer 1/2",
        "inner 2/2",
        "outer 2/2",
    ]


def test_pieces_of_a_line_are_put_together(tmp_path: Path) -> None:
    with TerminalLog(tmp_path / "log.txt"):
        for piece in (b"\r 10", b"%\x1b[3", b"1m red", b"\x1b", b"[0m\r", b"\n"):
            os.write(1, piece)
            time.sleep(0.01)
    assert (tmp_path / "log.txt").read_bytes() == b" 10% red\n"


@pytest.mark.parametrize("piece", [b"\r 42% of a bar", b"a line without an end "])
def test_a_line_without_end_is_bounded_in_memory(tmp_path: Path, piece: bytes) -> None:
    with TerminalLog(tmp_path / "log.txt") as log:
        for _ in range(16):
            os.write(1, piece * (2**20 // len(piece)))
        assert log._helper
        watching = log._helper.pid
        copying = Path(f"/proc/{watching}/task/{watching}/children").read_text().split()
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in (watching, *copying)]
    peaks = [re.search(r"VmHWM:\s+(\d+) kB", status) for status in statuses]
    assert len(peaks) == 2
    assert all(peak and int(peak[1]) < 30_000 for peak in peaks)
    if b"\r" in piece:
        assert (tmp_path / "log.txt").read_bytes() == piece[1:] + b"\n"
    else:
        text = (tmp_path / "log.txt").read_bytes().replace(b"\n", b"")
        assert text == piece * (2**20 // len(piece)) * 16


@pytest.mark.parametrize(("columns", "filed_as"), [(60, 82), (82, 60), (200, 60), (0, 60)])
def test_a_line_as_wide_as_a_narrow_terminal_is_filed_as_wide_as_any(tmp_path, columns, filed_as):
    log, script = tmp_path / "log.txt", 'with log: print("-" * 60, "-" * 30, sep="\\n")'
    _, seen = run_in_terminal(script, log, columns)
    assert seen == b"-" * 60 + b"\r\n" + b"-" * 30 + b"\r\n"
    assert log.read_text() == f"{'-' * filed_as}\n{'-' * 30}\n"
