"""The fast CIFAR-10 recipe: how far it comes, what each part of it gives, how soon it is there.

python benchmarks/cifar_fast.py whole --seeds 3
python benchmarks/cifar_fast.py whole --seeds 3 --config configs/cifar_fast_180.yaml
python benchmarks/cifar_fast.py without --seeds 3
python benchmarks/cifar_fast.py until --score 0.624
python benchmarks/cifar_fast.py picture

Needs the images in data/cifar10. `whole` trains with each seed and is scored on the test images.
`without` leaves out a part at a time, or adds a first layer that whitens (benchmarks/whitened.py),
scored on 5,000 training images that are held out. `until` starts the recipe and the guide's
settings in turn and stops each at the first validation with that score: from the command on,
imports and reading the images included, and from the start of training. `picture` draws scores over
seconds into docs/cifar_fast.png.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, alternate, report, spread, table
from matplotlib.figure import Figure

FAST, GUIDE = "configs/cifar_fast.yaml", "configs/cifar.yaml"
# As soon as it can be: the whole schedule in less than an epoch. The guide's own is for hours, its
# first validation that reaches 0.624 comes after about 900 iterations.
SHORT = ["--trainer.max_steps=80", "--trainer.val_check_interval=20", "--data.batch_size=256"]
WITHOUT = {
    "the recipe": [],
    "without label smoothing": ["--model.label_smoothing=0"],
    "without crops": ["--data.padding=0"],
    "without flips": ["--data.flips=false"],
    "half as wide": ["--model.stem_width=16", "--model.widths=[32,64]"],
    "AdamW for all": ["--model.muon=false"],
    "first layer whitened": ["--model=benchmarks.whitened.WhitenedModule"],
}
AIRBENCH = ["--model.stem_width=24", "--model.stem_stride=1", "--model.widths=[64,256,256]"]
PICTURE = {
    "the guide's settings": (
        GUIDE,
        ["--trainer.max_steps=600", "--trainer.val_check_interval=150"],
    ),
    "the fast recipe": (FAST, []),
    "airbench's network, 1.7 epochs": (
        FAST,
        [*AIRBENCH, "--trainer.max_steps=168", "--trainer.val_check_interval=42"],
    ),
}
HELD_OUT = ["--data.n_held_out=5000", "--trainer.max_steps=440", "--trainer.val_check_interval=440"]
HELD_OUT_TEXT = "Five epochs of 45,000 training images, scored on the other 5,000."


def fit(config: str, *flags: str, folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, "cli.py", "fit", "--config", config, *flags]
    return subprocess.Popen(
        [*command, f"--output_path={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def whole_run(seed: int, config: str, flags: list[str], folder: str) -> list[str]:
    """Iterations, time of the run, examples/s, score."""
    output, _ = fit(config, f"--seed_everything={seed}", *flags, folder=folder).communicate()
    summary = output[output.rindex("Finished at iteration") :]
    patterns = (r"iteration (\d+)", r"Total time: +(\S+)", r"Examples/s: +(\S+)")
    found = [re.search(pattern, summary) for pattern in patterns]
    scores = re.findall(r"Val score .*: (\S+)", output)
    return [*(match[1] for match in found if match), scores[-1]]


def table_of_runs(
    variants: dict[str, list[str]], n_seeds: int, folder: str, config: str = FAST
) -> str:
    rows = []
    for seed in range(n_seeds):
        for name, flags in variants.items():
            rows.append([name, str(seed), *whole_run(seed, config, flags, folder)])
            print(*rows[-1], sep=", ", flush=True)
    means = []
    for name in variants:
        scores = [float(row[-1]) for row in rows if row[0] == name]
        limits = f"{min(scores):.4f} to {max(scores):.4f}"
        means.append([name, f"{statistics.mean(scores):.4f}", limits])
    head = ["", "seed", "iterations", "time of the run", "examples/s", "accuracy"]
    rows.sort(key=lambda row: list(variants).index(row[0]))
    return f"{table(['', 'mean accuracy', 'range'], means)}\n\n{table(head, rows)}"


def validations(config: str, flags: list[str], folder: str) -> Iterator[tuple[float, float, float]]:
    """Of each: seconds from the command, seconds from the first line of training, score."""
    started_s = training_s = time.perf_counter()
    with fit(config, *flags, folder=folder) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                now = time.perf_counter()
                if line.startswith("Parameters:"):
                    training_s = now
                if line.startswith("Val score "):
                    yield now - started_s, now - training_s, float(line.split()[-1])
        finally:
            process.kill()


def seconds_until(score: float, config: str, flags: list[str], folder: str) -> tuple[float, float]:
    """From the command, and from the first line of training, to that validation score."""
    for from_command_s, from_training_s, reached in validations(config, flags, folder):
        if reached >= score:
            return from_command_s, from_training_s
    raise SystemExit(f"{config} ended below {score}")


def draw(path: Path, folder: str) -> str:
    """Draws the scores over seconds, and returns them as a table."""
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    rows = []
    for (name, (config, flags)), style in zip(PICTURE.items(), ("o-", "s--", "^-."), strict=True):
        points = [(s, score) for s, _, score in validations(config, flags, folder)]
        axes.plot(*zip(*points, strict=True), style, label=name)
        rows += [[name, f"{s:.0f}", f"{score:.3f}"] for s, score in points]
    axes.set(xlabel="seconds from the command on", ylabel="accuracy on the test images")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    return table(["", "seconds", "accuracy"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["whole", "without", "until", "picture"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default=FAST)
    parser.add_argument("--score", type=float, default=0.624)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "whole":
            name = Path(arguments.config).stem
            text = table_of_runs({name: []}, arguments.seeds, folder, arguments.config)
            title = "The fast recipe" if arguments.config == FAST else f"The recipe {name}"
            report(title, f"Accuracy on the test images.\n\n{text}")
        elif arguments.what == "without":
            variants = {name: [*HELD_OUT, *flags] for name, flags in WITHOUT.items()}
            text = table_of_runs(variants, arguments.seeds, folder)
            report("The fast recipe without a part", f"{HELD_OUT_TEXT}\n\n{text}")
        elif arguments.what == "picture":
            text = draw(ROOT / "docs/cifar_fast.png", folder)
            report("Accuracy over seconds", f"![](../docs/cifar_fast.png)\n\n{text}")
        else:
            taken: dict[str, list[float]] = {"the guide's settings": [], "the fast recipe": []}
            commands = ((GUIDE, ["--trainer.val_check_interval=150"]), (FAST, SHORT))
            both = alternate(
                {
                    name: lambda name=name, command=command: note(
                        taken[name], seconds_until(arguments.score, *command, folder)
                    )
                    for name, command in zip(taken, commands, strict=True)
                },
                arguments.rounds,
            )
            text = (
                f"From the command to the first validation with {arguments.score} or more, "
                f"{arguments.rounds} of each, the recipe {times_sooner(both)} times sooner:\n\n"
                f"{spread(both, 's')}\n\nFrom the start of training on, {times_sooner(taken)} "
                f"times sooner:\n\n{spread(taken, 's')}"
            )
            report(f"Time to {arguments.score}", text)


def times_sooner(taken: dict[str, list[float]]) -> str:
    """The ratio of the medians of the first thing and the second."""
    first, second = (statistics.median(values) for values in taken.values())
    return f"{first / second:.1f}"


def note(values: list[float], taken: tuple[float, float]) -> float:
    values.append(taken[1])
    return taken[0]


if __name__ == "__main__":
    main()
