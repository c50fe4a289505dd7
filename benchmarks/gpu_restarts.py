"""Rows of the GPU programme on exact restarts: `verify`, from one device to another, pytest."""

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_frame import Bench, Ended, FailedError, Result

TINY = ("--model=conftest.TinyModule", "--data=conftest.TinyData")
DETERMINISTIC = "--trainer.deterministic=true"
DIGITS = ("--config=configs/digits.yaml",)
CIFAR = ("--config=configs/cifar.yaml", "--data.n_workers=4", "--model.channels_last=true")
FAST = ("--config=configs/cifar_fast.yaml", "--data.batch_size=128")
BF16 = "--trainer.precision=bf16-mixed"
REFUSED = 2  # the exit code of a command line that is wrong: an option that is not there
# A scale at which the first losses overflow in float16.
OVERFLOWS = """
trainer:
  plugins:
    class_path: lightning.pytorch.plugins.MixedPrecision
    init_args:
      precision: 16-mixed
      device: {device}
      scaler:
        class_path: torch.amp.GradScaler
        init_args: {{device: {device}, init_scale: 1.1e12}}
"""
SHARDED = (
    "--model=test_pair.ShardedModule",
    "--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy, "
    "init_args: {data_parallel_size: 1, tensor_parallel_size: 1}}",
)


def verify(
    *options: str, small: tuple[str, ...] = (), times: int = 1, must: bool = True, **env: str
) -> Callable[[Bench], Iterator[Result]]:
    """Whether a project's restarts are exact.

    Args:
        options: Of `fit`.
        small: The same for a rehearsal, if those take long.
        times: How often it is tried, where it need not be exact.
        must: Whether the row passes only if it is; else it is told.
        env: Variables of the processes.
    """

    def measure(bench: Bench) -> Iterator[Result]:
        n_times = 1 if bench.small else times
        chosen = small if small and bench.small else options
        results = [judge(_verify(bench, chosen, env)) for _ in range(n_times)]
        if must:
            yield results[0]
            return
        n_equal = sum(result.passes is True for result in results)
        others = {result.text for result in results if result.passes is not True}
        yield Result("; ".join([f"EQUAL in {n_equal} of {n_times}", *sorted(others)]))

    return measure


def _verify(bench: Bench, options: tuple[str, ...], env: dict[str, str]) -> Ended:
    script = "benchmarks/gpu_forked.py" if bench.small else "cli.py"
    return bench.run(script, "verify", *options, *images(bench, options), bench.on, env=env)


def images(bench: Bench, options: tuple[str, ...]) -> list[str]:
    """The options for the images, for projects that have them."""
    if not any("cifar" in option for option in options):
        return []
    found = [f"--data.root={bench.settings.data}"]
    # In iteration 16 of 20 the epoch of 250 or 2,000 images ends with a smaller batch.
    return [*found, "--data.batch_size=16"] if bench.small else found


def judge(ended: Ended) -> Result:
    """What `verify` says."""
    if ended.code == REFUSED:
        return Result(f"not available: {ended.last_line}"[:300], "not available")
    if "EQUAL: bitwise" in ended.output:
        return Result("EQUAL", True)
    where = re.search(r"first at .*\n.*|NOT VERIFIED.*|last.ckpt: .* differ .*", ended.output)
    if "NOT EQUAL" in ended.output or "NOT VERIFIED" in ended.output:
        return Result(" ".join(f"NOT EQUAL: {where[0] if where else ''}".split()), False)
    raise FailedError(f"exit code {ended.code}: {ended.last_line}")


def overflowing(bench: Bench) -> Iterator[Result]:
    """Restarts while the scale of the gradients falls."""
    file = bench.folder / "scaler.yaml"
    file.write_text(OVERFLOWS.format(device=bench.device))
    options = (*(DIGITS if bench.small else CIFAR), f"--config={file}", DETERMINISTIC)
    yield from verify(*options)(bench)


def fit(bench: Bench, *options: object, env: dict[str, str] | None = None) -> Path:
    """The session of a run that must end well."""
    before = set(bench.folder.glob("session_*"))
    folder = [f"--output_path={bench.folder}"] if "--ckpt_path" not in options else []
    ended = bench.run("cli.py", "fit", *options, *folder, env=env)
    if ended.code:
        raise FailedError(f"exit code {ended.code}: {ended.last_line}")
    return next(iter(set(bench.folder.glob("session_*")) - before), bench.folder)


