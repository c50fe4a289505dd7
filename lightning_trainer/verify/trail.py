"""Records each batch of a run, so that two runs can be compared bitwise.

python cli.py fit --config FILE --trainer.callbacks+=lightning_trainer.verify.trail.RecordTrail
"""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_trainer.base.results import in_training
from lightning_trainer.verify.digests import digest, sample_digests
from lightning_trainer.verify.own import own_state


class RecordTrail(Callback):
    """Appends one line for each start, batch and validation to trail_rank{n}.jsonl.

    Each is a JSON object with `event`, `iteration` and `time_s` (of `time.monotonic`):

        start        the run starts or goes on after `iteration`
        batch        its number over all epochs, its epoch, by the names of their columns digests of
                     the samples from the loader, the loss, and afterwards a digest of each tensor
                     of the module's state; with accumulated gradients several batches have the
                     same `iteration`. `before` is a digest of all parameters before the step, `own`
                     what no checkpoint holds, see `own_state`
        validating   the `batch`-th batch of a validation begins, counted from 1
        validated    the validation has ended, with these scores

    A line is in the file before its iteration is in a checkpoint. Costs a copy of all weights to
    the CPU in each batch. Assumes that `trainer.default_root_dir` is the session folder.

    Args:
        watched: Number of the process that wants the trail; the run ends when that has ended.
    """

    def __init__(self, watched: int | None = None) -> None:
        self._watched = watched
        self._line: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Marks the start; a validation that a restart makes up for comes after this."""
        _append(trainer, "start", trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Takes the digests before the module can change the batch."""
        self._end_unwatched()
        self._line = {
            "iteration": trainer.global_step + 1,
            "epoch": trainer.current_epoch,
            "samples": sample_digests(batch),
            # Without buffers: DDP sends those of the first process to the others in the step.
            "before": digest([digest(parameter) for parameter in pl_module.parameters()]),
            "own": own_state(pl_module, trainer.datamodule),  # type: ignore[attr-defined]
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        _append(
            trainer,
            "batch",
            batch=trainer.fit_loop.total_batch_idx + 1,
            loss=None if loss is None else float(loss).hex(),
            weights=_digests(pl_module),
            **self._line,
        )

    def on_validation_batch_start(
        self, trainer: pl.Trainer, _: Any, batch: Any, batch_idx: int, *__: Any
    ) -> None:
        self._end_unwatched()
        if in_training(trainer):
            _append(trainer, "validating", trainer.global_step, batch=batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if in_training(trainer):
            metrics = trainer.callback_metrics.items()
            scores = {name: float(value).hex() for name, value in metrics if name[:4] == "val/"}
            _append(trainer, "validated", trainer.global_step, scores=scores)

    def _end_unwatched(self) -> None:
        if self._watched is not None:
            try:
                os.kill(self._watched, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGTERM)


def _append(trainer: pl.Trainer, event: str, iteration: int, **values: Any) -> None:
    line = {"event": event, "iteration": iteration, "time_s": monotonic(), **values}
    path = Path(trainer.default_root_dir, f"trail_rank{trainer.global_rank}.jsonl")
    # A kill may have left half a line, so the first line of a start begins with an empty one.
    before = "\n" if event == "start" else ""
    with path.open(
        "a", encoding="utf-8"
    ) as file:  # closing hands the line to the kernel: a kill can't lose it
        file.write(f"{before}{json.dumps(line)}\n")


def _digests(pl_module: pl.LightningModule) -> dict[str, str]:
    return {name: digest(value) for name, value in pl_module.state_dict().items()}
