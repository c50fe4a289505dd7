"""Ctrl-C and its kin: finish the iteration, save, say how to go on."""

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_trainer.checkpoints.saving import SaveCheckpoints
from lightning_trainer.run.processes import Agreement

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopOnSignal(Callback):
    """The first of SIGINT, SIGTERM, SIGHUP, SIGUSR1 ends the run after the iteration, all saved.

    Within a validation it ends after the batch; the validation runs again when the run goes on. The
    exit code is 128 + the signal's number. A second Ctrl-C does not wait for the iteration. Of
    several processes it is enough that one gets the signal: all stop at the same iteration, about a
    second later. On SIGUSR1 a SLURM job asks to be queued again, as `sbatch --signal=USR1@120` with
    `--requeue` means it.

    Args:
        agreement: Tells when the processes meet.
        checkpoints: Writes last.ckpt.
    """

    def __init__(self, agreement: Agreement, checkpoints: SaveCheckpoints | None) -> None:
        self.agreement = agreement
        self.checkpoints = checkpoints
        self._received = 0
        self._done = 0
        self._n_batches = 0.0  # of a validation, that all processes have
        self._before: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over, after Lightning has."""
        self._take_over(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over, if there was no check before training."""
        self._take_over(trainer)
        self._done = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stops, but not while gradients are being accumulated: they are in no checkpoint."""
        if trainer.global_step > self._done:
            self._done = trainer.global_step
            self._stop_if_told(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes how many batches all processes have, which may be fewer than this one's."""
        n_batches = [float(n) for n in trainer.num_val_batches]
        first = n_batches[0] if n_batches else 0.0
        self._n_batches = -self.agreement.highest(-first)[0]

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops within a validation."""
        if trainer.state.fn == "fit" and batch_idx < self._n_batches and dataloader_idx == 0:
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the signals back, before Lightning does."""
        self._give_back()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the signals back."""
        self._give_back()

    def _take_over(self, trainer: pl.Trainer) -> None:
        if self._before:
            return
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        # Private to Lightning: it asks all processes about SIGTERM before each batch, which waits
        # for the device, and hangs where the signal went to more than one of them.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise SystemExit(128 + number)
        self._received = self._received or number

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        self.agreement.tick()
        if not self.agreement.meeting:
            return
        self._received = int(self.agreement.highest(self._received)[0])
        if not self._received:
            return
        if self.checkpoints is not None and not trainer.sanity_checking:
            self.checkpoints.save(trainer)
            self.checkpoints.finish(trainer)
        if self._received == signal.SIGUSR1:
            if trainer.is_global_zero:
                _requeue()
            self.agreement.any(False)  # the launcher ends this process once another has gone
        # Lightning kills the first process, of which it has started the others, if it sees one of
        # these fail before the first has ended.
        raise SystemExit(0 if _is_started_by_first(trainer) else 128 + self._received)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _is_started_by_first(trainer: pl.Trainer) -> bool:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return (
        environment is not None
        and not environment.creates_processes_externally
        and not trainer.is_global_zero
    )


def _requeue() -> None:
    """Asks SLURM, if it runs this, to start the job again."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else job
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        print(f"Job {job} is queued again and will go on with this session", flush=True)
    except (OSError, subprocess.SubprocessError) as ex:
        print(f"`scontrol requeue {job}` failed ({ex}): queue it again by hand", file=sys.stderr)
