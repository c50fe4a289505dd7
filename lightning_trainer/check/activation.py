"""An activation that the loss does not expect, or that the targets leave."""

import math
from collections.abc import Iterator
from typing import Any

from lightning_trainer.check.findings import Finding, certain, hint
from lightning_trainer.check.graphs import all_nodes, computed_before, operation
from lightning_trainer.check.nested import tensors_in
from lightning_trainer.check.project import Project
from lightning_trainer.internals_of_graphs import result_shape, saved_value

_BOUNDS = {"Sigmoid": (0, 1), "Tanh": (-1, 1), "Relu": (0, math.inf), "Softmax": (0, 1)}
_LOGITS = ("LogSoftmax", "BinaryCrossEntropyWithLogits")  # what expects logits
_REGRESSION = ("MseLoss", "SmoothL1Loss", "HuberLoss")


class LossGraph:
    """The graph of one training batch's loss."""

    def __init__(self, project: Project) -> None:
        project.need_one_loss()
        self.batch = project.batch()
        self.size = project.n_in(self.batch)  # B
        self.after_output: set[Any] = set()  # nodes between the output and the loss
        self.output: Any = None  # None of a project with a training step of its own
        with project.scratch():
            if project.has_own_step:
                self.value = project.trained_loss(project.batch())
            else:
                self.output, self.value = project.forward(project.batch())
        self.nodes = all_nodes(self.value.grad_fn)
        ends = {t.grad_fn for t in tensors_in(self.output).values() if t.grad_fn is not None}
        if ends:
            self.after_output = {*all_nodes(self.value.grad_fn, until=ends)}
        self.around_output = self.after_output | ends


def loss_graph(project: Project) -> LossGraph:
    """That of the project, made once; CannotCheck if it trains in another way."""
    return project.once("graph", lambda: LossGraph(project))


def find_wrong_activations(project: Project) -> Iterator[Finding]:
    """Looks at each node of the graph of the loss."""
    graph, said = loss_graph(project), set()
    for node in graph.nodes:
        for finding in _judge_node(graph, node):
            if finding.kind not in said:
                said.add(finding.kind)
                yield finding


def _judge_node(graph: LossGraph, node: Any) -> Iterator[Finding]:
    what = operation(node)
    before = operation(computed_before(node))
    if what in _LOGITS:
        yield from _not_logits(what, before)
    elif what in ("NllLoss", "NllLoss2D"):
        yield from _not_log_probabilities(node)
    elif what in _REGRESSION and before in _BOUNDS:
        yield from _out_of_reach(node, before)
    shape = result_shape(node)
    if what in ("Softmax", "LogSoftmax") and node in graph.around_output and len(shape) > 1:
        over = saved_value(node, "dim") % len(shape)
        if over == 0 and shape[0] == graph.size != shape[1]:
            yield certain(
                "softmax_over_batch",
                f"a softmax of a tensor {shape} goes over its dimension 0, the batch",
                "dim=0 is given, or none where torch then takes the first",
                "give it the dimension of the classes, e.g. dim=1",
            )


def _not_logits(what: str, before: str) -> Iterator[Finding]:
    applied = "log_softmax" if what == "LogSoftmax" else "a sigmoid"
    remedy = "return logits from `forward_model`: remove the activation after the last layer"
    if before in ("Softmax", "Sigmoid"):
        yield certain(
            "double_softmax",
            f"the loss applies {applied} to what has been through a {before.lower()}",
            "the loss expects logits, and the network returns probabilities",
            remedy,
        )
    elif before in ("Relu", "Tanh") and what == "LogSoftmax":
        reach = "never negative" if before == "Relu" else "between -1 and 1"
        yield hint(
            "bounded_logits",
            f"the logits have been through {before.lower()}: they are {reach}",
            "an activation follows each layer, the last one included",
            remedy,
        )


def _not_log_probabilities(node: Any) -> Iterator[Finding]:
    scores = saved_value(node, "self").detach().float()
    total = scores.exp().sum(1 if scores.ndim > 1 else 0)
    if bool(((total - 1).abs() >= 0.05).any()):
        yield certain(
            "nll_of_logits",
            f"NLLLoss gets values whose exponentials add up to {total.min():.3g} to "
            f"{total.max():.3g}, not to 1",
            "it expects log probabilities, and the network returns logits",
            "use CrossEntropyLoss, or log_softmax over the classes before it",
        )


def _out_of_reach(node: Any, before: str) -> Iterator[Finding]:
    target, (low, high) = saved_value(node, "target").detach().float(), _BOUNDS[before]
    outside = ((target < low - 1e-3) | (target > high + 1e-3)).float().mean().item()
    if outside > 0.02:
        make = certain if outside > 0.2 else hint  # noise may go below 0 where no value does
        yield make(
            "out_of_reach",
            f"{outside:.0%} of the target values, which reach from {target.min():.3g} to "
            f"{target.max():.3g}, lie outside of [{low}, {high}]",
            f"the {before.lower()} at the end can't leave that range",
            "remove it, or scale the targets",
        )
