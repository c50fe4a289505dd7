"""WarnOfInexactRestart: tells why a restart can't be exact."""

import sys
from typing import Any

import lightning.pytorch as pl
import torch

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
        reasons += self.run.loader_faults
        on_gpu = trainer.strategy.root_device.type == "cuda"
        if on_gpu and not torch.are_deterministic_algorithms_enabled():
            reasons.append(
                "kernels on the GPU need not be deterministic (`--trainer.deterministic`)"
            )
        if reason := "; ".join(reasons):
            print(f"warning: this restart is not bitwise exact: {reason}", file=sys.stderr)
