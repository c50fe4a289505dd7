"""What is asked of any batch or output: how many examples it holds, and without its graph."""

from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_trainer.base.hook_checks import refuse_to_count

Batch = Any  # what the loader gives, on the device: by default a dict of tensors (B, ...)


def count(module: Any, batch: Batch) -> int:
    """The length of the first tensor in a dict, also in one within it, in a list, or alone.

    A list within a batch is passed over: it may have an entry for each example, or a few tensors.

    Raises:
        TypeError: If there is no such tensor.
    """
    values = batch.values() if isinstance(batch, Mapping) else batch
    values = values if isinstance(batch, Mapping | list | tuple) else (batch,)
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
        if isinstance(value, Mapping) and isinstance(batch, Mapping):
            return count(module, value)
    refuse_to_count(module, values)


def detach(output: Any) -> Any:
    """The same without its graph, whatever it is made of."""
    if isinstance(output, Tensor):
        return output.detach()
    return apply_to_collection(output, Tensor, Tensor.detach)
