"""Records each batch of a run, so that two runs can be compared bitwise.

python cli.py fit --config FILE --trainer.callbacks+=lightning_trainer.verify.trail.RecordTrail
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_trainer.base.results import in_training


class RecordTrail(Callback):
    """Appends one line for each start, batch and validation to trail_rank{n}.jsonl.

    Each is a JSON object with `event`, `iteration` and `time_s` (of `time.monotonic`):

        start        the run starts or goes on after `iteration`
        batch        its number over all epochs, a digest of each sample from the loader, the loss,
                     and afterwards a digest of each tensor of the module's state; with accumulated
                     gradients several batches have the same `iteration`
        validating   the `batch`-th batch of a validation begins, counted from 1
        validated    the validation has ended, with these scores

    A line is in the file before its iteration is in a checkpoint. Costs a copy of all weights to
    the CPU in each batch. Assumes that `trainer.default_root_dir` is the session folder.
    """

    def __init__(self) -> None:
        self._iteration = 0
        self._samples: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Marks the start; a validation that a restart makes up for comes after this."""
        # A kill may have left half a line, so this one begins with an empty line.
        _append(trainer, "start", trainer.global_step, before="\n")

    def on_train_batch_start(self, trainer: pl.Trainer, _: Any, batch: Any, *__: Any) -> None:
        """Takes the digests before the module can change the batch."""
        self._iteration = trainer.global_step + 1
        self._samples = sample_digests(batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        _append(
            trainer,
            "batch",
            self._iteration,
            batch=trainer.fit_loop.total_batch_idx + 1,
            samples=self._samples,
            loss=None if loss is None else float(loss).hex(),
            weights={name: digest(value) for name, value in pl_module.state_dict().items()},
        )

    def on_validation_batch_start(
        self, trainer: pl.Trainer, _: Any, batch: Any, batch_idx: int, *__: Any
    ) -> None:
        if in_training(trainer):
            _append(trainer, "validating", trainer.global_step, batch=batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if in_training(trainer):
            metrics = trainer.callback_metrics.items()
            scores = {name: float(value).hex() for name, value in metrics if name[:4] == "val/"}
            _append(trainer, "validated", trainer.global_step, scores=scores)


def _append(
    trainer: pl.Trainer, event: str, iteration: int, before: str = "", **values: Any
) -> None:
    line = {"event": event, "iteration": iteration, "time_s": monotonic(), **values}
    path = Path(trainer.default_root_dir, f"trail_rank{trainer.global_rank}.jsonl")
    with path.open("a") as file:  # closing hands the line to the kernel: a kill can't lose it
        file.write(f"{before}{json.dumps(line)}\n")


def sample_digests(batch: Any) -> list[str]:
    """A digest for each sample of a batch, in the batch's order.

    Assumes that the first tensor has shape (B, ...). Cuts tensors and lists of length B into
    samples, and counts anything else as a part of each sample.
    """
    columns = list(leaves(batch))
    tensors = (value for _, value in columns if isinstance(value, Tensor) and value.ndim)
    size = next((len(tensor) for tensor in tensors), 1)
    rows: list[list[str]] = [[] for _ in range(size)]
    for name, column in columns:
        values = column.detach().cpu() if isinstance(column, Tensor) else column
        if not _has_length(values, size):
            values = [values] * size
        for row, value in zip(rows, values, strict=True):
            row.append(f"{name}: {digest(value)}")
    return [digest(row) for row in rows]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values in nested mappings and lists, by names like "optimizer_states.0.state.3.step".

    A list of plain values, such as a batch's file names, is one leaf.
    """
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        nested = any(isinstance(item, Tensor | Mapping | list | tuple) for item in value)
        items = enumerate(value) if nested else ()
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


def _has_length(value: Any, size: int) -> bool:
    if isinstance(value, Tensor):
        return value.shape[:1] == (size,)
    return isinstance(value, list | tuple) and len(value) == size
