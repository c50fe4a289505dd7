"""What is wrong with weights and activations after a few steps."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint, some
from lightning_trainer.check.nested import alike, copied, tensors_in
from lightning_trainer.check.project import Project

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class AtStart:
    """What the network was before some training."""

    def __init__(self, project: Project) -> None:
        self.weights = {id(w): w.detach().clone() for w in project.module.parameters()}
        self.dead = {*_dead_layers(project)}


def find_in_trained(
    project: Project, batch: Any, start: AtStart, is_learned: bool
) -> Iterator[Finding]:
    """Looks at the network as it is after a training on `batch`."""
    yield from find_equal_or_dead(project, start)
    if not is_learned:  # what is learned may be the same for all samples
        yield from _ignored_input(project)
    yield from _vanishing(project, batch)


def find_equal_or_dead(project: Project, start: AtStart) -> Iterator[Finding]:
    """What a few iterations of any kind tell of units."""
    yield from _equal_units(project, start)
    yield from _dead_units(project, start)


def _equal_units(project: Project, start: AtStart) -> Iterator[Finding]:
    equal = []
    for name, layer in project.module.named_modules():
        if isinstance(layer, _LAYERS) and len(layer.weight) > 1:
            before = start.weights.get(id(layer.weight))
            if before is None or not layer.weight.requires_grad:
                continue  # it is made from others
            if torch.equal(before, layer.weight) and not bool(before.any()):
                continue  # zeros that these samples do not train
            rows = layer.weight.detach().flatten(1)
            if rows.numel() and (rows - rows[:1]).abs().max() <= 1e-6 * rows.abs().max():
                equal.append(name)
    if equal:
        yield certain(
            "equal_units",
            f"all units of {some(equal)} have the same weights, also after some training",
            "they were initialised with a constant: they stay equal",
            "initialise randomly, as torch does by default",
        )


def _dead_units(project: Project, start: AtStart) -> Iterator[Finding]:
    dead = _dead_layers(project)
    if dead:
        make = certain if start.dead & {*dead} else hint
        yield make(
            "dead",
            f"no unit of {some(dead)} is active for any of 64 samples",
            "biases far below zero, or steps so long that no input reaches these units again",
            "lower the learning rate; check biases, initialisation and the scale of the input",
        )


def _dead_layers(project: Project) -> list[str]:
    """Names of ReLUs that give nothing but zeros."""
    zeros: dict[str, bool] = {}
    handles = []
    for name, layer in project.module.named_modules():
        if isinstance(layer, nn.ReLU | nn.ReLU6):

            def note(_: Any, args: Any, output: Tensor, name: str = name) -> None:
                zeros[name] = zeros.get(name, True) and not bool(output.any())

            handles.append(layer.register_forward_hook(note))
    try:
        project.forward(project.batch("train", 64), training=False, grad=False)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, is_dead in zeros.items() if is_dead]


def _ignored_input(project: Project) -> Iterator[Finding]:
    """Replaces all inputs by those of other samples: the output must change."""
    try:
        batch, other = project.two_batches("train", 16)
    except CannotCheck:  # a batch that can't be cut
        return
    outputs = [project.forward(copied(batch), False, seed, grad=False)[0] for seed in (0, 1)]
    found, again = (tensors_in(output) for output in outputs)
    if not alike(found, again, 1e-6):
        return  # it is drawn, e.g. by a generator
    floats = {k: v for k, v in found.items() if v.is_floating_point()}
    changed = copied(batch)
    for key in project.keys()[0]:
        value = changed.get(key)
        if isinstance(value, Tensor) and value.shape == getattr(other.get(key), "shape", None):
            changed[key] = other[key]
        elif isinstance(value, Tensor):
            return
    if not floats or alike(batch, changed):
        return
    after = tensors_in(project.forward(changed, training=False, grad=False)[0])
    if all(k in after and alike(v, after[k], 1e-6) for k, v in floats.items()):
        yield certain(
            "ignored_input",
            "the output stays the same when the inputs are replaced by those of other samples",
            "a wrong variable is given to the network",
            "check what `forward_model` gives to it",
        )


def _vanishing(project: Project, batch: Any) -> Iterator[Finding]:
    for weight in project.module.parameters():
        weight.grad = None
    project.forward(copied(batch))[1].backward()
    sizes = {}
    for name, weight in project.module.named_parameters():
        if weight.grad is not None and weight.ndim > 1:
            scale = weight.detach().square().mean().sqrt().clamp_min(1e-12)
            sizes[name] = (weight.grad.square().mean().sqrt() / scale).item()
    sizes = {name: size for name, size in sizes.items() if size > 0}
    if len(sizes) < 2:
        return
    low, high = min(sizes, key=lambda n: sizes[n]), max(sizes, key=lambda n: sizes[n])
    if sizes[low] < 1e-7 * sizes[high]:
        yield hint(
            "vanishing",
            f"the gradient of {low} is {sizes[low] / sizes[high]:.1g} times that of {high}, each "
            "relative to its weights",
            "many layers whose activations are flat, such as sigmoids",
            "norms, residual connections, ReLU in place of sigmoid",
        )
