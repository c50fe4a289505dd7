"""WarnOfInexactRestart: tells why a restart can't be exact."""

import sys
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_trainer.checkpoints.conditions import (
    ChangedBuffers,
    changed_conditions,
    conditions,
)
from lightning_trainer.run.buckets import keeps_first_bucket, rebuilds_buckets
from lightning_trainer.run.device import on_gpu
from lightning_trainer.run.state import RunCallback, RunState
from lightning_trainer.session.checkpoint_header import KEY, layer_state

_OF_DATA = {"n_samples": "the training data has", "batch_size": "a batch of all processes has"}


class WarnOfInexactRestart(RunCallback):
    """Warns when a run goes on but may differ from an uninterrupted one, a line for each reason.

    Each checkpoint therefore has the conditions under which it was made, and the names of buffers
    that it does not hold.
    """

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        self._before: dict[str, Any] = {}
        self._buffers: ChangedBuffers | None = None

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self._before = {**(layer_state(checkpoint).get("conditions") or {})}
        self._buffers = ChangedBuffers(self._before.pop("changed_buffers", ()))
        if "state_dict" in checkpoint:  # a sharded one has its weights elsewhere
            self._buffers.begin(pl_module, checkpoint["state_dict"])

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """The first one is that before the first iteration."""
        if self._buffers is None:
            self._buffers = ChangedBuffers()
            self._buffers.begin(pl_module, checkpoint["state_dict"])
        self._buffers.look(pl_module)
        now = conditions(trainer, pl_module)
        checkpoint[KEY]["conditions"] = {**now, "changed_buffers": sorted(self._buffers.names)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        before = self.run.n_processes_before if self.run.goes_on else None
        if before is None or not trainer.is_global_zero:
            return
        reasons = []
        if before != trainer.world_size:
            reasons.append(f"{trainer.world_size} processes take part instead of {before}")
        loader = trainer.train_dataloader
        restored = getattr(loader, "restored", None) or {}
        if restored:
            now = loader.state_dict()  # type: ignore[union-attr]
            reasons += [
                f"{what} {now[name]} samples instead of {restored[name]}"
                for name, what in _OF_DATA.items()
                if restored.get(name, now[name]) != now[name]
            ]
        if self._before:
            reasons += changed_conditions(self._before, conditions(trainer, pl_module))
        reasons += [
            f"the buffer `{name}` changes in training, and no checkpoint holds it "
            "(`register_buffer(..., persistent=False)`)"
            for name in (self._buffers.names if self._buffers else ())
        ]
        reasons += self.run.loader_faults
        ddp = trainer.strategy.model
        if trainer.world_size > 2 and rebuilds_buckets(ddp) and keeps_first_bucket(ddp):
            reasons.append(
                "DDP adds up the first step's gradients in another order than those of later steps "
                "(a static graph or sparse gradients: `find_unused_parameters` has one order)"
            )
        if on_gpu(trainer) and not torch.are_deterministic_algorithms_enabled():
            reasons.append(
                "kernels on the GPU need not be deterministic (`--trainer.deterministic`)"
            )
        for reason in reasons:
            print(f"warning: this restart is not bitwise exact: {reason}", file=sys.stderr)
