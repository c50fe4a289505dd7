"""The mean loss since the last line, and what happens when it is no number."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_trainer.checkpoints.averaging import load_average
from lightning_trainer.run.processes import Agreement
from lightning_trainer.session.folder import Session

_KEY = "losses"


class SumLosses(Callback):
    """Adds up the losses of the batches on the device, over a restart too.

    Args:
        agreement: Gathers the sums of all processes for a checkpoint.
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement
        self._sum = torch.tensor(0.0)
        self._n_batches = 0

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on from this process's sum, or from the first one's if their number has changed."""
        sums = checkpoint.get(_KEY) or [(0.0, 0)]
        same = len(sums) == trainer.world_size
        loss_sum, self._n_batches = sums[trainer.global_rank if same else 0]
        self._sum = torch.tensor(loss_sum)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the sum of each process, which waits for the device."""
        checkpoint[_KEY] = self.agreement.gather((self._sum.item(), self._n_batches))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the sum on the device."""
        self._sum = self._sum.to(trainer.strategy.root_device)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds the loss of the batch."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Lightning has divided it by the number of batches that are accumulated.
            automatic = pl_module.automatic_optimization
            scale = trainer.accumulate_grad_batches if automatic else 1
            self._sum.add_(loss.reshape(()), alpha=scale)
            self._n_batches += 1

    def mean(self) -> float:
        """The mean loss of this process's batches since `reset`; waits for the device."""
        return (self._sum / max(self._n_batches, 1)).item()

    def reset(self) -> None:
        """Starts anew after a line."""
        self._sum.zero_()
        self._n_batches = 0


def n_processes(checkpoint: Mapping[str, Any]) -> int | None:
    """How many processes took part when a checkpoint was written, if it is one of this layer."""
    return len(checkpoint[_KEY]) if _KEY in checkpoint else None


class GuardAgainstNonFinite(Callback):
    """Ends the run, or goes back, once the loss or a weight is infinite or not a number.

    It looks where a line is printed, before a validation and before a checkpoint is written, which
    all wait for the device anyway. So last.ckpt is never overwritten by weights that are lost.

    Args:
        losses: The losses since the last line.
        agreement: The processes act alike, because one of them is enough to spoil all weights.
        session: Holds the checkpoint to go back to.
        policy: "stop", or "skip": weights and optimiser go back to last.ckpt, and training goes on
            with the batches that come next, at most three times before another checkpoint.

    Attributes:
        finish_checkpoint: Waits for a checkpoint that is being written.
    """

    finish_checkpoint: Callable[[pl.Trainer], object] = staticmethod(lambda trainer: None)

    def __init__(
        self,
        losses: SumLosses,
        agreement: Agreement,
        session: Session,
        policy: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.losses = losses
        self.agreement = agreement
        self.session = session
        self.policy = policy
        self._n_skips = self._skipped_at = self._good_iteration = 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks before the validation is run in vain."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer)

    def check_line(self, trainer: pl.Trainer, loss: float) -> None:
        """Looks at the mean loss of a line, the same on all processes.

        Raises:
            FloatingPointError: If it is not finite and the run can't go back.
        """
        if not math.isfinite(loss):
            self._react(trainer, f"the loss is {loss}")

    def check(self, trainer: pl.Trainer) -> None:
        """Looks at the losses since the last line and at all weights; all processes meet here.

        Raises:
            FloatingPointError: If one is not finite and the run can't go back.
        """
        lost_loss = self.agreement.any(not math.isfinite(self.losses.mean()))
        if lost_loss or self.agreement.any(not _weights_are_finite(trainer.lightning_module)):
            self._react(
                trainer, "the loss is not finite" if lost_loss else "a weight is not finite"
            )

    def note_saved(self, iteration: int) -> None:
        """Notes that last.ckpt is of this iteration, and whole."""
        self._good_iteration = iteration
        if iteration > self._skipped_at:  # else it is what has just been gone back to
            self._n_skips = 0

    def _react(self, trainer: pl.Trainer, what: str) -> None:
        self.finish_checkpoint(trainer)
        iteration, good = trainer.global_step, self._good_iteration
        path = self.session.last_checkpoint
        exists = trainer.strategy.broadcast(path.exists())
        if self.policy == "stop" or self._n_skips == _MOST_SKIPS or not exists:
            raise FloatingPointError(_message(what, iteration, path if exists else None, good))
        self._n_skips += 1
        self._skipped_at = iteration
        if trainer.is_global_zero:
            print(
                f"{what[0].upper()}{what[1:]} at iteration {iteration}: weights and optimiser go "
                f"back to iteration {good}, the batches since then are skipped "
                f"({self._n_skips} of {_MOST_SKIPS} times)",
                flush=True,
            )
        _go_back(trainer, str(path))
        self.losses.reset()


_MOST_SKIPS = 3


def _message(what: str, iteration: int, checkpoint: Any, good: int) -> str:
    saved = "There is no checkpoint"
    if checkpoint is not None:
        saved = f"The last good checkpoint is {checkpoint} (iteration {good})"
    return (
        f"{what} at iteration {iteration}. {saved}. Try a lower learning rate, "
        "`--trainer.gradient_clip_val 1`, `--trainer.precision 32-true`, or go on with "
        "`--on_non_finite skip`; `--trainer.detect_anomaly true` names the operation that fails"
    )


def _weights_are_finite(module: torch.nn.Module) -> bool:
    weights = (p.detach() for p in module.parameters() if p.requires_grad)
    # Of a sharded weight this process's part.
    parts = [w.to_local() if hasattr(w, "to_local") else w for w in weights]
    finite = [part.isfinite().all() for part in parts]
    return not finite or bool(torch.stack(finite).all())  # waits for the device


def _go_back(trainer: pl.Trainer, path: str) -> None:
    """Puts weights and optimiser back; learning rates stay where the schedule has come to."""
    groups = [group for optimiser in trainer.optimizers for group in optimiser.param_groups]
    settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    checkpoint = trainer.strategy.load_checkpoint(path)
    trainer.strategy.load_model_state_dict(
        checkpoint, strict=trainer.lightning_module.strict_loading
    )
    load_average(trainer, checkpoint)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    groups = [group for optimiser in trainer.optimizers for group in optimiser.param_groups]
    for group, setting in zip(groups, settings, strict=True):
        group.update(setting)
