"""Counts what hostile session folders and checkpoints do to the commands that read them.

python benchmarks/hostile.py
python benchmarks/hostile.py --each 40 --only pickle

Each input lies beside an honest session. `sessions` and `compare` run in a process of their own,
of which the processor's time and the highest memory are taken; `fit` and `test` in a fork of one
that has torch.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import ROOT, report

sys.path += [str(ROOT), str(ROOT / "tests")]

import hostile
from conftest import CONFIG

from lightning_trainer.main import main as run_command
from lightning_trainer.report.curves import DrawCurves

_LIMIT_S = 120
_MOST_S, _MOST_MIB = 2.0, 500.0


# A small process in between: the highest memory of a child counts from that of its parent.
_STARTER = (
    "import os, sys; file = open(sys.argv[1], 'w')\n"
    "process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)\n"
    "_, status, usage = os.wait4(process, 0)\n"
    "print(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, file=file, flush=True)\n"
)


class Outcome:
    """Of one command on one input."""

    def __init__(self, code: int, seconds: float, cpu_s: float, mib: float, text: str) -> None:
        self.code, self.seconds, self.cpu_s = code, seconds, cpu_s
        self.mib, self.text = mib, text

    @property
    def is_broken(self) -> bool:
        return "Traceback" in self.text or self.code not in (0, 1, 2)


def start(arguments: list[str], output: Path, *, fork: bool) -> Outcome:
    """Runs a command to its end, or for `_LIMIT_S`."""
    started_s = time.perf_counter()
    with output.open("wb") as file:
        if fork:
            process = _fork(arguments, file.fileno())
        else:
            command = [sys.executable, str(ROOT / "cli.py"), *arguments]
            usage_file = str(output.with_suffix(".usage"))
            starter = [sys.executable, "-I", "-S", "-c", _STARTER, usage_file]
            options = {"stdout": file, "stderr": file, "start_new_session": True}
            process = subprocess.Popen([*starter, *command], **options).pid
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        seconds = time.perf_counter() - started_s
        if done:
            break
        if seconds > _LIMIT_S:
            with contextlib.suppress(ProcessLookupError):
                (os.kill if fork else os.killpg)(process, signal.SIGKILL)
        time.sleep(0.002)
    text = output.read_text(errors="replace")
    cpu_s, kib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss
    if not fork and seconds < _LIMIT_S:
        words = output.with_suffix(".usage").read_text().split()
        status, cpu_s, kib = int(words[0]), float(words[1]), int(words[2])
    return Outcome(os.waitstatus_to_exitcode(status), seconds, cpu_s, kib / 2**10, text)


def _fork(arguments: list[str], output: int) -> int:
    sys.stdout.flush()
    if process := os.fork():
        return process
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        run_command(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def train(folder: Path) -> Path:
    config = folder / "tiny.yaml"
    config.write_text(CONFIG.format(output_path=folder / "honest"))
    options = ["--trainer.max_steps=11", "--trainer.devices=1"]
    outcome = start(["fit", "--config", str(config), *options], folder / "log", fork=True)
    assert outcome.code == 0, outcome.text
    [session] = (folder / "honest").iterdir()
    return session


def attack(name: str, number: int, honest: Path, counts: Counter[str], worst: list[float]) -> None:
    """Gives one input to each command."""
    place = Path(tempfile.mkdtemp(dir=Path.cwd(), prefix="received_"))
    (place / "precious").mkdir()
    (place / "precious/text").write_text("mine")
    session = hostile.make(name, number, honest, place)
    beside = place / "session_node1_2024_02_29_12_00_01_honest"
    os.symlink(honest, beside)
    counts["tried"] += 1
    commands = {
        "sessions": ["sessions", str(place)],
        "compare": ["compare", str(session), str(beside), "--output", str(place / "a.png")],
        "test": ["test", "--ckpt_path", str(session)],
        "fit": ["fit", "--ckpt_path", str(session), "--trainer.max_steps=12"],
    }
    for command, arguments in commands.items():
        is_table = command in ("sessions", "compare")
        outcome = start(arguments, place / command, fork=not is_table)
        problems = {
            "executed": hostile.EXECUTED.exists(),
            "over 2 s": command == "sessions" and outcome.cpu_s > _MOST_S,
            "over 500 MB": is_table and outcome.mib > _MOST_MIB,
            "hung": outcome.seconds > _LIMIT_S,
            "table lost": command == "sessions" and "01_honest" not in outcome.text,
            "traceback": outcome.is_broken,
            "user's files": (place / "precious/text").read_text() != "mine"
            or (place / "precious/missing").exists(),
        }
        for problem in (problem for problem, is_so in problems.items() if is_so):
            counts[problem] += 1
            print(f"{problem}: {name} {number}, {command}: {outcome.text[-600:]}", flush=True)
        if command == "sessions":
            counts["damaged"] += "damaged" in outcome.text
            worst[:] = [max(worst[0], outcome.cpu_s), max(worst[1], outcome.mib)]
        elif not is_table:
            counts[f"refused by {command}"] += outcome.code != 0
        with contextlib.suppress(OSError):
            hostile.EXECUTED.rmdir()
    subprocess.run(["rm", "-rf", str(place)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=15, help="inputs of each family")
    parser.add_argument(
        "--only", default="", help="families with one of these texts, split by commas"
    )
    options = parser.parse_args()
    columns = ["tried", "executed", "over 2 s", "over 500 MB", "hung", "traceback", "table lost"]
    columns += ["user's files", "damaged", "refused by test", "refused by fit"]
    rows = [f"| family | {' | '.join(columns)} | slowest `sessions` | most memory |"]
    rows.append("|---|" + "---:|" * (len(columns) + 2))
    total: Counter[str] = Counter()
    highest = [0.0, 0.0]
    DrawCurves._begin = lambda self: None  # another process, which takes longer than the run
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        honest = train(Path(temporary))
        for name in (
            name for name in hostile.FAMILIES if any(t in name for t in options.only.split(","))
        ):
            counts: Counter[str] = Counter()
            worst = [0.0, 0.0]
            for number in range(options.each):
                attack(name, number, honest, counts, worst)
            total += counts
            highest = [max(pair) for pair in zip(highest, worst, strict=True)]
            rows.append(_row(name, [counts[column] for column in columns], worst))
            print(rows[-1], flush=True)
        os.chdir(ROOT)
    rows.append(_row("all", [total[column] for column in columns], highest))
    text = (
        "Each input is given to `sessions`, `compare`, `test` and `fit`, beside an honest session."
    )
    report("Hostile inputs", f"{text}\n\n" + "\n".join(rows))


def _row(name: str, numbers: list[int], worst: list[float]) -> str:
    cells = [*map(str, numbers), f"{worst[0]:.2f} s", f"{worst[1]:.0f} MiB"]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
