"""Rows of the GPU programme on checkpoints, on copies to the device, and on the start.

python benchmarks/gpu_copies.py B2
"""

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from common import ROOT, spread
from gpu_frame import Result
from gpu_projects import (
    CLOCK,
    DEVICE,
    HAS_CARD,
    RESNET,
    StepClock,
    data_flags,
    fit,
    on_card,
    steps,
    sync,
    tell,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_trainer.checkpoints.files import AtomicCheckpointIO

SIZES = {"400 MB": (400_000_000, 5), "4 GB": (4_000_000_000, 1)}
IN_SMALL = {"4 MB": (4_000_000, 2)}


def resident_bytes() -> int:
    """The memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


class Saves:
    """Ways to save weights and the state of Adam, of `n_bytes` together."""

    def __init__(self, n_bytes: int, folder: Path) -> None:
        parts = [torch.rand(n_bytes // 4 // 3 // 20, device=DEVICE) for _ in range(60)]
        state = {i: {"exp_avg": parts[20 + i], "exp_avg_sq": parts[40 + i]} for i in range(20)}
        weights = {f"layer{i}": part for i, part in enumerate(parts[:20])}
        self.checkpoint = {"state_dict": weights, "optimizer_states": [{"state": state}]}
        self.own, self.lightnings = AtomicCheckpointIO(), TorchCheckpointIO()
        self.folder, self.small = folder, torch.rand(512, 512, device=DEVICE)

    def lightning(self) -> float:
        path = self.folder / "a.ckpt"
        return self._timed(lambda: self.lightnings.save_checkpoint(self.checkpoint, path))

    def foreground(self) -> float:
        return self._timed(
            lambda: self.own.save_checkpoint(self.checkpoint, self.folder / "b.ckpt")
        )

    def background(self) -> float:
        """Only what training waits for."""
        writes: list[Callable[[], None]] = []
        seconds = self._timed(lambda: writes.extend(self._begin()))
        for write in writes:
            write()
        return seconds

    def on_device(self) -> float:
        """Seconds between the kernels before and after a save in the background."""
        if not HAS_CARD:
            return self.background()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        writes = self._begin()
        after.record()
        sync()
        for write in writes:
            write()
        return before.elapsed_time(after) / 1e3

    def step(self) -> float:
        """Seconds of a small step, whose launches need the interpreter."""
        started_s, x = perf_counter(), self.small
        for _ in range(50):
            x = x * 0.5 + 1.0
        sync()
        return perf_counter() - started_s

    def steps_meanwhile(self) -> tuple[float, float]:
        """The median step without a save, and while a thread writes one."""
        alone = statistics.median(self.step() for _ in range(200))
        writes = self._begin()
        thread = threading.Thread(target=lambda: [write() for write in writes])
        thread.start()
        meanwhile = []
        while thread.is_alive():
            meanwhile.append(self.step())
        return alone, statistics.median(meanwhile or [alone])

    def _begin(self) -> list[Callable[[], None]]:
        with self.own.put_off(True) as writes:
            self.own.save_checkpoint(self.checkpoint, self.folder / "c.ckpt")
        return writes

    def _timed(self, save: Callable[[], Any]) -> float:
        sync()
        started_s = perf_counter()
        save()
        return perf_counter() - started_s


def checkpoints(_: str | None) -> Iterator[Result]:
    """B2."""
    for name, (n_bytes, n_rounds) in (SIZES if HAS_CARD else IN_SMALL).items():
        with tempfile.TemporaryDirectory() as folder:
            saves = Saves(n_bytes, Path(folder))
            ways = (saves.lightning, saves.foreground, saves.background, saves.on_device)
            saves.background()  # makes the buffers that are kept
            values = {way.__name__: [way() for _ in range(n_rounds)] for way in ways}
            print(spread(values, "ms", 1e3))
            lightning, own, stall, device = map(statistics.median, values.values())
            text = f"training waits {stall * 1e3:.1f} ms; own foreground {own * 1e3:.0f} ms, "
            text += f"Lightning's {lightning * 1e3:.0f} ms"
            yield Result(text, on_card(stall <= own / 4), f"{name}, the host")
            rate = n_bytes / device / 1e9
            text = f"the device waits {device * 1e3:.1f} ms, {rate:.1f} GB/s to the host"
            yield Result(text, on_card(rate >= 10), f"{name}, the device, at least 10 GB/s")
            alone, meanwhile = saves.steps_meanwhile()
            text = f"{meanwhile / alone:.3f} x the step without one"
            yield Result(text, on_card(meanwhile <= 1.05 * alone), f"{name}, steps meanwhile")
            if name == "4 GB":
                continue
            before = resident_bytes()
            for _ in range(20):
                saves.background()
            grown = resident_bytes() - before
            text = f"{grown / 1e6:.0f} MB more after 20 saves"
            yield Result(text, on_card(grown <= n_bytes), f"{name}, memory of the host")


class Overlap(pl.Callback):
    """The share of the copies to the device during which kernels run."""

    first, last = (15, 25) if HAS_CARD else (2, 4)
    share, copied_ms = 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            sync()
            kinds = torch.profiler.ProfilerActivity
            activities = [kinds.CPU, *([kinds.CUDA] if HAS_CARD else [])]
            self.profiler = torch.profiler.profile(activities=activities)
            self.profiler.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.last:
            sync()
            self.profiler.stop()
            self._read()

    def _read(self) -> None:
        events = [
            event
            for event in self.profiler.events()
            if "CUDA" in str(event.device_type) and not event.is_user_annotation
        ]
        spans = [(e.name, e.time_range.start, e.time_range.end) for e in events]
        copies = [(start, end) for name, start, end in spans if "HtoD" in name]
        kernels = [(a, b) for name, a, b in spans if "Memcpy" not in name and "Memset" not in name]
        beside = sum(
            max((min(b, end) - max(a, start) for a, b in kernels), default=0) > 0
            for start, end in copies
        )
        Overlap.share = beside / max(len(copies), 1)
        Overlap.copied_ms = sum(b - a for a, b in copies) / 1e3 / (self.last - self.first)


def overlap(_: str | None) -> Iterator[Result]:
    """B9."""
    n, size, batch = (256, 224, 128) if HAS_CARD else (16, 32, 4)
    images = {"n": n, "shape": [3, size, size], "batch_size": batch, "floats": True}
    variants = {"4 workers": (4, True), "no workers": (0, True), "no workers, unpinned": (0, False)}
    first, last = (10, 40) if HAS_CARD else (2, 5)
    for name, (n_workers, pins) in variants.items():
        flags = [*RESNET, *data_flags({**images, "n_workers": n_workers})]
        flags += ["--trainer.precision=bf16-mixed", "--model.channels_last=true"]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, pinning(pins):
            fit(folder, *flags, *steps(first, last))
            step_ms = StepClock.step_s() * 1e3
            profiled = [flag for flag in steps(first, last) if flag != CLOCK]
            fit(folder, *flags, *profiled, "--trainer.callbacks+=gpu_copies.Overlap")
        seen = sys.modules["gpu_copies"].Overlap  # the command line's, not this script's
        text = f"{step_ms:.2f} ms a step, copies {seen.copied_ms:.2f} ms, "
        yield Result(f"{text}{seen.share:.0%} of them beside kernels", None, name)


@contextlib.contextmanager
def pinning(pins: bool) -> Iterator[None]:
    """Whether loaders may pin their batches."""
    make = torch.utils.data.DataLoader.__init__

    def unpinned(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{**kwargs, "pin_memory": False})

    if not pins:
        torch.utils.data.DataLoader.__init__ = unpinned
    try:
        yield
    finally:
        torch.utils.data.DataLoader.__init__ = make


FIRST_CUDA = "import time, torch; s = time.perf_counter(); torch.ones(1, device='cuda').item(); "
FIRST_CUDA += "print(time.perf_counter() - s)"


def starts(_: str | None) -> Iterator[Result]:
    """B10."""
    from start import seconds

    on, line = f"--trainer.accelerator={DEVICE.type}", "Iteration      1/"
    command = ["cli.py", "fit", "--config", "configs/digits.yaml", on]
    command += ["--trainer.log_every_n_steps=1", "--trainer.max_steps=1"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command += [f"--output_path={folder}"]
        for name, added in {
            "digits": [],
            "with ReportFlops": ["--trainer.callbacks+=lightning_trainer.ReportFlops"],
        }.items():
            taken = [seconds([*command, *added], line) for _ in range(3 if HAS_CARD else 1)]
            text = f"{statistics.median(taken):.1f} s from the command to the first iteration"
            yield Result(text, None, name)
    if HAS_CARD:
        done = subprocess.run([sys.executable, "-c", FIRST_CUDA], capture_output=True, text=True)
        yield Result(f"{float(done.stdout):.2f} s", None, "the first use of CUDA")
    if shutil.which("nvidia-smi"):
        started_s = perf_counter()
        subprocess.run(["nvidia-smi", "-L"], capture_output=True, cwd=ROOT)
        taken_s = perf_counter() - started_s
        yield Result(f"{taken_s:.2f} s", on_card(taken_s < 0.5), "nvidia-smi")


if __name__ == "__main__":
    tell({"B2": checkpoints, "B9": overlap, "B10": starts})
