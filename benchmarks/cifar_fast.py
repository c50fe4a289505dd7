"""Accuracy over seconds on CIFAR-10: the fast recipe, and the guide's settings.

python benchmarks/cifar_fast.py --seeds 3
python benchmarks/cifar_fast.py --until 0.624 --rounds 2

Needs the images in data/cifar10. The first trains the recipe whole, with each seed, and tests it.
The second starts both in turn and stops each at the first validation that reaches the score: the
time is from the command on, imports and reading the images included, and once more from the start
of training.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time

from common import ROOT, alternate, report, spread, table

FAST, GUIDE = "configs/cifar_fast.yaml", "configs/cifar.yaml"
# As soon as it can be: the whole schedule in less than an epoch. The guide's own is for hours, its
# first validation that reaches 0.624 comes after about 600 iterations.
SHORT = ["--trainer.max_steps=80", "--trainer.val_check_interval=20", "--data.batch_size=256"]


def fit(config: str, *flags: str, folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, "cli.py", "fit", "--config", config, *flags]
    return subprocess.Popen(
        [*command, f"--output_path={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def whole_run(seed: int, flags: list[str], folder: str) -> list[str]:
    """A row: seed, iterations, seconds of training, examples/s, accuracy on the test images."""
    output, _ = fit(FAST, f"--seed_everything={seed}", *flags, folder=folder).communicate()
    last = output.rindex("Finished at iteration")
    scores = re.findall(r"Val score: (\S+)", output)
    summary = output[last:]
    iterations = re.search(r"iteration (\d+)", summary)
    total = re.search(r"Total time: +(\S+)", summary)
    rate = re.search(r"Examples/s: +(\S+)", summary)
    assert iterations and total and rate
    return [str(seed), iterations[1], total[1], rate[1], scores[-1]]


def seconds_until(score: float, config: str, flags: list[str], folder: str) -> tuple[float, float]:
    """From the command, and from the first line of training, to that validation score."""
    started_s = training_s = time.perf_counter()
    with fit(config, *flags, folder=folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Parameters:"):
                training_s = time.perf_counter()
            if line.startswith("Val score:") and float(line.split()[-1]) >= score:
                break
        else:
            raise SystemExit(f"{config} ended below {score}")
        now = time.perf_counter()
        process.kill()
    return now - started_s, now - training_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--until", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=2)
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.seeds:
            rows = [whole_run(seed, flags, folder) for seed in range(arguments.seeds)]
            accuracies = [float(row[-1]) for row in rows]
            head = ["seed", "iterations", "time of the run", "examples/s", "accuracy"]
            text = f"Mean accuracy {statistics.mean(accuracies):.4f}.\n\n{table(head, rows)}"
            report("The fast recipe", text)
        if arguments.until:
            taken: dict[str, list[float]] = {"the guide's settings": [], "the fast recipe": []}
            commands = ((GUIDE, ["--trainer.val_check_interval=150"]), (FAST, SHORT))
            both = alternate(
                {
                    name: lambda name=name, command=command: note(
                        taken[name],
                        seconds_until(arguments.until, command[0], [*command[1], *flags], folder),
                    )
                    for name, command in zip(taken, commands, strict=True)
                },
                arguments.rounds,
            )
            text = (
                f"Seconds from the command to the first validation with {arguments.until} or more, "
                f"{arguments.rounds} of each:\n\n{spread(both, 's')}\n\nFrom the start of training "
                f"on:\n\n{spread(taken, 's')}"
            )
            report(f"Time to {arguments.until}", text)


def note(values: list[float], taken: tuple[float, float]) -> float:
    values.append(taken[1])
    return taken[0]


if __name__ == "__main__":
    main()
