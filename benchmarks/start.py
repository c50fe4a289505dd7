"""Seconds from the command to what it is for, against the import of Lightning's command line.

python benchmarks/start.py
"""

import subprocess
import sys
import tempfile
import time

from common import ROOT, alternate, report, spread

N_ROUNDS = 7
FIT = ["cli.py", "fit", "--config", "configs/digits.yaml"]
COMMANDS = {
    "import lightning.pytorch.cli": (["-c", "import lightning.pytorch.cli"], ""),
    "`--help`": (["cli.py", "--help"], ""),
    "`fit --help`": (["cli.py", "fit", "--help"], ""),
    "a misspelt key": ([*FIT, "--trainer.max_stepss=1"], ""),
    "a config that is not there": (["cli.py", "fit", "--config", "configs/none.yaml"], ""),
    "digits, first iteration": ([*FIT, "--trainer.log_every_n_steps=1"], "Iteration      1/"),
}


def seconds(arguments: list[str], until: str) -> float:
    """Until a line begins so, or the process ends."""
    started_s = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        if until:
            assert any(line.startswith(until) for line in process.stdout), arguments
            took_s = time.perf_counter() - started_s
            process.kill()
        else:
            process.stdout.read()
            process.wait()
            took_s = time.perf_counter() - started_s
    return took_s


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:

        def start(arguments: list[str], until: str) -> float:
            return seconds([*arguments, *([f"--output_path={folder}"] if until else [])], until)

        things = {
            name: lambda command=command: start(*command) for name, command in COMMANDS.items()
        }
        alternate(things, 1)  # fills the cache of files
        values = alternate(things, N_ROUNDS)
    report("The start", f"{N_ROUNDS} of each, files cached.\n\n{spread(values, 's')}")
