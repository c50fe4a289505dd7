"""Weights that the optimiser does not change, or changes twice."""

from collections import Counter
from collections.abc import Iterator

import torch

from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint, some
from lightning_trainer.check.graphs import all_nodes
from lightning_trainer.check.project import Project


def weight_names(project: Project) -> dict[int, str]:
    """Names of the parameters by their `id`."""
    module = project.module
    return {id(p): name for name, p in module.named_parameters(remove_duplicate=False)}


def find_unoptimised(project: Project) -> Iterator[Finding]:
    """What the names alone tell: it needs no forward pass."""
    names = weight_names(project)
    held = [weight for group in project.groups for weight in group["params"]]
    foreign = [tuple(weight.shape) for weight in held if id(weight) not in names]
    if foreign:
        yield certain(
            "foreign",
            f"{len(foreign)} tensors in the optimiser are no parameters of the module, of shapes "
            f"{some(dict.fromkeys(foreign))}",
            "layers were replaced after their parameters had been collected",
            "make the optimiser from `self.model.parameters()` once all layers are in place",
        )
    twice = [key for key, n in Counter(id(weight) for weight in held).items() if n > 1]
    if twice and len(project.optimisers) == 1:
        yield certain(
            "twice",
            f"{len(twice)} parameters are in the optimiser twice: "
            f"{some(names.get(key, 'one of another module') for key in twice)}",
            "groups overlap: each step changes these twice",
            "list each parameter once",
        )
    yield from _missing(project, names, {id(weight) for weight in held})


def _missing(project: Project, names: dict[int, str], held: set[int]) -> Iterator[Finding]:
    weights = [p for p in project.module.parameters() if p.requires_grad and id(p) not in held]
    missing = [names[id(p)] for p in weights]
    if missing:
        yield hint(
            "missing",
            f"{len(missing)} parameters are not in the optimiser, and are not frozen: "
            f"{some(missing)}",
            "a layer was added later, or groups made by names leave some out",
            "give the optimiser `self.model.parameters()`, or freeze them by "
            "`requires_grad_(False)`",
        )


def reached_weights(project: Project) -> tuple[dict[int, torch.Tensor], Counter[int]]:
    """The leaves of the loss by their `id`, and in how many of three forward passes they are."""

    def make() -> tuple[dict[int, torch.Tensor], Counter[int]]:
        reached: dict[int, torch.Tensor] = {}
        times: Counter[int] = Counter()
        with project.scratch():
            for i in range(3):
                _, loss = project.forward(project.batch("train", 13, 13 * i), seed=i)
                nodes = all_nodes(loss.grad_fn)
                leaves = {id(n.variable): n.variable for n in nodes if hasattr(n, "variable")}
                reached |= leaves
                times.update(leaves.keys())
        return reached, times

    return project.once("reached", make)


def find_untrained(project: Project) -> Iterator[Finding]:
    """Adds what the gradients tell to `find_unoptimised`."""
    try:
        project.need_own_step()
    except CannotCheck:
        yield from find_unoptimised(project)
        raise
    yield from (found for found in find_unoptimised(project) if found.kind != "missing")
    names, (reached, _) = weight_names(project), reached_weights(project)
    held = {id(weight) for group in project.groups for weight in group["params"]}
    missing = [names[key] for key in reached if key in names and key not in held]
    if missing:
        make = hint if project.callbacks_act else certain
        yield make(
            "not_optimised",
            f"{len(missing)} parameters get a gradient but are not in the optimiser: "
            f"{some(sorted(missing))}",
            "a layer was added later, or groups made by names leave some out",
            "give the optimiser `self.model.parameters()`, or freeze them by "
            "`requires_grad_(False)`",
        )
