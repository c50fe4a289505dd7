"""A metric that does not measure what the loss teaches."""

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from lightning_trainer.base.metrics import named_metrics
from lightning_trainer.check.findings import CannotCheck, Finding, certain, hint
from lightning_trainer.check.ideal import UNBOUNDED, ideal_output
from lightning_trainer.check.nested import alike, map_tensors, tensors_in
from lightning_trainer.check.project import Project
from lightning_trainer.check.score import metrics_direction

_N = 512  # validation samples that are looked at


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
        batch = project.batch("val", size)
        with_graph, _ = project.forward(batch, training=False)
        output = map_tensors(with_graph, Tensor.detach)
        other = map_tensors(output, _moved)
        if not tensors_in(output) or alike(tensors_in(output), tensors_in(other)):
            raise CannotCheck("the output has no tensor of floats whose first dimension is B")
        found = [*_wrong_arguments(project, batch, output, other)]
        yield from found
        if found or any(_is_square(t, size) for t in tensors_in(output).values()):
            return
        yield from _mean_of_batches(project, batch, other, size)
        yield from _at_ideal(project, batch, with_graph, output)


def _moved(tensor: Tensor) -> Tensor:
    """Each sample's output in place of another's, with another sign."""
    return -tensor.roll(1, 0) + 0.1 if tensor.is_floating_point() and tensor.ndim else tensor


def _is_square(tensor: Tensor, size: int) -> bool:
    return tensor.ndim > 1 and tensor.shape[0] == tensor.shape[1] == size


def _wrong_arguments(project: Project, batch: Any, a: Any, b: Any) -> Iterator[Finding]:
    """Compares what the metrics get for two outputs."""
    watches = UpdateWatch(), UpdateWatch()
    for watch, output in zip(watches, (a, b), strict=True):
        project.module.update_metrics(watch, batch, output)
    metrics = named_metrics(project.module.val_metrics).values()
    signatures = [[*inspect.signature(metric.update).parameters][:2] for metric in metrics]
    for (args, named), (other, other_named) in zip(*(w.calls for w in watches), strict=False):
        pairs = [(x, y) for x, y in zip(args, other, strict=True) if isinstance(x, Tensor)]
        pairs += [(named[k], other_named[k]) for k in ("preds", "target") if k in named]
        differs = [not alike(x, y) for x, y in pairs]
        if differs and not any(differs):
            yield certain(
                "fixed",
                "what `update_metrics` gives to the metric does not depend on the output",
                "it compares the labels with themselves, or with the input",
                "give it the output and the labels",
            )
            return
        usual = all(names == ["preds", "target"] for names in signatures)
        if differs == [False, True] and not named and usual:
            yield certain(
                "swapped",
                "`metrics.update` gets the target first, the prediction second",
                "scikit-learn has the other order",
                "metrics.update(prediction, target)",
            )
            return


def _scores(
    project: Project, batch: Any, output: Any, sizes: Sequence[int] = ()
) -> dict[str, float]:
    """Each scalar metric of the whole batch, or of its parts one after the other."""
    module = project.module
    metrics, n, start = module.val_metrics.clone(), module.count_examples(batch), 0
    metrics.reset()
    for size in sizes or (n,):
        part = slice(start, start + size)

        def cut(tensor: Tensor, part: slice = part) -> Tensor:
            return tensor[part] if sizes and tensor.ndim and len(tensor) == n else tensor

        module.update_metrics(metrics, map_tensors(batch, cut), map_tensors(output, cut))
        start += size
    values = {name: metric.compute() for name, metric in named_metrics(metrics).items()}
    scalars = {k: v for k, v in values.items() if isinstance(v, Tensor) and v.numel() == 1}
    return {name: value.item() for name, value in scalars.items()}


def _mean_of_batches(project: Project, batch: Any, output: Any, size: int) -> Iterator[Finding]:
    cut = max(1, size // 5)
    try:
        whole = _scores(project, batch, output)
        parts = _scores(project, batch, output, (size - cut, cut))
    except (RuntimeError, ValueError, IndexError, TypeError):  # a batch that can't be cut
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
    if ideal is None:
        return
    best = _scores(project, batch, ideal[0]).get(name, math.nan)
    start = _scores(project, batch, output).get(name, math.nan)
    highest = getattr(metric, "plot_upper_bound", None)
    gain = (best - start) * (1 if right == "max" else -1)
    at_end = right == "min" or abs(start - (highest or 1)) < 0.02
    make = certain if ideal[1] > UNBOUNDED else hint
    if gain < -1e-6 or (gain <= 1e-6 and not at_end):
        yield make(
            "disagrees",
            f"the output that the loss likes best has `{name}` {best:.4f}, the untrained "
            f"network's has {start:.4f}",
            "the loss has a wrong sign, or loss and metric compare with different targets",
            "check the sign of the loss, and what `update_metrics` compares",
        )
    elif right == "max" and highest == 1.0 and best < 0.97:
        make = certain if best < 0.5 else hint
        yield make(
            "disagrees",
            f"the output that the loss likes best has `{name}` {best:.4f}, not 1",
            "loss and metric compare with different targets, or in another layout",
            "give `update_metrics` the targets and the output as the loss sees them",
        )
