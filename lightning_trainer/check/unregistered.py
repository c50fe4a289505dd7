"""Weights that are no parameters, and parameters that no gradient reaches."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.graphs import all_nodes
from lightning_trainer.check.optimiser import reached_weights, weight_names
from lightning_trainer.check.project import Project

_MANY = 128  # samples


def find_unregistered(project: Project) -> Iterator[Finding]:
    """Compares the leaves of the loss with the parameters of the module."""
    project.need_one_loss()
    names = weight_names(project)
    called = _called(project)
    reached, times = reached_weights(project)
    many = _reached_by_many(project)
    # One that is there each time is kept somewhere; one of a single forward pass is an input.
    loose = [leaf for key, leaf in reached.items() if key not in names and times[key] == 3]
    if loose:
        yield certain(
            "kept_in_python",
            f"{len(loose)} tensors are trained on but are no parameters of the module: "
            f"{some(_place(project, leaf) for leaf in loose)}",
            "layers in a plain list or dict: they are neither moved, optimised nor saved",
            "use nn.ModuleList, nn.ModuleDict, nn.ParameterList or nn.Parameter",
        )
    silent = {
        names[id(w)]: w
        for w in project.held
        if w.requires_grad and id(w) in names and id(w) not in reached.keys() | many
    }
    yield from _cut({n: w for n, w in silent.items() if id(w) in called}, project)
    unused = [
        name
        for name, weight in silent.items()
        if id(weight) not in called and not _is_one_of_many(project, name, called)
    ]
    if unused:
        yield hint(
            "unused",
            f"{len(unused)} parameters are in the optimiser but not used: {some(sorted(unused))}",
            "a layer is made in `create_model` that no forward pass calls",
            "use or remove it",
        )


def _cut(weights: dict[str, Tensor], project: Project) -> Iterator[Finding]:
    """Weights of layers that are called, which no gradient reaches."""
    counting = [name for name, weight in weights.items() if _counts(project, weight)]
    idle = sorted(set(weights) - set(counting))
    if counting:
        yield certain(
            "no_gradient",
            f"the loss depends on {len(counting)} parameters that no gradient reaches: "
            f"{some(sorted(counting))}",
            "`detach`, `no_grad` or `.data` in `forward_model` cuts the graph",
            "remove it, or freeze them by `requires_grad_(False)`",
        )
    if idle and not _is_derived(project):  # the last bias of an energy has no influence on forces
        yield hint(
            "no_influence",
            f"{len(idle)} parameters are used, but the loss does not depend on them: {some(idle)}",
            "the output of a layer is not given on to the loss",
            "give it on, or leave the layer out",
        )


def _counts(project: Project, weight: Tensor) -> bool:
    """Whether the loss changes with a weight."""
    with project.scratch(), torch.no_grad():
        losses = []
        for change in (0.0, 1.0):
            weight += change * torch.randn_like(weight)
            losses.append(project.trained_loss(project.batch()).item())
    return math.isfinite(losses[0]) and losses[0] != losses[1]


def _is_derived(project: Project) -> bool:
    """Whether the loss has derivatives of the network in it."""
    with project.scratch():
        loss = project.trained_loss(project.batch())
    return any("BackwardBackward" in node.name() for node in all_nodes(loss.grad_fn))


def _reached_by_many(project: Project) -> set[int]:
    """The `id` of weights that get a gradient: one may be there for few samples, as an expert."""
    with project.scratch():
        project.trained_loss(project.batch("train", _MANY), seed=1).backward()
        return {id(w) for w in project.module.parameters() if w.grad is not None}


def _is_one_of_many(project: Project, name: str, called: set[int]) -> bool:
    """Whether it belongs to an item of a ModuleList of which another item is called."""
    path = name.split(".")
    for i in range(1, len(path)):
        parent = project.module.get_submodule(".".join(path[:i]))
        if isinstance(parent, nn.ModuleList):
            return any(id(weight) in called for weight in parent.parameters())
    return False


def _called(project: Project) -> set[int]:
    """The `id` of each weight whose layer is called in training."""
    found: set[int] = set()

    def note(layer: nn.Module, args: Any) -> None:
        found.update(id(weight) for weight in layer.parameters(recurse=False))

    handles = [m.register_forward_pre_hook(note) for m in project.module.modules()]
    try:
        with project.scratch():
            project.trained_loss(project.batch())
            project.trained_loss(project.batch("train", _MANY), seed=1)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _place(project: Project, leaf: Tensor) -> str:
    """Where a tensor is kept, e.g. `model.layers[0].weight`."""
    for path, module in project.module.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_"):
                continue
            for index, item in _items(value):
                place = f"{path}.{attribute}{index}".strip(".")
                if item is leaf:
                    return place
                weights = item.named_parameters() if isinstance(item, nn.Module) else ()
                for name, weight in weights:
                    if weight is leaf:
                        return f"{place}.{name}"
    return f"one of shape {tuple(leaf.shape)}"


def _items(value: Any) -> list[tuple[str, Any]]:
    """The items of a list or dict, with their indices, e.g. "[0]"; else the value itself."""
    if isinstance(value, dict):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    return [("", value)]
