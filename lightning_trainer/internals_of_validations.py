"""A validation's batches without Lightning's step: the same hooks in the same order, fewer calls.

As in `internals.py`: the private part, the reason, the version; a test fails when it changes.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_trainer.internals_of_hooks import CURRENT_HOOK
from lightning_trainer.internals_of_updates import DirectHooks, DirectTransfer


class DirectValidation:
    """Runs the batches of the validations of a training.

    Lightning 2.6: `_evaluation_step`, which looks up each hook and what it takes, at each batch.
    """

    def __init__(self, trainer: Trainer, hooks: DirectHooks) -> None:
        self.trainer: Any = trainer
        self.hooks, self.module = hooks, hooks.module
        self.loop: Any = trainer.fit_loop.epoch_loop.val_loop
        self.counts = self.loop.batch_progress
        self.transfer = DirectTransfer(trainer)
        self._verified: tuple[int, bool] | None = None  # the number of loaders, and their mode
        self._begins = False

    def install(self) -> Callable[[], None]:
        """Returns a function that gives the loop its own methods back."""
        own = {"_evaluation_step": self.run, "_verify_dataloader_idx_requirement": self._verify}
        vars(self.loop).update(own)

        def restore() -> None:
            for name in own:
                vars(self.loop).pop(name, None)

        return restore

    def _verify(self) -> None:
        """Lightning's look at signatures, which is slow, only for other loaders than before."""
        loop = self.loop
        loaders = loop.num_dataloaders, loop._is_sequential
        if loaders != self._verified:
            type(loop)._verify_dataloader_idx_requirement(loop)
        self._verified, self._begins = loaders, True

    def _begin(self) -> None:
        """Looks up what does not change within a validation, once its first hooks have run."""
        loop, step = self.loop, self.module.validation_step
        self.takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        self.tells_loader = loop._is_sequential and loop.num_dataloaders > 1
        self.transfer.begin()
        self._begins = False

    def run(self, batch: Any, index: int, loader: int, iterator: Any) -> None:
        """One batch of a loader."""
        loop, trainer, counts = self.loop, self.trainer, self.counts
        if iterator is not None:  # `validation_step` fetches its batches itself
            type(loop)._evaluation_step(loop, batch, index, loader, iterator)
            return
        if self._begins:
            self._begin()
        batch = self.transfer.run(batch, loader)
        of_loader = (loader,) if self.tells_loader else ()
        counts.increment_ready()
        connector, results = trainer._logger_connector, loop._results
        connector.on_batch_start(batch, *of_loader)
        self._call("on_validation_batch_start", batch, index, *of_loader)
        counts.increment_started()
        output = self._output(batch, *((index,) if self.takes_index else ()), *of_loader)
        counts.increment_processed()
        self._call("on_validation_batch_end", output, batch, index, *of_loader)
        has_logged = not all(kept.has_reset for kept in results.values())
        if has_logged:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        counts.increment_completed()
        loop._has_run = True
        seen = loop._seen_batches_per_dataloader
        if has_logged:
            connector.update_eval_step_metrics(seen[loader])
        seen[loader] += 1
        if not counts.is_last_batch and trainer.received_sigterm:
            raise SIGTERMException

    def _call(self, name: str, *args: Any) -> None:
        self.hooks.of_callbacks(name, *args)
        self.hooks.of_module(name, *args)

    def _output(self, *args: Any) -> Any:
        module = self.module
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], "validation_step"
        output = self.trainer.strategy.validation_step(*args)
        vars(module)[CURRENT_HOOK] = outer
        return output
