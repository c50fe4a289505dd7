"""One iteration without Lightning's closures: the same hooks in the same order, fewer calls.

As in `internals.py`: the private part, the reason, the version; a test fails when it changes.
"""

from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_trainer.internals_of_hooks import CURRENT_HOOK, defines

# Hooks of a module that do nothing.
_EMPTY = {
    getattr(LightningModule, f"on_{name}")
    for name in (
        "train_batch_start", "train_batch_end", "before_zero_grad", "before_backward",
        "after_backward", "before_optimizer_step", "validation_batch_start", "validation_batch_end",
    )
}  # fmt: skip
_TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class DirectHooks:
    """Calls those hooks of the module and of the callbacks that somebody defines.

    Lightning 2.0 looks each one up, opens a profiler's block around it and names it in the module.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.module = trainer, trainer.lightning_module
        self.callbacks: list[Callback] = []
        self.defined: dict[str, list[Callback]] = {}

    def of_module(self, name: str, *args: Any, **options: Any) -> Any:
        """Calls a hook of the module, unless it is the empty one of its base class."""
        module = self.module
        hook = getattr(module, name)
        if getattr(hook, "__func__", None) in _EMPTY or hook is None:
            return None
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], name
        result = hook(*args, **options)
        vars(module)[CURRENT_HOOK] = outer
        return result

    def of_callbacks(self, name: str, *args: Any) -> None:
        """Calls a hook of the callbacks that define it."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if self.callbacks != callbacks:  # a module may add some
            self.callbacks, self.defined = [*callbacks], {}
        defined = self.defined.get(name)
        if defined is None:
            defined = [c for c in self.callbacks if defines(c, Callback, name)]
            self.defined[name] = defined
        if not defined:
            return
        trainer, module = self.trainer, self.module
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], name
        for callback in defined:
            if (hook := getattr(callback, name)) is not None:
                hook(trainer, module, *args)
        vars(module)[CURRENT_HOOK] = outer


