"""A schedule of another length than the run."""

import copy
import itertools
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from lightning_trainer.base.optimising import by_name
from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint
from lightning_trainer.check.leftovers import n_iterations
from lightning_trainer.check.project import Project

_SPENT = 0.01  # of the peak: what is left of a learning rate that has decayed


@dataclass
class Rates:
    """The learning rates of a scheduler over a run."""

    name: str
    scheduler: Any
    n_iterations: int
    values: list[float] = field(default_factory=list)  # the highest of all groups, per iteration
    error: str = ""  # of the step after the last value

    @property
    def is_whole(self) -> bool:
        return len(self.values) == self.n_iterations


def rates_of_run(project: Project, limit_s: float = 5.0) -> list[Rates]:
    """The rates of each scheduler, without training; those that take too long are not whole."""

    def make() -> list[Rates]:
        n, found = n_iterations(project), []
        for scheduler in by_name(project.module.scheduler).values():
            if not isinstance(scheduler, ReduceLROnPlateau) and 2 <= n < math.inf:
                rates = Rates(type(scheduler).__name__, scheduler, int(n))
                _step_copy(project, rates, limit_s)
                found.append(rates)
        return found

    return project.once("rates", make)


def _step_copy(project: Project, rates: Rates, limit_s: float) -> None:
    """Steps a copy of the scheduler, whose optimiser is a copy without a step of its own."""
    real = rates.scheduler.optimizer
    optimiser = copy.copy(real)
    optimiser.param_groups = [
        {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items()}
        for group in real.param_groups
    ]
    # Whatever else of the project it holds is not copied.
    kept = [*project.module.modules(), *project.module.parameters(), project.trainer]
    memo: dict[int, Any] = {id(real): optimiser, **{id(each): each for each in kept}}
    started_s = time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        scheduler = copy.deepcopy(rates.scheduler, memo)
        for i in range(rates.n_iterations):
            rates.values.append(max(float(group["lr"]) for group in optimiser.param_groups))
            if i % 64 == 0 and time.perf_counter() - started_s > limit_s:
                return
            try:
                scheduler.step()
            except ValueError as ex:  # e.g. OneCycleLR's after its last step
                rates.error = str(ex)
                return


def find_wrong_lengths(project: Project, limit_s: float = 5.0) -> Iterator[Finding]:
    """Steps a copy of each scheduler over the whole run."""
    everything = rates_of_run(project, limit_s)
    for rates in everything:
        n, values = rates.n_iterations, rates.values
        if rates.error and len(values) < n:
            yield certain(
                "ends_early",
                f"{rates.name} fails at iteration {len(values)} of {n}: {rates.error[:80]}",
                "it was made for a shorter run",
                "give it `self.trainer.max_steps` as its length",
            )
        elif rates.is_whole:
            yield from _judge(rates)
    if any(not rates.is_whole and not rates.error for rates in everything):
        raise CannotCheck(f"a schedule takes more than {limit_s} s over the whole run")


def _judge(rates: Rates) -> Iterator[Finding]:
    n, values, name = rates.n_iterations, rates.values, rates.name
    peak = max(values)
    ahead = [*itertools.accumulate(reversed(values), max)][::-1]  # the highest from here on
    spent = next((i for i in range(n) if ahead[i] < _SPENT * peak), n)
    low = next((i for i in range(1, n - 1) if values[i + 1] >= values[i] < 0.1 * peak), None)
    ends = f"from {values[0]:.4g} to {values[-1]:.4g}"
    if spent < n / 2:
        yield certain(
            "decays_early",
            f"{name}: the learning rate is below 1 % of {peak:.3g} from iteration {spent} of {n} "
            f"on, at the end {values[-1]:.3g}",
            "a scheduler is stepped after every iteration; its lengths were meant in epochs",
            "give its lengths in iterations",
        )
    elif values.index(peak) >= n - 2 and values[-1] > 1.5 * values[0]:
        yield certain(
            "warm_up",
            f"{name}: the learning rate still rises at the end of the run, {ends}",
            "the warm-up is longer than the run",
            "shorten the warm-up, or lengthen the run",
        )
    elif n > 10 and min(values) > 0.98 * peak:
        yield hint(
            "constant",
            f"{name}: the learning rate hardly changes in {n} iterations, {ends}",
            "the schedule was made for a longer run",
            "give it the length of this run, `self.trainer.max_steps`",
        )
    elif isinstance(rates.scheduler, CosineAnnealingLR) and low and ahead[low] > 0.2 * peak:
        yield certain(
            "rises_again",
            f"{name}: the learning rate falls to {values[low]:.3g} at iteration {low} of {n} and "
            f"rises again, as T_max is {rates.scheduler.T_max}",
            "T_max is counted in iterations, and was meant in epochs or for another run",
            "T_max=self.trainer.max_steps, or `CosineAnnealingWarmRestarts` if it is meant",
        )
