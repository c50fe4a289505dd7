"""Finds what a project keeps in Python objects, which no checkpoint holds."""

import functools
import random
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from lightning_trainer.verify.digests import digest

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
_LISTS = (list, tuple, set, frozenset, deque)
# In a checkpoint, or of Lightning.
_ELSEWHERE = (Metric, Optimizer, LRScheduler, pl.Trainer, pl.LightningModule, torch.device, type)
_N_ITEMS = 1_000  # of the longest list that is looked at: more takes too long in each batch
_N_VALUES = 1_000_000  # the same of tensors and arrays
_DEPTH = 5

Found = dict[str, list[str]]  # by name, the type and a digest of the value


def own_state(pl_module: pl.LightningModule, datamodule: Any) -> Found:
    """Random generators, plain values and tensors in attributes of a module and its data.

    A name is e.g. "data.train_dataset.generator". Parameters and buffers that are in the module's
    `state_dict` are left out, and metrics, optimisers and schedulers, which a checkpoint holds.
    """
    found: Found = {}
    seen: set[int] = set()
    saved = {*pl_module.state_dict()}
    for path, module in pl_module.named_modules():
        if not any(isinstance(m, Metric) for m in _around(pl_module, path)):
            attributes = {k: v for k, v in vars(module).items() if k not in _of_lightning()}
            seen |= {id(each) for each in module.modules()}
            for name, value in attributes.items():
                found.update(_walk(value, ".".join(filter(None, ("model", path, name))), seen))
    for name, buffer in pl_module.named_buffers():
        if name not in saved and buffer.numel() <= _N_VALUES:
            found[f"model.{name}"] = ["buffer that is not persistent", digest(buffer)]
    if datamodule is not None:
        for name, value in vars(datamodule).items():
            if name not in _of_lightning():
                found.update(_walk(value, f"data.{name}", seen))
    return found


def is_generator(kind: str) -> bool:
    """Whether a type in `own_state` is one of a random generator."""
    return kind in {f"{each.__module__}.{each.__qualname__}" for each in GENERATORS}


@functools.cache
def _of_lightning() -> set[str]:
    """Attributes that Lightning and torch give to modules and data."""
    return {*vars(pl.LightningModule()), *vars(pl.LightningDataModule())}


def _around(root: nn.Module, path: str) -> Iterator[nn.Module]:
    """The module at a path and those that it lies in."""
    parts = path.split(".") if path else []
    return (root.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1))


def _walk(value: Any, name: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, list[str]]]:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, GENERATORS):
        yield name, [kind, digest(_state_of(value))]
    elif isinstance(value, _PLAIN):
        yield name, [kind, digest(value)]
    elif isinstance(value, Tensor | np.ndarray):
        n_values = value.numel() if isinstance(value, Tensor) else value.size
        if n_values <= _N_VALUES and not _is_freed(value):
            exact = value if isinstance(value, Tensor) else value.tolist()
            yield name, [kind, digest(exact)]
    elif id(value) in seen or isinstance(value, _ELSEWHERE):
        return
    elif isinstance(value, (dict, *_LISTS)):
        seen.add(id(value))
        items = list(islice(value.items() if isinstance(value, dict) else enumerate(value), 1001))
        if len(items) > _N_ITEMS or depth >= _DEPTH:
            return
        plain = all(isinstance(item, (*_PLAIN, tuple)) for _, item in items)
        if plain:  # its length is part of the value
            yield name, [kind, digest(sorted(map(repr, value)) if kind == "set" else value)]
        for key, item in () if plain else items:
            yield from _walk(item, f"{name}.{key}", seen, depth + 1)
    elif hasattr(value, "__dict__") and depth < _DEPTH:
        seen.add(id(value))
        for key, item in vars(value).items():
            yield from _walk(item, f"{name}.{key}", seen, depth + 1)


def _is_freed(value: Any) -> bool:
    """Whether a tensor's memory was given back, as FSDP does with a weight that it has gathered."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided
    return is_dense and value.numel() > 0 and value.untyped_storage().nbytes() == 0


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return [
            part.tolist() if isinstance(part, np.ndarray) else part
            for part in generator.get_state()
        ]
    return generator.getstate()
