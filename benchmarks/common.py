"""What the benchmarks share: things measured in turn, and the table of them in RESULTS.md."""

import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lightning
import torch

ROOT = Path(__file__).parent.parent
_ARGV = [*sys.argv]  # before the tests' project is imported, which calls itself cli.py
RESULTS = Path(__file__).parent / "RESULTS.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def alternate(things: Mapping[str, Callable[[], float]], n_rounds: int) -> dict[str, list[float]]:
    """What each returned, called in turn so that all meet the same noise."""
    values: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(n_rounds):
        for name, thing in things.items():
            values[name].append(thing())
    return values


def spread(values: Mapping[str, Sequence[float]], unit: str, scale: float = 1.0) -> str:
    """A table of medians, with the fastest, the slowest, and the ratio to the first median.

    Args:
        values: By name, in seconds or whatever else.
        unit: Of the table.
        scale: Units in one of `values`, e.g. 1e3 for ms.
    """
    first = statistics.median(next(iter(values.values())))
    rows = [
        [name, *(f"{x * scale:.4g}" for x in (median, min(v), max(v))), f"{median / first:.2f}"]
        for name, v in values.items()
        for median in [statistics.median(v)]
    ]
    return table(["", f"median {unit}", "lowest", "highest", "ratio"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def report(title: str, text: str) -> None:
    """Prints a result, and puts it into RESULTS.md in place of the one of the same title."""
    command = " ".join(["python", os.path.relpath(_ARGV[0], ROOT), *_ARGV[1:]])
    section = f"## {title}\n\n`{command}` on {_machine()}.\n\n{text}\n"
    print(section, flush=True)
    before = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    pattern = rf"^## {re.escape(title)}\n.*?(?=^## |\Z)"
    found = re.search(pattern, before, re.MULTILINE | re.DOTALL)
    if found:
        after = before[: found.start()] + section + "\n" + before[found.end() :]
    else:
        after = f"{before.rstrip()}\n\n{section}"
    RESULTS.write_text(after.rstrip() + "\n")


def run_processes(n: int, measure: Callable[[str], None]) -> None:
    """Calls `measure` with a folder in each of `n` processes, which run this same command.

    Their ranks are in the environment, as torchrun gives them.
    """
    if "RANK" in os.environ:
        measure(os.environ["BENCHMARK_FOLDER"])
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "BENCHMARK_FOLDER": folder}
        common |= {"WORLD_SIZE": str(n), "OMP_NUM_THREADS": "1"}
        common["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        ranks = [
            subprocess.Popen(
                [sys.executable, *_ARGV],
                env={**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i)},
            )
            for i in range(n)
        ]
        if any([rank.wait() for rank in ranks]):
            raise SystemExit("a process failed")


def _machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{os.cpu_count()} cores of {model}{gpu}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, lightning {lightning.__version__}"
    )
