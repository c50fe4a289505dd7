"""Rows of the GPU programme that compare the figures of the log with those of other clocks.

python benchmarks/gpu_figures.py B3
"""

import csv
import importlib
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from gpu_frame import Result
from gpu_projects import (
    CIFAR,
    DIGITS,
    HAS_CARD,
    LINEAR,
    RESNET,
    StepClock,
    data_flags,
    fit,
    on_card,
    steps,
    sync,
    tell,
)

EVERY = 50 if HAS_CARD else 5  # iterations between lines
REPORT = "--trainer.callbacks+=lightning_trainer.ReportFlops"
MARKER = "spin_kernel"  # of `torch.cuda._sleep`


def column(session: Path, name: str) -> dict[int, float]:
    with (session / "metrics.csv").open(newline="") as file:
        return {int(r["step"]): float(r[name]) for r in csv.DictReader(file) if r.get(name)}


class Profile(pl.Callback):
    """By torch's profiler, ms that a step takes and ms between two, from one line to the next.

    On a GPU an empty kernel marks where a step begins and ends: the profiler gives a kernel only to
    the innermost of the ranges that it was started in, and torch's optimisers have ranges.
    """

    update_ms = between_ms = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == EVERY:
            kinds = torch.profiler.ProfilerActivity
            self.profiler = torch.profiler.profile(
                activities=[kinds.CUDA if HAS_CARD else kinds.CPU]
            )
            self.profiler.start()
        if trainer.global_step >= EVERY:
            self._mark()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > EVERY:
            self._mark()
        if trainer.global_step == 2 * EVERY:
            sync()
            self.profiler.stop()
            self._read()

    def _mark(self) -> None:
        if HAS_CARD:
            torch.cuda._sleep(1)
        else:
            with torch.profiler.record_function(MARKER):
                pass

    def _read(self) -> None:
        marks = sorted(
            (e.time_range.start, e.time_range.end)
            for e in self.profiler.events()
            if MARKER in e.name
        )
        if len(marks) != 2 * EVERY:
            raise RuntimeError(f"the profiler has {len(marks)} of {2 * EVERY} marks")
        spans = [(begin[0], end[1]) for begin, end in zip(marks[::2], marks[1::2], strict=True)]
        gaps = [after[0] - before[1] for before, after in pairwise(spans)]
        Profile.update_ms = statistics.mean(end - start for start, end in spans) / 1e3
        Profile.between_ms = statistics.mean(gaps) / 1e3


def times(_: str | None) -> Iterator[Result]:
    """B3."""
    size, batch = (224, 64) if HAS_CARD else (32, 4)
    images = {"n": 256 if HAS_CARD else 32, "shape": [3, size, size], "batch_size": batch}
    slow = {"batch_size": 32, "shape": [1, 8, 8], "floats": True}
    projects = {
        "the GPU is slow": (*RESNET, *data_flags(images)),
        "the host is slow": (*DIGITS, *data_flags(slow)),
        "the data is slow": (*DIGITS, *data_flags({**slow, "sleep_ms": 20})),
    }
    run = (
        f"--trainer.max_steps={2 * EVERY + 1}",
        f"--trainer.log_every_n_steps={EVERY}",
        "--trainer.limit_val_batches=0",
        "--trainer.callbacks+=gpu_figures.Profile",
    )
    for name, flags in projects.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            session, _ = fit(folder, *flags, *run)
            update, fetch = (
                column(session, f"timing/{n}_ms")[2 * EVERY] for n in ("update", "fetch")
            )
        seen = sys.modules["gpu_figures"].Profile  # the command line's, not this script's
        text = (
            f"update {update:.2f} ms, by the profiler {seen.update_ms:.2f}; "
            f"fetch {fetch:.2f} ms, between steps {seen.between_ms:.2f}"
        )
        good = abs(update - seen.update_ms) <= 0.05 * seen.update_ms
        off = abs(fetch - seen.between_ms)
        good = good and off <= max(0.05 * seen.between_ms, 0.1)
        yield Result(text, on_card(good), name)


class RunClock(pl.Callback):
    """Seconds from one iteration to another, and of the validations between.

    The device is waited for at each end.
    """

    first, last = 10, 20
    at_s: ClassVar[dict[int, float]] = {}
    validations_s = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in (self.first, self.last):
            sync()
            self.at_s[trainer.global_step] = perf_counter()

    def on_validation_start(self, *_: Any) -> None:
        sync()
        self.started_s = perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        sync()
        if self.first < trainer.global_step < self.last:
            RunClock.validations_s += perf_counter() - self.started_s

    @classmethod
    def per_s(cls, batch: int) -> float:
        """Examples/s without the validations."""
        took_s = cls.at_s[cls.last] - cls.at_s[cls.first] - cls.validations_s
        return batch * (cls.last - cls.first) / took_s


