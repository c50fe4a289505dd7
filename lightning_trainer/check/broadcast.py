"""A loss that compares each sample with every other, or grows with the batch."""

import warnings
from collections.abc import Iterator

from lightning_trainer.check.activation import LossGraph, loss_graph
from lightning_trainer.check.findings import CannotCheck, Finding, certain
from lightning_trainer.check.graphs import input_shapes, operation
from lightning_trainer.check.nested import copied, tensors_in
from lightning_trainer.check.project import Project
from lightning_trainer.internals_of_graphs import result_shape

_ELEMENTWISE = (
    "Sub",
    "Mul",
    "Add",
    "Div",
    "Rsub",
    "Expand",
    "MseLoss",
    "SmoothL1Loss",
    "HuberLoss",
)


def find_broadcast(project: Project) -> Iterator[Finding]:
    """Looks at the shapes in the graph of the loss, and at the loss of batches of two sizes."""
    graph = loss_graph(project)
    yield from _expanded(project, graph)
    yield from _grows(project)


def _expanded(project: Project, graph: LossGraph) -> Iterator[Finding]:
    cause = "one of output and target is (B,), the other (B, 1): each is compared with every other"
    remedy = "give both the same shape, e.g. by `output.squeeze(1)`"
    for node in graph.after_output:
        shape = result_shape(node)
        if shape[:2] != (graph.size, graph.size) or operation(node) not in _ELEMENTWISE:
            continue
        flat = ((graph.size, 1), (graph.size,), (1, graph.size))
        if found := [operand for operand in input_shapes(node) if operand in flat]:
            evidence = f"the loss expands {found[0]} to {shape}, with {graph.size} samples"
            yield certain("expanded", evidence, cause, remedy)
            return
    with warnings.catch_warnings(record=True) as caught, project.scratch():
        warnings.simplefilter("always")
        project.forward(project.batch())
    for warning in caught:
        text = str(warning.message).partition(". ")[0]
        if "Using a target size" in text:
            yield certain("expanded", f"torch says: {text}", cause, remedy)
            return


def _grows(project: Project) -> Iterator[Finding]:
    batches = [project.batch("train", 16), *project.two_batches("train", 8)]
    lengths = [{len(t) for t in tensors_in(batch).values() if t.ndim} for batch in batches]
    if 16 not in lengths[0] or 8 not in lengths[1] & lengths[2]:
        raise CannotCheck("there are no batches of 16 and of 8 training samples")
    with project.scratch():
        losses = []
        for batch in batches:
            _, loss = project.forward(copied(batch), training=False, grad=False)
            if loss is None:  # in evaluation
                _, loss = project.forward(batch)
            losses.append(loss.item())
    whole, half = losses[0], sum(losses[1:]) / 2
    if half and 1.9 < whole / half < 2.1:
        yield certain(
            "sum",
            f"the loss of 16 samples is {whole:.4g}, of 8 of them {half:.4g}",
            "it is a sum over the batch: the best learning rate depends on the batch's size",
            'average over the batch, e.g. reduction="mean"',
        )
