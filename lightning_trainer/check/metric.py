"""A metric that does not measure what the loss teaches."""

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_trainer.base.metrics import named_metrics
from lightning_trainer.check.activation import loss_graph
from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint
from lightning_trainer.check.graphs import operation
from lightning_trainer.check.ideal import UNBOUNDED, ideal_output
from lightning_trainer.check.nested import alike, map_tensors, tensors_in
from lightning_trainer.check.project import Project
from lightning_trainer.check.score import metrics_direction

_N, _N_NUMBERS = 512, 200_000  # validation samples that are looked at; numbers in their output
# What a project's own code raises for a batch or an output that it would never get.
_REFUSED = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


class UpdateWatch:
    """Stands for metrics, and notes what they are given."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def update(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((args, kwargs))

    __call__ = forward = update

    def __getitem__(self, name: str) -> "UpdateWatch":
        return self

    def items(self) -> Any:
        return [("metric", self)]

    def values(self) -> Any:
        return [self]


def find_wrong_metric(project: Project) -> Iterator[Finding]:
    """Changes the output, and gives the metric the output that the loss likes best."""
    project.dataset("val")
    size = min(_N, project.size("val"))
    if size < 4:
        raise CannotCheck("there are fewer than 4 validation samples")
    with project.scratch():
        n_numbers = sum(t.numel() for t in tensors_in(_output(project, 4)).values()) / 4
        size = min(size, max(16, int(_N_NUMBERS / max(n_numbers, 1))))
        batch = project.batch("val", size)
        with_graph, loss = project.forward(batch, training=False)
        output = map_tensors(with_graph, Tensor.detach)
        others = [map_tensors(output, change) for change in _CHANGES]
        if not tensors_in(output) or alike(tensors_in(output), tensors_in(others[0])):
            raise CannotCheck("the output has no tensor of floats whose first dimension is B")
        found = [*_wrong_arguments(project, batch, output, others)]
        yield from found
        if found or any(_is_square(t, size) for t in tensors_in(output).values()):
            return
        yield from _not_a_number(project, batch, output, others[0])
        if loss is None or _is_mean(project, batch, others[1], size):
            yield from _mean_of_batches(project, batch, others[0], size)
        yield from _at_ideal(project, batch, with_graph, output)


def _output(project: Project, size: int) -> Any:
    return project.forward(project.batch("val", size), training=False, grad=False)[0]


def _moved(tensor: Tensor) -> Tensor:
    """Each sample's output in place of another's, with another sign."""
    return -tensor.roll(1, 0) + 0.1 if tensor.is_floating_point() and tensor.ndim else tensor


def _drawn(tensor: Tensor, scale: float) -> Tensor:
    return scale * torch.randn_like(tensor) if tensor.is_floating_point() else tensor


# Outputs of which a metric that does not tell some apart still tells others.
_CHANGES = (_moved, partial(_drawn, scale=1.0), partial(_drawn, scale=1000.0))


def _is_square(tensor: Tensor, size: int) -> bool:
    return tensor.ndim > 1 and tensor.shape[0] == tensor.shape[1] == size


def _wrong_arguments(
    project: Project, batch: Any, output: Any, others: Sequence[Any]
) -> Iterator[Finding]:
    """Compares what the metrics get for several outputs."""
    metrics = named_metrics(project.module.val_metrics).values()
    signatures = [[*inspect.signature(metric.update).parameters][:2] for metric in metrics]
    usual = all(names == ["preds", "target"] for names in signatures)
    calls = _given(project, batch, output)
    changed = [_differ(calls, _given(project, batch, other)) for other in others]
    if calls and not any(any(differs) for differs in changed):
        yield certain(
            "fixed",
            "what `update_metrics` gives to the metric does not depend on the output",
            "it compares the labels with themselves, or with the input",
            "give it the output and the labels",
        )
    elif usual and calls and all(differs == [False, True] for differs in changed):
        yield certain(
            "swapped",
            "`metrics.update` gets the target first, the prediction second",
            "scikit-learn has the other order",
            "metrics.update(prediction, target)",
        )


def _given(project: Project, batch: Any, output: Any) -> list[list[Any]]:
    """The arguments of each update; by name "preds" comes first, "target" second."""
    watch = UpdateWatch()
    with contextlib.suppress(*_REFUSED):
        project.module.update_metrics(watch, batch, output)
    return [
        [*args, *(named[key] for key in ("preds", "target", *named) if key in named)]
        for args, named in watch.calls
    ]


def _differ(calls: list[list[Any]], others: list[list[Any]]) -> list[bool]:
    """Whether the arguments differ, by their position, over all updates."""
    if len(calls) != len(others):
        return [True]
    pairs = [
        [not alike(a, b) for a, b in zip(x, y, strict=False)]
        for x, y in zip(calls, others, strict=True)
    ]
    return [any(column) for column in zip(*pairs, strict=False)]


def _not_a_number(project: Project, batch: Any, output: Any, other: Any) -> Iterator[Finding]:
    name = project.module.score_key.partition("/")[2]
    scores = [_scores(project, batch, each).get(name, 0.0) for each in (output, other)]
    if all(math.isnan(score) for score in scores):
        yield hint(
            "nan",
            f"the score `{name}` is NaN, whatever the output is: no state would be the best",
            "the metric divides by zero, or gets NaN among the targets",
            "leave samples without a target out in `update_metrics`, or name another score by "
            "`score_name`",
        )


def _is_mean(project: Project, batch: Any, output: Any, size: int) -> bool:
    """Whether the loss of a batch is the mean of those of its parts: the task is of samples."""
    n, losses = size // 2, []
    try:
        for part in (slice(None), slice(n), slice(n, 2 * n)):
            own = [map_tensors(v, partial(_cut, part=part, size=size)) for v in (batch, output)]
            losses.append(float(project.loss(*own)))
    except _REFUSED:
        return False
    return math.isclose(losses[0], (losses[1] + losses[2]) / 2, rel_tol=1e-4)


def _cut(tensor: Tensor, part: slice, size: int) -> Tensor:
    return tensor[part] if tensor.ndim and len(tensor) == size else tensor


def _scores(
    project: Project, batch: Any, output: Any, sizes: Sequence[int] = ()
) -> dict[str, float]:
    """Each scalar metric of the whole batch, or of its parts one after the other."""
    module = project.module
    metrics, n, start = module.val_metrics.clone(), module.count_examples(batch), 0
    metrics.reset()
    for size in sizes or (n,):
        part = slice(start, start + size)

        cut = partial(_cut, part=part, size=n)
        own = [map_tensors(v, cut) if sizes else v for v in (batch, output)]
        module.update_metrics(metrics, *own)
        start += size
    values = {name: metric.compute() for name, metric in named_metrics(metrics).items()}
    scalars = {k: v for k, v in values.items() if isinstance(v, Tensor) and v.numel() == 1}
    return {name: value.item() for name, value in scalars.items()}


def _mean_of_batches(project: Project, batch: Any, output: Any, size: int) -> Iterator[Finding]:
    cut = max(1, size // 5)
    try:
        whole = _scores(project, batch, output)
        parts = _scores(project, batch, output, (size - cut, cut))
    except _REFUSED:  # a batch that can't be cut
        return
    for name, value in whole.items():
        if math.isfinite(value) and abs(value - parts[name]) > 2e-3 * max(abs(value), 1e-6):
            yield hint(
                "mean_of_batches",
                f"`{name}` of {size} samples is {value:.4f} in one batch, {parts[name]:.4f} in two",
                "it is a mean over batches of what is no mean over samples",
                "give torchmetrics predictions and targets, and let it average",
            )
            return


def _at_ideal(project: Project, batch: Any, with_graph: Any, output: Any) -> Iterator[Finding]:
    """The score of the output that the loss likes best."""
    name, right = project.module.score_key.partition("/")[2], metrics_direction(project)
    metric = named_metrics(project.module.val_metrics).get(name)
    if metric is None or right is None or not project.module.automatic_optimization:
        return
    ideal = ideal_output(project, batch, with_graph)
    if ideal is None or (ideal[1] <= UNBOUNDED and not _is_of_classes(project)):
        return  # e.g. a density, which is highest for an output that no network has
    best = _scores(project, batch, ideal[0]).get(name, math.nan)
    start = _scores(project, batch, output).get(name, math.nan)
    highest = getattr(metric, "plot_upper_bound", None)
    worse = start - best if right == "max" else best - start
    at_end = right == "min" or abs(start - (highest or 1)) < 0.02
    if worse > max(1e-6, 0.02 * abs(start)) or (worse >= -1e-6 and not at_end):
        # With a loss that is only near to what the score measures, the ideal may be a little worse.
        is_far = ideal[1] > UNBOUNDED and worse > 0.5 * abs(start)
        make = certain if is_far else hint
        yield make(
            "disagrees",
            f"the output that the loss likes best has `{name}` {best:.4f}, the untrained "
            f"network's has {start:.4f}",
            "the loss has a wrong sign, or loss and metric compare with different targets",
            "check the sign of the loss, and what `update_metrics` compares",
        )
    elif right == "max" and highest == 1.0 and best < 0.97:
        counts = type(metric).__name__.startswith(("Multiclass", "Binary"))
        make = certain if best < 0.5 and counts and _is_of_classes(project) else hint
        yield make(
            "disagrees",
            f"the output that the loss likes best has `{name}` {best:.4f}, not 1",
            "loss and metric compare with different targets, or in another layout",
            "give `update_metrics` the targets and the output as the loss sees them",
        )


def _is_of_classes(project: Project) -> bool:
    names = {operation(node) for node in loss_graph(project).after_output}
    return bool(names & {"NllLoss", "NllLoss2D", "BinaryCrossEntropyWithLogits", "LogSoftmax"})
