"""A training loop in place of Lightning's inner one: the same hooks in the same order, fewer calls.

As in `internals.py`: the private part, the reason, the version; a test fails when it changes.

Lightning 2.6: `_TrainingEpochLoop.run` makes some 700 calls a batch: it looks each hook up, looks
for who overrides it, opens a profiler's block around it, and builds objects for each closure. Here
the hooks that nobody defines are left out, and the counters are counted directly.

    for each batch: fetch -> convert_input -> on_before_batch_transfer ... on_after_batch_transfer
                    on_train_batch_start (callbacks, module)
                    optimizer_step: training_step
                                    on_before_zero_grad -> optimizer_zero_grad
                                    on_before_backward -> backward -> on_after_backward
                                    on_before_optimizer_step -> configure_gradient_clipping
                    lr_scheduler_step -> on_train_batch_end (callbacks, module) -> validation
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer import call

from lightning_trainer.internals_of_updates import DirectHooks, DirectTransfer, DirectUpdate
from lightning_trainer.internals_of_validations import DirectValidation


def why_lightnings(trainer: Trainer) -> str:
    """Why a run needs Lightning's own loop; empty if it does not."""
    strategy, precision = trainer.strategy, trainer.precision_plugin
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]
    if not trainer.lightning_module.automatic_optimization:
        return "the model steps its optimisers itself"
    if len(trainer.optimizers) != 1:
        return f"there are {len(trainer.optimizers)} optimisers"
    if type(strategy) not in (SingleDeviceStrategy, DDPStrategy):
        return f"the strategy is {type(strategy).__name__}"
    if getattr(strategy, "_ddp_comm_state", None):
        return "gradients are communicated by a hook"
    if type(precision) not in (Precision, MixedPrecision):
        return f"the precision is {type(precision).__name__}"
    if type(profiler) is not PassThroughProfiler:
        return f"the profiler is {type(profiler).__name__}"
    if type(trainer.fit_loop._data_fetcher) is not _PrefetchDataFetcher:
        return "`training_step` fetches its batches itself"
    if call.log.isEnabledFor(logging.DEBUG):
        return "Lightning's logger tells of each hook"
    return ""


class DirectLoop:
    """Runs the batches of an epoch; `why_lightnings` says of which runs.

    `install` puts it in the place of the loop's own `run`, whose counters, results and validations
    it uses. Lightning itself takes a batch after a restart, one whose gradients are accumulated,
    and the update of a module that overrides `optimizer_step`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer: Any = trainer
        self.loop: Any = trainer.fit_loop.epoch_loop
        self.module: Any = trainer.lightning_module
        self.counts = self.loop.batch_progress
        self.hooks = DirectHooks(trainer)
        self.transfer = DirectTransfer(trainer)
        self.update = DirectUpdate(trainer, self.hooks)

    def install(self) -> Callable[[], None]:
        """Returns a function that gives the loop its own `run` back, and its validations theirs."""
        vars(self.loop)["run"] = self.run
        give_back = DirectValidation(self.trainer, self.hooks).install()

        def restore() -> None:
            vars(self.loop).pop("run", None)
            give_back()

        return restore

    def run(self, fetcher: Any) -> None:
        loop = self.loop
        loop.reset()
        loop.on_run_start(fetcher)
        fetcher._start_profiler = fetcher._stop_profiler = _nothing
        self._begin_epoch()
        is_first = True
        while not self._is_done():
            restarts = loop._restarting
            try:
                if restarts:
                    loop.advance(fetcher)
                else:
                    self._advance(fetcher)
                self._end_advance(fetcher)
            except StopIteration:
                break
            finally:
                if restarts or is_first:  # where a restart came in is over
                    loop.on_iteration_done()
                    is_first = False

    def _begin_epoch(self) -> None:
        """Looks up what does not change within an epoch."""
        self.update.begin_epoch()
        self.transfer.begin()
        configs = self.trainer.lr_scheduler_configs
        self.has_plateaus = any(config.reduce_on_plateau for config in configs)

    def _is_done(self) -> bool:
        loop = self.loop
        if loop._restarting or self.trainer.should_stop:
            return bool(loop.done)
        return bool(
            -1 < loop.max_steps <= self.update.progress.step.total.completed
            or self.counts.current.ready == self.trainer.fit_loop.max_batches
            or self.counts.is_last_batch
        )

    def _advance(self, fetcher: Any) -> None:
        loop, trainer, counts = self.loop, self.trainer, self.counts
        index = counts.current.ready
        if loop.val_loop._restarting:
            loop.val_loop.restarting = False
        batch, *place = next(fetcher)
        if batch is None:
            loop.advance(_Again(fetcher, (batch, *place)))
            return
        counts.is_last_batch = fetcher.done
        batch = self.transfer.run(batch, 0)
        counts.increment_ready()
        connector, results = trainer._logger_connector, loop._results
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        self.hooks.of_callbacks("on_train_batch_start", batch, index)
        skips = self.hooks.of_module("on_train_batch_start", batch, index) == -1
        if skips:
            counts.is_last_batch = True
        else:
            counts.increment_started()
            output = self.update.run(batch, index)
        counts.increment_processed()
        if trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if loop._num_ready_batches_reached():
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skips:
            raise StopIteration
        self.hooks.of_callbacks("on_train_batch_end", output, batch, index)
        self.hooks.of_module("on_train_batch_end", output, batch, index)
        if results:
            connector.on_batch_end()
        results.batch = None
        counts.increment_completed()
        connector.update_train_step_metrics()

    def _end_advance(self, fetcher: Any) -> None:
        """Validates if that is due; Lightning finds out where that is not plain."""
        loop, trainer = self.loop, self.trainer
        if (
            loop._restarting
            or self.counts.is_last_batch
            or trainer.val_check_batch != sys.maxsize
            or trainer.should_stop
            or self.has_plateaus
            or trainer.received_sigterm
            or trainer.accumulate_grad_batches > 1
        ):
            loop.on_advance_end(fetcher)
        else:
            loop._batches_that_stepped += 1


class _Again:
    """A fetcher whose newest batch is asked for once more."""

    def __init__(self, fetcher: Any, item: tuple[Any, ...]) -> None:
        self.done, self.item = fetcher.done, item

    def __next__(self) -> tuple[Any, ...]:
        return self.item


def _nothing() -> None:
    """Measures no fetch."""
