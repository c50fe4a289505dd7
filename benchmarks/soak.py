"""Kills runs at random moments, again and again, and compares each with one that was not killed.

python benchmarks/soak.py --kills 50
python benchmarks/soak.py --kills 20 --devices 2
python benchmarks/soak.py --kills 1000 --seconds 300 --device cuda --trainer.deterministic=true

Options that are not its own are those of `fit`.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lightning_trainer.session.checkpoint_header import find_fault
from lightning_trainer.verify.comparison import compare_bitwise

ROOT = Path(__file__).parent.parent
FLAGS = ["--config", "configs/digits.yaml", "--save_minutes=0.002"]
FLAGS += ["--trainer.max_steps=1500", "--trainer.val_check_interval=100"]


def fit(folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Starts a run in a process group of its own; its output goes to a file in the folder."""
    with (folder / "output.txt").open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "cli.py", "fit", *options],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def session_in(folder: Path) -> Path | None:
    """The session, once it can be gone on with."""
    return next((path.parent.parent for path in folder.glob("*/checkpoints/last.ckpt")), None)


def kill(process: "subprocess.Popen[bytes]", after_s: float) -> bool:
    """Whether it lived that long, and died of it."""
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def run_with_kills(
    folder: Path, flags: list[str], moments: random.Random, counts: Counter, ends_at_s: float
) -> Path:
    """One run that is killed up to 12 times; each start has another number of workers."""
    for _ in range(12):
        if time.perf_counter() > ends_at_s and session_in(folder):
            break
        workers = f"--data.n_workers={moments.choice([0, 0, 1, 2])}"
        session = session_in(folder)
        start = ["--ckpt_path", str(session)] if session else flags
        if not session:
            for unfinished in folder.glob("session_*"):  # killed before its first checkpoint
                subprocess.run(["rm", "-r", str(unfinished)], check=True)
        process = fit(folder, *start, workers, f"--output_path={folder}")
        if not kill(process, moments.uniform(3, 15)):
            counts["ended by itself"] += 1
            break
        counts["kills"] += 1
        for path in folder.glob("*/checkpoints/*.tmp"):
            counts["kills within a write"] += 1
            path.unlink()
        for path in folder.glob("*/checkpoints/*.ckpt"):
            if fault := find_fault(path):
                counts["broken checkpoints"] += 1
                print(f"{path} {fault}")
    session = session_in(folder)
    process = fit(folder, "--ckpt_path", str(session))
    code = process.wait()
    output = (folder / "output.txt").read_text()
    if code and "nothing left to do" not in output:
        print(output[-2000:])
        raise SystemExit(f"a restart failed with exit code {code}")
    return session


def main() -> None:
    """Prints the counts; exits with 1 if any run differs or any checkpoint is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no kills after them")
    arguments, others = parser.parse_known_args()
    flags = [*FLAGS, f"--trainer.devices={arguments.devices}", *others]
    flags += [f"--trainer.accelerator={arguments.device}"]
    moments, counts = random.Random(arguments.seed), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        reference = Path(temporary, "reference")
        reference.mkdir()
        if fit(reference, *flags, f"--output_path={reference}").wait():
            raise SystemExit((reference / "output.txt").read_text())
        expected = session_in(reference)
        ends_at_s = time.perf_counter() + arguments.seconds
        while counts["kills"] < arguments.kills and time.perf_counter() < ends_at_s:
            started_s = time.perf_counter()
            folder = Path(temporary, f"run_{counts['runs']}")
            folder.mkdir()
            session = run_with_kills(folder, flags, moments, counts, ends_at_s)
            comparison = compare_bitwise(expected, session)
            counts["runs"] += 1
            counts["equal"] += comparison.equal
            if not comparison.equal:
                print(comparison.differing)
            elapsed_s = time.perf_counter() - started_s
            print(f"{elapsed_s:.0f} s", dict(counts), flush=True)
    counts["broken checkpoints"] += 0
    print(*(f"{name}: {n}" for name, n in counts.items()), sep="\n")
    if counts["equal"] < counts["runs"] or counts["broken checkpoints"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
