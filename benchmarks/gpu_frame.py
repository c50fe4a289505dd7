"""The frame of the GPU programme: rows that end in time, a table that is written as they come."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

ROOT = Path(__file__).parent.parent
HEAD = ("id", "what", "result", "passes", "seconds")
MARK = "RESULT "  # begins a line in which a measuring process tells a result, in JSON
WORDS = {True: "yes", False: "no", None: "reported"}


class Result(NamedTuple):
    """A row of the table; a row of the programme may give several."""

    text: str
    passes: bool | str | None = None  # None is only reported; a text stands for itself
    what: str = ""  # more closely than the row says


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line, or the last that tells an error."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if line.startswith("error:")), "") or (
            lines[-1] if lines else ""
        )


class FailedError(RuntimeError):
    """A process ended with an error."""


@dataclass(frozen=True)
class Row:
    """A row of the programme: `measure` gives its results and must not outlast `limit_s`."""

    id: str
    what: str
    limit_s: float
    measure: Callable[["Bench"], Iterator[Result]]
    needs_gpu: bool = False


@dataclass
class Settings:
    """What all rows share."""

    device: str  # "cuda" or "cpu"
    folder: Path  # for temporary files
    data: Path | None = None  # folder of the images; None: random ones
    ends_at_s: float = float("inf")  # by `time.monotonic`
    n_jobs: int = 1
    popen: Callable[..., "subprocess.Popen[str]"] = subprocess.Popen  # starts a script
    log: "Log | None" = None
    living: "set[subprocess.Popen[str]]" = field(default_factory=set)


class Log:
    """All that the rows print; lines of rows that run side by side are told apart by their ids."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._lock = path.open("a"), threading.Lock()

    def write(self, name: str, text: str) -> None:
        with self._lock:
            self._file.writelines(f"[{name}] {line}\n" for line in text.splitlines())
            self._file.flush()


class Table:
    """Writes each row at once, to the terminal and to the end of a file of results."""

    def __init__(self, path: Path | None, title: str, facts: str) -> None:
        self._lock, self._file = threading.Lock(), self._open(path, title)
        self._put(f"## {title}\n\n{facts}\n")
        self.add(*HEAD)
        self.add(*["---"] * len(HEAD))

    def _open(self, path: Path | None, title: str) -> TextIO | None:
        """The file, in which a section of this title is no more."""
        if path is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        sections = (path.read_text() if path.exists() else "# Results\n").split("\n## ")
        kept = [text.rstrip() for text in sections if text.partition("\n")[0] != title]
        path.write_text("\n\n## ".join(kept) + "\n\n")
        return path.open("a")

    def add(self, *cells: str) -> None:
        plain = (" ".join(cell.replace("|", "/").split()) for cell in cells)
        self._put(f"| {' | '.join(plain)} |")

    def _put(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)
            if self._file:
                self._file.write(f"{text}\n")
                self._file.flush()
                os.fsync(self._file.fileno())


class Bench:
    """What a row works with: its device, a folder of its own, and processes that end in time."""

    def __init__(self, row: Row, settings: Settings) -> None:
        self.settings, self.id = settings, row.id
        self.device, self.small = settings.device, settings.device == "cpu"
        self.folder = Path(tempfile.mkdtemp(dir=settings.folder))
        limit_s = row.limit_s * (4 if self.small else 1)  # a rehearsal may be on two busy cores
        self.ends_at_s = min(time.monotonic() + limit_s, settings.ends_at_s)
        self._n_started = 0

    @property
    def on(self) -> str:
        """The option of `fit` for the device."""
        return f"--trainer.accelerator={self.device}"

    @property
    def left_s(self) -> float:
        return self.ends_at_s - time.monotonic()

    def start(
        self, *command: object, env: Mapping[str, str] | None = None
    ) -> "tuple[subprocess.Popen[str], Path]":
        """Starts Python with these arguments; returns the process and the file of its output."""
        self._n_started += 1
        path = self.folder / f"output_{self._n_started}.txt"
        words = [str(word) for word in command]
        self.log(f"$ python {' '.join(words)}")
        popen = subprocess.Popen if words[0].startswith("-") else self.settings.popen
        with path.open("w") as file:
            process = popen(
                [sys.executable, *words], cwd=ROOT, env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.settings.living.add(process)
        return process, path

    def follow(self, process: "subprocess.Popen[str]", path: Path) -> Iterator[str]:
        """The lines of its output as they come, until it ends.

        Raises:
            TimeoutError: If the row's time is over; the process is killed.
        """
        with path.open(errors="replace") as file:
            rest, ended = "", False
            while not ended:
                ended = process.poll() is not None
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines + [rest] * (ended and rest != ""):
                    self.log(line)
                    yield line
                if not ended and self.left_s < 0:
                    kill_tree(process.pid)
                    raise TimeoutError("the row's time is over")
                time.sleep(0 if ended else 0.05)
        self.settings.living.discard(process)

    def run(self, *command: object, env: Mapping[str, str] | None = None) -> Ended:
        """Runs Python with these arguments to its end."""
        process, path = self.start(*command, env=env)
        output = "\n".join(self.follow(process, path))
        return Ended(process.wait(), output)

    def log(self, text: str) -> None:
        if self.settings.log:
            self.settings.log.write(self.id, text)


def measured(script: str, *arguments: str) -> Callable[[Bench], Iterator[Result]]:
    """The results that a script prints, in a process of its own."""

    def measure(bench: Bench) -> Iterator[Result]:
        data = [f"--data={bench.settings.data}"] if bench.settings.data else []
        process, path = bench.start(f"benchmarks/{script}", *arguments, *data)
        last = ""
        for line in bench.follow(process, path):
            last = line if line.strip() else last
            if line.startswith(MARK):
                yield Result(**json.loads(line.removeprefix(MARK)))
        if code := process.wait():
            raise FailedError(f"exit code {code}: {last}")

    return measure


def run_row(row: Row, settings: Settings, table: Table) -> bool:
    """Writes the row's results; whatever goes wrong is one of them. Returns whether all is well."""
    started_s = time.monotonic()

    def add(result: Result) -> bool:
        nonlocal started_s
        now = time.monotonic()
        what = f"{row.what}: {result.what}" if result.what else row.what
        word = result.passes if isinstance(result.passes, str) else WORDS[result.passes]
        table.add(row.id, what, result.text, word, f"{now - started_s:.0f}")
        started_s = now
        return word not in ("no", "failed", "not run")

    if row.needs_gpu and settings.device == "cpu":
        return add(Result("skipped: needs a GPU", "skipped"))
    if settings.ends_at_s - started_s < 2:
        return add(Result("no time left", "not run"))
    good, bench = True, Bench(row, settings)
    try:
        for result in row.measure(bench):
            good = add(result) and good
    except Exception as ex:  # one row must not end the others
        bench.log(f"{type(ex).__name__}: {ex}")
        good = add(Result(f"failed: {str(ex) or type(ex).__name__}"[:300], "failed"))
    return good


def run_rows(rows: list[Row], settings: Settings, table: Table) -> bool:
    """Runs the rows, `settings.n_jobs` side by side; returns whether all is well."""
    with ThreadPoolExecutor(settings.n_jobs) as pool:
        try:
            return all(list(pool.map(lambda row: run_row(row, settings, table), rows)))
        finally:
            settings.ends_at_s = 0.0  # after a Ctrl-C the rows that have not begun are left out
            for process in list(settings.living):
                if process.poll() is None:
                    kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    """Kills a process and all that it has started, in sessions of their own as well."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:  # grows within
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    for number in found:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
