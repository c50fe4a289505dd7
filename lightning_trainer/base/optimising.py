"""Several optimisers, which a project's `training_step` steps by `BaseModule.optimise`."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_trainer.base.fusing import fuse
from lightning_trainer.base.hook_checks import in_short, refuse_loss, require
from lightning_trainer.base.losses import of_step

_N_WITHOUT_STEP = 100  # batches; a project may add up the gradients of some


def by_name(given: Any) -> dict[str, Any]:
    """Optimisers or schedulers by their keys, of a list by position; one alone has the name ""."""
    if isinstance(given, Mapping):
        return {str(name): each for name, each in given.items()}
    if isinstance(given, list | tuple):
        return {str(i): each for i, each in enumerate(given)}
    return {} if given is None else {"": given}


def step_plateaus(module: Any, score: Tensor) -> None:
    """Steps each `ReduceLROnPlateau` after a validation."""
    for scheduler in by_name(module.scheduler).values():
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(score)


def configure(module: Any, fused: bool) -> Any:
    """Returns the optimisers and schedulers as Lightning takes them.

    Several switch Lightning's manual optimisation on.

    Raises:
        TypeError: If `create_optimiser` has set anything else.
        ValueError: If several optimisers are to add up the gradients of several batches.
    """
    if not isinstance(module.optimiser, Optimizer):
        return _configure_several(module, fused)
    fuse(module, module.optimiser, fused)
    if module.scheduler is None:
        return module.optimiser
    require(module, "create_optimiser", "scheduler", LRScheduler)
    config = {"scheduler": module.scheduler, "interval": "step", "reduce_on_plateau": False}
    return {"optimizer": module.optimiser, "lr_scheduler": config}


def _configure_several(module: Any, fused: bool) -> Any:
    name, trainer = type(module).__name__, module.trainer
    optimisers, schedulers = by_name(module.optimiser), by_name(module.scheduler)
    for attribute, each, kind in (
        ("optimiser", optimisers, Optimizer),
        ("scheduler", schedulers, LRScheduler),
    ):
        wrong = [value for value in each.values() if not isinstance(value, kind)]
        if wrong or not optimisers:
            raise TypeError(
                f"`{name}.create_optimiser` left `self.{attribute}` with "
                f"{in_short(wrong[0]) if wrong else 'nothing'} in it: assign {kind.__name__}s to it"
            )
    if trainer.accumulate_grad_batches > 1:
        raise ValueError(
            f"`trainer.accumulate_grad_batches` is {trainer.accumulate_grad_batches}, but several "
            "optimisers are stepped in each batch: leave it out, and raise `--data.batch_size`"
        )
    module.automatic_optimization = False
    for optimiser in optimisers.values():
        fuse(module, optimiser, fused)
        if trainer.gradient_clip_val:
            optimiser.register_step_pre_hook(lambda each, *_: _clip(module, each))
    return [*optimisers.values()], [*schedulers.values()]


def optimise(module: Any, which: str | int, loss: Tensor) -> None:
    """Does one step of one of the optimisers.

    Processes average the gradients of its weights alone: DDP would wait for those of all weights.
    """
    if not isinstance(loss, Tensor) or loss.ndim:
        refuse_loss(module, loss, "training_step", str(which))
    names = [*by_name(module.optimiser)]
    if str(which) not in names or names == [""]:
        several = ", ".join(names).strip() or "none: set a dict or a list of them"
        raise ValueError(
            f"`optimise` was given {which!r}, but the optimisers that "
            f"`{type(module).__name__}.create_optimiser` sets are {several}"
        )
    optimiser = module.optimizers()
    optimiser = optimiser[names.index(str(which))] if len(names) > 1 else optimiser
    strategy = module.trainer.strategy
    optimiser.zero_grad()
    if isinstance(strategy.model, DistributedDataParallel):
        with strategy.block_backward_sync():
            module.manual_backward(loss)
        average_gradients(optimiser.optimizer)
    else:
        module.manual_backward(loss)
    optimiser.step()


def end_batch(module: Any, outputs: dict[str, Any], stepped: bool) -> dict[str, Any]:
    """Steps the schedulers, and names the losses that `training_step` has returned.

    For a project that has switched manual optimisation on itself it only looks for steps.

    Raises:
        RuntimeError: If no optimiser has stepped in the first batches: the run would never end.
    """
    loop = module.trainer.fit_loop
    if not stepped and not module.global_step and loop.total_batch_idx + 1 >= _N_WITHOUT_STEP:
        raise RuntimeError(
            f"`{type(module).__name__}.training_step` has stepped no optimiser in "
            f"{_N_WITHOUT_STEP} batches, and an iteration is a batch that has: call "
            "`self.optimise(NAME, loss)` in it, or the steps of `self.optimizers()`"
        )
    if "" in by_name(module.optimiser):
        return outputs
    for config in module.trainer.lr_scheduler_configs if stepped else ():
        module.lr_scheduler_step(config.scheduler, None)
    if isinstance(outputs.get("loss"), Tensor):
        return outputs
    output = apply_to_collection(outputs.pop("output", None), Tensor, Tensor.detach)
    losses = of_step(module, outputs or None, "training_step")
    return {**losses, "loss": losses["loss"].detach(), "output": output}


def _clip(module: Any, optimiser: Optimizer) -> None:
    """Lightning refuses to clip where a project steps; gradients are unscaled by now."""
    trainer = module.trainer
    module.configure_gradient_clipping(
        optimiser, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    )


def average_gradients(optimiser: Optimizer) -> None:
    """The mean over all processes; a weight without a gradient in all of them has none."""
    weights = [w for group in optimiser.param_groups for w in group["params"] if w.requires_grad]
    alike: dict[Any, list[Tensor]] = {}
    for weight in weights:
        alike.setdefault(weight.dtype, []).append(weight)
    for dtype, own in alike.items():
        has = torch.tensor([weight.grad is not None for weight in own]).to(own[0].device, dtype)
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in own]
        flat = torch.cat([has, *(part.reshape(-1) for part in parts)]) / dist.get_world_size()
        dist.all_reduce(flat)
        has, *means = flat.split([len(own), *(part.numel() for part in parts)])
        for weight, mean, part, used in zip(own, means, parts, has, strict=True):
            if weight.grad is not None or used:
                weight.grad = part.copy_(mean.view_as(part))
