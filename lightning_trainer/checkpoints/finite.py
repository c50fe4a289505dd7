"""Ends the run, or goes back, when the loss or a weight is not finite."""

import math
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_trainer.base.results import in_training
from lightning_trainer.checkpoints.averaging import load_average
from lightning_trainer.checkpoints.writing import finish
from lightning_trainer.run.state import RunCallback, RunState
from lightning_trainer.session.checkpoint_header import reach

_MOST_SKIPS = 3


class GuardAgainstNonFinite(RunCallback):
    """Checks the loss and the weights before each validation.

    PrintProgress calls `check_line` at each line, SaveCheckpoints `check_finite` before it writes.
    All of these wait for the device anyway, and last.ckpt never gets weights that are not finite.
    With `on_non_finite` "skip" weights and optimiser go back to last.ckpt and training goes on with
    the next batches, at most three times before another checkpoint.
    """

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if in_training(trainer):
            check_finite(trainer, self.run)


def check_line(trainer: pl.Trainer, run: RunState, loss: float) -> None:
    """Checks the mean loss of a new line, which is the same on all processes.

    Raises:
        FloatingPointError: If it is not finite and the run can't go back.
    """
    if not math.isfinite(loss):
        _react(trainer, run, f"the loss is {loss}")


def check_finite(trainer: pl.Trainer, run: RunState) -> None:
    """Checks the losses since the last line and all weights, on all processes together.

    Raises:
        FloatingPointError: If one is not finite and the run can't go back.
    """
    if run.processes.any(not math.isfinite(run.losses.mean(run.window_start))):
        _react(trainer, run, "the loss is not finite")
    elif run.processes.any(not _weights_are_finite(trainer.lightning_module)):
        _react(trainer, run, "a weight is not finite")


def _react(trainer: pl.Trainer, run: RunState, what: str) -> None:
    finish(trainer, run)
    path, iteration = run.session.last_checkpoint, trainer.global_step
    reached = trainer.strategy.broadcast(reach(path))  # a text if there is no checkpoint
    good = None if isinstance(reached, str) else reached[0]
    if good is not None and good > run.skipped_at:  # newer than when training last went back
        run.n_skips = 0
    if run.on_non_finite == "stop" or run.n_skips == _MOST_SKIPS or good is None:
        saved = "There is no checkpoint"
        if good is not None:
            saved = f"The last good checkpoint is {path} (iteration {good})"
        raise FloatingPointError(
            f"{what} at iteration {iteration}. {saved}. Try a lower learning rate, "
            "`--trainer.gradient_clip_val 1`, `--trainer.precision 32-true`, or go on with "
            "`--on_non_finite skip`; `--trainer.detect_anomaly true` names the operation that fails"
        )
    run.n_skips += 1
    run.skipped_at = iteration  # the losses since the last line no longer count
    if trainer.is_global_zero:
        print(
            f"{what[0].upper()}{what[1:]} at iteration {iteration}: weights and optimiser go "
            f"back to iteration {good}, the batches since then are skipped "
            f"({run.n_skips} of {_MOST_SKIPS} times)",
            flush=True,
        )
    _go_back(trainer, str(path))


def _weights_are_finite(module: torch.nn.Module) -> bool:
    weights = (p.detach() for p in module.parameters() if p.requires_grad)
    # A sharded weight has a part on each process.
    parts = [w.to_local() if hasattr(w, "to_local") else w for w in weights]
    finite = [part.isfinite().all() for part in parts]
    return not finite or bool(torch.stack(finite).all())  # waits for the device


def _go_back(trainer: pl.Trainer, path: str) -> None:
    """Restores weights and optimiser; learning rates stay as the schedule has set them."""
    groups = [group for optimiser in trainer.optimizers for group in optimiser.param_groups]
    settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    checkpoint = trainer.strategy.load_checkpoint(path)
    strict = trainer.lightning_module.strict_loading
    trainer.strategy.load_model_state_dict(checkpoint, strict=strict)
    load_average(trainer, checkpoint)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    groups = [group for optimiser in trainer.optimizers for group in optimiser.param_groups]
    for group, setting in zip(groups, settings, strict=True):
        group.update(setting)
