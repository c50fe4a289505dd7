"""Runs `fit` in another process, kills it at chosen moments and goes on with it."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lightning_trainer.checkpoints.restart import Restart
from lightning_trainer.session.folder import Session
from lightning_trainer.session.program import program
from lightning_trainer.session.secrets import hidden_options
from lightning_trainer.verify.comparison import Line, parse_trail, read_printed, read_trail

_POLL_S = 0.002  # an iteration may take no more than a few of these
_TAIL_LINES = 15


@dataclass
class Moment:
    """A time to kill a run: `delay_s` after a line of its trail, or after the next such line."""

    event: str  # "batch" or "validating"
    iteration: int
    batch: int
    delay_s: float


def draw_moments(session: Path) -> list[Moment]:
    """One moment in a training step, one after a log line, in a validation, at an epoch's end.

    Reads them from an uninterrupted run, and draws the same ones at each call.
    """
    trail = read_trail(session / "trail_rank0.jsonl")
    pairs = list(pairwise(trail))
    steps = [pair for pair in pairs if pair[0]["event"] == pair[1]["event"] == "batch"]
    printed = read_printed(session / "metrics.csv")
    after_lines = [pair for pair in steps if pair[0]["iteration"] in printed]
    validations = [pair for pair in pairs if pair[0]["event"] == "validating"]
    last = max((line["iteration"] for line, _ in validations), default=0)
    inner = [pair for pair in validations if pair[0]["iteration"] < last] or validations
    generator = random.Random(0)
    moments = []
    # An early one leaves iterations in which a wrong restart shows.
    early = steps[: len(steps) // 2]
    batches = [line for line in trail if line["event"] == "batch"]
    ends = [pair for pair in pairwise(batches) if pair[0].get("epoch") != pair[1].get("epoch")]
    for candidates, part in ((early, 1.0), (after_lines, 0.0), (inner, 0.0), (ends, 0.0)):
        if candidates:
            line, _ = generator.choice(candidates)
            # The minimum, because a busy machine makes single steps longer.
            duration_s = min(after["time_s"] - before["time_s"] for before, after in candidates)
            delay_s = generator.uniform(0, part) * duration_s
            moments.append(Moment(line["event"], line["iteration"], line["batch"], delay_s))
    return sorted(moments, key=lambda moment: moment.iteration)


class Run:
    """A run and its restarts.

    Args:
        folder: Gets the session and the printed output; made if missing.
        options: The options of `fit` for the first start.
        report: Called with a short text for each kill.
    """

    def __init__(self, folder: Path, options: list[str], report: Callable[[str], None]) -> None:
        self.folder = folder
        self.report = report
        self.kills: list[str] = []
        self._output = folder / "output.txt"
        self._options = [
            *options,
            f"--output_path={folder}",
            "--trainer.default_root_dir=null",  # puts the trail into the session folder
            "--trainer.callbacks+=lightning_trainer.verify.trail.RecordTrail",
            f"--trainer.callbacks.watched={os.getpid()}",
        ]
        folder.mkdir(exist_ok=True)

    @property
    def session(self) -> Path:
        """The session folder; the first start makes it."""
        return next(self.folder.glob("session_*"), self.folder / "session")

    def finish(self) -> Path:
        """Starts or goes on, and waits for the end; returns the session folder."""
        with self._start() as process:
            self._wait(process)
        return self.session

    def finish_with_kills(self, moments: list[Moment], n_iterations: int) -> Path:
        """Starts, kills at each moment and goes on; returns the session folder."""
        for moment in moments:
            with self._start() as process:
                if not self._kill_at(moment, process):
                    self._wait(process)
                    self.report("ended before the next kill")
                    return self.session
            self.kills.append(self._where())
            done = self._is_done(n_iterations)
            self.report(f"killed {self.kills[-1]}{'' if done else '; goes on'}")
            if done:
                return self.session
        return self.finish()

    @contextlib.contextmanager
    def _start(self) -> Iterator["subprocess.Popen[bytes]"]:
        options = self._options
        if self.kills:
            options = ["--ckpt_path", str(self.session), *self._secrets()]
        with self._output.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *program(), "fit", *options],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            _kill(process)

    def _secrets(self) -> Iterator[str]:
        """The options that the session does not store and that have to be given again."""
        hidden = hidden_options(Session(self.session).read_config())
        for word, following in pairwise([*self._options, ""]):
            name, equals, _ = word.replace(".init_args.", ".").partition("=")
            if any(f"--{option}.".startswith(f"{name}.") for option in hidden):
                yield from [word] if equals else [word, following]

    def _kill_at(self, moment: Moment, process: "subprocess.Popen[bytes]") -> bool:
        """Kills the process at a moment; returns False if it ended before."""
        for line in self._follow(process):
            if line["event"] != moment.event:
                continue
            is_late = (line["iteration"], line["batch"]) >= (moment.iteration, moment.batch)
            # Without a checkpoint it could not go on.
            if is_late and (self.session / "checkpoints/last.ckpt").exists():
                time.sleep(moment.delay_s)
                return _kill(process)
        return False

    def _follow(self, process: "subprocess.Popen[bytes]") -> Iterator[Line]:
        """The lines of the trail that are written from now on."""
        position = self._trail.stat().st_size if self._trail.exists() else 0
        running = True
        while running:
            running = process.poll() is None
            time.sleep(_POLL_S)
            if not self._trail.exists():
                continue
            with self._trail.open("rb") as file:
                file.seek(position)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            position += len(whole)
            yield from parse_trail(whole.decode())

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits for the end.

        Raises:
            subprocess.CalledProcessError: If the run fails; has the end of its printed output.
        """
        if code := process.wait():
            lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
            tail = "\n".join(lines[-_TAIL_LINES:])
            command = f"fit --ckpt_path {self.session}" if self.kills else "fit"
            raise subprocess.CalledProcessError(code, command, tail)

    def _where(self) -> str:
        line = read_trail(self._trail)[-1]
        inside = ", in its validation" if line["event"] == "validating" else ""
        return f"at iteration {line['iteration']}{inside}"

    def _is_done(self, n_iterations: int) -> bool:
        """Whether the last checkpoint has all iterations and validations."""
        with contextlib.suppress(OSError, ValueError):  # the next start will print the error
            restart = Restart.find(str(self.session), "fit", new_session=False)
            return not restart.is_before(n_iterations)
        return False

    @property
    def _trail(self) -> Path:
        return self.session / "trail_rank0.jsonl"


def _kill(process: "subprocess.Popen[bytes]") -> bool:
    """Kills a process and its children; returns whether it died of a kill."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL
