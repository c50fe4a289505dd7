"""KeepState: counts iterations, sums losses, notes the first error, saves the shared state."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_trainer.base.losses import loss_of, named_losses
from lightning_trainer.run.state import LossSum, RunCallback
from lightning_trainer.session.checkpoint_header import KEY, VERSION, layer_state
from lightning_trainer.session.secrets import scrub


class KeepState(RunCallback):
    """Keeps the state that other callbacks read, so it comes before them.

    A checkpoint holds all state of the layer under one key, which is made here. PrintProgress adds
    the times, KeepMetrics the metrics, ApplyChangedSettings the optimiser's settings.
    """

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Goes on from this process's losses, or from the first one's if their number changed."""
        run, losses = self.run, layer_state(checkpoint).get("losses")
        run.goes_on = True
        run.n_processes_before = len(losses) if losses else None
        if losses:
            own = trainer.global_rank if len(losses) == trainer.world_size else 0
            run.losses.restore(*losses[own])
            parts = layer_state(checkpoint).get("named_losses") or [{}] * len(losses)
            for name, total in parts[own].items():
                run.named_losses[name] = LossSum()
                run.named_losses[name].restore(*total)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Adds the state; all processes meet here, and wait for the device."""
        run = self.run
        checkpoint[KEY] = {
            "version": VERSION,
            "settings": dict(run.settings),
            "validated": run.complete,
            "best": asdict(run.best) if run.best else None,
            "losses": run.processes.gather(run.losses.total(run.window_start)),
            "named_losses": run.processes.gather(
                {name: part.total(run.window_start) for name, part in run.named_losses.items()}
            ),
        }
        # Lightning has added these, with their secrets.
        for key in {"hyper_parameters", "datamodule_hyper_parameters"} & checkpoint.keys():
            kept = {n: v for n, v in checkpoint[key].items() if n not in run.left_out}
            checkpoint[key] = scrub(kept, run.secrets)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.run.iteration, self.run.stepped = trainer.global_step, 0
        for losses in (self.run.losses, *self.run.named_losses.values()):
            losses.move_to(trainer.strategy.root_device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any
    ) -> None:
        """Counts the iteration, and adds the loss without Lightning's division by accumulation."""
        run, step = self.run, trainer.global_step
        run.stepped, run.iteration = step - run.iteration, step
        loss = loss_of(outputs)
        if loss is not None:
            automatic = pl_module.automatic_optimization
            scale = trainer.accumulate_grad_batches if automatic else 1
            run.losses.add(loss, scale, run.window_start)
        if isinstance(outputs, dict) and "losses" in outputs:
            self._add_named(named_losses(outputs))

    def _add_named(self, losses: Mapping[str, Tensor]) -> None:
        run = self.run
        for name, loss in losses.items():
            if name not in run.named_losses:
                run.named_losses[name] = LossSum()
                run.named_losses[name].move_to(loss.device)
            run.named_losses[name].add(loss, 1, run.window_start)

    def on_train_end(self, *_: Any) -> None:
        self.run.goes_on = False

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, Exception) and self.run.failure is None:
            self.run.failure = exception
