"""Keeps torch and Lightning from executing what a checkpoint names, while they load one.

Lightning 2.6 loads with `weights_only`; but torch 2.11 to 2.15 unpickles the metadata of a sharded
checkpoint, and the numbers in it, without, and Lightning's FSDP strategy a whole one. Both have no
public way to change that. Each part has a test that fails when a newer version has changed it.
"""

import contextlib
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.load import _LazyLoadingUnpickler
from torch._weights_only_unpickler import _get_allowed_globals
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from lightning_trainer.session.archive import slice_fault
from lightning_trainer.session.shards import METADATA, check_class, read_metadata

_MOST_STEPS = 1_000_000  # of one tensor's pickle, or of one number's


def load_safely(trainer: pl.Trainer) -> Callable[[], None]:
    """Lets a trainer's strategy load checkpoints as plain values only; returns how to undo that."""
    strategy = trainer.strategy
    load = strategy.load_checkpoint

    def load_plain(checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        try:
            with only_plain_values():
                return load(checkpoint_path, weights_only=True)
        except CheckpointException as ex:  # no `Exception`
            reasons = [str(failure) for failure, _ in ex.failures.values()]
            raise ValueError(f"{checkpoint_path} can't be loaded: {reasons[0]}") from None
        except IsADirectoryError:
            raise ValueError(
                f"{checkpoint_path} is a sharded checkpoint, which `trainer.strategy` can't load: "
                "give the one that it was trained with, e.g. ModelParallelStrategy"
            ) from None
        except (RuntimeError, pickle.UnpicklingError) as ex:
            if isinstance(ex, RuntimeError) and "PytorchStreamReader" not in str(ex):
                raise  # of the model, not of the file
            reason = str(ex).partition("\n")[0][:300]
            raise ValueError(f"{checkpoint_path} can't be loaded: {reason}") from None

    vars(strategy)["load_checkpoint"] = load_plain
    return lambda: vars(strategy).pop("load_checkpoint", None)


@contextlib.contextmanager
def only_plain_values() -> Iterator[None]:
    """Within it nothing that torch or Lightning loads is executed, whatever they ask for."""
    with (
        mock.patch.object(torch, "load", _loader(torch.load)),
        mock.patch.object(FileSystemReader, "read_metadata", _read_metadata),
        mock.patch.object(_LazyLoadingUnpickler, "find_class", _finder()),
    ):
        yield


def _loader(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_plain(file: Any, *args: Any, **options: Any) -> Any:
        if _is_slice(file) and (fault := slice_fault(file, _MOST_STEPS)):
            raise ValueError(f"the sharded checkpoint {fault}")
        return load(file, *args, **{**options, "weights_only": True, "pickle_module": None})

    return load_plain


def _is_slice(file: Any) -> bool:
    """Whether it is one tensor of a file with many, which nothing has looked at before."""
    try:
        return hasattr(file, "seek") and not file.fileno()
    except (AttributeError, OSError):
        return True


def _read_metadata(self: FileSystemReader, *args: Any, **kwargs: Any) -> Metadata:
    """What torch's own method returns, with none but the classes that it needs."""
    rank = kwargs.get("rank")
    name = METADATA if rank is None else f"__{rank}{METADATA}"
    metadata: Metadata = _Metadata(io.BytesIO(read_metadata(Path(self.path), name))).load()
    if getattr(metadata, "storage_meta", None) is None:
        metadata.storage_meta = StorageMeta()
    metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
    return metadata


class _Metadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        check_class(module, name)
        return super().find_class(module, name)


def _finder() -> Callable[..., Any]:
    find, allowed = _LazyLoadingUnpickler.find_class, _get_allowed_globals()

    def find_plain(self: Any, module: str, name: str) -> Any:
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"it holds `{module}.{name}`, which is not loaded")
        return find(self, module, name)

    return find_plain
