"""The GPU programme: what is claimed of GPUs, tried and measured on one, in three commands.

python benchmarks/gpu.py correctness --data data/cifar10
python benchmarks/gpu.py numbers
python benchmarks/gpu.py recipe --data data/cifar10
python benchmarks/gpu.py numbers --device cpu --only B1,B2

Each ends within nine minutes. A row of its table is written as soon as it is known, into
benchmarks/RESULTS.md or the file of `--results`; all that the rows print goes into the file of
`--log`. `correctness` also runs `pytest -m gpu`; its rows run side by side, those that are timed
alone. `--device cpu` rehearses all of it in small on the processor, and by default writes no
results. `--list` names the rows.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from gpu_frame import ROOT, Log, Row, Settings, Table, measured, run_rows
from gpu_processes import nccl, two_processes
from gpu_restarts import (
    BF16,
    CIFAR,
    DETERMINISTIC,
    DIGITS,
    FAST,
    SHARDED,
    TINY,
    make_images,
    overflowing,
    soak,
    tests,
    to_other_devices,
    verify,
)

AUGMENTED = ("--model=conftest.TinyModule", "--data=gpu_projects.AugmentedData")
AVERAGE = ("--trainer.callbacks+=lightning_trainer.AverageWeights", "--trainer.callbacks.decay=0.9")
COMPILED = (*CIFAR, BF16, DETERMINISTIC, "--model.compile=true")
COMPILED_SMALL = (*TINY, DETERMINISTIC, "--model.compile=true")
NO_CACHE = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
MARKED = [  # tests of a GPU in the files of others
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "tests").glob("*/test_*.py"))
    if path.parent.name != "gpu" and "pytest.mark.gpu" in path.read_text()
]

CORRECTNESS = [
    Row("N2", "two processes on one GPU, gloo", 240, two_processes("gloo", 15)),
    Row("G4", "restart, compiled", 240, verify(*COMPILED, small=COMPILED_SMALL)),
    Row(
        *("G4", "restart, compiled anew by each start", 300),
        verify(*COMPILED, small=COMPILED_SMALL, **NO_CACHE),
    ),
    Row(
        *("G4b", "restart, dropout in CUDA graphs", 240),
        verify(*TINY, DETERMINISTIC, "--model.compile=reduce-overhead"),
    ),
    Row("G9", "restart, cifar, not deterministic", 300, verify(*CIFAR, BF16, times=3, must=False)),
    Row("N3", "two processes on one GPU, NCCL", 240, nccl, needs_gpu=True),
    Row("G1", "restart, digits, fp32", 240, verify(*DIGITS, DETERMINISTIC)),
    Row("G2", "restart, cifar, bf16, channels last", 240, verify(*CIFAR, BF16, DETERMINISTIC)),
    Row("G3", "restart, 16-mixed, first losses overflow", 240, overflowing),
    *(
        Row("G5", f"restart, augmented on the device, {n} workers", 240,
            verify(*AUGMENTED, f"--data.n_workers={n}", DETERMINISTIC))
        for n in (0, 2)
    ),
    Row("G6", "restart, averaged weights", 240, verify(*DIGITS, *AVERAGE, DETERMINISTIC)),
    Row(
        *("G7", "restart, ReportFlops", 240),
        verify(*CIFAR, "--trainer.callbacks+=lightning_trainer.ReportFlops", DETERMINISTIC),
    ),
    Row("G8", "restart, cifar_fast", 240, verify(*FAST, DETERMINISTIC)),
    Row("G10", "from GPU to CPU and back", 240, to_other_devices),
    Row("N1", "restart, DDP of one process", 240,
        verify(*TINY, DETERMINISTIC, "--trainer.strategy=ddp", "--trainer.devices=1")),
    Row("N1", "restart, FSDP2 of one process", 240,
        verify(*TINY, *SHARDED, DETERMINISTIC, "--trainer.devices=1")),
    Row("T1", "no waiting within a step", 240, tests("tests/gpu/test_gpu_waits.py")),
    Row(
        *("T2-T4, T13, T14", "checkpoints are of the step they say", 200),
        tests("tests/gpu/test_gpu_saving.py"),
    ),
    Row("T6, T11, T12", "events, batches, crops", 200, tests("tests/gpu/test_gpu_data.py")),
    Row("loops", "both loops, bit for bit", 60, tests("tests/gpu/test_gpu_loops.py")),
    Row("T15, others", "tests beside those on the CPU", 200, tests(*MARKED), needs_gpu=True),
    Row(
        *("T7-T10", "out of memory, a failed kernel, signals, NaN", 240),
        tests("tests/gpu/test_gpu_failures.py"),
    ),
]  # fmt: skip
NUMBERS = [
    Row("B1", "a step where the host is slow", 110, measured("gpu_steps.py", "B1")),
    Row("B2", "checkpoints", 130, measured("gpu_copies.py", "B2")),
    Row("B3", "update and fetch time", 60, measured("gpu_figures.py", "B3")),
    Row("B4", "examples/s", 60, measured("gpu_figures.py", "B4")),
    Row("B5", "FLOPs and MFU", 60, measured("gpu_figures.py", "B5")),
    Row("B8", "peak memory", 60, measured("gpu_steps.py", "B8")),
    Row("B11", "averaged weights, a step", 80, measured("gpu_switches.py", "B11")),
    Row("B10", "the start", 60, measured("gpu_copies.py", "B10")),
    Row("B9", "copies beside the computation", 80, measured("gpu_copies.py", "B9")),
    Row("B12", "switches, a step", 220, measured("gpu_switches.py", "B12")),
]
RECIPE = [
    Row("B6", "cifar_fast_gpu against a plain loop", 240, measured("gpu_recipe.py", "B6")),
    Row("B7", "cifar_fast_gpu from the command", 90, measured("gpu_recipe.py", "B7")),
    Row("T18", "memory of counting FLOPs", 90, measured("gpu_recipe.py", "T18"), needs_gpu=True),
    Row("soak", "killed at random", 300, soak),
]
PARTS = {"correctness": CORRECTNESS, "numbers": NUMBERS, "recipe": RECIPE}
FACTS = """
import lightning, platform, torch
cuda = torch.cuda.is_available()
facts = {
    "": torch.cuda.get_device_name() if cuda else "No GPU",
    "CUDA ": torch.version.cuda, "cuDNN ": torch.backends.cudnn.version(),
    "NCCL ": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
    "torch ": torch.__version__, "lightning ": lightning.__version__,
    "Python ": platform.python_version(),
}
print(", ".join(f"{name}{value}" for name, value in facts.items() if value))
"""


def chosen(part: str, only: str | None) -> list[Row]:
    """The rows of a part, or those whose ids are in `only`.

    Raises:
        SystemExit: If there is no row of such an id.
    """
    rows = PARTS[part]
    ids = only.split(",") if only else []
    known = {name for row in rows for name in (row.id, *row.id.split(", "))}
    if unknown := set(ids) - known:
        raise SystemExit(f"no row {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return [row for row in rows if not ids or {row.id, *row.id.split(", ")} & {*ids}]


def prepare(device: str) -> None:
    """Sets the variables that all processes get."""
    folders = [ROOT, *(path for path in (ROOT / "tests").rglob("*") if path.is_dir())]
    folders += [ROOT / "tests", ROOT / "benchmarks"]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [*folders, *filter(None, given)]))
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["OMP_NUM_THREADS"] = "2" if device == "cuda" else "1"  # 1: to be forked
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def facts() -> str:
    """What the results depend on, in a line."""
    command = " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    done = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True)
    return f"`{command}`. {done.stdout.strip() or done.stderr.strip()[-300:]}."


def main() -> int:
    """Runs a part; returns 0 if each of its rows passes, is skipped or only reported."""
    started_s = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--data", type=Path, help="folder of the images, as projects.cifar's root")
    parser.add_argument("--only", help="ids of rows, e.g. B1,B2")
    parser.add_argument("--results", type=Path, help="file that gets the table")
    parser.add_argument("--log", type=Path, help="file that gets all that is printed")
    parser.add_argument("--minutes", type=float, help="the whole ends by then (8.7; rehearsed 30)")
    parser.add_argument("-j", type=int, help="rows of correctness that run side by side")
    parser.add_argument("--list", action="store_true", help="only name the rows")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what runs
    rows = chosen(args.part, args.only)
    if args.list:
        print(*(f"{row.id:18} {row.limit_s:4.0f} s  {row.what}" for row in rows), sep="\n")
        return 0
    prepare(args.device)
    told = facts()
    if args.device == "cuda" and "No GPU" in told:
        raise SystemExit(f"no GPU is found ({told}): give `--device cpu` to rehearse")
    results = args.results or (ROOT / "benchmarks/RESULTS.md" if args.device == "cuda" else None)
    title = f"One GPU: {args.part}{f', {args.only}' if args.only else ''}"
    table = Table(results, title, told)
    with tempfile.TemporaryDirectory(prefix="gpu_", ignore_cleanup_errors=True) as folder:
        settings = Settings(args.device, Path(folder), args.data)
        settings.log = Log(args.log or ROOT / f"experiments/gpu_{args.part}.log")
        settings.ends_at_s = started_s + 60 * (
            args.minutes or (8.7 if args.device == "cuda" else 30)
        )
        if args.part == "correctness":
            settings.n_jobs = args.j or min(14, os.cpu_count() or 1)
            settings.data = Path(folder, "images")
            make_images(settings.data, args.data, args.device == "cpu")
        if args.device == "cpu":
            fork_scripts(settings)
        good = run_rows(rows, settings, table)
    return 0 if good else 1


def fork_scripts(settings: Settings) -> None:
    """Lets scripts be forked from a process that has imported all: a rehearsal is many starts."""
    sys.path.insert(0, str(ROOT / "tests"))
    import forks

    os.environ["FORKS"] = forks.start_server()
    settings.popen = partial(forks.ForkedProcess, address=os.environ["FORKS"])


if __name__ == "__main__":
    sys.exit(main())
