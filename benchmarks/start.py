"""Seconds from the command to what it is for, of a validation, and from the summary to the end.

python benchmarks/start.py
python benchmarks/start.py --rounds 3
python benchmarks/start.py --only_validations
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

from common import ROOT, alternate, report, spread

FIT = ["cli.py", "fit", "--config", "configs/digits.yaml"]
PLAIN = ["-c", "import torch, lightning.pytorch"]
# What is started, and the line until which the time counts: empty for the end of the process.
COMMANDS = {
    "import torch, lightning.pytorch": (PLAIN, ""),
    "bare": (["cli.py"], ""),
    "`--help`": (["cli.py", "--help"], ""),
    "`--version`": (["cli.py", "--version"], ""),
    "an unknown command": (["cli.py", "fitt"], ""),
    "completion of a word": (["cli.py", "completion", "--words", *FIT[1:], "--"], ""),
    "`fit --help`": (["cli.py", "fit", "--help"], ""),
    "a misspelt key": ([*FIT, "--trainer.max_stepss=1"], ""),
    "a config that is not there": (["cli.py", "fit", "--config", "configs/none.yaml"], ""),
    "digits, first line": (FIT, "Starting"),
    "digits, first iteration": ([*FIT, "--trainer.log_every_n_steps=1"], "Iteration      1/"),
}
END = [*FIT, "--trainer.max_steps=20", "--trainer.val_check_interval=10"]
# For comparison, Python's own end of a process without a run.
PLAIN_END = ["-c", "import torch, lightning.pytorch; print('To look: nothing', flush=True)"]
N_VALIDATIONS = 40
VALIDATIONS = f"""
import json, sys, time
from lightning.pytorch.callbacks import Callback
from lightning_trainer.main import main
from projects.digits import DigitsModule

whole, steps, started = [], [], []
step = DigitsModule.validation_step

def timed(self, *args):
    start = time.perf_counter()
    result = step(self, *args)
    steps[-1] += time.perf_counter() - start
    return result

import lightning.pytorch.loops.evaluation_loop as loops
run = loops._EvaluationLoop.run

def timed_run(self):
    steps.append(0.0)
    start = time.perf_counter()
    run(self)
    whole.append(time.perf_counter() - start)

loops._EvaluationLoop.run, DigitsModule.validation_step = timed_run, timed
if "nothing drawn" in sys.argv:
    del DigitsModule.visualise
options = ["--trainer.val_check_interval=10", "--trainer.max_steps={N_VALIDATIONS * 10}"]
if "few" in sys.argv:
    options += ["--data.batch_size=16", "--trainer.limit_val_batches=4"]
    import lightning_trainer.checkpoints.saving as saving
    saving.write = lambda *_: False
options += ["--trainer.callbacks=null", "--output_path=" + sys.argv[1]]
main(["fit", "--config", "configs/digits.yaml", *options])
print("VALIDATIONS", json.dumps([whole[2:], steps[2:]]))
"""


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def seconds(arguments: list[str], until: str) -> float:
    """Until a line begins so, or the process ends."""
    started_s = time.perf_counter()
    with start(arguments) as process:
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


def seconds_of_end(arguments: list[str]) -> float:
    """From the last line of the summary to the end of the process."""
    with start(arguments) as process:
        assert process.stdout is not None
        assert any(line.startswith("To look:") for line in process.stdout), arguments
        started_s = time.perf_counter()
        process.stdout.read()
        process.wait()
        return time.perf_counter() - started_s


def validations(folder: str, *options: str) -> tuple[list[float], list[float]]:
    """Seconds of each validation of one run, and of its forward passes."""
    with start(["-c", VALIDATIONS, folder, *options]) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("VALIDATIONS"))
    whole, steps = json.loads(line.partition(" ")[2])
    return whole, steps


def measure(folder: str, n_rounds: int) -> None:
    def begin(arguments: list[str], until: str) -> float:
        return seconds([*arguments, *([f"--output_path={folder}"] if until else [])], until)

    things = {name: lambda command=command: begin(*command) for name, command in COMMANDS.items()}
    alternate(things, 1)  # fills the cache of files
    values = alternate(things, n_rounds)
    report("The start", f"{n_rounds} of each, files cached.\n\n{spread(values, 's')}")
    ends = {
        "a process that has only imported torch and lightning": lambda: seconds_of_end(PLAIN_END),
        "digits, 20 iterations": lambda: seconds_of_end([*END, f"--output_path={folder}"]),
    }
    values = alternate(ends, n_rounds)
    text = f"From the last line of the summary to the end of the process, {n_rounds} of each."
    report("The end", f"{text}\n\n{spread(values, 's')}")


def measure_validations(folder: str, n_rounds: int) -> None:
    times: dict[str, dict[str, list[float]]] = {"360": {}, "64": {}}
    for _ in range(n_rounds):
        for n, name, options in (
            ("360", "nothing drawn", ["nothing drawn"]),
            ("360", "`visualise` draws", []),
            ("64", "no checkpoints, nothing drawn", ["nothing drawn", "few"]),
        ):
            whole, steps = validations(folder, *options)
            times[n].setdefault("its forward passes", []).extend(steps)
            times[n].setdefault(f"all, {name}", []).extend(whole)
    n_each = len(times["360"]["all, nothing drawn"])
    text = (
        f"A validation of digits, 360 images in 6 batches; {n_each} of them where nothing is "
        "drawn, as many where `visualise` draws 16 images.\n\n"
        f"{spread(times['360'], 'ms', 1e3)}\n\n"
        f"Of 64 images in 4 batches, {n_each} of them:\n\n{spread(times['64'], 'ms', 1e3)}"
    )
    report("A validation", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only_validations", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.only_validations:
            measure(folder, arguments.rounds)
        measure_validations(folder, max(arguments.rounds // 2, 1))
