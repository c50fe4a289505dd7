"""The output that the loss likes best, found without the network."""

import math
from typing import Any

import torch

from lightning_trainer.check.nested import map_tensors, tensors_in
from lightning_trainer.check.project import Project

_STEPS, _LIMIT_S = 150, 5.0  # seconds of work; what is not reached then is not known
UNBOUNDED = -1e4  # a loss below this has no lowest value


class FreeOutput:
    """An output whose tensors are variables.

    Only what depends on weights is free, which its graph tells, not noise that is handed on.
    """

    def __init__(self, output: Any, constant: bool, scale: float) -> None:
        self._output = output
        tensors = [*tensors_in(output).values()]
        self._free = [tensor.requires_grad and tensor.is_floating_point() for tensor in tensors]
        self.values = []
        for tensor, is_free in zip(tensors, self._free, strict=True):
            start = tensor.detach().float()
            if constant and tensor.ndim:
                start = start.mean(0, keepdim=True) * scale
            if is_free:
                self.values.append(start.clone().requires_grad_())

    def rebuilt(self) -> Any:
        """The output with the variables in it."""
        values, free = iter(self.values), iter(self._free)
        return map_tensors(
            self._output,
            lambda t: next(values).expand(t.shape).contiguous() if next(free) else t.detach(),
        )


def ideal_output(
    project: Project, batch: Any, output: Any, constant: bool = False, scale: float = 1.0
) -> tuple[Any, float] | None:
    """Minimises `forward_loss` over the output itself; None if nothing in it is free.

    Rprop takes the signs of gradients and lets its steps grow, so that it reaches any scale.

    Args:
        output: With its graph.
        constant: Finds the best output that is the same for all samples.
        scale: What the constant output begins with, in units of the mean of `output`.

    Returns:
        The output, detached, and its loss.
    """
    free = FreeOutput(output, constant, scale)
    if not free.values:
        return None
    return _minimised(project, batch, free)


def _minimised(project: Project, batch: Any, free: FreeOutput) -> tuple[Any, float] | None:
    patience = project.patience(_LIMIT_S)
    optimiser = torch.optim.Rprop(free.values, lr=0.1, step_sizes=(1e-8, 1e3))
    value = math.inf
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimiser.zero_grad()
            loss = project.loss(batch, free.rebuilt())
            if loss is None or not loss.requires_grad:
                return None
            if not math.isfinite(loss.item()):
                if value > UNBOUNDED:
                    return None
                break  # on the way to minus infinity
            value, before = loss.item(), [each.detach().clone() for each in free.values]
            loss.backward()
            optimiser.step()
            if patience.is_over:
                return None
    with torch.no_grad():
        if value < UNBOUNDED:
            for each, last in zip(free.values, before, strict=True):
                each.copy_(last)
        result = map_tensors(free.rebuilt(), lambda t: t.detach().clone())
        return result, float(project.loss(batch, result))


def constant_loss(project: Project, batch: Any, output: Any) -> float | None:
    """The loss of the best output that is the same for all samples; None if it is not known."""
    found = [ideal_output(project, batch, output, True, scale) for scale in (1.0, 0.0)]
    losses = [pair[1] for pair in found if pair and math.isfinite(pair[1])]
    return min(losses, default=None)
