"""Tensors in nested dicts, lists and tuples, as batches and outputs have them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


class Recorder(dict[Any, Any]):
    """A batch that notes which of its keys are read."""

    def __init__(self, batch: Mapping[Any, Any]) -> None:
        super().__init__(batch)
        self.read: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self.read.add(key)
        return super().pop(key, *default)

    def items(self) -> Any:
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        self.read.update(self)
        return super().values()


def tensors_in(value: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors, in the order of `map_tensors`, by their path, e.g. "boxes.0"."""
    if isinstance(value, Tensor):
        return {path or "output": value}
    if isinstance(value, Mapping):
        parts = [*value.items()]
    elif isinstance(value, list | tuple):
        parts = [*enumerate(value)]
    else:
        return {}
    found: dict[str, Tensor] = {}
    for key, part in parts:
        found |= tensors_in(part, f"{path}.{key}" if path else str(key))
    return found


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """With each tensor replaced by what `function` returns for it."""
    return apply_to_collection(value, Tensor, function)


def copied(value: Any) -> Any:
    """With tensors and arrays of its own."""
    value = apply_to_collection(value, np.ndarray, np.copy)
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def alike(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two values are equal; tensors of floats within `tolerance` of the largest in `a`.

    NaN equals NaN. What is neither number, tensor nor collection counts as equal.
    """
    if isinstance(a, Mapping):
        same_keys = isinstance(b, Mapping) and a.keys() == b.keys()
        return same_keys and all(alike(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in pairs)
    if isinstance(a, str | bytes):
        return bool(a == b)
    if not isinstance(a, Tensor | np.ndarray | np.number | int | float):
        return True
    a, b = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
    if a.shape != b.shape:
        return False
    if not tolerance or not a.is_floating_point() or not a.numel():
        return bool(((a == b) | ((a != a) & (b != b))).all())
    return bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1e-12))


def has_rows(tensor: Tensor, size: int) -> bool:
    """Whether the first dimension, and not the second one too, is that of the samples."""
    is_square = tensor.ndim > 1 and tensor.shape[1] == size
    return tensor.ndim > 0 and tensor.shape[0] == size and not is_square


def first_samples(batch: Any, size: int) -> Any:
    """The first samples of a batch; all of it if it has parts of several lengths."""
    lengths = {len(tensor) for tensor in tensors_in(batch).values() if tensor.ndim}
    one = len(lengths) == 1
    return map_tensors(batch, lambda t: t[:size] if t.ndim else t) if one else batch
