"""How long a table of many sessions takes, and a comparison of a few with long curves.

python benchmarks/sessions.py
python benchmarks/sessions.py --sessions 1000 --rows 10000
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, alternate, report, spread

from lightning_trainer.session.facts import facts_of, with_files
from lightning_trainer.session.run_record import RunRecord
from lightning_trainer.session.settings import read_yaml


def train(folder: Path) -> Path:
    """A session of the embedded project."""
    arguments = ["fit", "--config", "configs/digits.yaml", "--output_path", str(folder)]
    subprocess.run(
        [sys.executable, "cli.py", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return next(folder.iterdir())


def copy(session: Path, n_sessions: int, n_rows: int, folder: Path) -> None:
    """Sessions that differ in learning rate and width, each with so many rows of numbers."""
    config = (session / "config.yaml").read_text()
    header, *rows = (session / "metrics.csv").read_text().splitlines()
    values = [row.partition(",")[2] for row in rows]
    numbers = [f"{10 * n},{values[n % len(values)]}" for n in range(1, n_rows + 1)]
    for n in range(n_sessions):
        path = (
            folder
            / f"session_node1_2024_02_29_{n // 3600:02d}_{n // 60 % 60:02d}_{n % 60:02d}_a{n}"
        )
        shutil.copytree(session, path)
        changed = config.replace("learning_rate: 0.003", f"learning_rate: {1e-3 * (n + 1):.4f}")
        path.joinpath("config.yaml").write_text(changed.replace("width: 32", f"width: {n % 7}"))
        path.joinpath("metrics.csv").write_text("\n".join([header, *numbers]) + "\n")
        record = RunRecord.load(path)
        both = (read_yaml(path / name) or {} for name in ("config.yaml", "environment.yaml"))
        record.facts = with_files(facts_of(*both), path)  # as a run leaves it
        record.write(path)


def seconds(*arguments: str) -> float:
    """Of a command in a process of its own."""
    started_s = time.perf_counter()
    command = [sys.executable, "cli.py", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "experiments")
        session = train(Path(temporary, "trained"))
        copy(session, options.sessions, options.rows, folder)
        few = [str(path) for path in sorted(folder.iterdir())[:6]]
        picture = ["--output", str(Path(temporary, "compare.png"))]
        page = ["--output", str(Path(temporary, "report.html"))]
        empty = Path(temporary, "empty")
        empty.mkdir()
        times = alternate(
            {
                "`sessions` of none": lambda: seconds("sessions", str(empty)),
                f"`sessions` of {options.sessions}": lambda: seconds("sessions", str(folder)),
                "`compare` of 6": lambda: seconds("compare", *few, *picture),
                "`report` of 1": lambda: seconds("report", few[0], *page),
                "`report` of 6": lambda: seconds("report", *few, *page),
            },
            options.rounds,
        )
    text = (
        f"Copies of a session of `configs/digits.yaml` with other settings and {options.rows:,} "
        f"rows of numbers each, {options.rounds} runs of each, files in the cache."
    )
    report("Looking at sessions", f"{text}\n\n{spread(times, 's')}")


if __name__ == "__main__":
    main()