class DirectTransfer:
    """Moves a batch to the device; asks the hooks of a transfer only where somebody defines one.

    Lightning 2.0: `_on_before_batch_transfer` and `batch_to_device` look each of them up.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer: Any = trainer
        self.module: Any = trainer.lightning_module
        self.precision: Any = trainer.precision_plugin
        self.strategy = trainer.strategy

    def begin(self) -> None:
        """Looks up what does not change within an epoch or a validation."""
        owners = [(self.module, LightningModule), (self.trainer.datamodule, LightningDataModule)]
        self.moves = not any(
            owner and defines(owner, base, name) for owner, base in owners for name in _TRANSFERS
        )

    def run(self, batch: Any, loader: int) -> Any:
        """The batch of a loader, on the device."""
        batch = self.precision.convert_input(batch)
        if self.moves:
            device = self.strategy.root_device
            if device.type in ("cpu", "cuda") and type(batch) is dict and _is_flat(batch):
                waits = device.type == "cpu"
                return {k: v.to(device, non_blocking=not waits) for k, v in batch.items()}
            return move_data_to_device(batch, device)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=loader)
        return call._call_strategy_hook(
            self.trainer, "batch_to_device", batch, dataloader_idx=loader
        )


def _is_flat(batch: dict[str, Any]) -> bool:
    return all(type(value) is Tensor for value in batch.values())


class DirectUpdate:
    """Runs `training_step`, the backward pass and the optimiser's step of a batch.

    Lightning 2.6: `_AutomaticOptimization.run`, whose counters it uses. Lightning itself takes a
    batch whose gradients are accumulated, and a module that overrides `optimizer_step`.
    """

    def __init__(self, trainer: Trainer, hooks: DirectHooks) -> None:
        self.trainer: Any = trainer
        self.hooks, self.module = hooks, hooks.module
        self.precision: Any = trainer.precision_plugin
        self.scaler = getattr(self.precision, "scaler", None)
        self.strategy: Any = trainer.strategy
        self.automatic: Any = trainer.fit_loop.epoch_loop.automatic_optimization
        self.progress = self.automatic.optim_progress.optimizer

    def begin_epoch(self) -> None:
        """Looks up what does not change within an epoch."""
        self.optimiser = self.trainer.optimizers[0]
        step = self.module.training_step
        self.takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        self.has_clipping = defines(self.module, LightningModule, "clip_gradients")

    def run(self, batch: Any, index: int) -> dict[str, Any]:
        """One iteration; returns what `training_step` returned, with the loss detached."""
        arguments = {"batch": batch, "batch_idx": index} if self.takes_index else {"batch": batch}
        trainer, module, optimiser = self.trainer, self.module, self.optimiser
        output: dict[str, Any] = {}
        steps_itself = defines(module, LightningModule, "optimizer_step")
        if steps_itself or trainer.accumulate_grad_batches > 1:
            output = self.automatic.run(optimiser, index, arguments)
            return output

        def closure() -> Tensor | None:
            nonlocal output
            with torch.enable_grad():
                loss, output = self._loss_of(arguments)
                self._zero_grad(index)
                if loss is not None:
                    self._backward(loss)
            return output.get("loss")

        step = self.progress.step
        step.increment_ready()
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], "optimizer_step"
        if self.scaler:
            self.precision.optimizer_step(optimiser, model=module, closure=closure)
        else:
            optimiser.step(closure=lambda: self._after(closure()))
        vars(module)[CURRENT_HOOK] = outer
        step.increment_completed()
        return output

    def _loss_of(self, arguments: dict[str, Any]) -> tuple[Tensor | None, dict[str, Any]]:
        """The loss of a batch, and what the step returns, with a copy of the loss."""
        module: Any = self.module
        wrapper = self.strategy.model
        training_step = module.training_step if wrapper is module else self._wrapped(wrapper)
        outer, vars(module)[CURRENT_HOOK] = vars(module)[CURRENT_HOOK], "training_step"
        if type(self.precision) is Precision:
            step = training_step(*arguments.values())
        else:
            with self.precision.autocast_context_manager():
                step = training_step(*arguments.values())
        vars(module)[CURRENT_HOOK] = outer
        loss = step.get("loss") if type(step) is dict else None
        if loss is None:
            return _loss_and_output(self._result(step))
        output = {"loss": None, **step}
        output["loss"] = loss.detach().clone()
        return loss, output

    def _wrapped(self, wrapper: Any) -> Any:
        """A wrapper such as DDP's, made to call `training_step` once in place of `forward`.

        Lightning 2.6: `_ForwardRedirection`.
        """
        module: Any = self.module
        forward = module.forward

        def training_step(*args: Any) -> Any:
            vars(module)["forward"] = forward
            return module.training_step(*args)

        vars(module)["forward"] = training_step
        return wrapper

    def _result(self, step: Any) -> ClosureResult:
        if step is None and self.trainer.world_size > 1:
            raise RuntimeError(
                "`training_step` returned None, and the other processes wait for gradients: "
                "return a loss in each process, e.g. one that is multiplied by 0"
            )
        return ClosureResult.from_training_step_output(step)

    def _zero_grad(self, index: int) -> None:
        progress, hooks = self.progress.zero_grad, self.hooks
        progress.increment_ready()
        hooks.of_callbacks("on_before_zero_grad", self.optimiser)
        hooks.of_module("on_before_zero_grad", self.optimiser)
        progress.increment_started()
        epoch = self.trainer.current_epoch
        hooks.of_module("optimizer_zero_grad", epoch, index, self.optimiser)
        progress.increment_completed()

    def _backward(self, loss: Tensor) -> None:
        if self.scaler:
            call._call_strategy_hook(self.trainer, "backward", loss, self.optimiser)
            return
        self.hooks.of_callbacks("on_before_backward", loss)
        self.hooks.of_module("on_before_backward", loss)
        self.hooks.of_module("backward", loss)
        self.hooks.of_callbacks("on_after_backward")
        self.hooks.of_module("on_after_backward")

    def _after(self, loss: Tensor | None) -> Tensor | None:
        """What follows the gradients, within the optimiser's step."""
        trainer, optimiser = self.trainer, self.optimiser
        self.hooks.of_callbacks("on_before_optimizer_step", optimiser)
        self.hooks.of_module("on_before_optimizer_step", optimiser)
        value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        clips_itself = defines(self.module, LightningModule, "configure_gradient_clipping")
        if clips_itself or self.has_clipping or value is not None:
            clip = {"gradient_clip_val": value, "gradient_clip_algorithm": algorithm}
            self.hooks.of_module("configure_gradient_clipping", optimiser, **clip)
        return loss


def _loss_and_output(result: ClosureResult) -> tuple[Tensor | None, dict[str, Any]]:
    """As from Lightning's closure; a step without a loss is told once, as there."""
    loss = result.closure_loss
    if loss is None:
        Closure(lambda: result).closure()  # warns
    return loss, {} if loss is None else result.asdict()
