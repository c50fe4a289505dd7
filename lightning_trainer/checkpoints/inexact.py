"""WarnOfInexactRestart: tells why a restart can't be exact."""

import sys
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_trainer.run.buckets import keeps_first_bucket, rebuilds_buckets
from lightning_trainer.run.state import RunCallback

_OF_DATA = {"n_samples": "the training data has", "batch_size": "a batch of all processes has"}


class WarnOfInexactRestart(RunCallback):
    """Warns when a run goes on but may differ from an uninterrupted one."""

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
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
        if not hasattr(loader, "load_state_dict"):
            reasons.append(
                "the training data comes from a loader of the project's own or an iterable "
                "dataset, which starts again from its beginning"
            )
        ddp = trainer.strategy.model
        if trainer.world_size > 2 and rebuilds_buckets(ddp) and keeps_first_bucket(ddp):
            reasons.append(
                "DDP adds up the first step's gradients in another order than those of later steps "
                "(a static graph or sparse gradients: `find_unused_parameters` has one order)"
            )
        on_gpu = trainer.strategy.root_device.type == "cuda"
        if on_gpu and not torch.are_deterministic_algorithms_enabled():
            reasons.append(
                "kernels on the GPU need not be deterministic (`--trainer.deterministic`)"
            )
        if reason := "; ".join(reasons):
            print(f"warning: this restart is not bitwise exact: {reason}", file=sys.stderr)
