"""Private parts of torch's autograd graphs, and of Lightning's way of a batch to the device."""

from typing import Any

import lightning.pytorch as pl


def saved_value(node: Any, name: str) -> Any:
    """What a node of a graph has saved, e.g. its "target"; None if it saves nothing of that name.

    torch 1.9: `_saved_NAME`. A negative int comes back as an unsigned one.
    """
    value = getattr(node, f"_saved_{name}", None)
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


def result_shape(node: Any) -> tuple[int, ...]:
    """The shape of a node's first result; empty if it is not known.

    torch 2.1: `_input_metadata`, of the gradients that it takes.
    """
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else ()


def to_device(trainer: pl.Trainer, batch: Any) -> Any:
    """A batch after all three of its transfer hooks.

    Lightning 2.0: its data fetcher calls `_on_before_batch_transfer`, the strategy the others.
    """
    batch = trainer.lightning_module._on_before_batch_transfer(batch, 0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
