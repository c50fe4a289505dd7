"""Samples of a batch that influence each other in evaluation."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint
from lightning_trainer.check.modes import keeps_state
from lightning_trainer.check.nested import alike, has_rows, tensors_in
from lightning_trainer.check.project import Project

_SIZE = 6  # samples of the batch in which one is replaced


def find_mixing(project: Project) -> Iterator[Finding]:
    """Replaces one sample of a batch: the output of the others must stay."""
    project.dataset("val")
    if project.size("val") < 2 * _SIZE:
        raise CannotCheck(f"there are fewer than {2 * _SIZE} validation samples")
    if keeps_state(project):
        raise CannotCheck("the output also depends on earlier batches, or on draws of its own")
    with project.scratch():
        before = tensors_in(project.forward(_batch(project), training=False, grad=False)[0])
        for replaced in (0, _SIZE - 1):
            batch = _batch(project, replaced)
            after = tensors_in(project.forward(batch, training=False, grad=False)[0])
            change = _largest_change(before, after, replaced)
            if change:
                statistics = [_uses_batch(layer) for layer in project.module.modules()]
                make = hint if any(statistics) else certain
                yield make(
                    "mixed",
                    f"the output of a sample changes by {change:.1%} when another sample of its "
                    f"batch is replaced, {_first_place(project, replaced)}",
                    "`view` where `permute` is meant, a layer without `batch_first`, a softmax or "
                    "a mean over dimension 0",
                    "keep the samples apart: dimension 0 of each tensor is the batch",
                )
                return


def _batch(project: Project, replaced: int | None = None) -> Any:
    """A validation batch in which one sample's inputs may be those of another."""
    try:
        batch, other = project.two_batches("val", _SIZE)
    except CannotCheck:  # as one of graphs: it is made anew
        keys = project.order("val")[: _SIZE + 1]
        if replaced is not None:
            keys[replaced] = keys[_SIZE]
        return project.batch_of("val", keys[:_SIZE])
    for key in project.keys()[0] if replaced is not None else ():
        value = batch.get(key)
        if isinstance(value, Tensor) and value.ndim and value.shape == other[key].shape:
            value[replaced] = other[key][replaced]
    return batch


def _uses_batch(layer: nn.Module) -> bool:
    """Whether it is a norm without running statistics, which means to mix."""
    return "Norm" in type(layer).__name__ and getattr(layer, "running_mean", 0) is None


def _largest_change(a: dict[str, Tensor], b: dict[str, Tensor], replaced: int) -> float:
    """Of the rows of the other samples, relative to the largest value; 0 if it is tiny."""
    keep = [i for i in range(_SIZE) if i != replaced]
    for name, x in a.items():
        y = b.get(name)
        if y is None or x.shape != y.shape or not x.is_floating_point() or not has_rows(x, _SIZE):
            continue
        if not alike(x[keep], y[keep], 1e-3):
            return float((x[keep] - y[keep]).abs().max() / x.abs().max())
    return 0.0


def _first_place(project: Project, replaced: int) -> str:
    """The first layer whose values change for the other samples."""
    calls: list[tuple[str, dict[str, Tensor], dict[str, Tensor]]] = []
    handles = []
    for name, layer in project.module.named_modules():
        if not [*layer.children()] and not name.startswith(("train_metrics", "val_metrics")):
            title = f"`{name}` ({type(layer).__name__})"

            def note(_: Any, args: Any, output: Any, title: str = title) -> None:
                calls.append((title, tensors_in(args), tensors_in(output)))

            handles.append(layer.register_forward_hook(note))
    runs = []
    try:
        for batch in (_batch(project), _batch(project, replaced)):
            calls.clear()
            project.forward(batch, training=False, grad=False)
            runs.append([*calls])
    finally:
        for handle in handles:
            handle.remove()
    for (title, x, y), (_, other_x, other_y) in zip(*runs, strict=False):
        for value in x.values():
            if value.ndim > 1 and value.shape[0] != _SIZE and _SIZE in value.shape:
                return f"first in {title}, which gets {tuple(value.shape)}: the batch comes later"
        if _largest_change(x, other_x, replaced):
            return f"already in the input of {title}"
        if _largest_change(y, other_y, replaced):
            return f"first in {title}"
    return "after the last layer"
