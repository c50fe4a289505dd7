"""Fused optimisers: one kernel for all weights where torch has it, instead of several for each."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_trainer.internals import let_step_unscale

_FUSED_ON_CUDA = (Adam, AdamW, SGD)


def fuse(module: pl.LightningModule, optimiser: Optimizer, allowed: bool) -> None:
    """Makes an optimiser fused, if its settings leave that open and all of it is on CUDA.

    A state that was saved otherwise stays as it was: a run that goes on is then exact, and one
    that was fused on a GPU goes on without on a CPU. An optimiser is fused as a whole or not at
    all, as a GradScaler knows only these two.
    """
    is_scaled = _is_scaled(module)
    if not is_scaled:  # else Lightning refuses to clip, also where the project has fused it
        let_step_unscale(optimiser, False)
    groups = optimiser.param_groups
    is_open = all(group.get(key) is None for group in groups for key in ("fused", "foreach"))
    if type(optimiser) not in _FUSED_ON_CUDA or not is_open:
        return
    fused = allowed and _is_possible(module, groups)

    def load(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        # torch takes `fused` from the state, and then moves the counts of steps to the GPU.
        both = fused and all(group.get("fused") for group in state["param_groups"])
        let_step_unscale(optimiser, both and is_scaled)
        own = {"fused": both or None}
        return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}

    optimiser.register_load_state_dict_pre_hook(load)
    if fused:
        let_step_unscale(optimiser, is_scaled)
        for group in groups:
            group["fused"] = True


def is_fused(optimiser: Optimizer) -> bool:
    """Whether each group is, by this module or by the project."""
    return all(group.get("fused") for group in optimiser.param_groups)


def is_on_cuda(weight: Tensor) -> bool:
    """Whether a fused step pays here; torch has one for the CPU, which is not used."""
    return weight.is_cuda


def _is_possible(module: pl.LightningModule, groups: list[dict[str, Any]]) -> bool:
    weights = [weight for group in groups for weight in group["params"]]
    # A sharded weight is of another type.
    are_plain = all(type(w) in (Tensor, nn.Parameter) and w.is_floating_point() for w in weights)
    excluded = any(group.get(key) for group in groups for key in ("capturable", "differentiable"))
    sparse = any(getattr(layer, "sparse", False) for layer in module.modules())
    if not (are_plain and all(map(is_on_cuda, weights))) or excluded or sparse:
        return False
    return not (_is_scaled(module) and _gradients_are_read(module))


def _is_scaled(module: pl.LightningModule) -> bool:
    return getattr(module.trainer.precision_plugin, "scaler", None) is not None


def _gradients_are_read(module: pl.LightningModule) -> bool:
    """Whether anything reads or clips gradients, which with 16-mixed a fused step only unscales."""
    trainer: Any = module.trainer
    hooks = ("on_before_optimizer_step", "configure_gradient_clipping")
    return (
        bool(trainer.gradient_clip_val)
        or not module.automatic_optimization
        or any(is_overridden(hook, module, pl.LightningModule) for hook in hooks)
        or any(is_overridden(hooks[0], callback, Callback) for callback in trainer.callbacks)
    )
