"""Training on one small batch: how far its loss falls."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lightning_trainer.check.findings import CannotCheck
from lightning_trainer.check.graphs import all_nodes, operation
from lightning_trainer.check.ideal import UNBOUNDED, constant_loss, ideal_output
from lightning_trainer.check.nested import copied
from lightning_trainer.check.project import Project
from lightning_trainer.check.rates import rates_of_run

_COMPARABLE = 50  # steps
STEPS, LIMIT_S = 150, 8.0  # of one trial; one that takes longer is cut, and proves little


@dataclass
class Trial:
    """One training on the batch."""

    losses: list[float]  # before each step
    wanted: int  # steps it was to take

    @property
    def end(self) -> float:
        return self.losses[-1] if math.isfinite(self.losses[-1]) else math.inf

    @property
    def best_of_end(self) -> float:
        """The lowest of the last ten."""
        return min((loss for loss in self.losses[-10:] if math.isfinite(loss)), default=math.inf)

    @property
    def is_whole(self) -> bool:
        return len(self.losses) >= self.wanted or self.end == math.inf

    @property
    def is_long(self) -> bool:
        """Whether it is long enough to compare learning rates."""
        return self.is_whole or len(self.losses) >= _COMPARABLE


class SmallBatch:
    """A few training samples, and the losses between which a training on them lies."""

    def __init__(self, project: Project, n: int = 16) -> None:
        self.project = project
        self.n = min(n, project.size("train") or n)
        self.batch = project.batch("train", self.n)
        with project.scratch():
            output, loss = project.forward(self.new())
            self.start = loss.item()
            if not math.isfinite(self.start):
                raise CannotCheck(f"the loss is {self.start} before the training")
            self.is_classification = _is_classification(loss)
            self.floor = self.constant = None
            try:
                ideal = ideal_output(project, self.new(), output)
                self.floor = ideal[1] if ideal else None
                self.constant = constant_loss(project, self.new(), output)
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
                pass  # a loss that reads more than batch and output: there is no ideal

    def new(self) -> Any:
        return copied(self.batch)

    @cached_property
    def has_ideal(self) -> bool:
        if self.constant is None or self.floor is None or self.floor < UNBOUNDED:
            return False
        return bool(self.constant > self.floor + 1e-6)

    def progress(self, loss: float) -> float:
        """Of the way from a constant output (or the start) to the ideal: 0 is none of it."""
        base, reach = self.start, abs(self.start)
        if self.has_ideal:
            base = min(self.start, float(self.constant or 0.0))
            reach = base - float(self.floor or 0.0)
        return float((base - loss) / max(reach, 1e-9))

    def train(self, n: int = STEPS, factor: float = 1.0, limit_s: float = LIMIT_S) -> Trial:
        """Trains in place, at the schedule's highest rate times `factor`; use it in `scratch`."""
        project, patience = self.project, self.project.patience(limit_s)
        factor *= peak_rate(project) / max(highest_rate(project), 1e-30)
        rates = [group["lr"] * factor for group in project.groups]
        rise = n // 4 if _warms_up(project) else 0
        losses: list[float] = []
        for i in range(n):
            for group, rate in zip(project.groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (i + 1) / (rise + 1))
            losses.append(project.step(self.new()).item())
            if not math.isfinite(losses[-1]) or patience.is_over:
                break
        return Trial(losses, n)


def highest_rate(project: Project) -> float:
    """The learning rate now, the highest of all groups."""
    return max(float(group["lr"]) for group in project.groups)


def peak_rate(project: Project) -> float:
    """The highest learning rate of the run."""
    peaks = [max(rates.values) for rates in rates_of_run(project) if rates.is_whole]
    return max(peaks, default=highest_rate(project))


def _warms_up(project: Project) -> bool:
    """Whether the learning rate rises to its peak: a network may need that."""
    whole = [rates.values for rates in rates_of_run(project) if rates.is_whole]
    return any(values[0] < 0.5 * max(values) for values in whole)


def small_batch(project: Project) -> SmallBatch:
    """That of the project, made once."""
    return project.once("small_batch", lambda: SmallBatch(project))


def _is_classification(loss: torch.Tensor) -> bool:
    names = {operation(node) for node in all_nodes(loss.grad_fn)}
    return bool(names & {"NllLoss", "NllLoss2D", "BinaryCrossEntropyWithLogits"})
