"""Starts scripts in processes that are forked from one that has imported everything.

To import torch and Lightning takes 4 to 6 s of a core, a fork 20 ms. A forked process is one of its
own: number, signals, current folder, environment and streams are as `subprocess.Popen` gives them.
It differs in three things: the seed of Python's hashes is the server's, no curves are drawn, and
where it trains with a second process, Lightning's launcher gets that by a fork as well.

As a script, this file is the server: python tests/forks.py SOCKET
or starts one forked process and waits for it: python tests/forks.py SOCKET SCRIPT [ARGUMENT ...]
"""

import contextlib
import functools
import gc
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

_ROOT = Path(__file__).parent.parent
_MESSAGE_BYTES = 1 << 17
TWO = "--trainer.devices=2"


class _Forked(subprocess.Popen):
    """Asks another process to become what is started; its subclass says which."""

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        # Private to subprocess: only the first and the last step of a start differ.
        cwd, env, pipes, new_session = rest[4], rest[5], rest[9:15], rest[20]
        streams = [pipes[0], pipes[3], pipes[5]]
        streams = [own if given == -1 else given for own, given in enumerate(streams)]
        request = {
            "command": [os.fspath(arg) for arg in args[1:]],
            "cwd": os.path.abspath(cwd or "."),
            "env": dict(os.environ if env is None else env),
            "new_session": new_session,
        }
        try:
            self._become(json.dumps(request).encode(), streams)
        finally:
            self._close_pipe_fds(*pipes)


class ForkedProcess(_Forked):
    """`subprocess.Popen` of a Python script; the server is its parent and tells how it ended."""

    def __init__(self, *args: Any, address: str | None = None, **options: Any) -> None:
        self._address = address or start_server()
        super().__init__(*args, **options)

    def _become(self, request: bytes, streams: list[int]) -> None:
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(self._address)
        socket.send_fds(self._server, [request], streams)
        self.pid = int(self._server.recv(_MESSAGE_BYTES))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            seconds = None if timeout is None else max(timeout, 0)
            if not select.select([self._server], [], [], seconds)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._server.recv(_MESSAGE_BYTES))
            self._server.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None


_servers: dict[str, subprocess.Popen] = {}


@functools.cache
def start_server(preloaded: str = "") -> str:
    """Where a server of this process listens, whose forked processes have a library loaded.

    It ends with this process.
    """
    path = tempfile.mkdtemp(prefix="forks_") + "/socket"
    server = subprocess.Popen(
        [sys.executable, __file__, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **({"LD_PRELOAD": preloaded} if preloaded else {})},
    )
    assert server.stdout.readline() == b"ready\n"
    _servers[path] = server
    return path


def stop_server() -> None:
    """At the end of the tests, if one has been started."""
    for path, server in _servers.items():
        server.terminate()  # its end of input may be open in the worker of a loader
        server.wait()
        shutil.rmtree(Path(path).parent, ignore_errors=True)


_PYTHON = """\
#!/bin/sh
[ "$1" = -u ] && shift
case "$1" in
    *.py) FORKS_PYTHON="$0" exec {python} -S -E {forks} {socket} "$@" ;;
    *) exec {python} "$@" ;;
esac
"""


def make_python(path: Path) -> None:
    """Writes a command that runs scripts as `python` does, each in a forked process.

    For shell scripts and launchers. It passes on how the process ended, but no signal to it.
    """
    names = {"python": sys.executable, "forks": __file__, "socket": start_server()}
    path.write_text(_PYTHON.format(**{name: shlex.quote(text) for name, text in names.items()}))
    path.chmod(0o755)


# The server ---------------------------------------------------------------------------------------


class _Second(_Forked):
    """The second process of a run, a child of the first as Lightning's launcher makes it.

    Forked before the first has done anything, so that it begins as a fresh one does.
    """

    def _become(self, request: bytes, streams: list[int]) -> None:
        self.pid, ours = self.waiting
        self._child_created = True
        socket.send_fds(ours, [request], streams)
        ours.close()


def _serve(listener: socket.socket) -> tuple[bytes, list[int]]:
    """Forks for each request; returns it in the forked process."""
    children: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready = select.select([0, listener, *children], [], [])[0]
        if 0 in ready:  # the tests' process has ended
            os._exit(0)
        for handle in children.keys() & {*ready}:
            pid, client = children.pop(handle)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            _tell(client, code)
            client.close()
            os.close(handle)
        if listener in ready:
            client = listener.accept()[0]
            request, streams, *_ = socket.recv_fds(client, _MESSAGE_BYTES, 3)
            pid = os.fork()
            if pid == 0:
                for _, other in children.values():
                    other.close()
                for number in (listener.detach(), client.detach(), *children):
                    os.close(number)
                return request, streams
            for stream in streams:
                os.close(stream)
            _tell(client, pid)
            children[os.pidfd_open(pid)] = pid, client


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # a test that has not waited for its process
        client.send(str(number).encode())


def _run(request: bytes, streams: list[int], path: list[str]) -> NoReturn:
    """Makes this process the one asked for; `path` is where Python itself finds its modules."""
    import runpy

    import numpy as np

    wanted = json.loads(request)
    if wanted["new_session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.executable = os.environ.pop("FORKS_PYTHON", sys.executable)
    script, *args = wanted["command"]
    sys.argv = [script, *args]
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.path.dirname(os.path.abspath(script)), *folders, *path]
    np.random.seed()
    Path("/proc/self/comm").write_text(os.path.basename(script))
    if TWO in args and "RANK" not in os.environ and os.environ.get("LOCAL_RANK", "0") == "0":
        _prepare_second(path)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        gc.unfreeze()  # libraries complain of what they find at the end
    sys.exit()


def _prepare_second(path: list[str]) -> None:
    from lightning.pytorch.strategies.launchers import subprocess_script

    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        request, streams, *_ = socket.recv_fds(its, _MESSAGE_BYTES, 3)
        its.close()
        if not request:  # the first ended before it needed a second
            os._exit(0)
        _run(request, streams, path)
    its.close()
    _Second.waiting = pid, ours
    subprocess_script.subprocess = SimpleNamespace(Popen=_Second)


def _main() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    listener.listen(64)
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [folder for folder in sys.path[1:] if folder not in folders]
    sys.path.insert(0, str(_ROOT))
    import conftest  # noqa: F401
    import lightning.pytorch.strategies.launchers.subprocess_script  # noqa: F401
    import matplotlib.figure  # noqa: F401

    import lightning_trainer.start.cli  # noqa: F401
    from lightning_trainer.report.curves import DrawCurves

    DrawCurves._draw = lambda self: None
    gc.collect()
    gc.freeze()  # a forked process need not look at what is imported
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in forked processes"
    os.write(1, b"ready\n")
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)
    _run(*_serve(listener), path)


def _wait_for_one(address: str, command: list[str]) -> None:
    code = ForkedProcess([sys.executable, *command], address=address).wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[2:]:
        _wait_for_one(sys.argv[1], sys.argv[2:])
    _main()
