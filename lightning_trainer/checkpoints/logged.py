"""KeepLogged: the numbers of a project's own `self.log` go on over a restart."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_trainer.internals_of_logging import logged_numbers, restore_logged
from lightning_trainer.run.state import RunCallback
from lightning_trainer.session.checkpoint_header import KEY, layer_state
from lightning_trainer.session.secrets import hide


class KeepLogged(RunCallback):
    """Puts what `self.log` has collected in an epoch, and what callbacks monitor, in a checkpoint.

    Each process goes on from its own. If the number of processes has changed, the first one goes on
    from all together. KeepMetrics keeps the states of metrics that `self.log` was given.
    """

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._saved: list[dict[str, Any]] = []
        self._monitored: dict[str, Tensor] = {}  # as it was restored

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """All processes meet here; a number with a secret in its name is left out."""
        found: dict[str, Any] = {"epoch": logged_numbers(trainer)}
        found["monitored"] = trainer.callback_metrics
        own = {
            group: {n: v for n, v in numbers.items() if hide(n, self.run.secrets) == n}
            for group, numbers in found.items()
        }
        own = apply_to_collection(own, Tensor, lambda t: t.detach().cpu().clone())
        checkpoint[KEY]["logged"] = self.run.processes.gather(own)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        self._saved = layer_state(checkpoint).get("logged") or []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        saved, self._saved = self._saved, []
        if not saved:
            return
        same = len(saved) == trainer.world_size
        own = saved[trainer.global_rank if same else 0]
        self._monitored = move_data_to_device(own["monitored"], trainer.strategy.root_device)
        trainer.callback_metrics.update(self._monitored)
        numbers = own["epoch"] if same else shared_out(saved, trainer.is_global_zero)
        if numbers:
            restore_logged(trainer, numbers)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Forgets results that the project has logged before the restart, and no longer does."""
        restored, self._monitored = self._monitored, {}
        for name, value in restored.items():
            if name.startswith("val/") and trainer.callback_metrics.get(name) is value:
                del trainer.callback_metrics[name]


def shared_out(saved: list[dict[str, Any]], is_first: bool) -> dict[str, Any]:
    """The numbers of all processes for the first one, and none of them for any other."""
    shared: dict[str, Any] = {}
    for key, number in saved[0]["epoch"].items():
        sums = number["sums"]
        all_sums = [each["epoch"][key]["sums"] for each in saved if key in each["epoch"]]
        for name in sums or {}:
            each = torch.stack([other[name] for other in all_sums])
            if number["reduce_fx"] in ("max", "min"):
                sums[name] = getattr(each, number["reduce_fx"])()
            else:
                sums[name] = each.sum() if is_first else torch.zeros_like(each[0])
        shared[key] = number
    return shared
