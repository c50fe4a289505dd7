"""Whether a run, its log and its folder stay as they are when they get very long.

python benchmarks/long_life.py
python benchmarks/long_life.py --only run --iterations 5000

Each row is a process of its own. On a busy machine the processor's time tells more than the clock.
"""

import argparse
import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
from common import ROOT, report, table
from conftest import TinyModule

from lightning_trainer.main import main
from lightning_trainer.session import terminal

N_NUMBERS, LINE_EVERY, VALIDATION_EVERY = 200, 10, 50
MIB = 2**20


def run_alone(name: str, *arguments: object) -> dict:
    """What a function of this file prints as its last line, called in a process of its own."""
    command = [sys.executable, __file__, "--call", name, *map(str, arguments)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return json.loads(ended.stdout.splitlines()[-1])


def peak_mb(watching: int) -> float:
    """The most that one of the helper's two processes has taken."""
    children = Path(f"/proc/{watching}/task/{watching}/children").read_text().split()
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in (watching, *children)]
    return max(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3 for status in statuses)


# A run ------------------------------------------------------------------------------------------


class Chatty(TinyModule):
    """Logs many numbers of its own with each line."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if (self.global_step + 1) % LINE_EVERY == 0:
            self.log_dict(
                {f"own/number_{i}": float(self.global_step + i) for i in range(N_NUMBERS)}
            )
        return loss


class Fifths(pl.Callback):
    """What the process takes, at the end of each fifth of the run."""

    def on_train_start(self, *_: object) -> None:
        Fifths.rows, self._ends = [], [self._now()]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self._ends.append(self._now())
        if trainer.global_step % (trainer.max_steps // 5) == 0:
            clock = [after[0] - before[0] for before, after in pairwise(self._ends)]
            cpu_s = self._ends[-1][1] - self._ends[0][1]
            status = Path("/proc/self/status").read_text()
            Fifths.rows.append(
                {
                    "iterations": trainer.global_step,
                    "median_ms": statistics.median(clock) * 1e3,
                    "cpu_ms": cpu_s / len(clock) * 1e3,
                    "memory_mb": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e3,
                    "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
                    "files": len(os.listdir("/proc/self/fd")),
                    "objects": len(gc.get_objects()),
                }
            )
            self._ends = [self._now()]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def train(folder: str, n_iterations: str) -> dict:
    """The rows of a run, at the end of each fifth."""
    flags = ["--model=long_life.Chatty", "--data=conftest.TinyData", "--data.n_samples=40000"]
    flags += [f"--trainer.max_steps={n_iterations}", "--trainer.callbacks=long_life.Fifths"]
    flags += ["--trainer.accelerator=cpu", f"--trainer.log_every_n_steps={LINE_EVERY}"]
    flags += [f"--trainer.val_check_interval={VALIDATION_EVERY}"]
    main(["fit", *flags, f"--output_path={folder}"])
    import long_life  # as the config names it

    return {"rows": long_life.Fifths.rows}


# Its output -------------------------------------------------------------------------------------

_LINE = b"Iteration    100/200 | examples/s: 241.0 | loss: 1.6976 | time elapsed: 00h00m53s\n"
OUTPUTS = {
    "lines": _LINE * (MIB // len(_LINE)),
    "lines with colours": b"\x1b[31mred\x1b[0m line \x1b[1mbold\x1b[0m\n" * (MIB // 32),
    "bars": b"\r 42%|####      | 42/100 [00:01<00:02]" * (MIB // 38),
    "random bytes": os.urandom(MIB),
    "zeros": bytes(MIB),
}


def pour(kind: str, n_mib: str) -> dict:
    """Prints so much through a log; the time until all is written, and the helper's memory."""
    terminal.PATIENCE_S = 3600.0
    with tempfile.TemporaryDirectory() as folder:
        log = terminal.TerminalLog(f"{folder}/log.txt")
        out = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        started_s = time.perf_counter()
        log.start()
        for _ in range(int(n_mib)):
            os.write(1, OUTPUTS[kind])
        peak = peak_mb(log._helper.pid)
        log.stop()
        seconds = time.perf_counter() - started_s
        os.dup2(out, 1)
        size = Path(folder, "log.txt").stat().st_size
    helper = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = helper.ru_utime + helper.ru_stime
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak, "log_mib": size / MIB}


