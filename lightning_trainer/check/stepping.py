"""What the optimisers do in a `training_step` that steps them itself."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_trainer.base.optimising import by_name
from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.limits import Patience
from lightning_trainer.check.project import Project

_N, _LIMIT_S = 12, 10.0  # iterations, and seconds of work


@dataclass
class OwnSteps:
    """What some iterations have done, by the names of optimisers and the `id` of weights."""

    names: dict[str, Optimizer]
    n: int = 0  # iterations
    steps: Counter[str] = field(default_factory=Counter)
    reached: set[int] = field(default_factory=set)  # weights that got a gradient
    stale: set[str] = field(default_factory=set)  # optimisers that step with older gradients too


def own_steps(project: Project) -> OwnSteps:
    """Trains a few iterations in a scratch copy, and watches the optimisers."""

    def make() -> OwnSteps:
        found = OwnSteps(by_name(project.module.optimiser))
        handles = [
            optimiser.register_step_pre_hook(_noting(found, name))
            for name, optimiser in found.names.items()
        ]
        try:
            with project.scratch():
                _train(project, found, project.patience(_LIMIT_S))
        finally:
            for handle in handles:
                handle.remove()
        return found

    return project.once("own_steps", make)


def _train(project: Project, found: OwnSteps, patience: Patience) -> None:
    weights = [*project.module.parameters()]
    while found.n < _N and not patience.is_over:
        before = found.steps.copy()
        project.step(project.batch("train", 16, 16 * found.n), found.n, found.n)
        found.n += 1
        found.reached |= {id(weight) for weight in weights if weight.grad is not None}
        for name in found.steps - before:
            _mark(found.names[name])


def _noting(found: OwnSteps, name: str) -> Any:
    """A hook before each step: which weights get a gradient, and whether it has a mark."""

    def note(optimiser: Optimizer, *_: Any) -> None:
        found.steps[name] += 1
        for group in optimiser.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                found.reached.add(id(weight))
                if weight.grad.numel() and bool(weight.grad.isinf().all()):
                    found.stale.add(name)
                    weight.grad = torch.zeros_like(weight.grad)

    return note


def _mark(optimiser: Optimizer) -> None:
    """Makes the gradients infinite: only `zero_grad` or a new one takes that away."""
    for group in optimiser.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and bool(weight.grad.any()):
                weight.grad.fill_(torch.inf)


def find_in_own_steps(found: OwnSteps) -> Iterator[Finding]:
    """Optimisers that are not stepped, step nothing, or step with the gradients of before."""
    idle = [name for name in found.names if not found.steps[name]]
    if idle:
        yield hint(
            "not_stepped",
            f"`training_step` has not stepped {_named(idle)} in {found.n} iterations",
            "only one of several optimisers is stepped, or it begins later",
            "call `self.optimise(NAME, loss)` for each",
        )
    empty = [name for name in found.steps if not _weights(found.names[name]) & found.reached]
    if empty:
        yield certain(
            "no_gradient",
            f"{_named(empty)} steps, and none of its weights gets a gradient",
            "`detach` or `no_grad` cuts its loss from its weights, or the loss is another's",
            "give `self.optimise` a loss that depends on the weights of that optimiser",
        )
    if found.stale:
        yield certain(
            "never_zeroed",
            f"the gradients of {_named(found.stale)} add up over the iterations",
            "`zero_grad` is not called between two steps",
            "call `self.optimise(NAME, loss)`, which does",
        )


def _weights(optimiser: Optimizer) -> set[int]:
    return {id(weight) for group in optimiser.param_groups for weight in group["params"]}


def _named(names: Any) -> str:
    """E.g. `the optimiser "critic"`; without a name that of the only one."""
    shown = [f'"{name}"' for name in sorted(names) if name]
    return f"the optimiser {some(shown)}" if shown else "the optimiser"
