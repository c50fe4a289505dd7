"""Tells of a run's end, failure and new best score, by a shell command or apprise.

The work is done in other processes, begun by a thread: nothing of it ends a run or slows it down.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from lightning_trainer.session.extras import install_command

_TIMEOUT_S = 30.0  # for one message
_LAST_S = 10.0  # that the end of a run waits for its messages
_SPACING_S = 60.0  # between two messages on a new best score
_PACKAGE = str(Path(__file__).parents[2])

# Reads the URLs from its stdin: other users see a command line. Without a text it only looks
# whether apprise knows them.
_BY_APPRISE = """
import json, os, sys
os.nice(19)
urls, title, body = json.load(sys.stdin)
from apprise import Apprise
bell = Apprise()
if not all([bell.add(url) for url in urls]):
    sys.exit("apprise does not know one of the URLs")
if body and not bell.notify(body=body, title=title):
    sys.exit("apprise could not send it")
"""


@dataclass(frozen=True)
class Wishes:
    """What a command line asks for: it alone, because a file from elsewhere must start nothing."""

    urls: tuple[str, ...] = ()  # of apprise; they hold passwords
    command: str = ""  # for the shell

    @classmethod
    def take(cls, argv: Sequence[str]) -> "tuple[Wishes, list[str]]":
        """Takes `--notify URL` (may be repeated) and `--on_event COMMAND` out of the words.

        Raises:
            ValueError: If one has no value, or apprise is not installed.
        """
        found: dict[str, list[str]] = {"--notify": [], "--on_event": []}
        words, others = [*argv], list[str]()
        while words:
            word = words.pop(0)
            name, equals, value = word.partition("=")
            if name not in found:
                others.append(word)
                continue
            if not equals and (not words or words[0].startswith("--")):
                raise ValueError(f"`{name}` has no value: give {_VALUES[name]}")
            found[name].append(value if equals else words.pop(0))
        urls = tuple(found["--notify"])
        if urls and not find_spec("apprise"):
            raise ValueError(f"`--notify` needs apprise: {install_command('notify')}")
        return cls(urls, (found["--on_event"] or [""])[-1]), others

    def options(self) -> list[str]:
        """The words that ask for the same."""
        event = [f"--on_event={self.command}"] if self.command else []
        return [*(f"--notify={url}" for url in self.urls), *event]


_VALUES = {
    "--notify": "a URL of apprise, e.g. mailto://... or ntfy://TOPIC",
    "--on_event": "a shell command, e.g. 'mail -s \"$MESSAGE\" me < /dev/null'",
}


class Notifier:
    """Sends messages one after the other."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._waiting: queue.Queue[tuple[str, str, dict[str, str]] | None] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        self._best_at_s = float("-inf")
        self._failed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def tell(self, event: str, title: str, body: str, facts: Mapping[str, str]) -> None:
        """Takes a message; of new best scores ("best") at most one a minute."""
        if event == "best":
            if monotonic() - self._best_at_s < _SPACING_S:
                return
            self._best_at_s = monotonic()
        message = f"{title}: {body.partition(chr(10))[0]}"
        self._waiting.put((title, body, {**facts, "EVENT": event, "MESSAGE": message}))

    def close(self) -> None:
        """Waits for what is not sent yet, but not long."""
        self._waiting.put(None)
        self._thread.join(_LAST_S)
        if self._thread.is_alive():
            self._warn(f"not done after {_LAST_S:.0f} s")
            if process := self._process:
                process.kill()

    def _work(self) -> None:
        if self._wishes.urls:
            self._by_apprise("", "")
        while message := self._waiting.get():
            title, body, facts = message
            if self._wishes.urls:
                self._by_apprise(title, body)
            if self._wishes.command:
                self._run(["/bin/sh", "-c", self._wishes.command], "", os.getcwd(), facts)

    def _by_apprise(self, title: str, body: str) -> None:
        given = json.dumps([self._wishes.urls, title, body])
        # Python looks in the working folder first for what it imports.
        self._run([sys.executable, "-c", _BY_APPRISE], given, _PACKAGE, {})

    def _run(self, command: Sequence[str], given: str, folder: str, facts: dict[str, str]) -> None:
        try:
            self._process = process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **facts},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C does not reach it
            )
            _, err = process.communicate(given, timeout=_TIMEOUT_S)
            if process.returncode:
                self._warn(err.strip().rpartition("\n")[2] or f"exit code {process.returncode}")
        except subprocess.TimeoutExpired:
            process.kill()
            self._warn(f"not done after {_TIMEOUT_S:.0f} s")
        except (OSError, ValueError) as ex:  # no memory or no process left
            self._warn(str(ex))

    def _warn(self, reason: str) -> None:
        """Tells of the first failure only, without the URLs."""
        for url in self._wishes.urls:
            reason = reason.replace(url, "***")
        if not self._failed:
            self._failed = True
            print(f"A notification failed, the run goes on: {reason}", file=sys.stderr, flush=True)
