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

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_trainer.internals_of_hooks import CURRENT_HOOK, defines

_TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def why_lightnings(trainer: Trainer) -> str:
    """Why a run needs Lightning's own loop; empty if it does not."""
    strategy, precision = trainer.strategy, trainer.precision_plugin
    loop = trainer.fit_loop.epoch_loop
    if not trainer.lightning_module.automatic_optimization:
        return "the model steps its optimisers itself"
    if len(trainer.optimizers) != 1:
        return f"there are {len(trainer.optimizers)} optimisers"
    if type(strategy) not in (SingleDeviceStrategy, DDPStrategy) or (
        getattr(strategy, "_ddp_comm_state", None)
    ):
        return f"the strategy is {type(strategy).__name__}"
    if type(precision) not in (Precision, MixedPrecision):
        return f"the precision is {type(precision).__name__}"
    if type(trainer.profiler) is not PassThroughProfiler:
        return f"the profiler is {type(trainer.profiler).__name__}"
    if type(trainer.fit_loop._data_fetcher) is not _PrefetchDataFetcher:
        return "`training_step` fetches its batches itself"
    if vars(loop).keys() & {"run", "advance", "on_advance_end"} or call.log.isEnabledFor(
        logging.DEBUG
    ):
        return "something looks into Lightning's loop"
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
        self.strategy, self.precision = trainer.strategy, trainer.precision_plugin
        self.scaler = getattr(self.precision, "scaler", None)
        self.forwards = self.strategy.model is self.module  # no wrapper such as DDP's
        self.counts = self.loop.batch_progress
        self.updates = self.loop.automatic_optimization.optim_progress.optimizer
        self.callbacks: list[Callback] = []
        self.defined: dict[str, list[Callback]] = {}

    def install(self) -> Callable[[], None]:
        """Returns a function that gives the loop its own `run` back."""
        vars(self.loop)["run"] = self.run
        return lambda: vars(self.loop).pop("run", None)

    def run(self, fetcher: Any) -> None:
        loop = self.loop
        loop.reset()
        loop.on_run_start(fetcher)
        fetcher._start_profiler = fetcher._stop_profiler = _nothing
        self._begin_epoch()
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
                if restarts:
                    loop.on_iteration_done()

    def _begin_epoch(self) -> None:
        """Looks up what does not change within an epoch."""
        trainer, module = self.trainer, self.module
        self.optimiser = trainer.optimizers[0]
        self.takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        self.has_plateaus = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        owners = [(module, LightningModule), (trainer.datamodule, LightningDataModule)]
        self.moves = not any(
            owner and defines(owner, base, name) for owner, base in owners for name in _TRANSFERS
        )

    def _is_done(self) -> bool:
        loop = self.loop
        if loop._restarting or self.trainer.should_stop:
            return loop.done
        return (
            -1 < loop.max_steps <= self.updates.step.total.completed
            or self.counts.current.ready == self.trainer.fit_loop.max_batches
            or self.counts.is_last_batch
        )

    def _advance(self, fetcher: Any) -> None:
        loop, trainer, counts = self.loop, self.trainer, self.counts
        total, current, index = counts.total, counts.current, counts.current.ready
        if loop.val_loop._restarting:
            loop.val_loop.restarting = False
        batch, *place = next(fetcher)
        if batch is None:
            loop.advance(_Again(fetcher, (batch, *place)))
            return
        counts.is_last_batch = fetcher.done
        batch = self._to_device(batch)
        total.ready += 1
        current.ready += 1
        connector, results = trainer._logger_connector, loop._results
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        self._call_callbacks("on_train_batch_start", batch, index)
        skips = self._call_module("on_train_batch_start", batch, index) == -1
        if skips:
            counts.is_last_batch = True
        else:
            total.started += 1
            current.started += 1
            output = self._update(batch, index)
        total.processed += 1
        current.processed += 1
        if trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if loop._num_ready_batches_reached():
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skips:
            raise StopIteration
        self._call_callbacks("on_train_batch_end", output, batch, index)
        self._call_module("on_train_batch_end", output, batch, index)
        if results:
            connector.on_batch_end()
        results.batch = None
        total.completed += 1
        current.completed += 1
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

    def _to_device(self, batch: Any) -> Any:
        batch = self.precision.convert_input(batch)
        if self.moves:
            return move_data_to_device(batch, self.strategy.root_device)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return call._call_strategy_hook(self.trainer, "batch_to_device", batch, dataloader_idx=0)

    def _update(self, batch: Any, index: int) -> dict[str, Any]:
        """One iteration; returns what `training_step` returned, with the loss detached."""
        arguments = {"batch": batch, "batch_idx": index} if self.takes_index else {"batch": batch}
        trainer, module, optimiser = self.trainer, self.module, self.optimiser
        automatic = self.loop.automatic_optimization
        if trainer.accumulate_grad_batches > 1 or defines(module, LightningModule, "optimizer_step"):
            return automatic.run(optimiser, index, arguments)
        output: dict[str, Any] = {}

        def closure() -> Tensor | None:
            nonlocal output
            with torch.enable_grad():
                loss, output = self._loss_of(arguments)
                self._zero_grad(index)
                if loss is not None:
                    self._backward(loss)
            return output.get("loss")

        step = self.updates.step
        step.total.ready += 1
        step.current.ready += 1
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], "optimizer_step"
        if self.scaler:
            self.precision.optimizer_step(optimiser, model=module, closure=closure)
        else:
            optimiser.step(closure=lambda: self._after(closure()))
        vars(module)[CURRENT_HOOK] = outer
        step.total.completed += 1
        step.current.completed += 1
        return output

    def _loss_of(self, arguments: dict[str, Any]) -> tuple[Tensor | None, dict[str, Any]]:
        """The loss of a batch, and what the step returns, with a copy of the loss."""
        if not self.forwards:
            return _loss_and_output(self.loop.automatic_optimization._training_step(arguments))
        module = self.module
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], "training_step"
        if type(self.precision) is Precision:
            step = module.training_step(*arguments.values())
        else:
            with self.precision.autocast_context_manager():
                step = module.training_step(*arguments.values())
        vars(module)[CURRENT_HOOK] = outer
        loss = step.get("loss") if type(step) is dict else None
        if loss is None:
            return _loss_and_output(ClosureResult.from_training_step_output(step))
        output = {"loss": None, **step}
        output["loss"] = loss.detach().clone()
        return loss, output

    def _zero_grad(self, index: int) -> None:
        total, current = self.updates.zero_grad.total, self.updates.zero_grad.current
        total.ready += 1
        current.ready += 1
        self._call_callbacks("on_before_zero_grad", self.optimiser)
        self._call_module("on_before_zero_grad", self.optimiser)
        total.started += 1
        current.started += 1
        epoch = self.trainer.current_epoch
        self._call_module("optimizer_zero_grad", epoch, index, self.optimiser)
        total.completed += 1
        current.completed += 1

    def _backward(self, loss: Tensor) -> None:
        if self.scaler:
            call._call_strategy_hook(self.trainer, "backward", loss, self.optimiser)
            return
        self._call_callbacks("on_before_backward", loss)
        self._call_module("on_before_backward", loss)
        self._call_module("backward", loss)
        self._call_callbacks("on_after_backward")
        self._call_module("on_after_backward")

    def _after(self, loss: Tensor | None) -> Tensor | None:
        """What follows the gradients, within the optimiser's step."""
        trainer, optimiser = self.trainer, self.optimiser
        self._call_callbacks("on_before_optimizer_step", optimiser)
        self._call_module("on_before_optimizer_step", optimiser)
        value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        if value is not None or defines(self.module, LightningModule, "configure_gradient_clipping"):
            clip = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
            self._call_module("configure_gradient_clipping", optimiser, **clip)
        return loss

    def _call_module(self, name: str, *args: Any, **options: Any) -> Any:
        """Calls a hook of the module, unless it is the empty one of its base class."""
        module = self.module
        hook = getattr(module, name)
        if getattr(hook, "__func__", None) in _EMPTY or hook is None:
            return None
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], name
        result = hook(*args, **options)
        vars(module)[CURRENT_HOOK] = outer
        return result

    def _call_callbacks(self, name: str, *args: Any) -> None:
        """Calls a hook of the callbacks that define it."""
        trainer, module = self.trainer, self.module
        if self.callbacks != trainer.callbacks:  # a module may add some
            self.callbacks, self.defined = list(trainer.callbacks), {}
        if name not in self.defined:
            defining = [c for c in self.callbacks if defines(c, Callback, name)]
            self.defined[name] = defining
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], name
        for callback in self.defined[name]:
            if (hook := getattr(callback, name)) is not None:
                hook(trainer, module, *args)
        vars(module)[CURRENT_HOOK] = outer


# Hooks of a module that do nothing.
_EMPTY = {
    getattr(LightningModule, f"on_{name}")
    for name in (
        "train_batch_start", "train_batch_end", "before_zero_grad", "before_backward",
        "after_backward", "before_optimizer_step",
    )
}  # fmt: skip


def _loss_and_output(result: ClosureResult) -> tuple[Tensor | None, dict[str, Any]]:
    """As from Lightning's closure; a step without a loss is told once, as there."""
    loss = result.closure_loss
    if loss is None:
        Closure(lambda: result).closure()  # warns
    return loss, {} if loss is None else result.asdict()


class _Again:
    """A fetcher whose newest batch is asked for once more."""

    def __init__(self, fetcher: Any, item: tuple[Any, ...]) -> None:
        self.done, self.item = fetcher.done, item

    def __next__(self) -> tuple[Any, ...]:
        return self.item


def _nothing() -> None:
    """Measures no fetch."""
