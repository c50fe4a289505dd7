"""What is wrong with weights and activations after a few steps."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lightning_trainer.check.findings import Finding, certain, hint, some
from lightning_trainer.check.nested import alike, copied, tensors_in
from lightning_trainer.check.project import Project

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_in_trained(project: Project, batch: Any) -> Iterator[Finding]:
    """Looks at the network as it is; its gradients are those of `batch`."""
    yield from _equal_units(project)
    yield from _dead_units(project)
    yield from _ignored_input(project)
    yield from _vanishing(project, batch)


def _equal_units(project: Project) -> Iterator[Finding]:
    equal = []
    for name, layer in project.module.named_modules():
        if isinstance(layer, _LAYERS) and len(layer.weight) > 1 and layer.weight.requires_grad:
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


def _dead_units(project: Project) -> Iterator[Finding]:
    zeros: dict[str, float] = {}
    handles = []
    for name, layer in project.module.named_modules():
        if isinstance(layer, nn.ReLU | nn.ReLU6):

            def note(_: Any, args: Any, output: Tensor, name: str = name) -> None:
                dead = (output == 0).flatten(1).all(0).float().mean().item()
                zeros[name] = min(dead, zeros.get(name, 1.0))

            handles.append(layer.register_forward_hook(note))
    try:
        project.forward(project.batch("train", 64), training=False, grad=False)
    finally:
        for handle in handles:
            handle.remove()
    dead = [name for name, share in zeros.items() if share > 0.98]
    if dead:
        yield certain(
            "dead",
            f"no unit of {some(dead)} is active for any of 64 samples",
            "biases far below zero, or steps so long that no input reaches these units again",
            "lower the learning rate; check biases, initialisation and the scale of the input",
        )


def _ignored_input(project: Project) -> Iterator[Finding]:
    """Replaces all inputs by those of other samples: the output must change."""
    batch, other = project.two_batches("train", 16)
    output, _ = project.forward(copied(batch), training=False, grad=False)
    floats = {k: v for k, v in tensors_in(output).items() if v.is_floating_point()}
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