def speed(_: str | None) -> Iterator[Result]:
    """B4."""
    size, batch = (224, 64) if HAS_CARD else (32, 4)
    n, n_steps = (256, 300) if HAS_CARD else (32, 20)
    images = {"n": n, "shape": [3, size, size], "batch_size": batch}
    flags = (*RESNET, *data_flags(images), "--trainer.precision=bf16-mixed")
    flags += (f"--trainer.max_steps={n_steps}", "--trainer.callbacks+=gpu_figures.RunClock")
    half, tenth = n_steps // 2, n_steps // 10
    clock = importlib.import_module("gpu_figures").RunClock  # the command line's
    clock.first, clock.last = half, n_steps
    spacing = 37 if HAS_CARD else 7
    validated = (f"--trainer.val_check_interval={spacing}", "--trainer.enable_checkpointing=false")
    for name, every, options in (
        ("no validations", half, ("--trainer.limit_val_batches=0", "--save_minutes=1000")),
        (f"validations, lines every {tenth}", tenth, validated),
        (f"validations, lines every {half}", half, validated),
    ):
        clock.validations_s = 0.0
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            line = f"--trainer.log_every_n_steps={every}"
            session, printed = fit(folder, *flags, line, *options)
            told = column(session, "timing/examples_per_s")
        got = statistics.harmonic_mean([told[n] for n in told if n > half])
        truth = clock.per_s(batch)
        shares = re.search(r"Total time: *(.*)", printed)
        text = f"{got:.0f}/s in the log, {truth:.0f}/s by the clock; {shares and shares[1]}"
        yield Result(text, on_card(abs(got / truth - 1) <= 0.02), name)


def utilisation(_: str | None) -> Iterator[Result]:
    """B5."""
    width, n_layers = (8192, 8) if HAS_CARD else (64, 8)
    data = {"n": 2 * width, "shape": [1, 1, width], "batch_size": width}
    data |= {"floats": True, "on_device": True}
    linear = (*LINEAR, f"--model.width={width}", f"--model.n_layers={n_layers}")
    flags = (*linear, *data_flags(data), "--trainer.precision=bf16-mixed")
    first, last = (10, 60) if HAS_CARD else (3, 8)
    # Forward, the gradient of the weights, and of the inputs of all layers but the first.
    expected = 2 * width**2 * (3 * n_layers - 1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = (*steps(first, last), f"--trainer.log_every_n_steps={last}", REPORT)
        _, printed = fit(folder, *flags, *run)
        counted = int(re.search(r"FLOPs an example: ([\d,]+)", printed)[1].replace(",", ""))
        yield Result(f"{counted:,} an example, by hand {expected:,}", counted == expected, "FLOPs")
        rate, share = achieved(printed)
        truth = expected * width / StepClock.step_s() / 1e12
        good = abs(rate / truth - 1) <= 0.02 and (share is None or 65 <= share <= 82)
        text = f"{rate:.4g} TFLOP/s, by the clock {truth:.4g}, MFU {share} %"
        yield Result(text, on_card(good), "linear layers, bf16, MFU 65 to 82 %")
        size, batch = (224, 64) if HAS_CARD else (32, 4)
        images = data_flags({"n": 256, "shape": [3, size, size], "batch_size": batch})
        networks = {"ResNet": (*RESNET, *images), "cifar": (*CIFAR, *data_flags({"batch_size": 8}))}
        for name, network in networks.items():
            _, printed = fit(folder, *network, *run)
            rate, share = achieved(printed)
            text = f"{rate:.4g} TFLOP/s, MFU {share} %"
            good = None if share is None else share <= 100
            yield Result(text, good, f"{name}, fp32, MFU at most 100 %")


def achieved(printed: str) -> tuple[float, float | None]:
    """TFLOP/s and percent of the peak in the last line that tells them."""
    *_, last = re.findall(r"Achieved: (\S+) TFLOP/s a device(?: \(MFU (\S+)%)?", printed)
    return float(last[0]), float(last[1]) if last[1] else None


if __name__ == "__main__":
    tell({"B3": times, "B4": speed, "B5": utilisation})
