"""Weights that are no parameters, and parameters that no gradient reaches."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.optimiser import reached_weights, weight_names
from lightning_trainer.check.project import Project


def find_unregistered(project: Project) -> Iterator[Finding]:
    """Compares the leaves of the loss with the parameters of the module."""
    project.need_own_step()
    names = weight_names(project)
    called = _called(project)
    reached, times = reached_weights(project)
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
    held = [weight for group in project.groups for weight in group["params"]]
    silent = [w for w in held if w.requires_grad and id(w) in names and id(w) not in reached]
    cut = sorted({names[id(w)] for w in silent if id(w) in called})
    unused = sorted({names[id(w)] for w in silent if id(w) not in called})
    if cut:
        yield certain(
            "no_gradient",
            f"{len(cut)} parameters are used but no gradient reaches them: {some(cut)}",
            "`detach`, `no_grad` or `.data` in `forward_model` cuts the graph",
            "remove it, or freeze them by `requires_grad_(False)`",
        )
    if unused:
        yield hint(
            "unused",
            f"{len(unused)} parameters are in the optimiser but not used: {some(unused)}",
            "a layer is made in `create_model` that no forward pass calls",
            "use or remove it",
        )


def _called(project: Project) -> set[int]:
    """The `id` of each weight whose layer is called in training."""
    found: set[int] = set()

    def note(layer: nn.Module, args: Any) -> None:
        found.update(id(weight) for weight in layer.parameters(recurse=False))

    handles = [m.register_forward_pre_hook(note) for m in project.module.modules()]
    try:
        with project.scratch():
            project.forward(project.batch())
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