# Its folder -------------------------------------------------------------------------------------


def prepare(folder: str, log_mib: str) -> dict:
    """A session of 20 iterations whose log.txt is so long."""
    flags = ["--model=conftest.TinyModule", "--data=conftest.TinyData", "--trainer.max_steps=20"]
    flags += ["--trainer.accelerator=cpu", "--trainer.val_check_interval=10"]
    main(["fit", *flags, f"--output_path={folder}"])
    [session] = Path(folder).iterdir()
    with (session / "log.txt").open("ab") as file:
        for _ in range(int(log_mib)):
            file.write(OUTPUTS["lines"])
    return {"session": str(session)}


# A small process of its own: what a large one starts begins with the large one's peak.
_MEASURE = """
import json, resource, subprocess, sys, time
started_s = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds, used = time.perf_counter() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
cpu_s, peak_mb = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3
print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak_mb, "code": code}))
"""


def measure(*arguments: str) -> dict:
    """Seconds, peak memory and exit code of a command of cli.py."""
    command = [sys.executable, "-c", _MEASURE, sys.executable, "cli.py", *arguments]
    return json.loads(subprocess.check_output(command, cwd=ROOT))


# The tables -------------------------------------------------------------------------------------


def of_run(options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        rows = run_alone("train", folder, options.iterations)["rows"]
    head = [
        "iterations",
        "median ms",
        "processor, ms",
        "memory, MB",
        "threads",
        "open files",
        "objects",
    ]
    cells = [
        [f"{r['iterations']:,}", f"{r['median_ms']:.2f}", f"{r['cpu_ms']:.2f}",
         f"{r['memory_mb']:.0f}", r["threads"], r["files"], r["objects"]]
        for r in rows
    ]  # fmt: skip
    return (
        f"{options.iterations:,} iterations with {options.iterations // VALIDATION_EVERY:,} "
        f"validations, {N_NUMBERS} numbers of the project's own, a line every {LINE_EVERY}: what "
        f"an iteration took in each fifth, and what the process held at the end of it.\n\n"
        f"{table(head, cells)}"
    )


def of_output(options: argparse.Namespace) -> str:
    rows = []
    for kind in OUTPUTS:
        r = run_alone("pour", kind, options.mib)
        cells = [f"{r['seconds']:.0f}", f"{r['cpu_s']:.0f}", f"{r['peak_mb']:.0f}"]
        rows.append([kind, *cells, f"{r['log_mib']:.0f}"])
    head = ["what is printed", "seconds", "processor, s", "helper's memory, MB", "log.txt, MiB"]
    return (
        f"{options.mib} MiB of output through the log, in pieces of 1 MiB:\n\n{table(head, rows)}"
    )


def of_folder(options: argparse.Namespace) -> str:
    rows = []
    for n_mib in (0, options.mib):
        with tempfile.TemporaryDirectory() as folder:
            session = run_alone("prepare", folder, n_mib)["session"]
            picture = f"--output={folder}/a.png"
            commands = {
                "sessions": ["sessions", folder],
                "compare": ["compare", session, session, picture],
                "fit": ["fit", "--ckpt_path", session, "--trainer.max_steps=21"],
                "test": ["test", "--ckpt_path", session],
            }
            for name, arguments in commands.items():
                r = measure(*arguments)
                cells = [f"{r['seconds']:.2f}", f"{r['cpu_s']:.2f}", f"{r['peak_mb']:.0f}"]
                rows.append([name, n_mib, *cells, r["code"]])
    head = ["command", "log.txt, MiB", "seconds", "processor, s", "memory, MB", "exit code"]
    return f"Commands on a session with a long log:\n\n{table(head, rows)}"


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "run": of_run,
    "output": of_output,
    "folder": of_folder,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        found = globals()[sys.argv[2]](*sys.argv[3:])
        print(f"\n{json.dumps(found)}", flush=True)
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--iterations", type=int, default=50_000)
    parser.add_argument("--mib", type=int, default=1024)
    parsed = parser.parse_args()
    for part in [parsed.only] if parsed.only else PARTS:
        report(f"A long life: {part}", PARTS[part](parsed))
