"""The scale of what the first layer sees."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint
from lightning_trainer.check.project import Project

_LARGE = 10  # root mean square of inputs that are not normalised
_N = 256  # samples that are looked at


def first_input(project: Project, mode: str) -> tuple[nn.Module, Tensor]:
    """The first layer with weights, and what it gets in evaluation."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def look(layer: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and not seen:
            seen.append((layer, args[0].detach().clone()))

    layers = [m for m in project.module.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [
        layer.register_forward_pre_hook(look)
        for layer in layers
        if not isinstance(layer, pl.LightningModule)
    ]
    try:
        with project.scratch():
            project.forward(project.batch(mode, _N), training=False, grad=False)
    finally:
        for handle in handles:
            handle.remove()
    if not seen or not seen[0][1].is_floating_point():
        raise CannotCheck("the first layer with weights gets no tensor of floats")
    return seen[0]


def find_wrong_scale(project: Project) -> Iterator[Finding]:
    """Looks at what the first layer with weights gets, of training and of validation data."""
    layer, a = first_input(project, "train")
    a = a.float()
    if not bool(a.isfinite().all()):
        raise CannotCheck("the inputs are not finite, which `values` reports")
    path = next((n for n, m in project.module.named_modules() if m is layer), "")
    name = f"`{path}` ({type(layer).__name__})"
    if "Norm" not in type(layer).__name__:
        yield from _not_normalised(name, a)
    for mode in project.val_modes if project.loaders["val"] is not None else ():
        b = first_input(project, mode)[1].float()
        for found in _shifted(name, a, b, project.title(mode)):
            if mode == "val":
                yield found
            elif found.certain:  # data of another kind, on purpose, may differ as well
                yield replace(found, certain=False)


def _not_normalised(name: str, a: Tensor) -> Iterator[Finding]:
    remedy = "subtract the mean and divide by the deviation of the training data"
    spread = a.std(0) if a.ndim == 2 and len(a) > 20 else a[:0]
    spread = spread[spread > 0]
    if a.square().mean().sqrt() > _LARGE:
        yield hint(
            "large",
            f"the first layer, {name}, sees values of mean {a.mean():.3g} and deviation "
            f"{a.std():.3g}",
            "the inputs are not normalised, e.g. pixels from 0 to 255",
            remedy,
        )
    elif len(spread) > 1 and spread.max() > 1000 * spread.median():
        yield hint(
            "uneven",
            f"the features that {name} sees have deviations from {spread.min():.3g} to "
            f"{spread.max():.3g}",
            "features of different units are not normalised",
            f"for each feature: {remedy}",
        )


def _shifted(name: str, a: Tensor, b: Tensor, title: str) -> Iterator[Finding]:
    if a[0].shape != b[0].shape or len(a) < 31 or len(b) < 31 or not a.std() > 0:
        return
    ratio, offset = (b.std() / a.std()).item(), ((b.mean() - a.mean()).abs() / a.std()).item()
    if 0.5 < ratio < 2 and offset < 0.7:
        return
    # The values of another time or place may lie elsewhere, but hardly spread ten times as far.
    make = hint if 0.1 < ratio < 10 else certain
    yield make(
        "shift",
        f"{name} sees mean {a.mean():.3g} and deviation {a.std():.3g} in training, {b.mean():.3g} "
        f"and {b.std():.3g} in {title}",
        "only one of the two datasets is scaled",
        "give both the same scaling, by the numbers of the training data",
    )
