"""What it gains to keep memory that is freed on a CPU: examples/s and peak memory of projects.

python benchmarks/reused.py
python benchmarks/reused.py --data data/cifar10     (projects/cifar too)

Both ways in turn. `ReuseMemory` changes nothing where GLIBC_TUNABLES names malloc.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile

from common import ROOT, report, table

from lightning_trainer.run.memory import VARIABLES

N_ITERATIONS = {"segmentation": 60, "detection": 30, "byol": 60, "vae": 200, "chargpt": 60}
N_ITERATIONS |= {"timeseries": 600, "digits": 1200, "cifar": 40}
WAYS = {"glibc's own": {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, "kept": {}}
OTHERS = {name: value for name, value in os.environ.items() if name not in VARIABLES}
OTHERS.pop("GLIBC_TUNABLES", None)


def measure(name: str, options: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Examples/s of the second half of the iterations, and the peak memory in MB."""
    n = N_ITERATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--trainer.max_steps={n}", f"--trainer.val_check_interval={n}", *options]
        flags += [f"--trainer.log_every_n_steps={n // 2}", f"--output_path={folder}"]
        process = subprocess.Popen(
            [sys.executable, "cli.py", "fit", "--config", f"configs/{name}.yaml", *flags],
            cwd=ROOT, env=OTHERS | environment, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        speeds = re.findall(r"^Iteration .*?/s: ([0-9.]+)", process.stdout.read(), re.M)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, name
    return float(speeds[-1]), usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for name in N_ITERATIONS:
        options = ["--trainer.limit_val_batches=2"]
        if name == "cifar":
            if not arguments.data:
                continue
            options.append(f"--data.root={arguments.data}")
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way, environment in WAYS.items():
                taken[way].append(measure(name, options, environment))
        speeds, peaks = (
            {way: [each[i] for each in values] for way, values in taken.items()} for i in (0, 1)
        )
        row = [name]
        for way in WAYS:
            of_way = speeds[way]
            row.append(f"{statistics.median(of_way):.0f} ({min(of_way):.0f} to {max(of_way):.0f})")
        for of in (speeds, peaks):
            own, kept = (statistics.median(of[way]) for way in WAYS)
            row.append(f"{kept / own:.2f}")
        rows.append(row)
        print(*row, sep=", ", flush=True)
    head = ["", *(f"{way}: examples/s" for way in WAYS), "ratio", "ratio of peak memory"]
    report(
        "Memory that is kept",
        f"Medians of {arguments.rounds} runs of each in turn, with the lowest and the highest; "
        f"the second half of the iterations.\n\n{table(head, rows)}",
    )


if __name__ == "__main__":
    main()
