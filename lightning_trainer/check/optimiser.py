"""Weights that the optimiser does not change, or changes twice."""

from collections import Counter
from collections.abc import Collection, Iterator

from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch import Tensor

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.graphs import all_nodes
from lightning_trainer.check.project import Project
from lightning_trainer.check.stepping import find_in_own_steps, own_steps

_CAUSE = "a layer was added later, or groups made by names leave some out"
_REMEDY = "give the optimiser `self.model.parameters()`, or freeze them by `requires_grad_(False)`"


def weight_names(project: Project) -> dict[int, str]:
    """Names of the parameters by their `id`."""
    module = project.module
    return {id(p): name for name, p in module.named_parameters(remove_duplicate=False)}


def find_unoptimised(project: Project) -> Iterator[Finding]:
    """What the names alone tell: it needs no forward pass."""
    yield from _strange(project)
    held = {id(weight) for weight in project.held}
    weights = [p for p in project.module.parameters() if p.requires_grad and id(p) not in held]
    if weights:
        names = weight_names(project)
        yield hint(
            "missing",
            f"{len(weights)} parameters are not in the optimiser, and are not frozen: "
            f"{some(names[id(weight)] for weight in weights)}",
            _CAUSE,
            _REMEDY,
        )


def _strange(project: Project) -> Iterator[Finding]:
    """What the optimisers hold and should not."""
    names = weight_names(project)
    foreign = [tuple(weight.shape) for weight in project.held if id(weight) not in names]
    if foreign:
        yield certain(
            "foreign",
            f"{len(foreign)} tensors in the optimiser are no parameters of the module, of shapes "
            f"{some(dict.fromkeys(foreign))}",
            "layers were replaced after their parameters had been collected",
            "make the optimiser from `self.model.parameters()` once all layers are in place",
        )
    twice = [key for key, n in Counter(id(weight) for weight in project.held).items() if n > 1]
    if twice and len(project.optimisers) == 1:
        yield certain(
            "twice",
            f"{len(twice)} parameters are in the optimiser twice: "
            f"{some(names.get(key, 'one of another module') for key in twice)}",
            "groups overlap: each step changes these twice",
            "list each parameter once",
        )


def reached_weights(project: Project) -> tuple[dict[int, Tensor], Counter[int]]:
    """The leaves of the loss by their `id`, and in how many of three forward passes they are."""

    def make() -> tuple[dict[int, Tensor], Counter[int]]:
        reached: dict[int, Tensor] = {}
        times: Counter[int] = Counter()
        with project.scratch():
            for i in range(3):
                loss = project.trained_loss(project.batch("train", 13, 13 * i), seed=i)
                nodes = all_nodes(loss.grad_fn)
                leaves = {id(n.variable): n.variable for n in nodes if hasattr(n, "variable")}
                times.update(leaves.keys())
                if loss.requires_grad:  # the graph has no leaves within a checkpointed part
                    loss.backward()
                given = {id(w): w for w in project.module.parameters() if w.grad is not None}
                reached |= leaves | given
        return reached, times

    return project.once("reached", make)


def find_untrained(project: Project) -> Iterator[Finding]:
    """Adds what gradients tell to what names do, of several optimisers from some iterations."""
    yield from _strange(project)
    if project.module.automatic_optimization:
        yield from _without_optimiser(project, reached_weights(project)[0])
        return
    steps = own_steps(project)
    yield from find_in_own_steps(steps)
    yield from _without_optimiser(project, steps.reached)


def _without_optimiser(project: Project, reached: Collection[int]) -> Iterator[Finding]:
    held = {id(weight) for weight in project.held}
    late = _added_later(project)
    if late is None:
        return
    weights = {
        name: weight
        for name, weight in project.module.named_parameters()
        if id(weight) in reached and id(weight) not in held | late
    }
    if not weights:
        return
    # Most of a network may be left as it is on purpose; a callback of the project's may add some.
    n, n_held = (sum(w.numel() for w in of) for of in (weights.values(), project.held))
    make = hint if n >= n_held or _may_add(project) else certain
    yield make(
        "not_optimised",
        f"{len(weights)} parameters get a gradient but are not in the optimiser: "
        f"{some(sorted(weights))}",
        _CAUSE,
        _REMEDY,
    )


def _added_later(project: Project) -> set[int] | None:
    """Weights, by their `id`, that a callback of Lightning's gives to the optimiser later.

    None if it may be any.
    """
    found: set[int] = set()
    for callback in project.left_out:
        if issubclass(callback, BackboneFinetuning) and hasattr(project.module, "backbone"):
            found |= {id(weight) for weight in project.module.backbone.parameters()}
        elif issubclass(callback, BaseFinetuning):
            return None
    return found


def _may_add(project: Project) -> bool:
    """Whether a callback is not known, and may give weights to the optimiser."""
    known = ("lightning.", "pytorch_lightning.", "lightning_trainer.")
    return any(not f"{callback.__module__}.".startswith(known) for callback in project.left_out)
