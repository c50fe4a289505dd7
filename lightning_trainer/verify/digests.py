"""Digests that differ where any bit of a value differs."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def sample_digests(batch: Any) -> dict[str, list[str]]:
    """By names of columns, a digest for each sample of a batch, in the batch's order.

    The number of samples is the length of the first tensor that is no item of a list, or else of
    the first list: one of images of several sizes, say. Tensors and lists of that length are cut
    into samples; anything else counts as a part of each.
    """
    n = _n_samples(batch)
    if _is_list_of_samples(batch):
        return {"sample": [_digest_nested(sample) for sample in batch]}
    return {
        name: [_digest_nested(value) for value in column] for name, column in _columns(batch, n)
    }


def _is_list_of_samples(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and all(isinstance(item, Mapping) for item in batch)


def _n_samples(batch: Any) -> int:
    def values(value: Any) -> Iterator[Any]:
        for item in value.values() if isinstance(value, Mapping) else [value]:
            yield from values(item) if isinstance(item, Mapping) else [item]

    parts = [*values(batch)]
    if isinstance(batch, list | tuple):  # such as images and labels
        parts = [part for item in batch for part in values(item)]
    tensors = (len(part) for part in parts if isinstance(part, Tensor) and part.ndim)
    lists = (len(part) for part in parts if isinstance(part, list | tuple) and part)
    return next(tensors, None) or next(lists, None) or 1


def _columns(value: Any, n: int, name: str = "") -> Iterator[tuple[str, list[Any]]]:
    items: Any = ()
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        yield name, [*value] if value.shape[:1] == (n,) else [value] * n
        return
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        # A list of columns, such as a pair of labels for each sample, or of samples.
        columns = all(isinstance(v, Tensor) and v.shape[:1] == (n,) and v.ndim < 3 for v in value)
        if len(value) == n and not columns:
            yield name, [*value]
            return
        items = enumerate(value) if any(map(_is_nested, value)) else ()
    if not items:
        yield name, [value] * n
    for key, item in items:
        yield from _columns(item, n, f"{name}.{key}" if name else str(key))


def _digest_nested(value: Any) -> str:
    if _is_nested(value) and not isinstance(value, Tensor):
        return digest([f"{name}: {digest(leaf)}" for name, leaf in leaves(value)])
    return digest(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Tensor | Mapping | list | tuple)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values in nested mappings and lists, by names like "optimizer_states.0.state.3.step".

    A list of plain values, such as a batch's file names, is one leaf.
    """
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value) if any(map(_is_nested, value)) else ()
    if not items:
        yield name, value
    for key, item in items:
        yield from leaves(item, f"{name}.{key}" if name else str(key))


def digest(value: Any) -> str:
    """8 bytes of BLAKE2b (RFC 7693) in hexadecimal digits, which differ where any bit differs.

    Hashes a tensor's type, shape and bytes, and any other object's `repr` without addresses.
    """
    if isinstance(value, Tensor):
        value = getattr(value, "to_local", lambda: value)()  # of a DTensor, this process's part
        dense = value.detach().to_dense().cpu().contiguous()
        hashed = hashlib.blake2b(f"{value.dtype} {tuple(value.shape)}".encode(), digest_size=8)
        # Viewed as bytes, because numpy has no bfloat16.
        hashed.update(dense.reshape(-1).view(torch.uint8).numpy().data)
        return hashed.hexdigest()
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
