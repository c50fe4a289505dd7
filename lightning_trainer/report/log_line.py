"""The two lines of the log, in the one place that knows their format."""

import math
from dataclasses import dataclass


def format_duration(seconds: float) -> str:
    """Seconds as 00h04m46s; hours may have more digits."""
    minutes, whole_seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}h{minutes:02d}m{whole_seconds:02d}s"


@dataclass
class Progress:
    """What one log line tells.

    Attributes:
        iteration: Iterations done, i.e. optimiser steps.
        n_iterations: Iterations of the whole run; infinite if it has no end.
        examples_per_s: Of all processes together.
        loss: Mean over the iterations since the last line.
        elapsed_s: Since training started, earlier starts of the run included.
        left_s: Until the end of the run.
        fetch_ms: An iteration's wait for its batch, in the process that waits longest.
        update_ms: An iteration's forward, backward and optimiser step.
    """

    iteration: int
    n_iterations: float
    examples_per_s: float
    loss: float
    elapsed_s: float
    left_s: float
    fetch_ms: float
    update_ms: float

    def __str__(self) -> str:
        total = f"{self.n_iterations:.0f}" if math.isfinite(self.n_iterations) else "?"
        left = format_duration(self.left_s) if math.isfinite(self.left_s) else "unknown"
        return (
            f"Iteration {self.iteration:6d}/{total} | examples/s: {self.examples_per_s:.1f} | "
            f"loss: {self.loss:.4f} | time elapsed: {format_duration(self.elapsed_s)} | "
            f"time left: {left}\n"
            f"Fetch data time: {self.fetch_ms:.0f}ms, model update time: {self.update_ms:.0f}ms"
        )
