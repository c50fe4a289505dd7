"""The format of the log line, of durations and of titles."""

import math
from collections.abc import Mapping

from lightning_trainer.run.state import Progress, rule
from lightning_trainer.session.number import format_number


def format_line(progress: Progress) -> str:
    """The two lines of text that are printed every `log_every_n_steps` iterations."""
    n, left_s = progress.n_iterations, progress.left_s
    total = f"{n:.0f}" if math.isfinite(n) else "?"
    left = format_duration(left_s) if math.isfinite(left_s) else "unknown"
    return (
        f"Iteration {progress.iteration:6d}/{total} | "
        f"{progress.unit}/s: {progress.examples_per_s:.1f} | "
        f"loss: {format_loss(progress.loss, progress.losses)} | "
        f"time elapsed: {format_duration(progress.elapsed_s)} | time left: {left}\n"
        f"Fetch data time: {progress.fetch_ms:.0f}ms, "
        f"model update time: {progress.update_ms:.0f}ms"
    )


def format_loss(loss: float, parts: Mapping[str, float]) -> str:
    """A loss with the parts that it is the sum of, e.g. `1.2300 (image 1.0000, kl 0.2300)`."""
    named = ", ".join(f"{name} {format_number(part, 4)}" for name, part in parts.items())
    return f"{format_number(loss, 4)} ({named})" if named else format_number(loss, 4)


def format_duration(seconds: float) -> str:
    """Seconds as 00h04m46s; hours may have more digits."""
    minutes, whole_seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}h{minutes:02d}m{whole_seconds:02d}s"


def print_title(title: str) -> None:
    """Prints `title` between two rules."""
    print(f"{rule()}\n{title}\n{rule()}", flush=True)