def numbers(session: Path, name: str) -> dict[int, float]:
    """A column of metrics.csv, by iteration."""
    with (session / "metrics.csv").open(newline="") as file:
        return {int(r["step"]): float(r[name]) for r in csv.DictReader(file) if r.get(name)}


def to_other_devices(bench: Bench) -> Iterator[Result]:
    """Goes on with 8 iterations of one device on the other, and compares the next losses."""
    short = ("--trainer.max_steps=8", "--trainer.log_every_n_steps=1", "--model.vis_iterations=0")
    for n, (here, there) in enumerate(((bench.device, "cpu"), ("cpu", bench.device))):
        session = fit(bench, *DIGITS, *short, f"--trainer.accelerator={here}")
        next_loss = []
        for m, device in enumerate((here, there)):
            copy = Path(shutil.copytree(session, bench.folder / f"copy_{n}_{m}"))
            options = ("--ckpt_path", copy, "--trainer.max_steps=10")
            fit(bench, *options, f"--trainer.accelerator={device}")
            next_loss.append(numbers(copy, "train/loss")[9])
        difference = abs(next_loss[0] - next_loss[1]) / next_loss[0]
        text = f"the next loss differs by {difference:.1e} of it"
        yield Result(text, difference < 1e-5, f"{here} to {there}")
    checkpoint = bench.folder / "copy_0_0"
    options = ("test", "--ckpt_path", checkpoint, "--trainer.accelerator=cpu")
    ended = bench.run("cli.py", *options, env={"CUDA_VISIBLE_DEVICES": ""})
    yield Result(f"exit code {ended.code}", ended.code == 0, "`test` without a GPU")


def soak(bench: Bench) -> Iterator[Result]:
    """Kills runs at random for what is left of the time."""
    seconds = 15 if bench.small else max(bench.left_s - 80, 10)
    options = ["--kills=1000", f"--seconds={seconds:.0f}", f"--device={bench.device}"]
    options += ["--trainer.max_steps=300"] if bench.small else []
    ended = bench.run("benchmarks/soak.py", *options, DETERMINISTIC)
    counts = dict(re.findall(r"^([a-z ]+): (\d+)$", ended.output, re.MULTILINE))
    if not counts:
        raise FailedError(f"exit code {ended.code}: {ended.last_line}")
    text = ", ".join(f"{name} {n}" for name, n in counts.items())
    yield Result(text, ended.code == 0 and counts.get("runs", "0") != "0")


def tests(*files: str) -> Callable[[Bench], Iterator[Result]]:
    """The tests marked gpu in these files."""

    def measure(bench: Bench) -> Iterator[Result]:
        options = (
            "-m",
            "gpu",
            "-p",
            "no:cacheprovider",
            "-rfE",
            f"--basetemp={bench.folder}/tests",
        )
        ended = bench.run("-m", "pytest", *options, *files)
        failed = re.findall(r"^(?:FAILED|ERROR) \S+?::(.*)", ended.output, re.MULTILINE)
        besides = r",? *\d+ (?:deselected|warnings?)|=+| in [\d.:() s]+$"
        counts = re.sub(besides, "", ended.last_line).strip()
        if re.fullmatch(r"\d+ skipped", counts):
            yield Result(counts, "skipped")
        else:
            yield Result("; ".join([counts, *failed])[:500], ended.code == 0)

    return measure


def make_images(folder: Path, source: Path | None, small: bool) -> None:
    """A folder of images for `projects.cifar`, few enough to be read in no time.

    The first of each class in `source`, a folder with `train/CLASS/*` and `test/CLASS/*`; without
    one, or where it is laid out otherwise, random images of ten classes.
    """
    from PIL import Image

    found = sorted((source / "train").iterdir()) if source and (source / "train").is_dir() else []
    names = [path.name for path in found] or [f"class{i}" for i in range(10)]
    for split, n in (("train", 25 if small else 200), ("test", 5 if small else 50)):
        for name in names:
            target = folder / split / name
            target.mkdir(parents=True)
            if source and found:
                for path in sorted((source / split / name).iterdir())[:n]:
                    shutil.copy(path, target)
                continue
            for i in range(n):
                Image.frombytes("RGB", (32, 32), os.urandom(3072)).save(target / f"{i}.png")
