"""What a step tells of its losses, and their means over an evaluation."""

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_trainer.base.hook_checks import refuse_loss


def of_step(module: Any, loss: Any, hook: str = "forward_loss") -> dict[str, Any]:
    """What a step returns of a loss that is no scalar tensor.

    Returns:
        Of a dict of named losses their sum, "loss", and "losses" themselves, detached. Nothing of
        None, which an evaluation may have.

    Raises:
        TypeError: If it is anything else.
    """
    if loss is None and not module.training:
        return {}
    if not isinstance(loss, Mapping) or not loss:
        refuse_loss(module, loss, hook)
    for name, value in loss.items():
        if not isinstance(value, Tensor) or value.ndim:
            refuse_loss(module, value, hook, name)
    named = {str(name): value.detach() for name, value in loss.items()}
    return {"loss": reduce(add, loss.values()), "losses": named}


def loss_of(outputs: Any) -> Tensor | None:
    """The loss among the outputs of a step: a tensor, or a mapping with "loss"; else None."""
    is_mapping = type(outputs) is dict or isinstance(outputs, Mapping)  # the latter takes 1 us
    loss = outputs.get("loss") if is_mapping else outputs
    return loss if isinstance(loss, Tensor) else None


def named_losses(outputs: Any) -> Mapping[str, Tensor]:
    """The named losses among the outputs of a step; empty if it has one loss, or none."""
    losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
    return losses if isinstance(losses, Mapping) else {}


class MeanLosses:
    """The means of losses over the examples of those batches that have them."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}  # and the examples

    def update(self, losses: Mapping[str, Tensor], n_examples: int) -> None:
        for name, loss in losses.items():
            total = (loss.detach().float() * n_examples).sum()
            before, n_before = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + before, n_examples * loss.numel() + n_before

    def compute(self, trainer: pl.Trainer) -> tuple[dict[str, Tensor], int]:
        """The means and the examples of "loss", over all processes, which meet here; then reset.

        Waits for the device where there are several.
        """
        names, device = _of_all_processes(trainer, [*self._sums]), trainer.strategy.root_device
        none = torch.zeros((), device=device), 0
        sums = {name: self._sums.get(name, none) for name in names}
        self._sums = {}
        if trainer.world_size > 1 and names:
            rows = [[total.to(device).double(), none[0].double() + n] for total, n in sums.values()]
            own = torch.stack([torch.stack(row) for row in rows])
            totals, counts = trainer.strategy.all_gather(own).sum(0).T
            sums = dict(zip(names, zip(totals.float(), map(int, counts), strict=True), strict=True))
        means = {name: (total / n).to(device) for name, (total, n) in sums.items()}
        return means, sums.get("loss", none)[1]


def _of_all_processes(trainer: pl.Trainer, names: list[str]) -> list[str]:
    if trainer.world_size == 1:
        return names
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, names)
    return [*dict.fromkeys(name for own in gathered for name in own)]
