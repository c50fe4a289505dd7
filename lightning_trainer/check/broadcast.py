"""A loss that compares each sample with every other, or grows with the batch."""

import warnings
from collections.abc import Iterator
from typing import Any

from lightning_trainer.check.activation import LossGraph, loss_graph
from lightning_trainer.check.findings import CannotCheck, Finding, certain
from lightning_trainer.check.graphs import operation
from lightning_trainer.check.nested import copied, map_tensors, tensors_in
from lightning_trainer.check.project import Project
from lightning_trainer.internals_of_graphs import result_shape

_ELEMENTWISE = ("Sub", "Mul", "Add", "Div", "Rsub")


def find_broadcast(project: Project) -> Iterator[Finding]:
    """Looks at the shapes in the graph of the loss, and at the loss of batches of two sizes."""
    graph = loss_graph(project)
    yield from _expanded(project, graph)
    yield from _grows(project)


def _expanded(project: Project, graph: LossGraph) -> Iterator[Finding]:
    """Looks for a (B, B) of the output, (B,) or (B, 1), and of something of the other form."""
    cause = "one of output and target is (B,), the other (B, 1): each is compared with every other"
    remedy = "give both the same shape, e.g. by `output.squeeze(1)`"
    flat, column = (graph.size,), (graph.size, 1)
    given = {tuple(t.shape) for t in tensors_in(graph.batch).values()}
    for node in graph.after_output:
        shape = result_shape(node)
        if shape[:2] != (graph.size, graph.size) or operation(node) not in _ELEMENTWISE:
            continue
        # Of two outputs, or of a row that was made, it is meant.
        operands = [result_shape(before) for before, _ in node.next_functions if before is not None]
        is_meant = any(operation(before) == "Unsqueeze" for before, _ in node.next_functions)
        other = {flat: column, column: flat}.get(operands[0]) if len(operands) == 1 else None
        if other in given and not is_meant:
            yield certain(
                "expanded",
                f"the loss expands {operands[0]} to {shape}, with {graph.size} samples",
                cause,
                remedy,
            )
            return
    with warnings.catch_warnings(record=True) as caught, project.scratch():
        warnings.simplefilter("always")
        project.trained_loss(project.batch())
    for warning in caught:
        text = str(warning.message).partition(". ")[0]
        if "Using a target size" in text:
            yield certain("expanded", f"torch says: {text}", cause, remedy)
            return


def _grows(project: Project) -> Iterator[Finding]:
    """Compares the loss of 16 samples with those of the halves, and of the quarters."""
    with project.scratch():
        losses = {size: _mean_loss(project, size) for size in (16, 8, 4)}
    if all(losses[n] and 1.9 < losses[2 * n] / losses[n] < 2.1 for n in (8, 4)):
        yield certain(
            "sum",
            f"the loss of 16 samples is {losses[16]:.4g}, of 8 of them {losses[8]:.4g}, of 4 "
            f"{losses[4]:.4g}",
            "it is a sum over the batch: the best learning rate depends on the batch's size",
            'average over the batch, e.g. reduction="mean"',
        )


def _mean_loss(project: Project, size: int) -> float:
    """The mean of the losses of 16 training samples in batches of some size."""
    losses = []
    for batch in _parts(project, size):
        loss = None
        if not project.has_own_step:
            _, loss = project.forward(copied(batch), training=False, grad=False)
        loss = project.trained_loss(batch) if loss is None else loss  # None in evaluation
        losses.append(loss.item())
    return float(sum(losses) / len(losses))


def _parts(project: Project, size: int) -> list[Any]:
    if project.has("train"):
        if project.size("train") < 16:
            raise CannotCheck("there are fewer than 16 training samples")
        return [project.batch("train", size, skip) for skip in range(0, 16, size)]
    whole = project.batch("train", 16)
    parts = {len(t) for t in tensors_in(whole).values() if t.ndim}
    if parts != {16}:
        raise CannotCheck("a batch of the stream can't be cut into parts of 16 samples")

    def cut(start: int) -> Any:
        return map_tensors(copied(whole), lambda t: t[start : start + size] if t.ndim else t)

    return [cut(start) for start in range(0, 16, size)]
