"""KeepTrainable: which parameters are frozen goes on over a restart."""

from typing import Any

import lightning.pytorch as pl

from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.checkpoint_header import KEY, layer_state


class KeepTrainable(RunCallback):
    """Freezes and thaws what was frozen and thawed when the checkpoint was written.

    A callback such as Lightning's `BackboneFinetuning` freezes at the start of each process, and
    thaws once, at an epoch that a restart has left behind. A project that freezes otherwise than it
    did at the run's start, by a changed setting, say, has its way.
    """

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._at_start: list[str] = []  # frozen before the first iteration of this process
        self._saved: dict[str, list[str]] = {}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self._saved = layer_state(checkpoint).get("frozen") or {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._at_start = _frozen(pl_module)
        if self._saved.get("at_start") == self._at_start:
            frozen = set(self._saved["now"])
            for name, parameter in pl_module.named_parameters():
                parameter.requires_grad_(name not in frozen)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        checkpoint[KEY]["frozen"] = {"at_start": self._at_start, "now": _frozen(pl_module)}


def _frozen(pl_module: Any) -> list[str]:
    return [name for name, p in pl_module.named_parameters() if not p.requires_grad]
