"""SaveCheckpoints: which checkpoints are written, and when."""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_trainer.base.results import in_training
from lightning_trainer.checkpoints.averaging import end_validation, share_buffers
from lightning_trainer.checkpoints.finite import check_finite
from lightning_trainer.checkpoints.stopping import end_by_signal
from lightning_trainer.checkpoints.writing import begin, finish, raise_failure, settle_best, write
from lightning_trainer.internals import validation_is_due
from lightning_trainer.internals_of_hooks import call_hooks, skip_hooks
from lightning_trainer.internals_of_logging import call_after_batch
from lightning_trainer.run.schedule import catch_up
from lightning_trainer.run.state import RunCallback, rule


class SaveCheckpoints(RunCallback, Checkpoint):
    """Writes last.ckpt, to go on from, and best.ckpt, the best score.

    last.ckpt is written before the first iteration, after each validation, every `save_minutes`
    between two, and before a validation if a tenth of that has passed: a crash in the validation
    then costs little. A restart from a last.ckpt that lacks its validation begins with it. A
    checkpoint that can't be written, e.g. on a full disk, is reported and tried again at the next
    of these points; a run that ends without its last one fails.

    Weights on a GPU are only copied to the host. A thread writes the copy while training goes on,
    and the next save waits for it. A sharded checkpoint (`ModelParallelStrategy`, FSDP) is written
    by Lightning itself, while training waits.

    Lightning calls it after all other callbacks, because it derives from `Checkpoint`. What a
    module does at the end of a batch or a validation, e.g. to a teacher's weights, is saved too,
    and the batch's numbers are logged before.
    """

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Writes the first checkpoint, or runs a validation that the run was stopped in.

        Raises:
            OSError: If the first checkpoint can't be written.
        """
        run, last = self.run, self.run.session.last_checkpoint
        self._saved_s = perf_counter()
        begin(trainer, run)
        if not trainer.strategy.broadcast(last.exists()):
            # An error that prevents writing or reading is found now, not in an hour.
            write(trainer, run, last)
            finish(trainer, run)
            raise_failure(run)
        run.at_end(_act_last(self, trainer))
        catch_up(trainer, run)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Writes last.ckpt if it is time, but not while gradients are accumulated."""
        run = self.run
        if not run.stepped:
            return
        if run.stop_signal or self._is_time(trainer):
            check_finite(trainer, run)
            self._save(trainer, lacks_validation=validation_is_due(trainer))
        if run.stop_signal:
            self._end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Waits for a checkpoint that is being written: its score counts only if it is kept."""
        finish(trainer, self.run)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves and ends a run that is told to stop within a validation."""
        if self.run.stop_signal:
            if not trainer.sanity_checking:
                end_validation(trainer)
                self._save(trainer, lacks_validation=True)
            self._end(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not in_training(trainer):
            return
        share_buffers(trainer)
        run, session = self.run, self.run.session
        run.lacks_validation = False
        # best.ckpt comes first, because last.ckpt names the best score.
        best, last = session.best_checkpoint, session.last_checkpoint
        written = run.improved and write(trainer, run, best, last)
        if run.improved and run.unsaved_best == trainer.global_step:
            # These weights come only now: what fails once, e.g. on a network, is tried again.
            written = write(trainer, run, best, last)
        if not written:
            write(trainer, run, last)
        self._saved_s = perf_counter()
        if trainer.is_global_zero:
            kept = run.improved and run.best is run.newest_best
            saved = f"Model saved to: {best}\n" if kept else ""
            print(f"{saved}\n{rule()}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            settle_best(self.run)
        raise_failure(self.run)

    def on_exception(self, *_: Any) -> None:
        """Waits for a checkpoint that is being written, without the other processes."""
        self.run.writer.shutdown()

    def _save(self, trainer: pl.Trainer, lacks_validation: bool) -> None:
        self.run.lacks_validation = lacks_validation
        write(trainer, self.run, self.run.session.last_checkpoint)
        self._saved_s = perf_counter()

    def _end(self, trainer: pl.Trainer) -> None:
        finish(trainer, self.run)
        end_by_signal(trainer, self.run)

    def _is_time(self, trainer: pl.Trainer) -> bool:
        run, interval_s = self.run, self.run.save_minutes * 60
        unsaved_s = perf_counter() - self._saved_s
        before_last = run.iteration < run.n_iterations
        if trainer.world_size == 1 and before_last and unsaved_s < interval_s / 10:
            return False
        due = validation_is_due(trainer)
        if not before_last and not due:
            return True  # no later point saves the last iteration
        if not due and not run.processes.meeting:
            return False
        (unsaved_s,) = run.processes.highest(unsaved_s)
        return unsaved_s >= (interval_s / 10 if due else interval_s)


class SaveEnd(RunCallback):
    """Saves the end of a run before a project's callbacks act, e.g. average the weights."""

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        run = self.run
        finish(trainer, run)
        if run.saved_iteration < trainer.global_step and not run.save_failure:
            check_finite(trainer, run)
            write(trainer, run, run.session.last_checkpoint)
            finish(trainer, run)


def _act_last(callback: SaveCheckpoints, trainer: pl.Trainer) -> Callable[[], None]:
    """Lets it act after the module's own hooks, and after the numbers of a batch are logged.

    Lightning 2.0 calls a module's hook after those of all callbacks. Returns a function that
    restores the order.
    """
    kind, module, names = type(callback), trainer.lightning_module, _SAVES_IN
    own = module.on_validation_end

    def end_both() -> None:
        own()
        kind.on_validation_end(callback, trainer, module)

    skip_hooks(callback, names)
    vars(module)["on_validation_end"] = end_both
    give_back = call_after_batch(trainer, partial(kind.on_train_batch_end, callback, trainer))

    def restore() -> None:
        call_hooks(callback, names)
        vars(module).pop("on_validation_end", None)
        give_back()

    return restore


_SAVES_IN = ("on_train_batch_end", "on_validation_end")
