"""Rows of the GPU programme that compare a step with and without something.

python benchmarks/gpu_switches.py B12
"""

import statistics
from collections.abc import Iterator

from common import alternate, spread
from gpu_frame import Result
from gpu_projects import (
    CIFAR,
    HAS_CARD,
    RESNET,
    NotAvailableError,
    data_flags,
    on_card,
    tell,
    timed_fit,
)

EMA, DECAY = "lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.99"
SWITCHES = {
    "unfused": ("--model.fused=false",),
    "cuDNN's autotuner": ("--trainer.benchmark=true",),
    "TF32 for products": ("--matmul_precision=high",),
    "channels last": ("--model.channels_last=true",),
    "bf16": ("--trainer.precision=bf16-mixed",),
    "bf16, channels last": ("--trainer.precision=bf16-mixed", "--model.channels_last=true"),
    "deterministic": ("--trainer.deterministic=true",),
    "compiled": ("--model.compile=true",),
    "compiled, CUDA graphs": ("--model.compile=reduce-overhead",),
    "compiled, CUDA graphs, bf16, channels last": (
        "--model.compile=reduce-overhead",
        "--trainer.precision=bf16-mixed",
        "--model.channels_last=true",
    ),
}


def compare(
    flags: tuple[str, ...], variants: dict[str, tuple[str, ...]], first: int, last: int, rounds: int
) -> dict[str, list[float]]:
    """The seconds of a step, by variant; one that is not available is left out."""
    things = {}
    for name, added in variants.items():
        thing = timed_fit(first, last, *flags, *added)
        try:
            thing()  # compiles, and fills caches
        except NotAvailableError as ex:
            if not added:
                raise
            print(f"{name}: {ex}")
        else:
            things[name] = thing
    values = alternate(things, rounds)
    print(spread(values, "ms", 1e3))
    return values


def averages(_: str | None) -> Iterator[Result]:
    """B11."""
    n, size, batch_size = (256, 224, 32) if HAS_CARD else (16, 32, 4)
    data = data_flags({"n": n, "shape": [3, size, size], "batch_size": batch_size})
    variants = {
        "none": (),
        "its own": ("--trainer.callbacks+=lightning_trainer.AverageWeights", DECAY),
        "Lightning's": (f"--trainer.callbacks+={EMA}", DECAY),
    }
    flags = (*RESNET, *data, "--trainer.precision=bf16-mixed", "--model.channels_last=true")
    first, last = (10, 60) if HAS_CARD else (2, 4)
    values = compare(flags, variants, first, last, 3 if HAS_CARD else 1)
    none = statistics.median(values["none"])
    for name in ("its own", "Lightning's"):
        if name not in values:
            yield Result("not available", "not available", name)
            continue
        ratio = statistics.median(values[name]) / none
        passes = on_card(ratio <= 1.05) if name == "its own" else None
        yield Result(f"{ratio:.3f} x a step without, {none * 1e3:.2f} ms", passes, name)


def switches(_: str | None) -> Iterator[Result]:
    """B12."""
    options = {"n": 4096 if HAS_CARD else 64, "batch_size": 512 if HAS_CARD else 8}
    flags = (*CIFAR, *data_flags(options))
    rounds, (first, last) = (3, (50, 250)) if HAS_CARD else (1, (2, 4))
    values = compare(flags, {"as it is": ()}, first, last, rounds)
    yield Result(f"{statistics.median(values['as it is']) * 1e3:.3f} ms", None, "as it is")
    for name, added in SWITCHES.items():
        n = 1 if "compiled" in name else rounds  # each run compiles
        values = compare(flags, {"as it is": (), name: added}, first, last, n)
        if name not in values:
            yield Result("not available", "not available", name)
            continue
        step_s = statistics.median(values[name])
        ratio = step_s / statistics.median(values["as it is"])
        yield Result(f"{step_s * 1e3:.3f} ms, {ratio:.2f} x as it is", None, name)


if __name__ == "__main__":
    tell({"B11": averages, "B12": switches})
